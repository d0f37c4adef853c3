"""Score a trained run under any protocol; nothing is retrained.

    python src/score.py ae=kl_f8 ldm=unet_base sampler.steps=50 eval.samples=5000
    python src/score.py … sampler.guidance=1.5 eval.label_mode=random
    python src/score.py … calibrate=true          also: what does each metric answer to? (short for stage=calibration)

Say the same words as for training, and change what belongs to the protocol: sampler.*, eval.*.
"""

import sys

from ldmlab.cli import command
from ldmlab.config.compose import Composed


def score(composed: Composed, words: str) -> None:
    from ldmlab.pipeline.run import execute
    from ldmlab.reports.publish import headline, make_page, on_main

    folder = execute(composed, words, may_train=False)
    if folder is not None and on_main():
        print(f"{headline(folder)}\n   {'page':<24}{make_page(folder)}")


if __name__ == "__main__":
    sys.argv = ["stage=calibration" if word == "calibrate=true" else word for word in sys.argv]
    command(score, ranks=True)
