"""What steers samples beside the sampler's own options: the weak model, the classifier of noisy latents, the picture."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.data.base import to_batch
from ldmlab.data.batches import to_float
from ldmlab.diffusion.denoiser import Denoise, Denoiser, denoise_with
from ldmlab.diffusion.objectives import Objective
from ldmlab.guidance.gradient import LogP, resembles
from ldmlab.guidance.stack import Like, Towards, Twin, Weak, stacked
from ldmlab.networks.noisy_classifier import NoisyClassifier
from ldmlab.pipeline import steering, weights_denoiser
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.first_stage import make_autoencoder, make_latents
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors
from ldmlab.store.files import write_json
from ldmlab.training.noisy_classifier_loss import NoisyClassifierLoss

VALIDATION_IMAGES = 128  # whose accuracy is measured during training; all of val afterwards


def make_noisy_classifier(ctx: Context) -> NoisyClassifier:
    """The classifier of guidance=classifier, trained first when it is not in the store."""
    cfg, at = ctx.cfg, ctx.plan.noisy_classifier
    assert at is not None
    ae = make_autoencoder(ctx)
    net = build.noisy_classifier(cfg, ae, ctx.data)
    fit = cfg.guidance.classifier.fit
    kept = "weights" if fit.ema is None else "ema"

    def work(folder: Path) -> float:
        objective = build.objective(cfg)
        stage = NoisyClassifierLoss(net, ae, objective, Draws(cfg.seed), fit.batch_size)
        probe = NoisyClassifierLoss(net, ae, objective, Draws(cfg.seed + 1))

        def validate() -> dict[str, float]:
            net.eval()
            found = probe.accuracy(_batches(ctx, VALIDATION_IMAGES))
            net.train()
            return {name: value for name, value in found.items() if name.startswith("accuracy")}

        done = ctx.train(at, folder, stage, make_latents(ctx), fit, validate)
        if ctx.main:
            net.load_state_dict(load_tensors(folder / f"{kept}.safetensors"))
            frozen(net, ctx.device)
            found = probe.accuracy(_batches(ctx, len(ctx.val)))
            write_json(folder / "scores.json", found)
            by_noise = " ".join(f"{found[name]:.0%}" for name in sorted(found) if name.startswith("accuracy_t"))
            ctx.say(
                f" noisy_classifier: {found['accuracy']:.1%} of {found['images']} val images named right "
                f"(by quarters of t, least noise first: {by_noise}; the most frequent class alone: {found['chance']:.0%})"
            )
        return done.seconds

    folder = ctx.make(at, work)
    net.load_state_dict(load_tensors(folder / f"{kept}.safetensors"))
    return frozen(net, ctx.device)  # type: ignore[return-value]


def _batches(ctx: Context, n: int) -> Iterator[dict[str, Any]]:
    """The first n images of val, with their labels and places."""
    n, size = min(n, len(ctx.val)), ctx.cfg.eval.batch_size
    for begin in range(0, n, size):
        rows = list(range(begin, min(begin + size, n)))
        batch = to_batch(ctx.val.__getitems__(rows))
        image_BCHW = to_float(batch["image"].to(ctx.device))
        yield {"image": image_BCHW, "label": batch["label"], "position": torch.tensor(rows)}


@dataclass(frozen=True)
class Model:
    """A finished denoiser and what it was trained to answer."""

    denoiser: Denoiser
    objective: Objective

    @property
    def denoise(self) -> Denoise:
        return denoise_with(self.denoiser, self.objective)


@dataclass(frozen=True)
class Bound:
    """A batch of samples to come: whom the sampler asks, and with which condition."""

    denoise: Denoise
    cond: Any


@dataclass(frozen=True)
class Guide:
    """All that steers one evaluation's samples; `bind` ties it to the classes of a batch."""

    model: Model
    sampler: Any
    weak: Model | None = None
    weak_scale: float = 1.0
    classifier: NoisyClassifier | None = None
    classifier_scale: float = 1.0
    classifier_interval: list[float] | None = None
    like: Like | None = None

    def bind(self, label_B: Tensor) -> Bound:
        """Conditions are encoded here, and read by the networks, once for all steps; `label_B` is read where asked for."""
        models = [self.model, *([self.weak] if self.weak is not None else [])]
        batch = {"label": label_B}
        asked = [m.denoiser.condition(batch) for m in models]
        null = [m.denoiser.conditioner.null(len(label_B), label_B.device) for m in models]
        alone = [m.denoiser.prepared(c) for m, c in zip(models, asked, strict=True)]
        pair = None
        if self.sampler.guidance != 1 and not null[0].empty:
            pair = [m.denoiser.prepared(c.cat(n)) for m, c, n in zip(models, asked, null, strict=True)]
        steered = stacked(
            self.model.denoise,
            self.sampler,
            self.model.objective.schedule,
            null[0],
            None if pair is None else _twin(pair),
            None if self.weak is None else Weak(self.weak.denoise, self.weak_scale),
            None
            if self.classifier is None
            else Towards(self.classifier, label_B, self.classifier_scale, self.classifier_interval),
            self.like,
        )
        return Bound(steered, _twin(alone))


def _twin(conds: list[Any]) -> Any:
    return conds[0] if len(conds) == 1 else Twin(*conds)


def make_guide(ctx: Context, denoiser: Denoiser, ae: Autoencoder, snapshot: Callable[[int], Denoiser]) -> Guide:
    """The guide of a denoiser's samples. snapshot: this run's denoiser after so many images. ae: decodes."""
    cfg, weak = ctx.cfg, ctx.plan.weak
    steer, objective = cfg.guidance, build.objective(cfg)
    guide: dict[str, Any] = {}
    if weak is not None:
        own = weak.folder is None
        other = Model(snapshot(weak.images), objective) if own else _other_model(ctx, weak, ae)
        guide |= {"weak": other, "weak_scale": steer.auto.scale}
    if steer.classifier is not None:
        scale, interval = steer.classifier.scale, steer.classifier.interval
        guide |= {
            "classifier": make_noisy_classifier(ctx),
            "classifier_scale": scale,
            "classifier_interval": interval,
        }
    if steer.image is not None:
        guide |= {"like": Like(_likeness(ctx, ae), steer.image.scale, steer.image.interval)}
    return Guide(Model(denoiser, objective), build.sampler(cfg), **guide)


def _other_model(ctx: Context, weak: steering.WeakModel, ae: Autoencoder) -> Model:
    """The denoiser of another run, from its recorded configuration and its folder."""
    model = build.denoiser(weak.cfg, ae, ctx.data)
    name = "ema" if ctx.cfg.eval.weights == "ema" else "weights"
    assert weak.folder is not None
    inside = weak.folder.parent.name == "snapshots"
    ctx.store.finished(weak.folder.parents[1] if inside else weak.folder)  # raises for an altered file
    weights_denoiser.load_into(model, load_tensors(weak.folder / f"{name}.safetensors"))
    return Model(frozen(model, ctx.device), build.objective(weak.cfg))  # type: ignore[arg-type]


def _likeness(ctx: Context, ae: Autoencoder) -> LogP:
    """How like the picture of guidance=image a latent's image is."""
    from ldmlab.data.transforms import center_crop, read_rgb  # Pillow: an eighth of a second of every start

    seen = build.observation(ctx.cfg)
    pixels = center_crop(read_rgb(Path(ctx.cfg.guidance.image.file)), ctx.data.resolution)
    target_1CHW = to_float(torch.from_numpy(pixels)[None].to(ctx.device))
    return resembles(target_1CHW if seen is None else seen(target_1CHW), ae.decode_with_slope, seen)
