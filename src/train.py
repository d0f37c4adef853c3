"""Train what is missing of one run and score it: first stage, latents, denoiser, samples, scores, page.

    python src/train.py                                        the default: shapes, a small KL f=4, class labels
    python src/train.py ae=kl_f8 ldm=unet_base data=folder data.root=/pictures data.resolution=256
    python src/train.py … dry_run=true                         the plan: what is done, what would run, what it costs
    python src/train.py … until=autoencoder                    stop after a stage
    python src/train.py … check=device                         does anything wait for the GPU? (no GPU needed); check=determinism
    python src/train.py -m sweeps=compression                  a study: several runs, shared stages made once

The same command finds what it made before, resumes what was interrupted and overwrites nothing.
"""

from ldmlab.cli import command
from ldmlab.config.compose import Composed


def train(composed: Composed, words: str) -> None:
    from ldmlab.pipeline.run import execute
    from ldmlab.reports.publish import headline, make_page, on_main

    if composed.cfg.check is not None:
        from ldmlab.pipeline.checks import check

        return check(composed)

    folder = execute(composed, words)
    if folder is not None and on_main():
        print(headline(folder))
        if composed.cfg.until == "report":
            print(f"   {'page':<24}{make_page(folder)}")


if __name__ == "__main__":
    command(train, ranks=True)
