"""How a scene of `data=shapes` becomes pixels: signed distances, anti-aliased coverage, textures, painting from back to
front.

Only + - * / sqrt, min, max, abs, floor and table look-ups touch pixels. IEEE 754 rounds each of them exactly, so a
pixel does not depend on the other images of the batch, on vector width or on the machine.

Shape letters: B images, M object slots, K objects that are present, H W pixels, 3 RGB.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ldmlab.data.scene import BACKGROUNDS, COLOURS, KINDS, OBJECTS, Scenes, cos_sin

Array = np.ndarray
_COLOUR_RGB = np.array(list(COLOURS.values()), dtype=np.float32) / 255
_GROUND_RGB = np.array(list(BACKGROUNDS.values()), dtype=np.float32) / 255


@dataclass(frozen=True)
class Drawing:
    """`image_BHW3` uint8; `owner_BHW` int8: the slot of the object in front that covers at least half of the pixel, -1
    for background."""

    image_BHW3: Array
    owner_BHW: Array


def draw(scene: Scenes, resolution: int) -> Drawing:
    """Paints B scenes at `resolution` x `resolution` pixels."""
    b_K, m_K = np.nonzero(scene.present_BM)
    x_KHW, y_KHW = _local(scene, b_K, m_K, resolution)
    distance_KHW = np.empty_like(x_KHW)
    for number, kind in enumerate(KINDS):
        here = np.flatnonzero(scene.kind_BM[b_K, m_K] == number)
        if len(here):
            distance_KHW[here] = DISTANCES[kind](x_KHW[here], y_KHW[here])
    pixels_K = (scene.radius_BM[b_K, m_K] * resolution).astype(np.float32)  # of one unit of distance
    distance_KHW *= pixels_K[:, None, None]
    cover_KHW = np.clip(0.5 - distance_KHW, 0, 1)
    # a darker rim, 4 % of the side wide, keeps neighbours of like colour apart
    rim_KHW = np.clip(1 + distance_KHW / np.float32(max(1.0, 0.04 * resolution)), 0, 1)
    light_KHW = _fill(scene, b_K, m_K, resolution) * (1 - np.float32(0.16) * rim_KHW)

    paint_BHW3 = _background(scene, resolution)
    owner_BHW = np.full(paint_BHW3.shape[:3], -1, dtype=np.int8)
    order_BM = np.argsort(-scene.depth_BM, axis=1, kind="stable")
    rank_K = np.argsort(order_BM, axis=1, kind="stable")[b_K, m_K]
    for rank in range(OBJECTS):  # far to near; an image has at most one object of each rank
        k = np.flatnonzero(rank_K == rank)
        b, m = b_K[k], m_K[k]
        rgb = _COLOUR_RGB[scene.colour_BM[b, m]][:, None, None]
        cover = cover_KHW[k]
        under = paint_BHW3[b]
        paint_BHW3[b] = under + (light_KHW[k][..., None] * rgb - under) * cover[..., None]
        owner_BHW[b] = np.where(cover >= 0.5, m.astype(np.int8)[:, None, None], owner_BHW[b])
    return Drawing(np.floor(np.clip(paint_BHW3, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8), owner_BHW)


def _centres(resolution: int) -> Array:
    return ((np.arange(resolution) + 0.5) / resolution).astype(np.float32)


def _local(scene: Scenes, b_K: Array, m_K: Array, resolution: int) -> tuple[Array, Array]:
    """Pixel centres in each object's own frame: upright, centred, half its side = 1; y points down."""
    at = _centres(resolution)
    radius = scene.radius_BM[b_K, m_K].astype(np.float32)[:, None]
    dx_KW = (at[None] - scene.x_BM[b_K, m_K].astype(np.float32)[:, None]) / radius
    dy_KH = (at[None] - scene.y_BM[b_K, m_K].astype(np.float32)[:, None]) / radius
    cos, sin = cos_sin(scene.turn_BM[b_K, m_K])
    x_KHW = (cos[:, None] * dx_KW)[:, None, :] + (sin[:, None] * dy_KH)[:, :, None]
    y_KHW = (cos[:, None] * dy_KH)[:, :, None] - (sin[:, None] * dx_KW)[:, None, :]
    return x_KHW, y_KHW


# Signed distances in the object's frame, negative inside; formulas after Inigo Quilez, "2D distance functions". Where a
# formula is only a bound outside (triangle, cross, crescent, hourglass) it is exact within a pixel of every edge but at
# the corners, which is all that coverage needs.


def _length(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y)


def _disc(x: Array, y: Array) -> Array:
    return _length(x, y) - np.float32(0.95)


def _ring(x: Array, y: Array) -> Array:
    return np.abs(_length(x, y) - np.float32(0.7)) - np.float32(0.28)


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.82)


def _triangle(x: Array, y: Array) -> Array:
    y = y - np.float32(0.25)
    slanted = np.float32(0.8660254) * np.abs(x) - np.float32(0.5) * y
    return np.maximum(slanted, y) - np.float32(0.6)


def _star(x: Array, y: Array) -> Array:
    """Five points; outer radius 1.1, the notches at 0.5 of it along the fold."""
    c, s, outer, inner = np.float32(0.80901699), np.float32(0.58778525), np.float32(1.1), np.float32(0.5)
    x, y = np.abs(x), -y
    fold = 2 * np.maximum(c * x - s * y, 0)
    x, y = x - fold * c, y + fold * s
    fold = 2 * np.maximum(-c * x - s * y, 0)
    x, y = np.abs(x + fold * c), y + fold * s - outer
    bx, by = inner * s, inner * c - 1
    along = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, outer)
    return _length(x - bx * along, y - by * along) * np.where(y * bx < x * by, np.float32(-1), np.float32(1))


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - np.float32(0.96), np.minimum(x, y) - np.float32(0.33))


def _heart(x: Array, y: Array) -> Array:
    scale = np.float32(1.72)
    x, y = np.abs(x) / scale, np.float32(0.55) - y / scale
    lobe = _length(x - np.float32(0.25), y - np.float32(0.75)) - np.float32(0.35355339)
    half = np.float32(0.5) * np.maximum(x + y, 0)
    notch = x * x + (y - 1) * (y - 1)
    side = (x - half) * (x - half) + (y - half) * (y - half)
    tip = np.sqrt(np.minimum(notch, side)) * np.where(x < y, np.float32(-1), np.float32(1))
    return np.where(x + y > 1, lobe, tip) * scale


def _crescent(x: Array, y: Array) -> Array:
    x = x - np.float32(0.12)
    return np.maximum(_length(x, y) - 1, np.float32(0.8) - _length(x - np.float32(0.5), y))


def _pill(x: Array, y: Array) -> Array:
    return _length(np.maximum(np.abs(x) - np.float32(0.56), 0), y) - np.float32(0.42)


def _hourglass(x: Array, y: Array) -> Array:
    y = np.abs(y)
    return np.maximum(np.float32(0.8) * (np.abs(x) - np.float32(0.1) - np.float32(0.75) * y), y - np.float32(0.93))


DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
    "pill": _pill,
    "hourglass": _hourglass,
}


def _wave(t: Array) -> Array:
    """Period 1, in [-1, 1]: two parabolas, within 0.06 of a sine and free of its rounding."""
    v = t - np.floor(t) - np.float32(0.5)
    return np.float32(-16) * v * (np.float32(0.5) - np.abs(v))


def _ramp(turn: Array, period: Array, phase: Array, resolution: int) -> Array:
    """Phase of a plane wave at each pixel, [K, H, W]; periods below 3 pixels are lengthened to 3, which can still be
    seen."""
    at = _centres(resolution)
    cos, sin = cos_sin(turn)
    rate = (1 / np.maximum(period, 3 / resolution)).astype(np.float32)[:, None]
    along_KW, along_KH = cos[:, None] * rate * at, sin[:, None] * rate * at
    return along_KW[:, None, :] + along_KH[:, :, None] + phase.astype(np.float32)[:, None, None]


def _fill(scene: Scenes, b_K: Array, m_K: Array, resolution: int) -> Array:
    """Brightness of each object's surface, [K, H, W]."""
    light = np.empty((len(b_K), resolution, resolution), dtype=np.float32)
    light[:] = scene.shade_BM[b_K, m_K].astype(np.float32)[:, None, None]
    fill_K = scene.fill_BM[b_K, m_K]
    turn, period, phase = scene.grain_BM[b_K, m_K], scene.period_BM[b_K, m_K], scene.phase_BM[b_K, m_K]
    k = np.flatnonzero(fill_K == 1)
    edge = np.float32(1.6) * _wave(
        _ramp(turn[k], period[k], phase[k], resolution)
    )  # clipped: flat stripes with soft edges
    light[k] *= 1 - np.float32(0.15) * (1 + np.clip(edge, -1, 1))
    k = np.flatnonzero(fill_K == 2)
    fine = 0.7 * period[k]
    across = _wave(_ramp(turn[k] + 256, fine, phase[k], resolution))
    light[k] *= 1 - np.float32(0.09) * (1 + _wave(_ramp(turn[k], fine, phase[k], resolution)) * across)
    return light


def _background(scene: Scenes, resolution: int) -> Array:
    """[B, H, W, 3] in [0, 1]: a colour, a slow gradient and one of three textures."""
    wave = scene.wave_B3
    turn = (wave[:, 2] * 1024).astype(np.int64)
    slope = _ramp(scene.slope_B, np.full(len(scene), 2.0), np.zeros(len(scene)), resolution)
    light = 1 + np.float32(0.05) * _clouds(scene, resolution) + np.float32(0.14) * np.clip(slope, -0.5, 0.5)
    b = np.flatnonzero(scene.pattern_B == 0)
    light[b] += np.float32(0.07) * _clouds(scene, resolution)[b]
    b = np.flatnonzero(scene.pattern_B == 1)
    light[b] += np.float32(0.06) * _wave(_ramp(turn[b], 0.28 + 0.2 * wave[b, 0], wave[b, 1], resolution))
    b = np.flatnonzero(scene.pattern_B == 2)
    fine = 0.1 + 0.05 * wave[b, 0]
    across = _wave(_ramp(turn[b] + 256, fine, wave[b, 1], resolution))
    light[b] += np.float32(0.035) * _wave(_ramp(turn[b], fine, wave[b, 1], resolution)) * across
    return light[..., None] * _GROUND_RGB[scene.background_B][:, None, None]


def _clouds(scene: Scenes, resolution: int) -> Array:
    """Smooth value noise in [-1, 1], [B, H, W]: 6 x 6 knots, interpolated with a smoothstep along each axis."""
    at = _centres(resolution) * np.float32(5)
    low = np.minimum(at.astype(np.int64), 4)
    t = at - low.astype(np.float32)
    t = t * t * (3 - 2 * t)
    lattice = scene.lattice_B66.astype(np.float32)
    rows = lattice[:, low] * (1 - t)[:, None] + lattice[:, low + 1] * t[:, None]
    return rows[:, :, low] * (1 - t) + rows[:, :, low + 1] * t
