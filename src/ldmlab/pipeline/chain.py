"""Rate and distortion of the denoiser on val images (`metrics.rate_distortion`), where eval.metrics asks for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ldmlab import build
from ldmlab.data.base import to_batch
from ldmlab.data.batches import eight_bits, to_float
from ldmlab.data.parcel import batch_on_device
from ldmlab.errors import ConfigError
from ldmlab.metrics.rate_distortion import FILE, Chain, RateDistortion, chain_times, curves, joined, walk
from ldmlab.metrics.reconstruction_pass import batched
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.cooldown import load_scored, scored
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.decoder import decoding, load_decoding
from ldmlab.pipeline.extractor import extractor_of, load_extractor
from ldmlab.pipeline.sheets import spread
from ldmlab.pipeline.stage import Row, SnapshotStage, Stage
from ldmlab.randomness import ImageNoise, seed_of
from ldmlab.store.files import write_json
from ldmlab.terminal import number

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan


class ChainStage(SnapshotStage):
    """chain.json: times, and at each the bits until then, RMSE and perceptual distance, with intervals over images."""

    name: ClassVar[str] = "chain"
    version: ClassVar[int] = 2

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return super().of(plan) if asked(plan) is not None else []

    @property
    def metric(self) -> RateDistortion:
        found = asked(self.plan)
        assert found is not None  # `of` says so
        return found

    @property
    def images_read(self) -> int:
        return min(self.metric.images, len(self.plan.resolved.val))

    def own(self) -> dict[str, Any]:
        cfg = self.cfg
        trained = {"snapshot": self.images, "weights": cfg.eval.weights, "ema_width": cfg.eval.ema_width}
        own = {} if self.plan.resolved.denoiser.closed_form else trained
        schedule = {"schedule": cfg.objective.schedule}  # of a Gaussian, which has none itself
        return own | schedule | {
            "steps": self.metric.steps, "images": self.images_read, "bootstrap": cfg.eval.bootstrap, "seed": cfg.eval.seed,
            "tile": cfg.ae.tile,
        }  # fmt: skip

    def upstream(self) -> dict[str, Stage | str]:
        data, extractor = self.plan.stage(DataStage), extractor_of(self.plan)
        return {"denoiser": scored(self.plan, self.images), **decoding(self.plan), "data": data, "extractor": extractor}

    def check(self) -> None:
        T = self.plan.resolved.objective.schedule.T
        if self.metric.steps > T:
            raise ConfigError(
                f"metric.rate_distortion.steps={self.metric.steps}: the schedule has {T} times (objective.schedule.T). Set "
                f"metric.rate_distortion.steps={T} or fewer."
            )

    def row(self) -> Row:
        costs, steps = self.plan.resolved.costs, self.metric.steps
        what = f"{number(self.images_read)} val images · {number(steps)} steps · bits and RMSE of each"
        return Row(what, self.images_read, costs.encode + steps * (costs.forward + costs.decode))

    def work(self, ctx: Context, folder: Path) -> None:
        ae, extractor = load_decoding(self.plan, ctx), load_extractor(self.plan, ctx)
        model, n = load_scored(self.plan, ctx, self.images), self.images_read
        if ctx.main:
            schedule, seed = self.plan.resolved.objective.schedule, ctx.cfg.eval.seed
            distance = build.evaluation_distance(ctx.cfg, extractor)
            perceptual = None if distance is None else frozen(distance, ctx.device)
            denoise, times = model.denoise(self.plan.resolved.objective), chain_times(schedule, self.metric.steps)
            indices, parts = spread(len(ctx.val), n), list[Chain]()
            progress = ctx.progress("chain", n)
            for rows in batched(n, ctx.cfg.eval.batch_size):
                batch = {**to_batch(ctx.val.__getitems__([indices[i] for i in rows])), "position": torch.tensor(rows)}
                batch = batch_on_device(batch, ctx.device)
                image8_BHWC: Tensor = eight_bits(batch["image"])
                batch["image"] = to_float(batch["image"])
                with torch.no_grad():
                    z0_BCHW, cond = ae.encode(batch["image"]), model.prepared(model.condition(batch))
                noise = ImageNoise([seed_of("chain", seed, i) for i in rows], z0_BCHW.shape[1:], ctx.device)
                parts.append(walk(denoise, schedule, cond, z0_BCHW, noise(), image8_BHWC, ae.decode, times, perceptual))
                progress(len(rows))
            found = curves(joined(parts), ctx.cfg.eval.bootstrap, seed)
            facts = {"times": times, "images": n, "seed": seed, "snapshot_images": self.images or None}
            write_json(folder / FILE, facts | {"curves": found})
        ctx.barrier()


def asked(plan: "Plan") -> RateDistortion | None:
    """The metric of this run that needs the chain."""
    return next((metric for metric in plan.resolved.metrics if isinstance(metric, RateDistortion)), None)
