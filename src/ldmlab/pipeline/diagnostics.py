"""Diagnostics of a first stage's latent (`metrics.latent_diagnostics`), beside those of trivial latents of the same shape:

python src/train.py stage=diagnostics until=autoencoder ae=kl_f4_quick
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ldmlab.autoencoders.linear_path import LinearPath
from ldmlab.data.base import channels_of
from ldmlab.data.batches import to_float, to_uint8
from ldmlab.data.parcel import on_device
from ldmlab.diffusion.linear_gaussian import Stationary
from ldmlab.errors import TrainingError
from ldmlab.metrics.extraction import Original
from ldmlab.metrics.intervals import Score
from ldmlab.metrics.latent_diagnostics import NEIGHBOURS, Latents, chance, diagnose, overall_std, standardised
from ldmlab.metrics.latents import noised
from ldmlab.metrics.reconstruction_pass import batched
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.decoder import decoding, load_decoding
from ldmlab.pipeline.first_stage import training_images
from ldmlab.pipeline.linear_baseline import FIT_IMAGES
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.sheets import spread
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.randomness import ImageNoise, generator, seed_of
from ldmlab.ranges import Given, Range
from ldmlab.store.files import write_json
from ldmlab.terminal import number

FILE = "diagnostics.json"
HEADS = {
    "velocity": "velocity unexplained", "high_frequency": "high frequencies", "smoothness": "smoothness",
    "neighbours": "neighbours of its label", "noise_psnr": "PSNR under noise (dB)",
}  # fmt: skip
Code = Callable[[Tensor], Tensor]


class Diagnostics(Stage):
    """diagnostics.json: each diagnostic with its interval, of this latent, of principal components, of white noise; report.json.

    images      of val, at most: what is measured
    fit_images  of training, at most: the spectrum that the velocity's denoiser knows
    sigma       of the noise that is decoded, in standard deviations of the latent
    """

    name: ClassVar[str] = "diagnostics"
    version: ClassVar[int] = 2
    due: ClassVar[str | None] = "autoencoder"

    def __init__(
        self,
        plan: Annotated[Plan, Given],
        images: Annotated[int, Range(at_least=20, at_most=1_000_000)] = 1000,
        fit_images: Annotated[int, Range(at_least=20, at_most=1_000_000)] = 2048,
        sigma: Annotated[float, Range(above=0, at_most=100)] = 0.3,
    ):
        super().__init__(plan)
        self.images, self.fit_images = min(images, len(plan.resolved.val)), min(fit_images, len(plan.resolved.data))
        self.sigma = sigma

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["ae"]

    def own(self) -> dict[str, Any]:
        return {
            "images": self.images, "fit_images": self.fit_images, "sigma": self.sigma, "bootstrap": self.cfg.eval.bootstrap,
            "seed": self.cfg.eval.seed, "tile": self.cfg.ae.tile,
        }  # fmt: skip

    def upstream(self) -> dict[str, Stage | str]:
        return {**decoding(self.plan), "data": self.plan.stage(DataStage)}

    def row(self) -> Row:
        costs, images = self.plan.resolved.costs, self.images + self.fit_images
        return Row(
            f"{number(self.images)} val latents · velocity, spectrum, smoothness, neighbours", images, costs.encode
        )

    def work(self, ctx: Context, folder: Path) -> None:
        ae, resolved = load_decoding(self.plan, ctx), self.plan.resolved  # on all ranks
        if not ctx.main:
            return
        rows, shape = spread(len(ctx.val), self.images), resolved.latent_shape
        labelled = "label" in ctx.val.fields and len(ctx.val.class_names) > 1
        label_N = np.asarray(ctx.val.labels())[rows] if labelled else None
        kinds = {"latent": self._latents(ctx, rows, ae.encode, ae.decode)}
        if (linear := self._linear(ctx, ae.f, ae.c)) is not None:
            kinds["pca"] = self._latents(ctx, rows, *linear)
        kinds["white"] = self._white(shape)
        bootstrap, seed = ctx.cfg.eval.bootstrap, ctx.cfg.eval.seed
        scores = {  # the neighbours of white noise are chance, which is said exactly
            kind: diagnose(found, None if kind == "white" else label_N, bootstrap, seed)
            for kind, found in kinds.items()
        }
        found = {kind: {name: score.to_dict() for name, score in of.items()} for kind, of in scores.items()}
        by_chance = None if label_N is None else chance(label_N)
        facts = {
            "f": ae.f, "c": ae.c, "latent_shape": list(shape), "images": self.images, "fit_images": self.fit_images,
            "sigma": self.sigma, "chance": by_chance,
        }  # fmt: skip
        write_json(folder / FILE, {**facts, "scores": found})
        write_json(folder / "report.json", self._section(scores, by_chance))

    @torch.no_grad()
    def _latents(self, ctx: Context, rows: list[int], encode: Code, decode: Code) -> Latents:
        """Training latents make the directions and the scale; val latents are measured, and decoded with noise."""
        fitted = torch.cat([encode(image_BCHW).cpu() for image_BCHW in training_images(ctx, self.fit_images)])
        std, read = overall_std(fitted), Original(ctx.val, rows)
        latents, psnr = [], []
        for part in batched(len(rows), ctx.cfg.eval.batch_size):
            image_BCHW = to_float(on_device(read(part), ctx.device))
            z_BCHW, image8_BCHW = encode(image_BCHW), to_uint8(image_BCHW).permute(0, 3, 1, 2)
            noise = ImageNoise([seed_of("noised latent", i) for i in part], z_BCHW.shape[1:], ctx.device)
            latents.append(z_BCHW.cpu())
            psnr.append(noised(decode, z_BCHW, image8_BCHW, noise(), std, (self.sigma,)).additive_SN[0])
        return Latents(
            _spectrum(standardised(fitted, std)), standardised(torch.cat(latents), std), np.concatenate(psnr)
        )

    def _linear(self, ctx: Context, f: int, c: int) -> tuple[Code, Code] | None:
        """Encoder and decoder of principal components with the same f and c; None where those hold the whole patch, or the
        training patches are too few.
        """
        channels = channels_of(ctx.data)
        if c >= channels * f * f:
            return None
        path = LinearPath(f, c, image_channels=channels).to(ctx.device)
        try:
            path.fit(training_images(ctx, FIT_IMAGES))
        except TrainingError:
            return None
        return path.encode, lambda z_BCHW: torch.nn.functional.pixel_shuffle(path.decode(z_BCHW), f)

    def _white(self, shape: tuple[int, int, int]) -> Latents:
        """As many latents of independent normal numbers."""
        fitted, measured = (
            torch.randn(n, *shape, generator=generator("white latent", name), dtype=torch.float64)
            for n, name in ((self.fit_images, "fit"), (self.images, "measured"))
        )
        return Latents(_spectrum(fitted), measured, None)

    def _section(self, scores: dict[str, dict[str, Score]], by_chance: float | None) -> dict[str, Any]:
        """For the run's page."""

        def said(kind: str, name: str) -> str | None:
            if name == "neighbours" and kind == "white" and by_chance is not None:
                return f"{by_chance:.3f} (chance)"
            score = scores.get(kind, {}).get(name)
            digits = 2 if name == "noise_psnr" else 3
            return (
                None if score is None else f"{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]"
            )

        rows = [[head, *(said(kind, name) for kind in ("latent", "pca", "white"))] for name, head in HEADS.items()]
        return {
            "title": "Diagnostics of the latent",
            "text": (
                f"Of {self.images} val latents (posterior means), 95 % intervals over images. Velocity: share of the variance of "
                "eps - z0 that the best linear filter leaves unexplained, its spectrum from "
                f"{self.fit_images} training latents; white noise has π/4 = {math.pi / 4:.3f}. Neighbours: the nearest "
                f"{NEIGHBOURS} of the others. Noise: {self.sigma:g} standard deviations of the latent."
            ),
            "table": {"columns": ["diagnostic", "this latent", "principal components", "white noise"], "rows": rows},
        }


def _spectrum(z_NCHW: Tensor) -> Stationary:
    """One estimator for every f: the full covariance of a large latent would need more images than there are."""
    waves = Stationary((z_NCHW.shape[1], z_NCHW.shape[2], z_NCHW.shape[3]))
    for part in z_NCHW.split(256):
        waves.update(part)
    return waves.finish()
