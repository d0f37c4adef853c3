"""The parts of a run, made once on the meta device, and whether they fit each other and the data (net 3 of the configuration).

Checks, plan, costs and stages all read the shapes and sizes of parts here. Trained parts are built
again, with contents, where they are trained or loaded.
"""

import functools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.tiles import starts
from ldmlab.autoencoders.whole_image import WITHOUT
from ldmlab.conditioning.asked import Asked
from ldmlab.conditioning.base import Conditioner
from ldmlab.conditioning.compose import parts_of
from ldmlab.conditioning.source import POSITION, ConditionSource, chosen
from ldmlab.data.base import ImageDataset, channels_of
from ldmlab.data.fields import check_mirrors
from ldmlab.data.mosaic import Mosaic
from ldmlab.data.shapes import FIELDS
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.windows import Windows
from ldmlab.errors import ConfigError
from ldmlab.guidance.base import Guidance
from ldmlab.guidance.interval import share_within
from ldmlab.metrics.features import Extractor
from ldmlab.metrics.metric import Metric, available, check, check_counts
from ldmlab.pipeline import large, planned, snapshots
from ldmlab.pipeline.asked import Request, request_of
from ldmlab.pipeline.costs import flops_of
from ldmlab.samplers.sampler import Sampler
from ldmlab.training.post_hoc_ema import gamma_of


@dataclass(frozen=True)
class Resolved:
    """One run's configuration, data and parts. Networks have shapes and no contents."""

    cfg: DictConfig
    choices: dict[str, str]
    data: ImageDataset
    val: ImageDataset
    data_caches: Path
    autoencoder: Autoencoder
    denoiser: Denoiser
    objective: Objective
    sampler: Sampler
    guidance: tuple[Guidance, ...]
    extractor: nn.Module | None
    metrics: tuple[Metric, ...] = ()
    notes: list[str] = field(default_factory=list)
    request: Request | None = None  # what a person asked of sample.py
    budget: dict[str, Any] | None = None  # what `ldm.budget` chose (`budget.described`); None without a target

    @property
    def conditioner(self) -> Conditioner:
        return self.denoiser.conditioner

    @property
    def resolution(self) -> int:
        return self.data.resolution

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, H, W)."""
        return self.autoencoder.latent_shape(self.resolution)

    @property
    def size(self) -> tuple[int, int]:
        """Of samples, height and width in pixels; data.resolution unless `size` says otherwise."""
        return large.size_of(self.cfg, self.resolution)

    @property
    def larger(self) -> bool:
        """Whether samples have another size than the images of training."""
        return self.size != (self.resolution, self.resolution)

    @property
    def sampled_shape(self) -> tuple[int, int, int]:
        """(c, H, W) of the samples' latents."""
        f = self.autoencoder.f
        return self.autoencoder.c, self.size[0] // f, self.size[1] // f

    @property
    def ranks(self) -> int:
        return build.ranks(self.cfg)

    @property
    def snapshots(self) -> list[int]:
        """Training images of the snapshots that are sampled and scored, rising; [0] for an imported denoiser."""
        return snapshots.scored(self.cfg)

    @property
    def condition_fields(self) -> tuple[str, ...]:
        """What samples are drawn for: what the conditioner reads, and what guidance reads."""
        wanted = [*self.conditioner.needs, *(name for kind in self.guidance for name in kind.fields)]
        return tuple(dict.fromkeys(wanted))

    @property
    def visited(self) -> list[int]:
        """The times that are sampled, T-1 first."""
        return self.sampler.times(self.objective.schedule.T)[:-1]

    def conditions(self, n: int) -> ConditionSource:
        """What n samples are drawn for."""
        eval_, cond = self.cfg.eval, self.cfg.cond
        wanted = {"label": cond.label, "prompt": cond.prompt}
        held_out: ImageDataset = Mosaic(self.val, *self.size) if self.larger else self.val

        def usual() -> ConditionSource:
            return chosen(eval_.label_mode, self.condition_fields, self.data, held_out, n, eval_.seed, **wanted)

        return usual() if self.request is None else self.request.source(usual, n)

    @functools.cached_property
    def _counted(self) -> "Costs":
        """Counted for a dry run, and where a budget has counted already: meta kernels load PyTorch's compiler, which takes 5 s."""
        if not self.cfg.dry_run and self.budget is None:
            return Costs()
        image = torch.empty(1, channels_of(self.data), self.resolution, self.resolution, device="meta")
        z = torch.empty(1, *self.latent_shape, device="meta")
        return Costs(
            flops_of(lambda: self.autoencoder.moments(image)),
            flops_of(lambda: self.autoencoder.decode(z)),
            0.0 if self.denoiser.closed_form else forward_flops(self.denoiser, self.latent_shape),
            flops_of(lambda: self.denoiser.null(1, self.latent_shape[1:], "meta")),
            any(weight.requires_grad for weight in cast(nn.Module, self.conditioner).parameters()),
        )

    @functools.cached_property
    def costs(self) -> "Costs":
        """Of its networks on its shapes; runs of one process that share them count once."""
        cfg = self.cfg
        parts = (cfg.ae.network, cfg.ae.regulariser, cfg.ldm.network, build.conditioners(cfg))
        facts = (self.resolution, len(self.data.class_names), *(field.values for field in self.data.declared))
        key = json.dumps([cfg.dry_run or self.budget is not None, *map(OmegaConf.to_container, parts), *facts])
        if key not in _COUNTED:
            _COUNTED[key] = self._counted
        return _COUNTED[key]

    @functools.cached_property
    def sampled_costs(self) -> "Costs":
        """Of samples, which may be larger than the images of training and seen through windows and in tiles."""
        if not self.costs.forward or not large.words(self):
            return self.costs
        ae, (c, height, width) = self.autoencoder, self.sampled_shape
        windows = large.windows_of(self.cfg, ae.f)
        tile = (large.tile_of(self.cfg) or max(self.size)) // ae.f
        tiles = len(starts(height, tile, tile // 4)) * len(starts(width, tile, tile // 4))
        z = torch.empty(1, c, min(height, tile), min(width, tile), device="meta")
        decode = tiles * flops_of(lambda: ae.decode(z))
        return replace(self.costs, decode=decode, forward=forward_flops(self.denoiser, (c, height, width), windows))


_COUNTED: dict[str, "Costs"] = {}


@dataclass(frozen=True)
class Costs:
    """Floating-point operations of one image's forward passes; zeros when nobody counts."""

    encode: float = 0.0
    decode: float = 0.0
    forward: float = 0.0
    condition: float = 0.0  # reading one condition: a text's transformer; counted on the null condition
    condition_learns: bool = False  # then training needs two more of them for the backward pass

    @property
    def training(self) -> float:
        """Of a training image behind the first stage: forward and backward through network and conditioner."""
        return 3 * self.forward + self.condition * (3 if self.condition_learns else 1)


def forward_flops(denoiser: Denoiser, latent_shape: tuple[int, int, int], windows: Windows | None = None) -> float:
    """Of one forward pass of the network under the null condition, window by window where there are any; on the meta device."""
    if windows is not None:
        places = windows.places(*latent_shape[1:])
        height, width = (min(windows.side, length) for length in latent_shape[1:])
        return len(places) * forward_flops(denoiser, (latent_shape[0], height, width))
    z, t = torch.empty(1, *latent_shape, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    condition = denoiser.null(1, latent_shape[1:], "meta")
    return flops_of(lambda: denoiser.network(z, t, condition))


def resolve(
    cfg: DictConfig,
    choices: dict[str, str],
    data: ImageDataset,
    val: ImageDataset,
    caches: Path,
    asked: Asked | None = None,
    scored: bool = True,
) -> Resolved:
    """The parts of a run whose data is there, each built once. asked: what sample.py reads beside the configuration. scored: with its
    metrics.

    Raises ConfigError when parts do not fit each other or the data, naming the option and the way out.
    """
    check_batches(cfg)
    with build.shapes_only():
        check_discriminator(cfg, data.resolution)
        autoencoder = build.autoencoder(cfg)
        check_first_stage(cfg, autoencoder, len(data))
        _, height, width = autoencoder.latent_shape(data.resolution)
        conditioner = build.conditioner(cfg, data, autoencoder)
        check_fields(cfg, conditioner, data, choices.get("cond", "…"))
        denoiser = build.denoiser(cfg, autoencoder, data, conditioner)
    denoiser.network.check_latent(height, width)  # type: ignore[operator]
    objective = build.objective(cfg, height)
    sampler = build.sampler(cfg)
    guidance = build.guidance(cfg, sampler)
    extractor = planned.extractor(cfg) if planned.planned(cfg) else build.extractor(cfg, data.declared)
    if build.needs_classifier(cfg) and not hasattr(extractor, "feature_maps"):
        raise ConfigError(
            f"ae/loss/perceptual=shapes looks through the classifier of eval=shapes, and eval={choices['eval']} has none. Set "
            "eval=shapes or classifier, or another ae/loss/perceptual."
        )
    found = Resolved(
        cfg, choices, data, val, caches, autoencoder, denoiser, objective, sampler, guidance, extractor
    )  # fmt: skip
    check_channels(found)
    large.check(found)
    check_sampling(found)
    check_guidance(found)
    found = replace(found, request=request_of(asked, found))
    check_label(found)
    snapshots.check(cfg)
    check_power_ema(cfg)
    check_evaluation(found)
    return replace(found, metrics=tuple(checked_metrics(found)) if scored else ())


# ---- do they fit: one function a question --------------------------------------------------------------------------------


def check_batches(cfg: DictConfig) -> None:
    """Batches among ranks, and among the groups that share a discriminator's statistics."""
    ranks, group = build.ranks(cfg), build.group_of(cfg)
    for path in ("ae.fit", "ldm.fit", "eval.extractor_fit"):
        above, name = path.split(".")
        if cfg[above][name] is not None:
            check_divides(f"{path}.batch_size", cfg[above][name].batch_size, ranks)
    if cfg.ae.fit is not None and (cfg.ae.fit.batch_size // ranks) % group:
        raise ConfigError(
            f"ae.fit.batch_size={cfg.ae.fit.batch_size} over {ranks} processes is not a multiple of "
            f"ae.loss.norm_images={group}, the images that share the discriminator's statistics. "
            f"Set ae.loss.norm_images to a divisor of {cfg.ae.fit.batch_size // ranks}, or change the batch."
        )
    if cfg.ae.train == "decoder":
        if cfg.ae.loss is None or cfg.ae.decoder_fit is None:
            raise ConfigError(
                "ae.train=decoder needs a loss and a budget: ae.loss and ae.decoder_fit. ae=identity has no decoder."
            )
        share = cfg.ae.decoder_fit.batch_size // ranks
        if cfg.ae.decoder_fit.batch_size % ranks or share % group:
            raise ConfigError(
                f"ae.decoder_fit.batch_size={cfg.ae.decoder_fit.batch_size} over {ranks} processes is not a multiple of "
                f"ae.loss.norm_images={group}. Change one of them."
            )


def check_channels(found: Resolved) -> None:
    """Fixed networks of RGB pictures, in the first stage's loss and as extractor, against data of other channels."""
    cfg, channels = found.cfg, channels_of(found.data)
    if channels == 3:
        return
    perceptual = cfg.ae.loss.perceptual if cfg.ae.loss is not None else None
    if perceptual is not None and not build.needs_classifier(cfg):
        seen = getattr(build.class_of(perceptual), "image_channels", 3)
        if seen not in (None, channels):
            raise ConfigError(
                f"ae.loss.perceptual looks through a network of pictures with {seen} channels, and data.channels={channels}. Use "
                "ae/loss/perceptual=none, or data.channels=3."
            )
    seen = getattr(found.extractor, "image_channels", 3)
    if found.extractor is not None and seen != channels:
        raise ConfigError(
            f"eval={found.choices['eval']} takes its features from pictures with {seen} channels, and data.channels={channels}. Use "
            "eval=classifier, which is trained on the data, or eval=none."
        )


def check_divides(path: str, batch_size: int, ranks: int) -> None:
    """A batch divides among the processes."""
    if batch_size % ranks:
        raise ConfigError(
            f"{path}={batch_size} does not divide among {ranks} processes; "
            f"the nearest that does: {max(1, round(batch_size / ranks)) * ranks}."
        )


def check_discriminator(cfg: DictConfig, resolution: int) -> None:
    """The images are not smaller than what the discriminator looks at."""
    if build.group_of(cfg) > 1:
        smallest = build.part(cfg.ae.loss.discriminator).min_resolution
        if resolution < smallest:
            raise ConfigError(
                f"data.resolution={resolution} is too small for the discriminator, which needs {smallest}. "
                "Use ae/loss/discriminator=none, or patchgan_2 (12 pixels)."
            )


def check_first_stage(cfg: DictConfig, ae: Autoencoder, n_images: int) -> None:
    """Tiles against f; the only size that a network takes, and the training images that it needs; a loss with a budget."""
    if cfg.ae.tile is not None and cfg.ae.tile % (4 * ae.f):
        raise ConfigError(
            f"ae.tile={cfg.ae.tile} must be a multiple of 4 f = {4 * ae.f}, for tiles overlap by a quarter; "
            f"the nearest that is: {max(1, round(cfg.ae.tile / (4 * ae.f))) * 4 * ae.f}."
        )
    size, network = cfg.data.resolution, ae.network
    if network.image_size not in (None, size):
        raise ConfigError(
            f"ae.network.image_size={network.image_size}: this first stage sees whole images of that size, and data.resolution is "
            f"{size}. Set ae.network.image_size={size}, or data.resolution={network.image_size}."
        )
    if network.image_size is not None and cfg.ae.tile is not None:
        raise ConfigError(
            f"ae.tile={cfg.ae.tile}: this first stage sees whole images and has no tiles. Set ae.tile=null, or {WITHOUT}."
        )
    images = min(n_images, network.fit_images or n_images)
    if images < network.least_images and cfg.ae.weights is None:
        raise ConfigError(
            f"ae.network.image_size={network.image_size}: its {network.c}x{size // network.f}x{size // network.f} latent needs at "
            f"least {network.least_images} training images, and there are {images}. Set {WITHOUT}, or take more."
        )
    if (cfg.ae.fit is None) != (cfg.ae.loss is None) and cfg.ae.weights is None:
        raise ConfigError(
            "ae.fit and ae.loss go together: a first stage is trained with both or neither. Give both, or null for both."
        )


def check_fields(cfg: DictConfig, conditioner: Conditioner, data: ImageDataset, choice: str) -> None:
    """The data has what the conditioning needs, and a mirrored image can keep its fields."""
    if data.flip:
        check_mirrors(data.fields, data.declared)
    for name in conditioner.needs:
        if name not in ("image", POSITION, *data.fields):
            known = "fields" in cfg.data and name in FIELDS
            way = f"data.fields=[{','.join([*data.fields, name])}]" if known else f"cond=none, or data with '{name}'"
            raise ConfigError(
                f"cond={choice} needs the field '{name}', but the data has {', '.join(data.fields) or 'no fields'} "
                f"beside the image. Use {way}."
            )


def check_label(found: Resolved) -> None:
    """`cond.label` and `cond.prompt`, of all samples, are conditions that this denoiser takes."""
    if found.cfg.cond.label is not None and "label" not in found.condition_fields:
        raise ConfigError(
            "cond.label asks for a class, but this denoiser takes no label. Use cond=class_label, or guidance=classifier."
        )
    if found.cfg.cond.label is not None or found.cfg.cond.prompt is not None:
        found.conditions(1)


def check_interval(path: str, interval: list[float] | None, schedule: Schedule, visited: list[int]) -> None:
    """The interval holds a time that is sampled."""
    if share_within(interval, schedule, visited) == 0:
        ratios = [schedule.at(t).sigma / max(schedule.at(t).alpha, 1e-9) for t in (visited[-1], visited[0])]
        raise ConfigError(
            f"{path}={list(interval or [])} holds none of the {len(visited)} times that are sampled: their noise-to-signal ratios "
            f"go from {ratios[0]:.3g} to {ratios[1]:.3g}. Widen it, or set it to null."
        )


def check_sampling(found: Resolved) -> None:
    """Steps against the schedule; classifier-free guidance against what was trained."""
    sampler, visited = found.sampler, found.visited
    if sampler.guidance == 1:
        return
    check_interval("sampler.guidance_interval", sampler.guidance_interval, found.objective.schedule, visited)
    if not found.conditioner.needs:
        raise ConfigError(
            f"sampler.guidance={sampler.guidance} needs a condition to guide with, and cond has none. Use sampler.guidance=1."
        )
    if not knows_null(found.cfg):
        raise ConfigError(
            f"sampler.guidance={sampler.guidance} needs a denoiser that also knows the null condition, but cond.drop=0 "
            "never trains it. Use cond.drop=0.1, or sampler.guidance=1."
        )


def knows_null(cfg: DictConfig) -> bool:
    """Whether training ever shows the null condition of all conditions at once."""
    drop = build.drop(cfg)
    return drop > 0 if isinstance(drop, float) else all(share > 0 for share in drop)


def check_guidance(found: Resolved) -> None:
    """What each kind needs of the data; its own options; its interval."""
    data = found.data
    for kind in found.guidance:
        for name in kind.fields:
            if name in ("image", POSITION):  # of held-out examples, as a conditioner's
                continue
            if name not in data.fields or (name == "label" and len(data.class_names) < 2):
                raise ConfigError(
                    f"guidance={kind.name} learns to tell classes apart, and this data has {len(data.class_names)} "
                    f"(fields: {', '.join(data.fields) or 'none'}). Use data with labels, or guidance=none."
                )
        for side in dict.fromkeys(found.size):
            kind.check(side)
        if (interval := getattr(kind, "interval", None)) is not None:
            check_interval(f"guidance.{kind.name}.interval", interval, found.objective.schedule, found.visited)


def check_evaluation(found: Resolved) -> None:
    """Metrics, labels and images to compare with."""
    if found.cfg.eval.label_mode == "from_data" and found.conditioner.needs and "label" not in found.data.fields:
        raise ConfigError("eval.label_mode=from_data needs data with labels.")
    if len(found.val) == 0:
        raise ConfigError(
            "the data has no val images; reconstructions cannot be scored. Give data.val_fraction or a val split."
        )


def checked_metrics(found: Resolved) -> list[Metric]:
    """`eval.metrics` that this run can compute, of those with required=false. ConfigError for a required one that it cannot."""
    cfg = found.cfg
    if found.extractor is None:
        if cfg.until in ("scores", "report"):
            raise ConfigError(
                f"until={cfg.until} scores samples, and eval=none has no feature extractor. Use until=samples or an earlier word, "
                "or eval=shapes, classifier, squeezenet or inception."
            )
        return []
    extractor = cast(Extractor, found.extractor)
    shown = [name for part in parts_of(found.conditioner) for name in getattr(part, "shows", ()) if not found.larger]
    offered = available(
        logits=extractor.logit_dim > 0, classes_of_data=extractor.classes_of_data,
        conditions=[*found.condition_fields, *shown], pairs=found.condition_fields not in ((), ("label",)) and not found.larger,
        answers=getattr(extractor, "values", ()),
    )  # fmt: skip
    wanted = build.metrics(cfg)
    stages = {need for metric in wanted for need in metric.needs if need.startswith("stage:")}  # the plan's question
    metrics = check(wanted, offered | stages)
    if cfg.until in ("scores", "report"):
        known = {"train": len(found.data), "val": len(found.val)}
        reference = cfg.eval.reference.images or known.get(cfg.eval.reference.split)
        if reference is not None:
            check_counts(metrics, cfg.eval.samples, reference, cfg.eval.bootstrap, extractor.feature_dim)
    return metrics


def check_power_ema(cfg: DictConfig) -> None:
    """ConfigError unless every width is one, and eval.ema_width has averages to be made of."""
    for width in cfg.ldm.power_ema:
        gamma_of(width, "ldm.power_ema")
    if len(set(cfg.ldm.power_ema)) < len(cfg.ldm.power_ema):
        raise ConfigError(f"ldm.power_ema={list(cfg.ldm.power_ema)} names a width twice. Leave one of them out.")
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
