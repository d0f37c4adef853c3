"""Measure speed and memory. Prints a table; with out=<file> each row is appended to it as a JSON line.

    python src/bench.py                                        the default composition: encode, decode, training steps, sampling
    python src/bench.py ae=kl_f8 ldm=unet_base data.resolution=256 bench.batch_size=1
    python src/bench.py compare=unet                           our UNet beside diffusers' equal network (bench.shapes, bench.variants)
    python src/bench.py compare=attention                      fused attention beside two products, over dtypes and head sizes
    python src/bench.py compare=convolution                    3×3 convolutions and linear maps of few positions, each in two ways
    python src/bench.py compare=kv_cache                       guided steps with the condition's keys kept, beside reading it each time
    python src/bench.py compare=codebook ae=vq_f8 data.resolution=256        block look-up beside the whole distance matrix
    python src/bench.py compare=autoencoder ae=kl_f8 data.resolution=256     memory of a training step beside the official training step
    python src/bench.py compare=family bench.family=[kl_f4,kl_f8] ae.network.width=32 data.resolution=64
    python src/bench.py compare=first_stage bench.family=[kl_f4_small,kl_f4_quick] bench.seconds=60 data.resolution=64    PSNR over seconds
    python src/bench.py compare=compression data.resolution=256 cond=class_label ldm.network.width=64      time beside FLOPs, f = 1 … 32
    python src/bench.py compare=fair ldm=unet_study data.resolution=64     the cells of a compression study in all modes of fair=

    python src/bench.py compare=paper        the rows of the paper's tables: operations, days on an H200
    python src/bench.py compare=tiles ae=kl_f4 ae.weights=… data=folder data.root=… data.resolution=1024      error and memory of tiles
    python src/bench.py compare=large experiment=large_semantic size=512x1024      a step on a large picture

One thread unless runtime.threads says otherwise, so that times are CPU seconds, which other programs hardly disturb.
bench.rounds repetitions of each contender take turns; a ratio is the median of the rounds' ratios.
"""

from ldmlab.cli import command
from ldmlab.config.compose import Composed


def bench(composed: Composed, words: str) -> None:
    from ldmlab.bench.command import run

    run(composed.cfg, words)


if __name__ == "__main__":
    command(bench, defaults=["runtime.threads=1"])
