"""Whether the parts of a run fit each other, the data and what is asked of them, before anything is made.

Each check raises ConfigError: option, rule, value, way out.
"""

from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.whole_image import WITHOUT
from ldmlab.conditioning.base import Conditioner
from ldmlab.conditioning.compose import parts_of
from ldmlab.conditioning.source import POSITION
from ldmlab.config import execution
from ldmlab.data.base import ImageDataset, channels_of
from ldmlab.data.fields import check_mirrors
from ldmlab.data.shapes import FIELDS
from ldmlab.diffusion.schedules import Schedule
from ldmlab.errors import ConfigError
from ldmlab.guidance.interval import share_within
from ldmlab.metrics.features import Extractor
from ldmlab.metrics.metric import Metric, available, check, check_counts
from ldmlab.training.post_hoc_ema import gamma_of

if TYPE_CHECKING:
    from ldmlab.pipeline.resolved import Resolved


def check_batches(cfg: DictConfig) -> None:
    """Batches among ranks, and among the groups that share a discriminator's statistics."""
    ranks, group = execution.ranks(cfg), execution.group_of(cfg)
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


def check_channels(found: "Resolved") -> None:
    """Fixed networks of RGB pictures, in the first stage's loss and as extractor, against data of other channels."""
    cfg, channels = found.cfg, channels_of(found.data)
    if channels == 3:
        return
    if any(kind.name == "clip" for kind in found.guidance):
        raise ConfigError(
            f"guidance=clip looks at pictures with 3 channels, and data.channels={channels}. Use guidance=image, or data.channels=3."
        )
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
    if execution.group_of(cfg) > 1:
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


def check_label(found: "Resolved") -> None:
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


def check_sampling(found: "Resolved") -> None:
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


def check_guidance(found: "Resolved") -> None:
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


def check_evaluation(found: "Resolved") -> None:
    """Metrics, labels and images to compare with."""
    if found.cfg.eval.label_mode == "from_data" and found.conditioner.needs and "label" not in found.data.fields:
        raise ConfigError("eval.label_mode=from_data needs data with labels.")
    if len(found.val) == 0:
        raise ConfigError(
            "the data has no val images; reconstructions cannot be scored. Give data.val_fraction or a val split."
        )


def checked_metrics(found: "Resolved") -> list[Metric]:
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
