"""The one place that makes parts from options and checks that they fit each other. Nobody else calls Hydra's instantiate.

Net 3 of the configuration (`config.py` has the first two): resolution against f and the network's levels, conditions against the fields
that the data really has, batches against ranks.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.conditioning.class_label import class_index
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.guidance import share_within
from ldmlab.diffusion.objectives import Objective
from ldmlab.errors import ConfigError, UserError
from ldmlab.loop import images_at
from ldmlab.power_ema import gamma_of
from ldmlab.randomness import seed_of

SHAPES = "ldmlab.data.shapes.Shapes"


def part(node: DictConfig, **given: Any) -> Any:
    """One part: its options, plus what follows from other parts. A part's own complaint comes out as it is."""
    try:
        made = instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    return made(**given) if node.get("_partial_", False) else made


@contextlib.contextmanager
def seeded(*labels: int | str) -> Iterator[None]:
    """Initial weights depend on (run seed, part) alone, whatever was built before; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*labels))
        yield


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made inside are on the meta device and not initialised: shapes and counts, no memory, no time.

    (Initialising meta tensors would load PyTorch's compiler, which takes 5 s.)
    """
    from torch.nn import init

    names = [name for name in vars(init) if name.endswith("_") and not name.startswith("_")]
    before = {name: getattr(init, name) for name in names}
    try:
        for name in names:
            setattr(init, name, lambda tensor, *args, **kwargs: tensor)
        with torch.device("meta"):
            yield
    finally:
        for name, function in before.items():
            setattr(init, name, function)


def dataset(cfg: DictConfig, split: str, cache: Path | None) -> Any:
    return part(cfg.data, split=split, cache=cache)


def shapes(cfg: DictConfig, split: str, cache: Path | None) -> Any:
    """The generated shapes at the run's resolution: the run's own data when it uses them, else the default set."""
    if cfg.data["_target_"] == SHAPES:
        return dataset(cfg, split, cache)
    from ldmlab.data.shapes import Shapes

    return Shapes(resolution=cfg.data.resolution, split=split, cache=cache)  # type: ignore[arg-type]


def autoencoder(cfg: DictConfig) -> Autoencoder:
    with seeded(cfg.seed, "autoencoder"):
        node = cfg.ae.regulariser
        regulariser = part(node, c=cfg.ae.network.c) if node.get("_partial_", False) else part(node)
        network = part(cfg.ae.network, channels_in=regulariser.channels_in)
        return Autoencoder(network, regulariser)


def first_stage_loss(cfg: DictConfig, classifier: nn.Module | None) -> Any:
    """`ae.loss` with its parts. `classifier` is the trained shapes classifier, for the perceptual distance that asks for it."""
    with seeded(cfg.seed, "loss"):
        node = cfg.ae.loss
        if needs_classifier(cfg):
            bare = cast(DictConfig, node.copy())
            perceptual, bare.perceptual = bare.perceptual, None
            bare["_partial_"] = True
            return instantiate(bare, _convert_="all")(perceptual=part(perceptual, classifier=classifier))
        return part(node)


def needs_classifier(cfg: DictConfig) -> bool:
    """Whether the first stage's perceptual distance looks through the shapes classifier."""
    perceptual = cfg.ae.loss.perceptual if cfg.ae.loss is not None else None
    return perceptual is not None and bool(perceptual.get("_partial_", False))


def evaluation_distance(cfg: DictConfig, extractor: nn.Module) -> nn.Module | None:
    """The perceptual distance that reconstructions are scored with: in the features of `eval.extractor`, so that every
    first stage of a study is measured alike whatever it was trained with. Where the extractor has no feature maps, the
    first stage's own; None without either."""
    from ldmlab.autoencoders.perceptual import ShapesDistance, SqueezeNetDistance
    from ldmlab.metrics.features import SqueezeNet

    if isinstance(extractor, SqueezeNet) and cfg.data.resolution >= 32:
        return SqueezeNetDistance(cfg.eval.extractor.weights)
    if hasattr(extractor, "feature_maps"):
        return ShapesDistance(extractor)
    own = cfg.ae.loss is not None and cfg.ae.loss.perceptual is not None and not needs_classifier(cfg)
    return cast(nn.Module, part(cfg.ae.loss.perceptual)) if own else None


def conditioner(cfg: DictConfig, data: Any) -> Any:
    node = cfg.cond.conditioner
    return part(node, n_classes=len(data.class_names)) if node.get("_partial_", False) else part(node)


def denoiser(cfg: DictConfig, ae: Autoencoder, data: Any) -> Denoiser:
    with seeded(cfg.seed, "denoiser"):
        conditions = conditioner(cfg, data)
        network = part(
            cfg.ldm.network,
            in_channels=ae.c + conditions.concat_channels,
            out_channels=ae.c,
            context_dim=conditions.context_dim,
            vector_dim=conditions.vector_dim,
            latent_size=ae.latent_shape(data.resolution)[1],
        )
        return Denoiser(network, conditions)


def objective(cfg: DictConfig) -> Objective:
    """`objective` with its parts. A schedule that follows the latent's size (Shifted) is told it here."""
    node = cfg.objective
    if not node.schedule.get("_partial_", False):
        return cast(Objective, part(node))
    with shapes_only():
        size = autoencoder(cfg).latent_shape(cfg.data.resolution)[1]
    schedule = part(node.schedule, latent_size=size)
    bare = cast(DictConfig, node.copy())
    bare.schedule = None
    bare["_partial_"] = True
    return cast(Objective, part(bare, schedule=schedule))


def sampler(cfg: DictConfig) -> Any:
    return part(cfg.sampler)


def extractor(cfg: DictConfig) -> nn.Module:
    """The configured feature extractor; one that is trained here comes untrained."""
    with seeded("extractor"):
        return cast(nn.Module, part(cfg.eval.extractor))


def optimizer(module: nn.Module, fit: DictConfig) -> torch.optim.Optimizer:
    """AdamW; with weight_decay 0 it is Adam. Learning rate per step comes from the loop."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    fused = bool(parameters) and all(p.device.type in ("cuda", "cpu") for p in parameters)
    return torch.optim.AdamW(parameters, lr=fit.lr, betas=tuple(fit.betas), weight_decay=fit.weight_decay, fused=fused)


# ---- net 3: do the parts fit? --------------------------------------------------------------------------------------------


def ranks(cfg: DictConfig) -> int:
    return int(os.environ.get("WORLD_SIZE", cfg.runtime.processes))


def micro_batch(cfg: DictConfig, fit: DictConfig, group: int = 1) -> int:
    """Images per forward pass and rank: the largest divisor of the rank's share that runtime.micro_batch allows.

    `group`: images that must stay together (a discriminator's statistics), so that cutting the batch changes no result.
    """
    share = fit.batch_size // ranks(cfg)
    limit = max(group, min(cfg.runtime.micro_batch or share, share))
    return next(size for size in range(limit, 0, -1) if share % size == 0 and size % group == 0)


def group_of(cfg: DictConfig) -> int:
    """Consecutive images of the first stage's batch that belong together: the discriminator's `norm_images`, else 1."""
    adversarial = cfg.ae.loss is not None and cfg.ae.loss.discriminator is not None
    return int(cfg.ae.loss.norm_images) if adversarial else 1


def check_fit(cfg: DictConfig, data: Any, val: Any) -> None:
    """Refuse compositions whose parts do not fit. Networks are made on the meta device: no memory, no time.

    Raises ConfigError naming the option and the way out.
    """
    for path in ("ae.fit", "ldm.fit", "eval.extractor_fit"):
        group, name = path.split(".")
        fit = cfg[group][name]
        if fit is not None and fit.batch_size % ranks(cfg):
            raise ConfigError(
                f"{path}.batch_size={fit.batch_size} does not divide among {ranks(cfg)} processes; "
                f"the nearest that does: {max(1, round(fit.batch_size / ranks(cfg))) * ranks(cfg)}."
            )
    if cfg.ae.fit is not None and (cfg.ae.fit.batch_size // ranks(cfg)) % group_of(cfg):
        raise ConfigError(
            f"ae.fit.batch_size={cfg.ae.fit.batch_size} over {ranks(cfg)} processes is not a multiple of "
            f"ae.loss.norm_images={group_of(cfg)}, the images that share the discriminator's statistics. "
            f"Set ae.loss.norm_images to a divisor of {cfg.ae.fit.batch_size // ranks(cfg)}, or change the batch."
        )
    if cfg.ae.train == "decoder":
        if cfg.ae.loss is None or cfg.ae.decoder_fit is None:
            raise ConfigError(
                "ae.train=decoder needs a loss and a budget: ae.loss and ae.decoder_fit. ae=identity has no decoder."
            )
        share = cfg.ae.decoder_fit.batch_size // ranks(cfg)
        if cfg.ae.decoder_fit.batch_size % ranks(cfg) or share % group_of(cfg):
            raise ConfigError(
                f"ae.decoder_fit.batch_size={cfg.ae.decoder_fit.batch_size} over {ranks(cfg)} processes is not a multiple of "
                f"ae.loss.norm_images={group_of(cfg)}. Change one of them."
            )
    with shapes_only():
        if group_of(cfg) > 1:
            smallest = part(cfg.ae.loss.discriminator).min_resolution
            if data.resolution < smallest:
                raise ConfigError(
                    f"data.resolution={data.resolution} is too small for the discriminator, which needs {smallest}. "
                    "Use ae/loss/discriminator=none, or patchgan_2 (12 pixels)."
                )
        ae = autoencoder(cfg)
        height = ae.latent_shape(data.resolution)[1]
        if cfg.ae.tile is not None and cfg.ae.tile % (4 * ae.f):
            raise ConfigError(
                f"ae.tile={cfg.ae.tile} must be a multiple of 4 f = {4 * ae.f}, for tiles overlap by a quarter; "
                f"the nearest that is: {max(1, round(cfg.ae.tile / (4 * ae.f))) * 4 * ae.f}."
            )
        if (cfg.ae.fit is None) != (cfg.ae.loss is None) and cfg.ae.weights is None:
            raise ConfigError(
                "ae.fit and ae.loss go together: a first stage is trained with both or with neither (null)."
            )
        conditions = conditioner(cfg, data)
        for field in conditions.needs:
            if field not in data.fields:
                raise ConfigError(
                    f"cond={_choice(cfg)} needs the field '{field}', but the data has {', '.join(data.fields) or 'no fields'} "
                    f"beside the image. Use cond=none, or data with '{field}'."
                )
        network = denoiser(cfg, ae, data).network
    network.check_latent(height, height)  # type: ignore[operator]
    if cfg.cond.label is not None:
        if "label" not in conditions.needs:
            raise ConfigError("cond.label asks for a class, but this denoiser takes no label. Use cond=class_label.")
        class_index(cfg.cond.label, data.class_names)
    chosen = sampler(cfg)
    schedule = objective(cfg).schedule
    visited = chosen.times(schedule.T)[:-1]
    if chosen.guidance != 1 and share_within(chosen.guidance_interval, schedule, visited) == 0:
        ratios = [schedule.at(t).sigma / max(schedule.at(t).alpha, 1e-9) for t in (visited[-1], visited[0])]
        raise ConfigError(
            f"sampler.guidance_interval={chosen.guidance_interval} holds none of the {len(visited)} times that are sampled: "
            f"their noise-to-signal ratios go from {ratios[0]:.3g} to {ratios[1]:.3g}. Widen it, or set it to null."
        )
    if chosen.guidance != 1 and not conditions.needs:
        raise ConfigError(
            f"sampler.guidance={chosen.guidance} needs a condition to guide with, and cond has none. Use sampler.guidance=1."
        )
    if chosen.guidance != 1 and cfg.cond.drop == 0:
        raise ConfigError(
            f"sampler.guidance={chosen.guidance} needs a denoiser that also knows the null condition, but cond.drop=0 "
            "never trains it. Use cond.drop=0.1, or sampler.guidance=1."
        )
    if cfg.eval.weights == "ema" and cfg.ldm.fit.ema is None and cfg.eval.ema_width is None:
        raise ConfigError("eval.weights=ema, but ldm.fit.ema=null keeps no averaged weights. Use eval.weights=raw.")
    check_power_ema(cfg)
    kept = {1.0, *cfg.ldm.fit.snapshots}
    for fraction in cfg.eval.at:
        if fraction not in kept:
            raise ConfigError(
                f"eval.at={fraction} is not among ldm.fit.snapshots={sorted(kept)}: no weights are kept there. "
                f"Add it: ldm.fit.snapshots=[{','.join(str(f) for f in sorted(kept | {fraction}))}]."
            )
    if len({images_at(cfg.ldm.fit, f) for f in kept}) < len(kept):
        raise ConfigError(
            f"ldm.fit.snapshots={sorted(kept)} name the same step twice: {cfg.ldm.fit.images} images are only "
            f"{-(-cfg.ldm.fit.images // cfg.ldm.fit.batch_size)} steps. Use fewer snapshots or more images."
        )
    from ldmlab.metrics.evaluate import check_metrics

    check_metrics(list(cfg.eval.metrics))
    if cfg.eval.label_mode == "from_data" and conditions.needs and "label" not in data.fields:
        raise ConfigError("eval.label_mode=from_data needs data with labels.")
    if len(val) == 0:
        raise ConfigError(
            "the data has no val images; reconstructions cannot be scored. Give data.val_fraction or a val split."
        )


def check_power_ema(cfg: DictConfig) -> None:
    """ConfigError unless every width is one, and eval.ema_width has averages to be made of."""
    for width in cfg.ldm.power_ema:
        gamma_of(width, "ldm.power_ema")
    if len(set(cfg.ldm.power_ema)) < len(cfg.ldm.power_ema):
        raise ConfigError(f"ldm.power_ema={list(cfg.ldm.power_ema)} names a width twice.")
    wanted = cfg.eval.ema_width
    if wanted is None:
        return
    gamma_of(wanted, "eval.ema_width")
    if not cfg.ldm.power_ema:
        raise ConfigError(
            f"eval.ema_width={wanted} is made from power-function averages, and ldm.power_ema=[] keeps none. "
            "Train with ldm.power_ema=[0.05,0.1] and some ldm.fit.snapshots, or use eval.ema_width=null."
        )
    if cfg.eval.weights != "ema":
        raise ConfigError(
            f"eval.ema_width={wanted} is an average, but eval.weights={cfg.eval.weights}. Use eval.weights=ema."
        )


def _choice(cfg: DictConfig) -> str:
    return str(cfg.cond.conditioner["_target_"]).rpartition(".")[2]
