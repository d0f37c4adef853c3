"""Draw images from a trained run: a sheet, one PNG each, and the seeds.

    python src/sample.py ae=kl_f8 ldm=unet_base n=64 cond.label=3 sampler.steps=50 sampler.guidance=2

Say the same words as for training. `n` images; cond.label is a number or a class name; `out` a folder for the pictures.
"""

from pathlib import Path

from ldmlab.cli import command
from ldmlab.config.compose import Composed, with_values


def only_samples(composed: Composed) -> Composed:
    """`n` images of this run, and no scores."""
    values = {"until": "samples", "eval.samples": composed.cfg.n}
    return Composed(with_values(composed.cfg, values), composed.choices)


def sample(composed: Composed, words: str) -> None:
    from ldmlab.pipeline.run import execute
    from ldmlab.reports.publish import export_samples, on_main

    folder = execute(composed, words, may_train=False)
    if folder is not None and on_main():
        out = Path(composed.cfg.out) if composed.cfg.out else None
        print(export_samples(folder, out))


if __name__ == "__main__":
    command(sample, defaults=["eval.at=[1.0]"], ranks=True, change=only_samples)
