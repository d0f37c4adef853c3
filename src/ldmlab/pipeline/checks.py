"""Net 3 of the configuration (`config.py` has the first two): do the parts fit each other and the data?

One function a question. Each raises ConfigError naming the option, the rule, the value and the way out.
"""

from typing import Any

from omegaconf import DictConfig

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.build import autoencoder, conditioner, denoiser, group_of, objective, part, ranks, sampler, shapes_only
from ldmlab.conditioning.class_label import class_index
from ldmlab.errors import ConfigError
from ldmlab.guidance.compose_denoise import share_within
from ldmlab.metrics.by_name import check_metrics
from ldmlab.training.loop import images_at
from ldmlab.training.post_hoc_ema import gamma_of


def check_fit(cfg: DictConfig, data: Any, val: Any) -> None:
    """Refuse compositions whose parts do not fit. Networks are made on the meta device: no memory, no time.

    Raises ConfigError naming the option and the way out.
    """
    check_batches(cfg)
    with shapes_only():
        check_discriminator(cfg, data.resolution)
        ae = autoencoder(cfg)
        height = ae.latent_shape(data.resolution)[1]
        check_first_stage(cfg, ae)
        conditions = conditioner(cfg, data)
        check_fields(cfg, conditions, data)
        network = denoiser(cfg, ae, data).network
    network.check_latent(height, height)  # type: ignore[operator]
    check_label(cfg, conditions, data)
    check_sampling(cfg, conditions)
    check_snapshots(cfg)
    check_power_ema(cfg)
    check_evaluation(cfg, conditions, data, val)


def check_batches(cfg: DictConfig) -> None:
    """Batches among ranks, and among the groups that share a discriminator's statistics."""
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


def check_discriminator(cfg: DictConfig, resolution: int) -> None:
    """The images are not smaller than what the discriminator looks at."""
    if group_of(cfg) > 1:
        smallest = part(cfg.ae.loss.discriminator).min_resolution
        if resolution < smallest:
            raise ConfigError(
                f"data.resolution={resolution} is too small for the discriminator, which needs {smallest}. "
                "Use ae/loss/discriminator=none, or patchgan_2 (12 pixels)."
            )


def check_first_stage(cfg: DictConfig, ae: Autoencoder) -> None:
    """Tiles against f; a loss with a budget."""
    if cfg.ae.tile is not None and cfg.ae.tile % (4 * ae.f):
        raise ConfigError(
            f"ae.tile={cfg.ae.tile} must be a multiple of 4 f = {4 * ae.f}, for tiles overlap by a quarter; "
            f"the nearest that is: {max(1, round(cfg.ae.tile / (4 * ae.f))) * 4 * ae.f}."
        )
    if (cfg.ae.fit is None) != (cfg.ae.loss is None) and cfg.ae.weights is None:
        raise ConfigError("ae.fit and ae.loss go together: a first stage is trained with both or with neither (null).")


def check_fields(cfg: DictConfig, conditions: Any, data: Any) -> None:
    """The data has what the conditioning needs."""
    for field in conditions.needs:
        if field not in data.fields:
            raise ConfigError(
                f"cond={_choice(cfg)} needs the field '{field}', but the data has {', '.join(data.fields) or 'no fields'} "
                f"beside the image. Use cond=none, or data with '{field}'."
            )


def check_label(cfg: DictConfig, conditions: Any, data: Any) -> None:
    """A wished-for class is one of the data's."""
    if cfg.cond.label is not None:
        if "label" not in conditions.needs and cfg.guidance.classifier is None:
            raise ConfigError(
                "cond.label asks for a class, but this denoiser takes no label. Use cond=class_label, or guidance=classifier."
            )
        class_index(cfg.cond.label, data.class_names)


def check_sampling(cfg: DictConfig, conditions: Any) -> None:
    """Steps against the schedule; guidance against what was trained."""
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


def check_snapshots(cfg: DictConfig) -> None:
    """The weights that are asked for are kept. Those of an imported denoiser: `imported_denoiser.check`."""
    if cfg.ldm.fit is None:
        return
    if cfg.eval.weights == "ema" and cfg.ldm.fit.ema is None and cfg.eval.ema_width is None:
        raise ConfigError("eval.weights=ema, but ldm.fit.ema=null keeps no averaged weights. Use eval.weights=raw.")
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


def check_evaluation(cfg: DictConfig, conditions: Any, data: Any, val: Any) -> None:
    """Metrics, labels and images to compare with."""
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
