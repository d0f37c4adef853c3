"""Images changed on purpose, by known doses: what a metric answers to each tells what it sees.

A corruption is a function of 8-bit images and a dose. It belongs to the image: image i is changed in the same way in any batch,
and a larger dose changes it further in the same direction (the same noise, the same warp, and more broken images beside those
that were broken before).

Letters: B batch, N images, C channels, H W space.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ldmlab.data.batches import to_float, to_uint8
from ldmlab.errors import ConfigError
from ldmlab.randomness import ImageNoise, seed_of

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luma_of(image_channels: int) -> Tensor:
    """[C]: what each channel counts in the brightness of an image; of a grey one all, of opacity nothing."""
    return torch.tensor((*LUMA, 0.0)[:image_channels] if image_channels > 1 else (1.0,))


COARSE = 2.0  # pixels: what a Gaussian of this sigma takes away is texture, what it leaves is shape
FIELD = 4  # control points a side of a warp

Read = Callable[[list[int]], Tensor]  # rows → uint8 BHWC
Dose = float | Tensor  # one for all, or [B, 1, 1, 1]


@dataclass(frozen=True)
class Batch:
    """Images to change: float BCHW in [-1, 1], their rows, and another image of the set for each."""

    image_BCHW: Tensor
    rows: list[int]
    other_BCHW: Tensor

    def noise(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal [B, *shape], a function of the rows alone."""
        return ImageNoise([seed_of("corruption", purpose, row) for row in self.rows], shape, self.image_BCHW.device)()


@dataclass(frozen=True)
class Corruption:
    """`change(batch, dose)` gives float BCHW; `none` is the dose that changes nothing, `doses` grow from it; `of` says of what."""

    name: str
    change: Callable[[Batch, float], Tensor]
    doses: tuple[float, ...]
    none: float
    of: str
    lowest: float = 0.0
    highest: float = math.inf


def contrast(batch: Batch, dose: Dose) -> Tensor:
    """Distances from the image's mean grey, times `dose`."""
    mean_B111 = _grey(batch.image_BCHW).mean(dim=(2, 3), keepdim=True)
    return mean_B111 + dose * (batch.image_BCHW - mean_B111)


def brightness(batch: Batch, dose: Dose) -> Tensor:
    """Every value raised by `dose` times the whole range."""
    return batch.image_BCHW + 2 * dose


def saturation(batch: Batch, dose: Dose) -> Tensor:
    """Distances from the pixel's own grey, times `dose`: 0 removes all colour."""
    grey_B1HW = _grey(batch.image_BCHW)
    return grey_B1HW + dose * (batch.image_BCHW - grey_B1HW)


def blur(batch: Batch, dose: Dose) -> Tensor:
    """A Gaussian of sigma `dose` pixels."""
    return smooth(batch.image_BCHW, dose)


def noise(batch: Batch, dose: Dose) -> Tensor:
    """Normal noise of standard deviation `dose`, where the whole range is 2."""
    return batch.image_BCHW + dose * batch.noise("noise", batch.image_BCHW.shape[1:])


def texture(batch: Batch, dose: float) -> Tensor:
    """Fine detail replaced by another image's, `dose` of it; coarse shapes and colours stay."""
    fine_BCHW = batch.image_BCHW - smooth(batch.image_BCHW, COARSE)
    return batch.image_BCHW + dose * (batch.other_BCHW - smooth(batch.other_BCHW, COARSE) - fine_BCHW)


def warp(batch: Batch, dose: float) -> Tensor:
    """Places displaced by a smooth random field of `dose` pixels, root mean square of the control points; bicubic, so that no blur
    comes with it."""
    B, _, H, W = batch.image_BCHW.shape
    control_B2FF = batch.noise("warp", (2, FIELD, FIELD))
    shift_B2HW = nn.functional.interpolate(control_B2FF, size=(H, W), mode="bicubic", align_corners=True)
    pixels_2 = torch.tensor([2 / W, 2 / H])  # grid_sample counts from -1 to 1
    still_BHW2 = nn.functional.affine_grid(torch.eye(2, 3).expand(B, 2, 3), [B, 1, H, W], align_corners=False)
    grid_BHW2 = still_BHW2 + dose * shift_B2HW.permute(0, 2, 3, 1) * pixels_2
    return nn.functional.grid_sample(
        batch.image_BCHW, grid_BHW2, mode="bicubic", padding_mode="reflection", align_corners=False
    )


def broken(batch: Batch, dose: float) -> Tensor:
    """Whole images replaced by noise: a share `dose` of all, those of the smallest random numbers."""
    drawn_B = torch.tensor([seed_of("corruption", "broken", row) / 2**63 for row in batch.rows])
    pure_BCHW = 0.5 * batch.noise("broken image", batch.image_BCHW.shape[1:])
    return torch.where(drawn_B[:, None, None, None] < dose, pure_BCHW, batch.image_BCHW)


CORRUPTIONS = {
    each.name: each
    for each in (
        Corruption("contrast", contrast, (1.1, 1.25, 1.5, 2.0), 1.0, "times as much contrast"),
        Corruption("flat", contrast, (0.9, 0.8, 0.7, 0.5), 1.0, "times as much contrast", highest=1.0),
        Corruption("brightness", brightness, (0.05, 0.1, 0.2, 0.4), 0.0, "of the range brighter", lowest=-1.0),
        Corruption("saturation", saturation, (0.75, 0.5, 0.25, 0.0), 1.0, "times as much colour"),
        Corruption("blur", blur, (0.5, 0.7, 1.2, 2.0), 0.0, "px of Gaussian blur"),
        Corruption("noise", noise, (0.05, 0.1, 0.2, 0.4), 0.0, "standard deviation of noise, range 2"),
        Corruption("texture", texture, (0.25, 0.5, 0.75, 1.0), 0.0, "of the texture from another image", highest=1.0),
        Corruption("warp", warp, (0.5, 1.0, 2.0, 4.0), 0.0, "px of warp"),
        Corruption("broken", broken, (0.05, 0.1, 0.2, 0.4), 0.0, "of the images broken", highest=1.0),
    )
}


class Corrupted:
    """The images of `read`, 0 … n-1, changed by one corruption at one dose: `read(rows)` → uint8 BHWC, like the original.

    Raises ConfigError for an unknown corruption and for a dose that is not one.
    """

    def __init__(self, read: Read, n: int, name: str, dose: float):
        if name not in CORRUPTIONS:
            raise ConfigError(f"calibration: no corruption {name!r}. There are: {', '.join(CORRUPTIONS)}.")
        kind = CORRUPTIONS[name]
        if not (math.isfinite(dose) and kind.lowest <= dose <= kind.highest):
            ends = (
                f"between {kind.lowest:g} and {kind.highest:g}"
                if kind.highest < math.inf
                else f"at least {kind.lowest:g}"
            )
            raise ConfigError(f"calibration: the dose of {name!r} is {dose:g}; it must be {ends}.")
        self.read, self.n, self.kind, self.dose = read, n, kind, dose

    def __call__(self, rows: list[int]) -> Tensor:
        image_BHWC = self.read(rows)
        if self.dose == self.kind.none:
            return image_BHWC
        other_BCHW = to_float(self.read([(row + self.n // 2) % self.n for row in rows]))
        return to_uint8(self.kind.change(Batch(to_float(image_BHWC), rows, other_BCHW), self.dose))


def without_classes(label_N: np.ndarray, share: float) -> np.ndarray:
    """Rows of the images that are left when a share of the classes is missing, in order; a larger share leaves fewer of the same.

    Raises ConfigError when no class or all classes would be left out but `share` says otherwise.
    """
    classes = np.unique(label_N)
    missing = round(share * len(classes))
    if not 0 <= share < 1 or missing == len(classes) or (missing == 0) != (share == 0):
        raise ConfigError(
            f"calibration: a share of {share:g} of {len(classes)} classes cannot be missing; "
            f"choose a multiple of {1 / len(classes):g} below 1."
        )
    order = sorted(classes.tolist(), key=lambda label: seed_of("corruption", "missing", int(label)))
    return np.flatnonzero(~np.isin(label_N, order[:missing]))


def smooth(image_BCHW: Tensor, sigma: Dose, largest: float | None = None) -> Tensor:
    """The image under a normalised Gaussian of `sigma` pixels, cut at 4 of the largest sigma; borders are mirrored. 0: unchanged.

    largest: of the sigmas; None looks, for which the host waits for the device.
    """
    B, C, H, W = image_BCHW.shape
    if isinstance(sigma, Tensor):
        sigma_B, largest = sigma.reshape(-1).expand(B), float(sigma.max()) if largest is None else largest
    else:
        sigma_B, largest = torch.full((B,), sigma, device=image_BCHW.device), sigma
    if largest == 0:
        return image_BCHW
    radius = min(math.ceil(4 * largest), min(H, W) - 1)
    place_K = torch.arange(-radius, radius + 1, device=image_BCHW.device)
    weight_BK = torch.exp(-0.5 * (place_K / sigma_B.clamp(min=1e-3)[:, None]) ** 2)
    weight_NK = (weight_BK / weight_BK.sum(dim=1, keepdim=True)).repeat_interleave(C, dim=0)
    x_1NHW = nn.functional.pad(image_BCHW, [radius] * 4, mode="reflect").reshape(
        1, B * C, H + 2 * radius, W + 2 * radius
    )
    x_1NHW = nn.functional.conv2d(x_1NHW, weight_NK[:, None, :, None], groups=B * C)
    return nn.functional.conv2d(x_1NHW, weight_NK[:, None, None, :], groups=B * C).reshape(B, C, H, W)


def _grey(image_BCHW: Tensor) -> Tensor:
    """Luma, [B, 1, H, W]."""
    shares = luma_of(image_BCHW.shape[1]).tolist()  # numbers, not a tensor that a GPU would wait for
    grey_BHW: Tensor = sum(share * image for share, image in zip(shares, image_BCHW.unbind(1), strict=True))
    return grey_BHW[:, None]
