"""The classifier of noisy latents that classifier guidance follows."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ldmlab import build
from ldmlab.data.base import to_batch
from ldmlab.data.batches import to_float
from ldmlab.data.parcel import on_device
from ldmlab.networks.noisy_classifier import NoisyClassifier
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.costs import flops_of, millions, parameters_of
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.fitting import check_divides
from ldmlab.pipeline.latents import LatentsStage, learnt_from, load_learnt_from
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors
from ldmlab.store.files import write_json
from ldmlab.terminal import number
from ldmlab.training.loop import total_steps
from ldmlab.training.noisy_classifier_loss import NoisyClassifierLoss

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan

VALIDATION_IMAGES = 128  # whose accuracy is measured during training; all of val afterwards


class NoisyClassifierStage(Stage):
    """weights and average of the classifier; scores.json: its accuracy by noise, beside that of naming the commonest class."""

    name: ClassVar[str] = "noisy_classifier"
    version: ClassVar[int] = 3

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return [plan.stage(cls)] if plan.resolved.cfg.guidance.classifier is not None else []

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["ae"]

    @property
    def fit(self) -> Any:
        return self.cfg.guidance.classifier.fit

    @property
    def trains(self) -> bool:
        return True

    @property
    def seed(self) -> int:
        return int(self.cfg.guidance.classifier.seed)

    def own(self) -> dict[str, Any]:
        """Of the objective: the schedule and the distribution of t."""
        objective = self.cfg.objective
        tile = {} if LatentsStage.of(self.plan) else {"tile": self.cfg.ae.tile}
        if self.cfg.guidance.classifier.network.dropout:
            tile["dropout_drawn"] = "by step"  # see DenoiserStage.own
        return {
            "network": self.cfg.guidance.classifier.network, "fit": self.fit, "seed": self.seed,
            "schedule": objective.schedule, "times": objective.times, "stratified": objective.stratified, **tile,
        }  # fmt: skip

    def upstream(self) -> dict[str, Stage | str]:
        return learnt_from(self.plan)

    @functools.cached_property
    def network(self) -> NoisyClassifier:
        """On the meta device."""
        with build.shapes_only():
            return build.noisy_classifier(self.cfg, self.plan.resolved.autoencoder, self.plan.resolved.data)

    def check(self) -> None:
        check_divides("guidance.classifier.fit.batch_size", self.fit.batch_size, self.plan.resolved.ranks)
        _ = self.network

    def forward_flops(self) -> float:
        z = torch.empty(1, *self.plan.resolved.latent_shape, device="meta")
        t = torch.zeros(1, dtype=torch.long, device="meta")
        return flops_of(lambda: self.network(z, t)) if self.cfg.dry_run else 0.0

    def row(self) -> Row:
        images = total_steps(self.fit) * self.fit.batch_size
        encode = 0.0 if LatentsStage.of(self.plan) else self.plan.resolved.costs.encode
        what = f"of noisy latents {millions(parameters_of(self.network))} · {number(images)} img"
        return Row(what, images, 3 * self.forward_flops() + encode)

    def work(self, ctx: Context, folder: Path) -> float:
        ae, objective = (
            self.plan.stage(FirstStage).load(ctx),
            build.objective(ctx.cfg, self.plan.resolved.latent_shape[1]),
        )
        net = build.noisy_classifier(ctx.cfg, ae, ctx.data)
        loss = NoisyClassifierLoss(net, ae, objective, Draws(self.seed), self.fit.batch_size)
        probe = NoisyClassifierLoss(net, ae, objective, Draws(self.seed + 1))

        def validate() -> dict[str, float]:
            net.eval()
            found = probe.accuracy(_batches(ctx, VALIDATION_IMAGES))
            net.train()
            return {name: value for name, value in found.items() if name.startswith("accuracy")}

        done = ctx.train(
            self.address, folder, loss, load_learnt_from(self.plan, ctx), self.fit, validate, seed=self.seed
        )
        if ctx.main:
            net.load_state_dict(load_tensors(folder / self._kept))
            frozen(net, ctx.device)
            found = probe.accuracy(_batches(ctx, len(ctx.val)))
            write_json(folder / "scores.json", found)
            by_noise = " ".join(f"{found[name]:.0%}" for name in sorted(found) if name.startswith("accuracy_t"))
            ctx.say(
                f" noisy_classifier: {found['accuracy']:.1%} of {found['images']} val images classified correctly "
                f"(by quarters of t, least noise first: {by_noise}; the most frequent class alone: {found['chance']:.0%})"
            )
        return done.seconds

    def load(self, ctx: Context) -> NoisyClassifier:
        ae = self.plan.resolved.autoencoder
        net = build.noisy_classifier(ctx.cfg, ae, ctx.data)
        net.load_state_dict(load_tensors(self.make(ctx) / self._kept))
        return frozen(net, ctx.device)  # type: ignore[return-value]

    @property
    def _kept(self) -> str:
        return "weights.safetensors" if self.fit.ema is None else "ema.safetensors"


def _batches(ctx: Context, n: int) -> Iterator[dict[str, Any]]:
    """The first n images of val, with their labels and places."""
    n, size = min(n, len(ctx.val)), ctx.cfg.eval.batch_size
    for begin in range(0, n, size):
        rows = list(range(begin, min(begin + size, n)))
        batch = to_batch(ctx.val.__getitems__(rows))
        image_BCHW = to_float(on_device(batch["image"], ctx.device))
        yield {"image": image_BCHW, "label": batch["label"], "position": torch.tensor(rows)}
