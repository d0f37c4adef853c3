"""Samples of one snapshot of the denoiser: images, their conditions and seeds."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.conditioning.asked import Asked
from ldmlab.conditioning.compose import completed, fit_to, pictured
from ldmlab.conditioning.source import ConditionSource
from ldmlab.data.base import channels_of
from ldmlab.data.parcel import batch_on_device
from ldmlab.guidance.base import Model, SampleCost
from ldmlab.guidance.stack import Bound, Guided, Towards
from ldmlab.pipeline import large, noise_basis, sampling
from ldmlab.pipeline.asked import Beginning, Between, Request
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.cooldown import images_behind, load_scored, scored
from ldmlab.pipeline.decoder import DecoderStage, decoding, load_decoding
from ldmlab.pipeline.gaussian import DRAWN
from ldmlab.pipeline.sampling_memory import peak_of
from ldmlab.pipeline.sheets import save_sheet
from ldmlab.pipeline.stage import Row, SnapshotStage, Stage, plain
from ldmlab.pipeline.timing import clock_for
from ldmlab.pipeline.tokenizer import check_words
from ldmlab.store.files import atomic, read_array, write_json
from ldmlab.terminal import number

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan


PICTURED = 256  # conditions kept to look at, where they have a picture


class SamplesStage(SnapshotStage):
    """images.npy (uint8 N H W 3), conditions.json (what each was drawn for, its seed), grid.png; for conditions that can be
    looked at, conditions-pictures.npy (uint8, of the first images).
    """

    name: ClassVar[str] = "samples"
    version: ClassVar[int] = 3
    due: ClassVar[str | None] = "samples"
    only_as_end: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return DRAWN if self.closed_form else self.plan.resolved.choices["sampler"]

    @property
    def closed_form(self) -> bool:
        """Whether the denoiser draws its samples itself: then no option of the sampler or of averages decides them."""
        return self.plan.resolved.denoiser.closed_form

    def own(self) -> dict[str, Any]:
        """What decides a set of samples beside the denoiser."""
        cfg = self.cfg
        found = {
            "label_mode": cfg.eval.label_mode, "label": cfg.cond.label, "n": cfg.eval.samples, "seed": cfg.eval.seed,
            "tile": cfg.ae.tile, **({} if cfg.cond.prompt is None else {"prompt": cfg.cond.prompt}),
        }  # fmt: skip
        found |= large.own(cfg)
        request = self.plan.resolved.request
        found |= {"asked": request.options()} if request is not None else {}
        if self.closed_form:
            return found
        guidance = {kind.name: kind.options() for kind in self.plan.resolved.guidance if kind.options()}
        return found | {
            "snapshot": self.images, "weights": cfg.eval.weights, "ema_width": cfg.eval.ema_width,
            "sampler": sampler_options(plain(cfg.sampler)), "guidance": guidance,
            **({} if cfg.eval.precision == "fp32" else {"precision": cfg.eval.precision}),
        }  # fmt: skip

    def upstream(self) -> dict[str, Stage | str]:
        decoder = {role: stage for role, stage in decoding(self.plan).items() if isinstance(stage, DecoderStage)}
        guides = {
            role: self.plan.named(name) for kind in self.plan.resolved.guidance for role, name in kind.stages.items()
        }
        return {"denoiser": scored(self.plan, self.images), **decoder, **guides, **noise_basis.upstream(self.plan)}

    def row(self) -> Row:
        resolved, n = self.plan.resolved, self.cfg.eval.samples
        sampler, megabytes = resolved.sampler, n * math.prod(resolved.size) * 3 / 1e6
        if self.closed_form:
            what = f"{number(n)} samples · drawn in closed form, no sampler"
            return Row(what, n, resolved.costs.decode, megabytes)
        counted = "" if self.evaluations == sampler.steps else f" ({number(self.evaluations)} evaluations)"
        counted += "" if self.cfg.eval.precision == "fp32" else " in bf16"
        after = f" · after {number(images_behind(self.plan, self.images))} img" if self.images else ""
        request = resolved.request
        asked = "" if request is None else f" · {request.words(sampler, resolved.objective.schedule)}"
        said = large.words(resolved)
        what = (
            f"{number(n)} samples{said and f' of {said}'}{asked} · {self.label} {sampler.steps}{counted} · guidance {sampler.guidance:g}"
            f"{''.join(f' · {text}' for text in self._guided_by())}{after}"
        )
        if said and self.cfg.dry_run:
            what += f" · {peak_of(resolved).words()}"
        return Row(what, n, self._cost(), megabytes)

    @property
    def evaluations(self) -> int:
        """Of a denoiser, per sample: the guided pair counts as one, the weak model of autoguidance as another."""
        own = self.plan.resolved.sampler.evaluations
        return own + sum(kind.evaluations(own) for kind in self.plan.resolved.guidance)

    def _guided_by(self) -> list[str]:
        texts = []
        for kind in self.plan.resolved.guidance:
            if text := kind.words():
                stages = [self.plan.named(name).words() for name in kind.stages.values()]
                texts.append(text + "".join(f" ({words})" for words in stages if words))
        return texts

    def _cost(self) -> float:
        """Floating-point operations of one sample; 0 when nobody counts."""
        resolved = self.plan.resolved
        costs = resolved.sampled_costs
        cost = SampleCost(
            resolved.sampler.evaluations, costs.forward, costs.decode, resolved.objective.schedule,
            resolved.visited, lambda name: self.plan.named(name).forward_flops(),
        )  # fmt: skip
        for kind in resolved.guidance:
            kind.cost(cost)
        return cost.total + costs.condition

    def check(self) -> None:
        """The words of a given text are words of the captions, where the tokenizer learnt from them and knows all of theirs."""
        if self.plan.resolved.request is not None:
            check_words(self.plan, self.plan.resolved.request.asked.prompt)

    def work(self, ctx: Context, folder: Path) -> None:
        cfg, resolved = ctx.cfg, self.plan.resolved
        ae, model = load_decoding(self.plan, ctx), load_scored(self.plan, ctx, self.images)
        ae.tile = large.tile_of(cfg)
        results = RunResults(self.plan, ctx, ae)
        kinds, own = (
            tuple(kind.load(results) for kind in resolved.guidance),
            Model(model, resolved.objective, large.windows_of(cfg, ae.f)),
        )
        guided = Guided(own, kinds, large.pieces_of(resolved))
        n, shape = cfg.eval.samples, resolved.sampled_shape
        for each in (own, *(other for kind in kinds for other in kind.models)):
            fit_to(each.denoiser.conditioner, shape[1:])
            if cfg.eval.precision == "bf16":
                each.denoiser.use_bf16(ctx.device)
        source = self._source()
        request = resolved.request or Request(Asked())
        seeds = self.seeds()

        sampler: Any = model.sampler if model.closed_form else resolved.sampler
        noise_of, self._speed = noise_basis.noise_of(self.plan, ctx), sampling.Speed(clock_for(ctx.device))

        def origin() -> Tensor:
            bound = self._bound(guided, batch_on_device(source.batch([0]), ctx.device), 1, ctx.device)
            noise = noise_of([request.origin(cfg.eval.seed)], shape, ctx.device)
            drawn_1CHW: Tensor = sampler(bound.denoise, noise(), resolved.objective.schedule, bound.cond, noise)
            return drawn_1CHW

        begin = Beginning(request, ae, ctx.device, origin)

        def draw(indices: list[int]) -> Tensor:
            batch = batch_on_device(source.batch(indices), ctx.device)
            other = source.other(indices) if isinstance(source, Between) else None
            towards = None if other is None else Towards(batch_on_device(other, ctx.device), request.shares(indices, n))
            bound = self._bound(guided, batch, len(indices), ctx.device, towards)
            return sampling.draw(
                sampler, bound.denoise, resolved.objective.schedule,
                lambda z_BCHW: completed(model.conditioner, ae.decode(z_BCHW), batch), bound.cond,
                [seeds[i] for i in indices], shape, ctx.device, request.noise_of(noise_of, indices, n), self._speed, begin.start(indices),
            )  # fmt: skip

        sampling.sample_all(draw, n, folder, large.at_once(resolved), ctx.ranks, f"{self.name} {self._share}")
        if ctx.main:
            self._write(folder, source, seeds, begin)

    def facts(self) -> dict[str, Any]:
        """How fast this process drew: with the machine on the card, a measurement and part of no id."""
        return {"sampling": self._speed.record()}

    def seeds(self) -> list[int]:
        """Of the samples, one each."""
        return (self.plan.resolved.request or Request(Asked())).seeds(self.cfg.eval.seed, self.cfg.eval.samples)

    def _source(self) -> ConditionSource:
        """What the samples are drawn for."""
        return self.plan.resolved.conditions(self.cfg.eval.samples)

    def _bound(
        self, guided: Guided, batch: dict[str, Any], n: int, device: Any, towards: Towards | None = None
    ) -> Bound:
        """The guided denoiser for n samples of these conditions."""
        return guided.bind(batch, n, self.plan.resolved.sampled_shape[1:], device, towards)

    def _picture(self, source: ConditionSource, i: int) -> np.ndarray | None:
        """The condition of sample i as the conditioner sees it, else as the data has it."""
        seen = pictured(self.plan.resolved.conditioner, source.batch([i])) if source.fields else None
        return source.picture(i) if seen is None else seen[0].numpy()

    def _write(self, folder: Path, source: ConditionSource, seeds: list[int], begin: Beginning) -> None:
        """What the images were drawn for, and a sheet of the first to look at."""
        n = len(seeds)
        record = {"seed": seeds, **source.record(n), **begin.record(n)}
        if source.fields and (source.fields != ("label",) or isinstance(source, Between)):
            record["describe"] = [source.describe(i) for i in range(n)]
        write_json(folder / "conditions.json", record)
        shown = [begin.picture(i) if begin.pictured else self._picture(source, i) for i in range(min(n, PICTURED))]
        if pictures := [picture for picture in shown if picture is not None]:
            with atomic(folder / "conditions-pictures.npy") as beside, beside.open("wb") as file:
                np.save(file, np.stack(pictures))
        classes = len(record["class_names"]) if "class_names" in record and self.cfg.cond.label is None else 8
        columns = min(max(classes, 4), 16)
        save_sheet(folder / "grid.png", np.asarray(read_array(folder / "images.npy")[: columns * 8]), columns)

    @property
    def _share(self) -> str:
        final = self.plan.resolved.snapshots[-1]
        return "" if self.images == final else f"@{self.images / final:.0%}"


def sampler_options(sampler: dict[str, Any]) -> dict[str, Any]:
    """A sampler's options without those that say nothing: limits of a guidance or a churn that is not there."""
    interval = sampler["guidance_interval"]
    silent = ["guidance_interval", "guidance_rescale"] if sampler["guidance"] == 1 else []
    silent += ["s_tmin", "s_tmax", "s_noise"] if sampler.get("s_churn") == 0 else []
    kept = {k: v for k, v in sampler.items() if k not in silent}
    if interval is not None and "guidance_interval" in kept:
        kept["guidance_interval"] = [float(ratio) for ratio in interval]
    return kept


class RunResults:
    """What guidance finds of a run, once per sampling (`guidance.base.Results`)."""

    def __init__(self, plan: "Plan", ctx: Context, ae: Autoencoder):
        self._plan, self._ctx, self._ae = plan, ctx, ae
        self.resolution, self.size, self.device = plan.resolved.resolution, plan.resolved.size, ctx.device
        self.channels = channels_of(plan.resolved.data)

    def stage(self, name: str) -> Any:
        return self._plan.named(name).load(self._ctx)

    def decode_with_slope(self, z_BCHW: Tensor) -> Tensor:
        return self._ae.decode_with_slope(z_BCHW)
