"""The floor of the denoising loss: what the best linear denoiser of the training latents reaches, for the plot of a run's loss
and a warning about a training that ends above it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.linear_path import Moments
from ldmlab.diffusion.linear_gaussian import Directions, Stationary, Whole, loss_floor, over_training
from ldmlab.diffusion.objectives import Objective
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.latents import posteriors
from ldmlab.pipeline.sheets import spread
from ldmlab.store.files import write_json
from ldmlab.training.diffusion_loss import BINS

FILE = "floor.json"
LARGEST = 4096  # numbers of a latent whose full covariance is taken: half a minute for its directions
PER_NUMBER = 10  # latents for each of its numbers that a full covariance needs: from fewer, its small variances come out too small
FEWEST, PER_CHANNEL = 2048, 100  # latents behind a spectrum
ABOVE = 1.05  # times the floor, where a training must not end
BRIEF = 200  # steps of a training that nobody expects to be below it


def write_floor(ctx: Context, folder: Path, data: Any, ae: Autoencoder, objective: Objective) -> None:
    """floor.json: `loss`, and `loss_t0` … of the quarters of the distribution of t, as the log of training has them; the
    `directions` they were computed with, from how many latents. Found again after a restart.

    `data`: what the denoiser learns from. The floor knows no condition: a denoiser that has one may fall below it by that alone.
    """
    if ctx.main and not (folder / FILE).exists():
        directions, images = directions_of(data, ae, ctx)
        loss, parts = over_training(loss_floor(directions, objective), objective, BINS)
        quarters = {f"loss_t{i}": value for i, value in enumerate(parts)}
        write_json(folder / FILE, {"loss": loss, **quarters, "directions": directions.words, "images": images})


def floor_check(folder: Path, steps: int) -> Callable[[dict[str, float], float], list[str]]:
    """A health check (`training.loop.Events`) of a training of so many steps: at its end the loss is compared with floor.json."""

    def check(row: dict[str, float], share: float) -> list[str]:
        if share < 1 or steps < BRIEF or not (folder / FILE).exists():
            return []
        floor = json.loads((folder / FILE).read_text(encoding="utf-8"))["loss"]
        if row["loss"] <= ABOVE * floor:
            return []
        return [
            f"the loss ends at {row['loss']:.3g}, above the {floor:.3g} of the best linear denoiser of these latents, so the network knows "
            "less than their mean and covariance. Lower ldm.fit.lr where the loss stood still (tune=lr compares rates), else train longer: "
            "ldm.fit.images."
        ]

    return check


@torch.no_grad()
def directions_of(data: Any, ae: Autoencoder, ctx: Context) -> tuple[Directions, int]:
    """Of the full covariance where the latent is small and the latents many, else of a stationary one; and from how many images."""
    shape = ae.latent_shape(ctx.data.resolution)
    D, mirrors = shape[0] * shape[1] * shape[2], 2 if ctx.data.flip else 1
    whole = D <= LARGEST and len(data) * mirrors >= PER_NUMBER * D
    wanted = PER_NUMBER * D if whole else PER_CHANNEL * shape[0]
    rows = spread(len(data), max(FEWEST, -(-wanted // mirrors)))
    moments, noise_D, waves = Moments(D if whole else 0), torch.zeros(D, dtype=torch.float64), Stationary(shape)
    for found in (each for group in posteriors(data, ae, rows, ctx.device) for each in group):
        if not whole:
            waves.update(found.mean_BCHW, found.variance_BCHW)
            continue
        moments.update(found.mean_BCHW.flatten(1).cpu())
        if found.variance_BCHW is not None:
            noise_D += found.variance_BCHW.double().flatten(1).sum(0).cpu()
    return (Whole(moments, shape, noise_D / moments.count) if whole else waves.finish()), len(rows) * mirrors
