"""`ldm=gaussian`: in the place of a trained denoiser the Gaussian of its latents, fitted in one pass (`diffusion.gaussian`)."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from omegaconf import DictConfig

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.config.schema import TARGETS
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.gaussian import ClassMoments, Gaussian
from ldmlab.errors import ConfigError
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.denoiser import DenoiserStage
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.latents import load_learnt_from, posteriors
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.store.checkpoint import Checkpoints, load_tensors, save_tensors
from ldmlab.store.files import atomic, write_json
from ldmlab.terminal import number
from ldmlab.training.loop import StopFlag, Stopped

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan

NULL = 1e-6  # of the largest variance: below, a direction counts as one without variance
DRAWN = "closed_form"  # in the place of a sampler's name, in plans, ids and on cards


def denoiser_of(plan: "Plan") -> DenoiserStage:
    """The stage that samples are drawn from."""
    return plan.stage(GaussianStage if plan.resolved.denoiser.closed_form else DenoiserStage)


class GaussianStage(DenoiserStage):
    """weights.safetensors: means, directions, variances; gaussian.json: what they were fitted to."""

    version: ClassVar[int] = 2

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return [plan.stage(cls)] if plan.resolved.denoiser.closed_form else []

    def own(self) -> dict[str, Any]:
        """Of `cond` only whether classes have means of their own; nothing of `objective`."""
        return {"gaussian": "full covariance within classes", "classes": self._network.classes is not None}

    def row(self) -> Row:
        images = len(self.plan.resolved.data)
        (K, D), mirrored = (
            self._network.mean_KD.shape,
            " and their mirror images" if self.plan.resolved.data.flip else "",
        )
        what = (
            f"Gaussian of {D} numbers, {K} mean{'s' if K > 1 else ''}, full covariance · {number(images)} img{mirrored}"
        )
        return Row(what, images, 0.0, 4 * D * (D + K) / 1e6)

    @property
    def _network(self) -> Gaussian:
        network = self.plan.resolved.denoiser.network
        assert isinstance(network, Gaussian)
        return network

    def work(self, ctx: Context, folder: Path) -> float | None:
        ae, data = self.plan.stage(FirstStage).load(ctx), load_learnt_from(self.plan, ctx)
        seconds = None
        if ctx.main:  # one pass of sums; every rank would do the same
            moments, seconds = self._pass(ctx, folder, ae, data)
            network = cast(Gaussian, build.denoiser(ctx.cfg, ae, ctx.data).network)
            network.fit(moments)
            with atomic(folder / "weights.safetensors") as beside:
                save_tensors(beside, network.state_dict())
            images, D = moments.all.count, len(network.variance_D)
            rank = int((network.variance_D > NULL * network.variance_D.max()).sum())
            facts = {"images": images, "classes": network.classes, "numbers": D, "rank": rank}
            write_json(folder / "gaussian.json", facts | {"variance_within": float(network.variance_D.double().mean())})
            if rank < D:
                ctx.say(
                    f" note: {images} latents vary in {rank} of {D} directions, and samples of ldm=gaussian in no other"
                )
        ctx.barrier()
        return seconds

    def _pass(self, ctx: Context, folder: Path, ae: Autoencoder, data: Any) -> tuple[ClassMoments, float]:
        """Sums over all training images, and the seconds that they took, earlier attempts included.

        A checkpoint holds the sums: a pass that was stopped goes on there and ends bit for bit as an unbroken one.
        """
        labels = np.asarray(ctx.data.labels()) if self._network.classes is not None else None
        moments = ClassMoments(self._network.classes, self._network.mean_KD.shape[1], ctx.device)
        checkpoints, images, before = Checkpoints(folder), 0, 0.0
        if (saved := checkpoints.load(say=ctx.say)) is not None:
            moments.restore(saved.tensors)
            images, before = saved.progress["images"], saved.progress["seconds"]
        rows, began = list(range(len(data))), time.monotonic()
        kept, progress = began, ctx.progress("gaussian", len(rows))
        progress(images)
        with StopFlag().listening() as stop:
            for mirrors in posteriors(data, ae, rows, ctx.device, images):
                for found in mirrors:
                    label_B = None if labels is None else torch.from_numpy(labels[found.rows])
                    moments.update(found.mean_BCHW, label_B, found.variance_BCHW)
                images += len(mirrors[0].rows)
                progress(len(mirrors[0].rows))
                now = time.monotonic()
                if stop.caught or now - kept >= ctx.cfg.runtime.checkpoint_seconds:
                    kept = now
                    checkpoints.save(moments.state(), {}, {"images": images, "seconds": before + now - began})
                if stop.caught:
                    raise Stopped(f"{stop.caught} at {images} images; checkpoint written")
        return moments, before + time.monotonic() - began

    def load(self, ctx: Context, images: int | None = None) -> Denoiser:
        model = build.denoiser(ctx.cfg, self.plan.stage(FirstStage).load(ctx), ctx.data)
        model.network.load_state_dict(load_tensors(self.make(ctx) / "weights.safetensors"))
        return frozen(model, ctx.device)  # type: ignore[return-value]


def check_options(cfg: DictConfig) -> None:
    """ConfigError for options of a training or of a sampler that `ldm=gaussian` does without. Builds nothing."""
    if not build.closed_form(cfg):
        return
    if cfg.ldm.weights is not None:
        raise ConfigError(f"ldm.weights={cfg.ldm.weights}: ldm=gaussian is fitted here. Set ldm.weights=null.")
    if list(cfg.eval.at) != [1.0]:
        raise ConfigError(f"eval.at={list(cfg.eval.at)}: ldm=gaussian has no snapshots. Set eval.at=[1.0].")
    if cfg.ldm.power_ema or cfg.eval.ema_width is not None:
        raise ConfigError(
            "ldm.power_ema and eval.ema_width are averages over a training, and ldm=gaussian has none. Set ldm.power_ema=[] "
            "eval.ema_width=null."
        )
    if cfg.eval.cooldown is not None:
        raise ConfigError(
            f"eval.cooldown={cfg.eval.cooldown:g} trains a snapshot on, and ldm=gaussian has none. Set eval.cooldown=null."
        )
    if given := [name for name in (*TARGETS, "fair") if cfg.ldm.budget[name] is not None]:
        raise ConfigError(
            f"ldm.budget.{given[0]} chooses a width, and ldm=gaussian has none. Set ldm.budget.{given[0]}=null."
        )
    if cfg.tune is not None:
        raise ConfigError(
            "tune=lr searches a learning rate, and ldm=gaussian is fitted in closed form. Leave tune=lr out."
        )
    if cfg.sampler.guidance != 1:
        raise ConfigError(
            f"sampler.guidance={cfg.sampler.guidance} acts on the steps of a sampler, and ldm=gaussian takes none. Set "
            "sampler.guidance=1."
        )
    if kinds := [name for name, node in cfg.guidance.items() if node is not None]:
        raise ConfigError(
            f"guidance={kinds[0]} acts on the steps of a sampler, and ldm=gaussian takes none. Set guidance=none."
        )
