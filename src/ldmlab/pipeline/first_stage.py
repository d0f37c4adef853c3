"""The stages up to the latents: data, extractor, autoencoder, reconstructions, latents."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.health import Health
from ldmlab.autoencoders.scale import measure_scale
from ldmlab.data import latent_cache as cache
from ldmlab.data.base import to_batch
from ldmlab.data.batches import Batches, to_float, to_uint8
from ldmlab.metrics.evaluate import evaluate
from ldmlab.metrics.extraction import Original, extract_all
from ldmlab.metrics.features import extract
from ldmlab.metrics.inception_score import SPLITS, is_score
from ldmlab.metrics.reconstruction_pass import SHOWN, Pass, save_arrays
from ldmlab.pipeline import weights_first_stage
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.sheets import error_sheet, spread
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors, save_tensors
from ldmlab.store.files import atomic, write_json
from ldmlab.training.autoencoder_loss import AutoencoderLoss
from ldmlab.training.classifier_loss import ClassifierLoss

VALIDATION_IMAGES = 128  # for the numbers during training; the scores afterwards use eval.reconstructions


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
        stage = ClassifierLoss(net, Draws(0))
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
    """The first stage, trained or imported, and with its latent scale measured."""
    ae = build.autoencoder(ctx.cfg)

    def work(folder: Path) -> float | None:
        seconds = None
        fit = ctx.cfg.ae.fit
        if fit is not None:
            classifier = make_extractor(ctx) if build.needs_classifier(ctx.cfg) else None
            loss = build.first_stage_loss(ctx.cfg, classifier).to(ctx.device)
            stage = AutoencoderLoss(ae, loss, Draws(ctx.cfg.seed))
            images = [_image(ctx, ctx.val, i) for i in spread(len(ctx.val), VALIDATION_IMAGES)]
            seconds = ctx.train(
                ctx.plan.autoencoder,
                folder,
                stage,
                ctx.data,
                fit,
                lambda: _psnr(ctx, ae, images),
                build.group_of(ctx.cfg),
                Health().health_check,
            ).seconds
            if fit.ema is not None:
                ae.load_state_dict(load_tensors(folder / "ema.safetensors"))
        source = weights_first_stage.install(ctx.cfg, ae) if ctx.cfg.ae.weights is not None else None
        _set_scale(ctx, frozen(ae, ctx.device))  # type: ignore[arg-type]
        if ctx.main:
            if source:
                write_json(folder / "imported.json", source)
            with atomic(folder / "autoencoder.safetensors") as beside:
                save_tensors(beside, ae.state_dict())
        return seconds

    folder = ctx.make(ctx.plan.autoencoder, work)
    ae.load_state_dict(load_tensors(folder / "autoencoder.safetensors"))
    ae.tile = ctx.cfg.ae.tile
    return frozen(ae, ctx.device)  # type: ignore[return-value]


def make_decoder(ctx: Context) -> Autoencoder:
    """The first stage as images are decoded with it: the trained one, or (ae.train=decoder) with a decoder that learnt on."""
    if ctx.plan.decoder is None:
        return make_autoencoder(ctx)
    ae = build.autoencoder(ctx.cfg)

    def work(folder: Path) -> float:
        trained = make_autoencoder(ctx)
        ae.load_state_dict(trained.state_dict())
        ae.freeze_latents()
        classifier = make_extractor(ctx) if build.needs_classifier(ctx.cfg) else None
        loss = build.first_stage_loss(ctx.cfg, classifier).to(ctx.device)
        images = [_image(ctx, ctx.val, i) for i in spread(len(ctx.val), VALIDATION_IMAGES)]
        budget = ctx.cfg.ae.decoder_fit
        done = ctx.train(
            ctx.plan.decoder,  # type: ignore[arg-type]
            folder,
            AutoencoderLoss(ae, loss, Draws(ctx.cfg.seed)),
            ctx.data,
            budget,
            lambda: _psnr(ctx, ae, images),
            build.group_of(ctx.cfg),
            Health().health_check,
        )
        if ctx.main:
            kept = load_tensors(folder / f"{'weights' if budget.ema is None else 'ema'}.safetensors")
            with atomic(folder / "autoencoder.safetensors") as beside:
                save_tensors(beside, kept)
        return done.seconds

    folder = ctx.make(ctx.plan.decoder, work)
    ae.load_state_dict(load_tensors(folder / "autoencoder.safetensors"))
    ae.tile = ctx.cfg.ae.tile
    return frozen(ae, ctx.device)  # type: ignore[return-value]


def make_reconstructions(ctx: Context) -> Path:
    """What the first stage loses on val images, what its latent costs and what it looks like.

    scores.json   PSNR, SSIM, perceptual distance, rFID, R-IS, bits, latent moments; their protocol card
    facts.json    what kind of first stage it is: shapes, parameters, compression; images/s on this machine
    per_image.npz PSNR, SSIM and perceptual distance of each image, with its index in the data
    latent.npz    histograms, correlation, components, spectra, PSNR against latent noise (`Pass.latent`)
    shown.npz     the first images and their reconstructions; reconstructions.png shows them with their errors
    """

    def work(folder: Path) -> None:
        ae, extractor = make_decoder(ctx), make_extractor(ctx)
        n = min(ctx.cfg.eval.reconstructions, len(ctx.val))
        indices = spread(len(ctx.val), n)
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
            batch_size, bootstrap, seed = ctx.cfg.eval.batch_size, ctx.cfg.eval.bootstrap, ctx.cfg.eval.seed
            distance = build.evaluation_distance(ctx.cfg, extractor)
            seen = Pass(ae, read, n, batch_size, ctx.device, None if distance is None else frozen(distance, ctx.device))
            scores = seen.scores(bootstrap, seed)
            metrics = ["fid", *(["is"] if features[0].logits is not None and n >= SPLITS else [])]
            distances = evaluate(features[0], features[1], metrics, bootstrap, seed, ("eval.reconstructions",) * 2)
            scores |= {f"r{name}": value.to_dict() for name, value in distances.values.items()}
            scores["card"] = {
                "images": n, "split": "val", "data": f"{ctx.plan.data.name}-{ctx.plan.data.id}",
                "resolution": ctx.data.resolution, "latent": "posterior mean", "rounding": "8 bit, nearest",
                "extractor": extractor.name, "extractor_hash": extractor.fingerprint()[:12],
                "perceptual": None if distance is None else type(distance).__name__,
            }  # fmt: skip
            scores["warnings"] = [*seen.gauge.warnings(), *distances.warnings]
            write_json(folder / "scores.json", scores)
            originals = None
            if "is" in metrics and features[1].logits is not None:  # the R-IS of a first stage that loses nothing
                limit = is_score(features[1].logits, bootstrap, seed)
                originals = {"value": limit.value, "low": limit.low, "high": limit.high}
            budget = 0 if ctx.cfg.ae.fit is None else ctx.cfg.ae.fit.images
            facts = {**seen.facts(), "training_images": budget, "is_of_originals": originals, "shown": indices[:SHOWN]}
            write_json(folder / "facts.json", facts)
            shown = seen.shown()
            save_arrays(folder / "per_image.npz", {**seen.per_image(), "index": np.array(indices)})
            save_arrays(folder / "latent.npz", seen.latent())
            save_arrays(folder / "shown.npz", shown)
            error_sheet(folder / "reconstructions.png", shown["original"], shown["reconstruction"])
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
    """Set the latent's scale: told, or measured on training images (paper App. G; `autoencoders/scale.py`)."""
    if (fixed := weights_first_stage.fixed_scale(ctx.cfg)) is not None:
        ae.set_scale(fixed.scale_C11, fixed.shift_C11)
        return
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
