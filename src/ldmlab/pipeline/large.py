"""Samples of another size than the images of training (`size`, `large`): what fits, in which windows, how many at a time, how much memory.

Shape letters: B batch, C channels, H W space.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab.conditioning.compose import parts_of
from ldmlab.diffusion.windows import Windows
from ldmlab.errors import ConfigError
from ldmlab.ranges import picture_size

if TYPE_CHECKING:
    from ldmlab.pipeline.resolved import Resolved


def size_of(cfg: DictConfig, resolution: int) -> tuple[int, int]:
    """Height and width of the samples in pixels."""
    given = None if cfg.size is None else picture_size(cfg.size)
    return given or (resolution, resolution)


def seen_through(cfg: DictConfig) -> tuple[int, int] | None:
    """A side of the windows and their overlap, in pixels; None: none. Of two models in a row they are the second's."""
    large = cfg.large
    if large.window is None or cfg.then is not None:
        return None
    return large.window, large.window // 2 if large.overlap is None else large.overlap


def windows_of(cfg: DictConfig, f: int) -> Windows | None:
    """The same in positions of the latent."""
    pixels = seen_through(cfg)
    return None if pixels is None else Windows(pixels[0] // f, pixels[1] // f, cfg.large.weights)


def pieces_of(found: "Resolved") -> Windows | None:
    """Windows of the size of training, half overlapping, for what understands no other; None where the samples have that size."""
    side = found.latent_shape[1]
    return Windows(side, side // 2, found.cfg.large.weights) if found.larger else None


def tile_of(cfg: DictConfig) -> int | None:
    """A side of the first stage's tiles for samples, in pixels."""
    return cfg.ae.tile if cfg.large.tile is None or cfg.then is not None else cfg.large.tile


def own(cfg: DictConfig) -> dict[str, Any]:
    """What of these options decides samples, for their id; {} for samples of the size of training."""
    found: dict[str, Any] = {"size": cfg.size, "tile": None if cfg.then is not None else cfg.large.tile}
    if pixels := seen_through(cfg):
        found["windows"] = {"side": pixels[0], "overlap": pixels[1], "weights": cfg.large.weights}
    given = {name: value for name, value in found.items() if value is not None}
    return {"large": given} if given else {}


def words(found: "Resolved") -> str:
    """What a row of the plan says: `256x512 in 45 windows of 64`; "" for samples of the size of training."""
    size = "x".join(map(str, found.size))
    windows, pixels = windows_of(found.cfg, found.autoencoder.f), seen_through(found.cfg)
    if windows is None or pixels is None:
        return size if found.larger else ""
    count = len(windows.places(*found.sampled_shape[1:]))
    return f"{size} in {count} windows of {pixels[0]} overlapping by {pixels[1]}, {windows.weights} weights"


def at_once(found: "Resolved") -> int:
    """Samples of a batch: about as many pixels as eval.batch_size images of training have."""
    if not found.larger:
        return min(int(found.cfg.eval.batch_size), found.cfg.eval.samples)
    height, width = found.size
    fitting = found.cfg.eval.batch_size * found.resolution**2 // (height * width)
    return max(1, min(fitting, found.cfg.eval.samples))


def of_training_size(found: "Resolved", image_BHWC: np.ndarray, rows: list[int]) -> Tensor:
    """The images of these rows as features see them, uint8 [B, R, R, C]: of a larger one a part of the size of training, the next
    with each row. Parts lie where examples lie in a canvas of conditions, so that each shows what one image of training does."""
    if not found.larger:
        return torch.from_numpy(np.asarray(image_BHWC))
    side, (height, width) = found.resolution, found.size
    down, across = max(1, height // side), max(1, width // side)
    places = [divmod(row % (down * across), across) for row in rows]
    parts = [
        image_HWC[y * side : (y + 1) * side, x * side : (x + 1) * side]
        for image_HWC, (y, x) in zip(image_BHWC, places, strict=True)
    ]
    return torch.from_numpy(np.stack(parts))


# ---- do they fit ----------------------------------------------------------------------------------------------------------


def check(found: "Resolved") -> None:
    """Size, windows and tiles against the parts of the run. Raises ConfigError."""
    if found.larger:
        check_parts(found)
        check_size(found)
    check_windows(found)
    tile, f = found.cfg.large.tile, found.autoencoder.f
    if tile is not None and tile % (4 * f):
        near = max(1, round(tile / (4 * f))) * 4 * f
        raise ConfigError(
            f"large.tile={tile} must be a multiple of 4 f = {4 * f}, for tiles overlap by a quarter. Set {near}."
        )


def check_parts(found: "Resolved") -> None:
    """What is bound to the size of training."""
    given = f"size={found.cfg.size}"
    image_size = found.autoencoder.network.image_size
    if image_size is not None:
        raise ConfigError(
            f"{given}: this first stage sees whole images of {image_size} pixels and decodes no other size. Leave size out, or use a "
            "first stage with ae.network.image_size=null."
        )
    if found.denoiser.closed_form:
        raise ConfigError(f"{given}: ldm=gaussian draws latents of the size that it was fitted to. Leave size out.")
    if found.cfg.eval.noise != "latent":
        raise ConfigError(
            f"{given}: eval.noise={found.cfg.eval.noise} is drawn at data.resolution. Set eval.noise=latent."
        )


def unit_of(found: "Resolved") -> int:
    """Of which height and width of a picture, and a window, must be multiples: f, the network's halvings or patches, the factor of
    super-resolution."""
    network: Any = found.denoiser.network
    steps = int(getattr(network, "divisor", 0) or getattr(network, "patch", 1))
    factors = [getattr(part, "factor", 1) for part in parts_of(found.conditioner)]
    return math.lcm(found.autoencoder.f * steps, *factors)


def check_size(found: "Resolved") -> None:
    unit = unit_of(found)
    if any(side % unit for side in found.size):
        near = "x".join(str(max(1, round(side / unit)) * unit) for side in found.size)
        raise ConfigError(
            f"size={found.cfg.size}: height and width must be multiples of {unit}, of the first stage's f={found.autoencoder.f} and what "
            f"network and condition divide. Set size={near}."
        )


def check_windows(found: "Resolved") -> None:
    """Windows lie on the grid of the latent, are smaller than the picture, and know their own condition."""
    large, f, pixels = found.cfg.large, found.autoencoder.f, seen_through(found.cfg)
    if pixels is None:
        if large.overlap is not None and large.window is None:
            raise ConfigError(
                f"large.overlap={large.overlap} is one of windows, and large.window=null has none. Give large.window."
            )
        return
    unit, (window, overlap) = unit_of(found), pixels
    given = f"large.window={window}"
    if window % unit:
        raise ConfigError(
            f"{given} must be a multiple of {unit}, as the picture. Set large.window={max(1, round(window / unit)) * unit}."
        )
    if window >= max(found.size):
        raise ConfigError(
            f"{given}: one window holds the whole picture of {'x'.join(map(str, found.size))}. Leave it out."
        )
    if overlap % f or overlap >= window:
        raise ConfigError(
            f"large.overlap={overlap} must be a multiple of f={f} below {given}. Set {window // 2 // f * f}."
        )
    if any(getattr(part, "of_the_whole", False) for part in parts_of(found.conditioner)):
        raise ConfigError(
            f"{given}: the condition says where things are in the whole picture, and a window would show all of them. Leave "
            "large.window out."
        )
