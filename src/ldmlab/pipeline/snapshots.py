"""Which snapshots of a training are kept and which are scored: whether they can be, and what raw weights mean there."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig

from ldmlab.errors import ConfigError
from ldmlab.terminal import number
from ldmlab.training.loop import cooldown_begins, images_at, learning_rate, total_steps

HIGH = 0.1  # of the highest learning rate: below it, raw weights have settled


def kept(fit: Any) -> dict[int, float]:
    """Images seen → the moment that names them in `fit.snapshots`; the end is always kept, and is 1.0."""
    return {images_at(fit, moment): moment for moment in sorted(fit.snapshots)} | {images_at(fit, 1.0): 1.0}


def said(moments: Iterable[float]) -> list[float | int]:
    """Moments as they are typed, rising: fractions, then counts of images."""
    return [int(moment) if moment > 1 else moment for moment in sorted(moments)]


def states(fit: Any) -> set[int]:
    """Images seen where the optimiser's state is kept: points from which a longer training or a cool-down can go on."""
    flat = cooldown_begins(fit)
    return {images for images in {*kept(fit), flat} if 0 < images <= flat} if fit.keep_state else set()


def megabytes(fit: Any, parameters: int, averages: int) -> float:
    """What a training leaves in the store: weights and `averages` of them at each point kept, and the optimiser's states."""
    points = {*kept(fit), *states(fit)}
    again = any(images_at(fit, moment) == images_at(fit, 1.0) for moment in fit.snapshots)  # the end as a snapshot too
    return 4 * parameters * ((len(points) + again) * (1 + averages) + 2 * len(states(fit))) / 1e6


def words(fit: Any) -> str:
    """For the plan's row of a training: from how many points it can go on."""
    count = len(states(fit))
    return f" · {count} restart point{'s' if count > 1 else ''}" if count else ""


def scored(cfg: DictConfig) -> list[int]:
    """Training images of the snapshots of `eval.at`, rising; [0] for an imported denoiser."""
    fit = cfg.ldm.fit
    return [0] if fit is None else sorted({images_at(fit, moment) for moment in cfg.eval.at})


def cooled(cfg: DictConfig, images: int) -> int:
    """Images over which `eval.cooldown` cools a snapshot down that has seen `images`, in whole batches."""
    return images_at(SimpleNamespace(images=images, batch_size=cfg.ldm.fit.batch_size), cfg.eval.cooldown)


def check(cfg: DictConfig) -> None:
    """Every snapshot lies within its training, and those that are scored are kept. Raises ConfigError.

    What an imported denoiser has: `weights_denoiser.check`.
    """
    classifier = cfg.guidance.classifier
    fits = {"ae.fit": cfg.ae.fit, "ae.decoder_fit": cfg.ae.decoder_fit, "ldm.fit": cfg.ldm.fit}
    fits |= {"eval.extractor_fit": cfg.eval.extractor_fit, "guidance.classifier.fit": classifier and classifier.fit}
    for path, fit in fits.items():
        if fit is not None:
            _check_counts(f"{path}.snapshots", fit.snapshots, path, fit)
    check_cooldown(cfg)
    fit = cfg.ldm.fit
    if fit is None:
        return
    if cfg.eval.weights == "ema" and fit.ema is None and cfg.eval.ema_width is None:
        raise ConfigError("eval.weights=ema, but ldm.fit.ema=null keeps no averaged weights. Use eval.weights=raw.")
    _check_counts("eval.at", cfg.eval.at, "ldm.fit", fit)
    found, end = kept(fit), images_at(fit, 1.0)
    for moment in cfg.eval.at:
        if images_at(fit, moment) not in found:
            names = {1.0, *fit.snapshots}
            raise ConfigError(
                f"eval.at={said([moment])[0]} is not among ldm.fit.snapshots={said(names)}: no weights are kept there. "
                f"Add it: ldm.fit.snapshots=[{','.join(str(m) for m in said(names | {moment}))}]."
            )
    names = {1.0, *(m for m in fit.snapshots if m <= 1 or images_at(fit, m) != end)}
    if len({images_at(fit, moment) for moment in names}) < len(names):
        raise ConfigError(
            f"ldm.fit.snapshots={said(names)} name the same step twice: {fit.images} images are only "
            f"{total_steps(fit)} steps. Use fewer snapshots or more images."
        )


def _check_counts(path: str, moments: Iterable[float], where: str, fit: Any) -> None:
    """ConfigError for a count of images that is no whole step, or lies behind the end."""
    for count in (int(moment) for moment in moments if moment > 1):
        if not fit.batch_size <= count <= images_at(fit, 1.0):
            raise ConfigError(
                f"{path}={count} is a count of images, and this training has steps from {fit.batch_size} to "
                f"{images_at(fit, 1.0)} images. Use a count between, or a fraction of the training up to 1, or {where}.images={count}."
            )


def check_cooldown(cfg: DictConfig) -> None:
    """ConfigError where `eval.cooldown` has nothing to cool down, or something that is averaged or cooled down already."""
    if cfg.eval.cooldown is None:
        return
    given = f"eval.cooldown={said([cfg.eval.cooldown])[0]}"
    if cfg.ldm.fit is None:
        raise ConfigError(f"{given} trains a snapshot on, and ldm.weights is not trained here. Use eval.cooldown=null.")
    if cfg.eval.ema_width is not None:
        raise ConfigError(
            f"{given} and eval.ema_width={cfg.eval.ema_width} are two ways to settle a snapshot. Set one of them to null."
        )
    if cfg.ldm.fit.cooldown:
        raise ConfigError(
            f"{given} cools each snapshot down, and ldm.fit.cooldown={cfg.ldm.fit.cooldown} has done so at the end. "
            "Use ldm.fit.cooldown=0, or eval.cooldown=null."
        )


def notes(cfg: DictConfig) -> list[str]:
    """What a reader must know of raw weights that are scored in the middle of a high learning rate."""
    fit = cfg.ldm.fit
    if fit is None or cfg.eval.weights != "raw" or cfg.eval.cooldown is not None:
        return []
    shares = {images: learning_rate(fit, images - fit.batch_size) / fit.lr for images in scored(cfg)}
    high = [f"{number(images)} ({share:.0%})" for images, share in shares.items() if share > HIGH]
    if not high:
        return []
    return [
        f"raw weights are scored while the learning rate is high, after so many images (share of ldm.fit.lr): {', '.join(high)}. "
        "Such a score says more about the rate than about the training. Score an average (eval.weights=ema, or eval.ema_width=… "
        "with ldm.power_ema) or cool down first (eval.cooldown=0.25)."
    ]
