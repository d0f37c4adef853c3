"""Draw images from a trained run: a sheet, one PNG each, and the seeds.

    python src/sample.py ae=kl_f8 ldm=unet_base n=64 cond.label=3 sampler.steps=50 sampler.guidance=2
    python src/sample.py experiment=task_text prompt="a large red star on a navy background"

Say the same words as for training. `n` images; cond.label is a number or a class name; `out` a folder for the pictures. What else
can be asked (docs/guide/sampling.md), each word read as it is typed:

    prompt=… prompts=file   texts                        image=photo.png strength=0.6   begin from a picture
    layout=boxes.json       boxes and classes            seeds=1,2                      of the images themselves
    semantic=map.png        a class for each pixel       variations=0.5 seeds=1         of one sample
    depth=depth.png         black near, white far        interpolate=seeds seeds=1,2    from one to the other
    image=low.png           to enlarge                   interpolate=conditions prompt=… prompt=…
    image=… mask=…          white is to be filled
"""

from pathlib import Path

from ldmlab.cli import Change, command
from ldmlab.conditioning.asked import Asked, taken
from ldmlab.config.compose import Composed, ComposedAndAsked, with_values
from ldmlab.errors import ConfigError


def only_samples(composed: Composed, asked: Asked | None = None, n: int | None = None) -> Composed:
    """`n` images of this run, of what was asked, and no scores."""
    asked = asked or Asked()
    count = asked.images(n) if asked.anything else composed.cfg.n
    small = Composed(with_values(composed.cfg, {"until": "samples", "eval.samples": count}), composed.choices)
    return ComposedAndAsked.of(small, asked)


def own_words(words: list[str]) -> tuple[Change, list[str]]:
    """What the script makes of a composition, and the words that Hydra reads."""
    asked, rest = taken(words)
    typed = any(word.startswith("n=") for word in rest)
    return lambda composed: only_samples(composed, asked, composed.cfg.n if typed else None), rest


def sample(composed: Composed, words: str) -> None:
    from ldmlab.pipeline.run import execute
    from ldmlab.reports.publish import export_samples, on_main

    out = Path(composed.cfg.out) if composed.cfg.out else None
    if out is not None and any(place.is_file() for place in (out, *out.parents)):
        raise ConfigError(f"out={out} is a file, or lies in one, and pictures need a folder. Name another.")
    folder = execute(composed, words, may_train=False)
    if folder is not None and on_main():
        print(export_samples(folder, out))


if __name__ == "__main__":
    command(sample, defaults=["eval.at=[1.0]"], ranks=True, own=own_words)
