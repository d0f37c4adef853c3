"""One run from data to report, stage by stage: what is in the store is used, what is missing is made.

    data ─▶ (extractor) ─▶ autoencoder ─▶ latents ─▶ denoiser ─▶ samples ─▶ scores ─▶ report

Each function below makes one stage; `execute` is their order.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.scale import LatentStatistics, measure_scale
from ldmlab.card import machine, stamp
from ldmlab.checkpoint import load_tensors
from ldmlab.conditioning.class_label import class_index
from ldmlab.config import Composed
from ldmlab.context import Context, frozen
from ldmlab.data.base import to_batch
from ldmlab.data.batches import Batches, to_float, to_uint8
from ldmlab.diffusion.denoiser import Denoiser, denoise_with
from ldmlab.diffusion.guidance import guided
from ldmlab.errors import DataError, UserError
from ldmlab.launch import make_accelerator, set_threads
from ldmlab.metrics.evaluate import evaluate, label_agreement
from ldmlab.metrics.features import FeatureSet, extract
from ldmlab.metrics.protocol import ProtocolCard
from ldmlab.metrics.reconstruction import Reconstruction
from ldmlab.plan import Evaluation, Plan, as_text, make_plan, table
from ldmlab.randomness import Draws
from ldmlab.stages import latents as cache
from ldmlab.stages import sampling
from ldmlab.stages.autoencoder import AutoencoderStage
from ldmlab.stages.classifier import ClassifierStage
from ldmlab.stages.diffusion import DiffusionStage
from ldmlab.stages.scoring import Census, Original, extract_all, load_features, reference_indices
from ldmlab.store import Store, read_json, write_json

VALIDATION_IMAGES = 128  # for the numbers during training; the scores afterwards use eval.reconstructions


def prepare(composed: Composed) -> tuple[Plan, Store, Any, Any]:
    """Data, checks and plan: everything that can be wrong is found here. Trains nothing, writes at most data caches."""
    cfg = composed.cfg
    store = Store(Path(cfg.store))
    caches = store.root / "data" / "cache"
    data, val = build.dataset(cfg, "train", caches), build.dataset(cfg, "val", caches)
    build.check_fit(cfg, data, val)
    return make_plan(cfg, composed.choices, data, val, store.root), store, data, val


def execute(composed: Composed, command: str, may_train: bool = True) -> Path | None:
    """Print the plan, make what is missing, return the run's folder (None for a dry run).

    Raises UserError when something would have to be trained and `may_train` is False.
    """
    cfg = composed.cfg
    set_threads(cfg.runtime.threads)
    plan, store, data, val = prepare(composed)
    if cfg.dry_run:
        print(as_text(table(plan, store, costs=True)))
        return None
    if not may_train:
        for address in (plan.autoencoder, plan.denoiser):
            if store.done(address) is None:
                raise UserError(
                    f"the {address.stage} {address.id} is not trained yet, and this command trains nothing. "
                    f"Train it first: {command.replace('score.py', 'train.py').replace('sample.py', 'train.py')}"
                )
    accelerator = make_accelerator(cfg.runtime.device)
    ctx = Context(cfg, composed.choices, plan, store, accelerator, data, val)
    ctx.say(as_text(table(plan, store, costs=False)) + "\n")
    make_data(ctx)
    order: list[tuple[str, Callable[[], object]]] = [
        ("autoencoder", lambda: (make_autoencoder(ctx), make_reconstructions(ctx))),
        ("latents", lambda: make_latents(ctx)),
        ("denoiser", lambda: make_denoiser(ctx)),
        ("samples", lambda: [make_samples(ctx, e) for e in plan.evaluations]),
        ("scores", lambda: [make_scores(ctx, e) for e in plan.evaluations]),
    ]
    for name, work in order:
        work()
        if name == cfg.until:
            break
    folder = record(ctx, command)
    accelerator.end_training()
    return folder


# ---- the stages ----------------------------------------------------------------------------------------------------------


def make_data(ctx: Context) -> Path:
    """The manifest of what the run learns from; the images themselves stay where they are."""

    def work(folder: Path) -> None:
        if ctx.main:
            record = {
                "train": len(ctx.data), "val": len(ctx.val), "resolution": ctx.data.resolution, "flip": ctx.data.flip,
                "fields": list(ctx.data.fields), "class_names": list(ctx.data.class_names),
                "fingerprint": {"train": ctx.data.fingerprint(), "val": ctx.val.fingerprint()},
                "splits": ctx.data.split_record(),
            }  # fmt: skip
            write_json(folder / "manifest.json", record)

    return ctx.make(ctx.plan.data, work)


def make_extractor(ctx: Context) -> Any:
    """The feature extractor, trained first when it is the kind that is trained here."""
    net: Any = build.extractor(ctx.cfg)
    if ctx.plan.extractor is None:
        return frozen(net, ctx.device)
    caches = ctx.store.root / "data" / "cache"
    kept = "weights" if ctx.cfg.eval.extractor_fit.ema is None else "ema"

    def work(folder: Path) -> float:
        train, val = build.shapes(ctx.cfg, "train", caches), build.shapes(ctx.cfg, "val", caches)
        stage = ClassifierStage(net, Draws(0))
        done = ctx.train(ctx.plan.extractor, folder, stage, train, ctx.cfg.eval.extractor_fit)  # type: ignore[arg-type]
        if ctx.main:
            net.load_state_dict(load_tensors(folder / f"{kept}.safetensors"))
            found = extract((b.permute(0, 3, 1, 2) for b in _images(val)), frozen(net, ctx.device), ctx.device)
            assert found.logits is not None
            accuracy = float((found.logits.argmax(1) == val.labels()).mean())
            write_json(folder / "scores.json", {"accuracy": accuracy, "images": len(val)})
            ctx.say(f" extractor: {accuracy:.1%} of {len(val)} val images named right")
        return done.seconds

    folder = ctx.make(ctx.plan.extractor, work)
    net.load_state_dict(load_tensors(folder / f"{kept}.safetensors"))
    return frozen(net, ctx.device)


def make_autoencoder(ctx: Context) -> Autoencoder:
    """The first stage, trained and with its latent scale measured."""
    ae = build.autoencoder(ctx.cfg)

    def work(folder: Path) -> float | None:
        seconds = None
        fit = ctx.cfg.ae.fit
        if fit is not None:
            classifier = make_extractor(ctx) if build.needs_classifier(ctx.cfg) else None
            loss = build.first_stage_loss(ctx.cfg, classifier).to(ctx.device)
            stage = AutoencoderStage(ae, loss, Draws(ctx.cfg.seed))
            images = [_image(ctx, ctx.val, i) for i in _spread(len(ctx.val), VALIDATION_IMAGES)]
            seconds = ctx.train(
                ctx.plan.autoencoder,
                folder,
                stage,
                ctx.data,
                fit,
                lambda: _psnr(ctx, ae, images),
                build.group_of(ctx.cfg),
            ).seconds
            if fit.ema is not None:
                ae.load_state_dict(load_tensors(folder / "ema.safetensors"))
        _set_scale(ctx, frozen(ae, ctx.device))  # type: ignore[arg-type]
        if ctx.main:
            from ldmlab.checkpoint import save_tensors
            from ldmlab.store import atomic

            with atomic(folder / "autoencoder.safetensors") as beside:
                save_tensors(beside, ae.state_dict())
        return seconds

    folder = ctx.make(ctx.plan.autoencoder, work)
    ae.load_state_dict(load_tensors(folder / "autoencoder.safetensors"))
    return frozen(ae, ctx.device)  # type: ignore[return-value]


def make_reconstructions(ctx: Context) -> Path:
    """How much the first stage loses on val images: PSNR, SSIM, perceptual distance, rFID, latents, a picture."""

    def work(folder: Path) -> None:
        ae, extractor = make_autoencoder(ctx), make_extractor(ctx)
        n = min(ctx.cfg.eval.reconstructions, len(ctx.val))
        indices = _spread(len(ctx.val), n)
        read = Original(ctx.val, indices)

        @torch.no_grad()
        def reconstructed(rows: list[int]) -> Tensor:
            return to_uint8(ae.decode(ae.encode(to_float(read(rows).to(ctx.device)))))

        features = [
            extract_all(
                images, n, extractor, folder, ctx.cfg.eval.batch_size, ctx.device, ctx.rank, ctx.ranks, ctx.barrier,
                ctx.progress(f"val {name}", n), name,
            )
            for images, name in ((reconstructed, "reconstructed"), (read, "original"))
        ]  # fmt: skip
        if ctx.main:
            rfid = evaluate(features[0], features[1], ["fid"], ctx.cfg.eval.bootstrap, ctx.cfg.eval.seed)
            scores, warnings = _reconstruction_scores(ctx, ae, read, n)
            scores["rfid"] = rfid.values["fid"].to_dict()
            scores["card"] = {
                "images": n, "split": "val", "latent": "posterior mean", "rounding": "8 bit, nearest",
                "extractor": extractor.name, "extractor_hash": extractor.fingerprint()[:12],
                "latent_scale": ae.scale.flatten().tolist(), "latent_shift": ae.shift.flatten().tolist(),
            }  # fmt: skip
            scores["warnings"] = [*warnings, *rfid.warnings]
            write_json(folder / "scores.json", scores)
            shown = list(range(min(8, n)))
            _error_sheet(folder / "reconstructions.png", read(shown).numpy(), reconstructed(shown).cpu().numpy())
        ctx.barrier()

    return ctx.make(ctx.plan.reconstructions, work)


def make_latents(ctx: Context) -> Any:
    """The data set that the denoiser trains on: cached moments, or the images themselves."""
    if ctx.plan.latents is None:
        return ctx.data

    def work(folder: Path) -> None:
        ae = make_autoencoder(ctx)
        cache.encode_all(
            ctx.data, ae.moments, folder, ctx.cfg.latents.dtype, ctx.device, ctx.cfg.eval.batch_size, ctx.rank, ctx.ranks,
            ctx.barrier, ctx.progress("latents", len(ctx.data)),
        )  # fmt: skip

    found = cache.LatentCache(ctx.make(ctx.plan.latents, work), ctx.data)
    if ctx.cfg.latents.verify:
        worst = cache.verify(found, make_autoencoder(ctx).moments, ctx.device)
        ctx.say(
            f" latents {ctx.plan.latents.id} verified: {len(found.card['certificate'])} images, largest difference {worst:.2g} std"
        )
    return found


def make_denoiser(ctx: Context, images: int | None = None) -> Denoiser:
    """The denoiser with the weights that `eval.weights` names, of a snapshot when `images` says which."""
    ae = make_autoencoder(ctx)
    model = build.denoiser(ctx.cfg, ae, ctx.data)

    def work(folder: Path) -> float:
        data = make_latents(ctx)
        objective = build.objective(ctx.cfg)
        stage = DiffusionStage(model, ae, objective, Draws(ctx.cfg.seed), ctx.cfg.cond.drop)
        probe = DiffusionStage(model, ae, objective, Draws(ctx.cfg.seed + 1), 0.0)
        size = min(VALIDATION_IMAGES, len(ctx.val))
        held = Batches(ctx.val, size, size, ctx.cfg.seed, ctx.device).step(0)[0]

        @torch.no_grad()
        def validate() -> dict[str, float]:  # the same images, times and noise at every call
            model.eval()
            logs = probe.loss(held, "denoiser", 0)[1]
            model.train()
            return {k: float(v) for k, v in logs.items()}

        return ctx.train(ctx.plan.denoiser, folder, stage, data, ctx.cfg.ldm.fit, validate).seconds

    folder = ctx.make(ctx.plan.denoiser, work)
    final = ctx.plan.evaluations[-1].images if ctx.plan.evaluations else None
    if images is not None and (folder / "snapshots" / f"{images:012d}").exists():
        folder = folder / "snapshots" / f"{images:012d}"
    elif images is not None and images != final:
        raise DataError(f"{folder} has no snapshot at {images} images.")
    name = "ema" if ctx.cfg.eval.weights == "ema" else "weights"
    model.load_state_dict(load_tensors(folder / f"{name}.safetensors"))
    return frozen(model, ctx.device)  # type: ignore[return-value]


def make_samples(ctx: Context, evaluation: Evaluation) -> Path:
    """Images of one snapshot, their conditions and seeds, and a sheet to look at."""
    cfg = ctx.cfg

    def work(folder: Path) -> None:
        ae, model = make_autoencoder(ctx), make_denoiser(ctx, evaluation.images)
        objective, sampler = build.objective(cfg), build.sampler(cfg)
        n, shape = cfg.eval.samples, ae.latent_shape(ctx.data.resolution)
        labelled = "label" in model.conditioner.needs
        conditions: dict[str, Any] = {"seed": [sampling.image_seed(cfg.eval.seed, i) for i in range(n)]}
        label_N = torch.zeros(n, dtype=torch.int64)
        if labelled:
            wish = None if cfg.cond.label is None else class_index(cfg.cond.label, ctx.data.class_names)
            known = ctx.data.labels() if cfg.eval.label_mode == "from_data" else None
            label_N = torch.from_numpy(
                sampling.labels_for(cfg.eval.label_mode, wish, n, len(ctx.data.class_names), known, cfg.eval.seed)
            )
            conditions |= {"label": label_N.tolist(), "class_names": list(ctx.data.class_names)}
        plain = denoise_with(model, objective)

        def draw(indices: list[int]) -> Tensor:
            null = model.conditioner.null(len(indices), ctx.device)
            return sampling.draw(
                sampler, guided(plain, sampler.guidance, null), objective.schedule, ae.decode,
                lambda rows: model.condition({"label": label_N[rows].to(ctx.device)}),
                [conditions["seed"][i] for i in indices], shape, ctx.device, indices,
            )  # fmt: skip

        sampling.sample_all(
            draw, n, folder, cfg.eval.batch_size, ctx.rank, ctx.ranks, ctx.barrier,
            ctx.progress(f"samples {_share(ctx, evaluation)}", n),
        )  # fmt: skip
        if ctx.main:
            write_json(folder / "conditions.json", conditions)
            images = np.load(folder / "images.npy", mmap_mode="r")
            classes = len(ctx.data.class_names) if labelled and cfg.cond.label is None else 8
            columns = min(max(classes, 4), 16)
            _save_sheet(folder / "grid.png", np.asarray(images[: columns * 8]), columns)

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
        images = np.load(samples / "images.npy", mmap_mode="r")
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
            result = {"snapshot_images": evaluation.images, **scores.to_dict()}
            result["warnings"] = [*scores.warnings, *card.warnings()]
            write_json(folder / "scores.json", {**result, "card": card.to_dict(), "card_short": card.short()})
        ctx.barrier()

    return ctx.make(evaluation.scores, work)


def protocol_card(ctx: Context, evaluation: Evaluation, extractor: Any, reference_images: int) -> ProtocolCard:
    """Everything that decides a score beside the trained network (architecture §7)."""
    cfg, sampler = ctx.cfg, build.sampler(ctx.cfg)
    labelled = "label" in build.conditioner(cfg, ctx.data).needs
    mode = (f"label {cfg.cond.label}" if cfg.cond.label is not None else cfg.eval.label_mode) if labelled else None
    return ProtocolCard(
        reference=ctx.plan.reference.id, reference_split=cfg.eval.reference.split, reference_images=reference_images,
        resolution=ctx.data.resolution, samples=cfg.eval.samples, label_mode=mode, sampler=evaluation.samples.name,
        steps=sampler.steps, eta=getattr(sampler, "eta", None), guidance=sampler.guidance, weights=cfg.eval.weights,
        snapshot_images=evaluation.images, extractor=extractor.name, extractor_hash=extractor.fingerprint(),
        resize=extractor.resize_text, grid=getattr(sampler, "grid", None), seed=cfg.eval.seed,
        bootstrap=cfg.eval.bootstrap, bootstrap_seed=cfg.eval.seed,
    )  # fmt: skip


# ---- the record ----------------------------------------------------------------------------------------------------------


def record(ctx: Context, command: str) -> Path:
    """`runs/<name>-<id>/run.json`: the run's stages and where they lie; what reports read."""
    folder = ctx.store.folder(ctx.plan.run)
    if ctx.main:
        path = folder / "run.json"
        created = read_json(path)["created"] if path.exists() else stamp(time.time())
        stages = []
        for row in ctx.plan.rows:
            at = ctx.store.folder(row.address)
            seal = ctx.store.done(row.address)
            stages.append(
                {
                    "stage": row.address.stage, "id": row.address.id, "name": row.address.name,
                    "folder": f"../../{at.relative_to(ctx.store.root)}", "state": "done" if seal else "unfinished",
                    "what": row.what, "seconds": seal["seconds"] if seal else 0.0, "upstream": row.address.upstream,
                }
            )  # fmt: skip
        run = {
            "id": ctx.plan.run.id, "name": ctx.plan.run.name, "title": title(ctx), "command": command, "created": created,
            "machine": machine(), "config": OmegaConf.to_container(ctx.cfg, resolve=True), "stages": stages,
        }  # fmt: skip
        write_json(path, run)
    ctx.barrier()
    return folder


def title(ctx: Context) -> str:
    return " · ".join(ctx.choices[g] for g in ("data", "ae", "ldm", "cond"))


@torch.no_grad()
def _reconstruction_scores(
    ctx: Context, ae: Autoencoder, read: Callable[[list[int]], Tensor], n: int
) -> tuple[dict[str, Any], list[str]]:
    """PSNR, SSIM and perceptual distance with intervals; the latent's mean and std; KL bits or codebook use."""
    gauge = Reconstruction(_perceptual(ctx))
    statistics = LatentStatistics(ae.c)
    census = Census()
    for begin in range(0, n, ctx.cfg.eval.batch_size):
        image_BCHW = to_float(read(list(range(begin, min(begin + ctx.cfg.eval.batch_size, n)))).to(ctx.device))
        moments_BCHW = ae.moments(image_BCHW)
        gauge.update(image_BCHW, ae.decode(ae.sample(moments_BCHW)))
        statistics.update(ae.posterior(moments_BCHW))
        census.update(len(image_BCHW), ae.regulariser(moments_BCHW, None).stats, ae.regulariser.counts(moments_BCHW))
    scores: dict[str, Any] = {
        k: v.to_dict() for k, v in gauge.compute(ctx.cfg.eval.bootstrap, ctx.cfg.eval.seed).items()
    }
    scores |= {"latent_mean": statistics.mean, "latent_std": statistics.std}
    return scores | census.compute(), gauge.warnings()


# ---- small things --------------------------------------------------------------------------------------------------------


def _share(ctx: Context, evaluation: Evaluation) -> str:
    final = ctx.plan.evaluations[-1].images
    return "" if evaluation.images == final else f"@{evaluation.images / final:.0%}"


def _spread(length: int, n: int) -> list[int]:
    """n indices spread evenly over a data set, so that sorted classes are all seen."""
    return np.linspace(0, length - 1, min(n, length)).round().astype(int).tolist()


def _images(data: Any, size: int = 256) -> Iterator[Tensor]:
    """All images of a data set, uint8 BHWC."""
    for begin in range(0, len(data), size):
        yield to_batch(data.__getitems__(list(range(begin, min(begin + size, len(data))))))["image"]


def _image(ctx: Context, data: Any, index: int) -> Tensor:
    return to_float(to_batch([data[index]])["image"]).to(ctx.device)


@torch.no_grad()
def _psnr(ctx: Context, ae: Autoencoder, images: Sequence[Tensor]) -> dict[str, float]:
    """Mean PSNR in dB over some val images, 8-bit rounded; quick, for the log. The training path: raw latent, posterior mean."""
    image_BCHW = torch.cat(list(images))
    ae.eval()
    error = [
        (to_uint8(part).float() - to_uint8(ae(part, None).image_BCHW).float()).square().mean(dim=(1, 2, 3))
        for part in image_BCHW.split(32)
    ]
    ae.train()
    mse_B = torch.cat(error).clamp_min(1e-4)
    return {"psnr": float((10 * torch.log10(255**2 / mse_B)).mean())}


@torch.no_grad()
def _set_scale(ctx: Context, ae: Autoencoder) -> None:
    """Measure and set the latent's scale on training images (paper App. G; `autoencoders/scale.py`)."""
    scale = ctx.cfg.ae.latent_scale
    n = min(scale.images, len(ctx.data))
    size = ctx.cfg.ae.fit.batch_size if scale.mode == "first_batch_std" and ctx.cfg.ae.fit else ctx.cfg.eval.batch_size
    order = Batches(ctx.data, n, n, ctx.cfg.seed, ctx.device).order
    indices = [order[i] for i in range(n)]

    def posteriors() -> Any:
        for begin in range(0, n, size):
            batch = to_batch(ctx.data.__getitems__(indices[begin : begin + size]))
            yield ae.posterior(ae.moments(to_float(batch["image"].to(ctx.device))))

    found = measure_scale(posteriors(), scale.mode)
    ae.set_scale(found.scale_C11, found.shift_C11)


def _perceptual(ctx: Context) -> nn.Module | None:
    """The perceptual distance of the training loss, when there is one; none is put in its place when there is none."""
    loss = ctx.cfg.ae.loss
    if loss is None or loss.perceptual is None:
        return None
    classifier = make_extractor(ctx) if build.needs_classifier(ctx.cfg) else None
    return frozen(build.first_stage_loss(ctx.cfg, classifier).perceptual, ctx.device)


def _save_sheet(path: Path, images_NHWC: np.ndarray, columns: int) -> None:
    from PIL import Image

    from ldmlab.store import atomic

    scale = max(1, 64 // images_NHWC.shape[1])
    with atomic(path) as beside:
        Image.fromarray(sampling.contact_sheet(images_NHWC, columns, scale)).save(beside, format="png")


def _error_sheet(path: Path, original: np.ndarray, reconstructed: np.ndarray) -> None:
    """Rows: original, reconstruction, absolute error (times 4, clipped)."""
    error = np.clip(4 * np.abs(original.astype(int) - reconstructed.astype(int)), 0, 255).astype(np.uint8)
    _save_sheet(path, np.concatenate([original, reconstructed, error]), len(original))
