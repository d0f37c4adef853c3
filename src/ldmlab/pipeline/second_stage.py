"""The stages from the denoiser to the scores."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab import build
from ldmlab.conditioning.class_label import class_index
from ldmlab.data.batches import Batches
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.errors import DataError
from ldmlab.metrics.evaluate import evaluate, label_agreement
from ldmlab.metrics.extraction import Original, extract_all, load_features, reference_indices
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.protocol import ProtocolCard
from ldmlab.pipeline import sampling, steering, weights_denoiser
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.first_stage import make_autoencoder, make_decoder, make_extractor, make_latents
from ldmlab.pipeline.guidance import make_guide
from ldmlab.pipeline.plan import Evaluation
from ldmlab.pipeline.sheets import save_sheet
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors
from ldmlab.store.files import read_array, read_json, write_json
from ldmlab.training.diffusion_loss import DiffusionLoss
from ldmlab.training.loop import images_at
from ldmlab.training.post_hoc_ema import Profile, combine, gamma_of, project

VALIDATION_IMAGES = 128  # whose loss is measured during training
LOOSE = 0.1  # relative error of an average's profile that is worth a note


def make_denoiser(ctx: Context, images: int | None = None) -> Denoiser:
    """The denoiser, trained or imported, with the weights that `eval.weights` names, of a snapshot when `images` says which."""
    ae = make_autoencoder(ctx)
    model = build.denoiser(ctx.cfg, ae, ctx.data)

    def work(folder: Path) -> float | None:
        if ctx.cfg.ldm.weights is not None:
            if ctx.main:
                weights_denoiser.install(ctx.cfg, model, folder)
            return None
        data = make_latents(ctx)
        objective = build.objective(ctx.cfg)
        stage = DiffusionLoss(model, ae, objective, Draws(ctx.cfg.seed), ctx.cfg.cond.drop, ctx.cfg.ldm.fit.batch_size)
        size = min(VALIDATION_IMAGES, len(ctx.val))
        probe = DiffusionLoss(model, ae, objective, Draws(ctx.cfg.seed + 1), 0.0, size)
        held = Batches(ctx.val, size, size, ctx.cfg.seed, ctx.device).step(0)[0]

        @torch.no_grad()
        def validate() -> dict[str, float]:  # the same images, times and noise at every call
            model.eval()
            logs = probe.loss(held, "denoiser", 0)[1]
            model.train()
            return {k: float(v) for k, v in logs.items()}

        return ctx.train(
            ctx.plan.denoiser, folder, stage, data, ctx.cfg.ldm.fit, validate, power_ema=ctx.cfg.ldm.power_ema
        ).seconds

    folder = ctx.make(ctx.plan.denoiser, work)
    final = ctx.plan.evaluations[-1].images if ctx.plan.evaluations else None
    if images is not None and (folder / "snapshots" / f"{images:012d}").exists():
        folder = folder / "snapshots" / f"{images:012d}"
    elif images is not None and images != final:
        raise DataError(f"{folder} has no snapshot at {images} images.")
    if ctx.cfg.eval.ema_width is not None:
        model.load_state_dict(make_average(ctx, images))
        return frozen(model, ctx.device)  # type: ignore[return-value]
    name = "ema" if ctx.cfg.eval.weights == "ema" else "weights"
    weights_denoiser.load_into(model, load_tensors(folder / f"{name}.safetensors"))
    return frozen(model, ctx.device)  # type: ignore[return-value]


def make_average(ctx: Context, images: int | None) -> dict[str, Tensor]:
    """Weights averaged with the profile of `eval.ema_width`, as they would be after `images` (None: all of training)."""
    fit, widths = ctx.cfg.ldm.fit, list(ctx.cfg.ldm.power_ema)
    folder, end = ctx.store.folder(ctx.plan.denoiser), images_at(fit, 1.0)
    images = end if images is None else images
    kept = sorted({images_at(fit, fraction) for fraction in fit.snapshots} - {end})
    places = {at: folder / "snapshots" / f"{at:012d}" for at in kept if at <= images} | (
        {end: folder} if images == end else {}
    )
    stored = [
        (Profile(at, gamma_of(w)), place / f"power_{w:g}.safetensors") for at, place in places.items() for w in widths
    ]
    fitted = project([profile for profile, _ in stored], Profile(images, gamma_of(ctx.cfg.eval.ema_width)))
    if fitted.error > LOOSE:
        ctx.say(
            f" note: eval.ema_width={ctx.cfg.eval.ema_width:g} is off by {fitted.error:.0%} (of its profile's size): {len(stored)} "
            "stored averages cannot make it. More ldm.fit.snapshots, or a width nearer to ldm.power_ema."
        )
    return combine(fitted.coefficients, [partial(load_tensors, path) for _, path in stored])


def make_samples(ctx: Context, evaluation: Evaluation) -> Path:
    """Images of one snapshot, their conditions and seeds, and a sheet to look at."""
    cfg = ctx.cfg

    def work(folder: Path) -> None:
        ae, model = make_decoder(ctx), make_denoiser(ctx, evaluation.images)
        guide = make_guide(ctx, model, ae, lambda images: make_denoiser(ctx, images))
        n, shape = cfg.eval.samples, ae.latent_shape(ctx.data.resolution)
        labelled = steering.labelled(cfg, model.conditioner)
        conditions: dict[str, Any] = {"seed": [sampling.image_seed(cfg.eval.seed, i) for i in range(n)]}
        label_N = torch.zeros(n, dtype=torch.int64)
        if labelled:
            wish = None if cfg.cond.label is None else class_index(cfg.cond.label, ctx.data.class_names)
            known = ctx.data.labels() if cfg.eval.label_mode == "from_data" else None
            label_N = torch.from_numpy(
                sampling.labels_for(cfg.eval.label_mode, wish, n, len(ctx.data.class_names), known, cfg.eval.seed)
            )
            conditions |= {"label": label_N.tolist(), "class_names": list(ctx.data.class_names)}

        def draw(indices: list[int]) -> Tensor:
            bound = guide.bind(label_N[indices].to(ctx.device))
            return sampling.draw(
                guide.sampler, bound.denoise, guide.model.objective.schedule, ae.decode, lambda rows: bound.cond,
                [conditions["seed"][i] for i in indices], shape, ctx.device, indices,
            )  # fmt: skip

        sampling.sample_all(
            draw, n, folder, cfg.eval.batch_size, ctx.rank, ctx.ranks, ctx.barrier,
            ctx.progress(f"samples {_share(ctx, evaluation)}", n),
        )  # fmt: skip
        if ctx.main:
            write_json(folder / "conditions.json", conditions)
            images = read_array(folder / "images.npy")
            classes = len(ctx.data.class_names) if labelled and cfg.cond.label is None else 8
            columns = min(max(classes, 4), 16)
            save_sheet(folder / "grid.png", np.asarray(images[: columns * 8]), columns)

    return ctx.make(evaluation.samples, work)


def make_reference(ctx: Context, extractor: Any) -> FeatureSet:
    """Features of the real images, through the same loader as training, once for all runs on this data."""

    def work(folder: Path) -> None:
        wanted = ctx.cfg.eval.reference
        caches = ctx.store.root / "data" / "cache"
        real = {"train": ctx.data, "val": ctx.val}.get(wanted.split) or build.dataset(ctx.cfg, wanted.split, caches)
        indices = reference_indices(len(real), wanted.images)
        extract_all(
            Original(real, indices), len(indices), extractor, folder,
            ctx.cfg.eval.batch_size, ctx.device, ctx.rank, ctx.ranks, ctx.barrier, ctx.progress("reference", len(indices)),
        )  # fmt: skip

    return load_features(ctx.make(ctx.plan.reference, work) / "features.npz")


def make_scores(ctx: Context, evaluation: Evaluation) -> Path:
    """FID and the others of one set of samples, with intervals and the protocol card."""
    cfg = ctx.cfg

    def work(folder: Path) -> None:
        extractor = make_extractor(ctx)
        reference = make_reference(ctx, extractor)
        samples = make_samples(ctx, evaluation)
        images = read_array(samples / "images.npy")
        found = extract_all(
            lambda rows: torch.from_numpy(np.asarray(images[rows])), len(images), extractor, folder, cfg.eval.batch_size,
            ctx.device, ctx.rank, ctx.ranks, ctx.barrier, ctx.progress("scores", len(images)),
        )  # fmt: skip
        if ctx.main:
            scores = evaluate(found, reference, list(cfg.eval.metrics), cfg.eval.bootstrap, cfg.eval.seed)
            conditions = read_json(samples / "conditions.json")
            if "label" in conditions and extractor.classes_of_data and found.logits is not None:
                label_N = np.asarray(conditions["label"])
                scores.values["label_agreement"] = label_agreement(
                    found.logits, label_N, extractor.classes_of_data, cfg.eval.bootstrap, cfg.eval.seed
                )
            card = protocol_card(ctx, evaluation, extractor, len(reference))
            result = {"snapshot_images": evaluation.images or None, **scores.to_dict()}
            result["warnings"] = [*scores.warnings, *card.warnings()]
            write_json(folder / "scores.json", {**result, "card": card.to_dict(), "card_short": card.short()})
        ctx.barrier()

    return ctx.make(evaluation.scores, work)


def protocol_card(ctx: Context, evaluation: Evaluation, extractor: Any, reference_images: int) -> ProtocolCard:
    """Everything that decides a score beside the trained network (architecture §7)."""
    cfg, sampler = ctx.cfg, build.sampler(ctx.cfg)
    labelled = steering.labelled(cfg, build.conditioner(cfg, ctx.data))
    evaluations, classifier = steering.evaluations(cfg), ctx.plan.noisy_classifier
    weights = cfg.eval.weights if cfg.eval.ema_width is None else f"ema width {cfg.eval.ema_width:g}"
    mode = (f"label {cfg.cond.label}" if cfg.cond.label is not None else cfg.eval.label_mode) if labelled else None
    guided = sampler.guidance != 1
    return ProtocolCard(
        reference=ctx.plan.reference.id, reference_split=cfg.eval.reference.split, reference_images=reference_images,
        resolution=ctx.data.resolution, samples=cfg.eval.samples, label_mode=mode, sampler=evaluation.samples.name,
        steps=sampler.steps, eta=getattr(sampler, "eta", None), guidance=sampler.guidance, weights=weights,
        snapshot_images=evaluation.images or None, extractor=extractor.name, extractor_hash=extractor.fingerprint(),
        resize=extractor.resize_text, grid=getattr(sampler, "grid", None), seed=cfg.eval.seed,
        bootstrap=cfg.eval.bootstrap, bootstrap_seed=cfg.eval.seed,
        evaluations=evaluations if evaluations != sampler.steps else None,
        **steering.card(cfg, ctx.plan.weak, classifier.id if classifier is not None else None), churn=_churn(cfg),
        guidance_interval=sampler.guidance_interval if guided else None,
        guidance_rescale=sampler.guidance_rescale or None if guided else None,
    )  # fmt: skip


def _churn(cfg: DictConfig) -> dict[str, float] | None:
    """The options of Heun's churn where there is any."""
    known = {k: v for k, v in cfg.sampler.items() if str(k).startswith("s_")}
    return known if known and known["s_churn"] > 0 else None


def _share(ctx: Context, evaluation: Evaluation) -> str:
    final = ctx.plan.evaluations[-1].images
    return "" if evaluation.images == final else f"@{evaluation.images / final:.0%}"
