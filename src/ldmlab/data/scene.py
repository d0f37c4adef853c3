"""What is in image i of `data=shapes`: objects, colours and textures, before any pixel exists.

Everything is a function of (seed, split, i), computed for many images at once from a counter-based generator. Lengths
are fractions of the image's side, positions are (x right, y down) in [0, 1], so the same scene exists at every
resolution.

Shape letters: B images, M object slots (slot 0 is the largest object, whose kind is the label), 3 RGB.
"""

import math
from dataclasses import dataclass

import numpy as np

from ldmlab.randomness import seed_of

VERSION = 1
"""Raise it with any change of scene or rendering: it is part of the fingerprint."""

KINDS = ("disc", "ring", "square", "triangle", "star", "cross", "heart", "crescent", "pill", "hourglass")
FILLS = ("plain", "striped", "speckled")
SIZES = ("small", "medium", "large")  # `size_of`
OBJECTS = 4  # at most, in one image

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 58, 58),
    "orange": (242, 138, 38),
    "yellow": (250, 208, 62),
    "green": (62, 166, 84),
    "teal": (38, 168, 164),
    "blue": (56, 108, 214),
    "purple": (136, 76, 188),
    "pink": (238, 126, 172),
    "brown": (134, 86, 54),
    "white": (246, 243, 236),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "cream": (238, 224, 192),
    "sky": (164, 208, 232),
    "mint": (172, 222, 190),
    "lilac": (204, 186, 226),
    "grey": (150, 152, 156),
    "sand": (206, 178, 136),
    "navy": (34, 48, 84),
    "forest": (34, 74, 58),
    "plum": (82, 40, 74),
    "charcoal": (48, 50, 54),
}
CONTRAST = 62.0
"""Least distance between an object's colour and its background: RGB (0..255) weighted by luminance (Rec. 601)."""

_TURNS = 1024
_COS, _SIN = (
    np.array([f(2 * math.pi * k / _TURNS) for k in range(_TURNS)], dtype=np.float32) for f in (math.cos, math.sin)
)
# A table, because numpy's own sin and cos may round differently in the vector body and the tail of an array: then an
# image would depend on its neighbours in the batch.


@dataclass(frozen=True)
class Scenes:
    """Parameters of B images. Object arrays are [B, M]; `present_BM` says which slots are used."""

    present_BM: np.ndarray
    kind_BM: np.ndarray
    colour_BM: np.ndarray  # index into COLOURS
    shade_BM: np.ndarray  # brightness factor
    fill_BM: np.ndarray  # index into FILLS
    x_BM: np.ndarray
    y_BM: np.ndarray
    radius_BM: np.ndarray  # half the object's side
    turn_BM: np.ndarray  # rotation, in 1/1024 turns
    period_BM: np.ndarray  # of stripes, fraction of the side
    phase_BM: np.ndarray
    grain_BM: np.ndarray  # direction of stripes or speckles, in 1/1024 turns
    depth_BM: np.ndarray  # 0 near .. 1 far, distinct within an image; the background is 1
    background_B: np.ndarray  # index into BACKGROUNDS
    pattern_B: np.ndarray  # 0 clouds, 1 bands, 2 weave
    slope_B: np.ndarray  # direction of the brightness gradient, in 1/1024 turns
    wave_B3: np.ndarray  # background pattern: period, phase, direction, each in [0, 1)
    lattice_B66: np.ndarray  # values of the clouds at 6 x 6 knots, in [-1, 1)

    def __len__(self) -> int:
        return len(self.background_B)


def cos_sin(turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of angles in 1/1024 turns, float32."""
    return _COS[turn % _TURNS], _SIN[turn % _TURNS]


def stream(seed: int, split: str) -> int:
    """The 64-bit key of one split's random numbers."""
    return seed_of("shapes", VERSION, seed, split)


def uniforms(key: int, index_B: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [B, count]: number k of image i is splitmix64 (Steele et al. 2014) at key +
    i·count + k."""
    counter = index_B.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)
    x: np.ndarray = np.uint64(key) + counter * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


_PER_IMAGE = 128  # uniforms reserved for an image
_HEAD, _SLOTS, _PALETTE, _LATTICE = 0, 12, 60, 72  # where each group of them starts; 12 per object slot


def main_kind(key: int, index_B: np.ndarray) -> np.ndarray:
    """Kind of the largest object, int64 [B]: the label."""
    return _main_kind(uniforms(key, index_B, _PER_IMAGE))


def _main_kind(u: np.ndarray) -> np.ndarray:
    return (u[:, _SLOTS] * len(KINDS)).astype(np.int64)


def scenes(key: int, index_B: np.ndarray, objects: int = OBJECTS) -> Scenes:
    """The scenes of the images `index_B` (non-negative integers) of the stream `key`, with at most so many objects."""
    u = uniforms(key, index_B, _PER_IMAGE)
    head = u[:, _HEAD:_SLOTS]
    slot = u[:, _SLOTS:_PALETTE].reshape(-1, OBJECTS, 12)
    kind_BM = (slot[:, :, 0] * len(KINDS)).astype(np.int64)
    # 1, 2, 3 or 4 objects, the fewer the likelier
    count_B = 1 + np.searchsorted(np.array([0.35, 0.70, 0.90]), head[:, 0], side="right")
    background_B = (head[:, 1] * len(BACKGROUNDS)).astype(np.int64)
    radius_BM = 0.08 + 0.03 * slot[:, :, 1]
    radius_BM[:, 0] = 0.25 + 0.125 * slot[:, 0, 1]  # 50 to 75 % of the side
    x_BM, y_BM = _places(slot, head, radius_BM)
    depth_BM = (np.argsort(np.argsort(slot[:, :, 2], axis=1), axis=1) + 0.25 + 0.5 * slot[:, :, 3]) / (OBJECTS + 1)
    return Scenes(
        present_BM=np.arange(OBJECTS) < np.minimum(count_B, objects)[:, None],
        kind_BM=kind_BM,
        colour_BM=_colours(background_B, u[:, _PALETTE : _PALETTE + len(COLOURS)]),
        shade_BM=0.94 + 0.08 * slot[:, :, 4],
        fill_BM=np.searchsorted(np.array([0.5, 0.8]), slot[:, :, 5], side="right"),
        x_BM=x_BM,
        y_BM=y_BM,
        radius_BM=radius_BM,
        turn_BM=np.rint((slot[:, :, 6] - 0.5) * _TURNS / 6).astype(np.int64),  # within 30 degrees of upright
        period_BM=0.13 + 0.07 * slot[:, :, 7],
        phase_BM=slot[:, :, 8],
        grain_BM=(slot[:, :, 9] * _TURNS).astype(np.int64),
        depth_BM=depth_BM,
        background_B=background_B,
        pattern_B=(head[:, 2] * 3).astype(np.int64),
        slope_B=(head[:, 3] * _TURNS).astype(np.int64),
        wave_B3=head[:, 4:7],
        lattice_B66=2 * u[:, _LATTICE : _LATTICE + 36].reshape(-1, 6, 6) - 1,
    )


def _places(slot: np.ndarray, head: np.ndarray, radius_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres (x, y), [B, M]: the large object anywhere inside, the small ones around it, touching its border or just
    off it."""
    margin_B = radius_BM[:, 0] - 0.02
    main_x_B = margin_B + (1 - 2 * margin_B) * head[:, 7]
    main_y_B = margin_B + (1 - 2 * margin_B) * head[:, 8]
    turn_BM = ((head[:, 9, None] + np.arange(OBJECTS) / 3 + 0.2 * slot[:, :, 10]) * _TURNS).astype(np.int64)
    cos_BM, sin_BM = cos_sin(turn_BM)
    distance_BM = radius_BM[:, :1] + radius_BM * (0.15 + 1.1 * slot[:, :, 11])
    x_BM = _inside(main_x_B[:, None], distance_BM * cos_BM, radius_BM)
    y_BM = _inside(main_y_B[:, None], distance_BM * sin_BM, radius_BM)
    x_BM[:, 0], y_BM[:, 0] = main_x_B, main_y_B
    return x_BM, y_BM


def _inside(centre: np.ndarray, offset: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """centre + offset, mirrored to the other side where it would leave the image, then held at the border."""
    low, high = 0.8 * radius, 1 - 0.8 * radius
    there = centre + offset
    there = np.where((there < low) | (there > high), centre - offset, there)
    return np.clip(there, low, high)


def _allowed() -> np.ndarray:
    """bool [background, colour]: pairs that contrast."""
    ground = np.array(list(BACKGROUNDS.values()), dtype=np.float64)[:, None]
    colour = np.array(list(COLOURS.values()), dtype=np.float64)[None]
    return ((ground - colour) ** 2 @ np.array([0.299, 0.587, 0.114])) >= CONTRAST**2


_ALLOWED = _allowed()


def _colours(background_B: np.ndarray, u_BK: np.ndarray) -> np.ndarray:
    """Distinct colours for the M slots, [B, M], each contrasting with the background."""
    rank_BK = np.where(_ALLOWED[background_B], u_BK, 2.0)
    return np.argsort(rank_BK, axis=1, kind="stable")[:, :OBJECTS]


def size_of(side: float) -> str:
    """The word for an object whose side is this fraction of the image's."""
    return "large" if side >= 0.62 else "medium" if side >= 0.3 else "small"


def caption(scene: Scenes, b: int) -> str:
    """E.g. "a large red star and a small striped blue disc on a navy background"; the largest object comes first."""
    names, grounds = list(COLOURS), list(BACKGROUNDS)
    things = []
    for m in range(OBJECTS):
        if scene.present_BM[b, m]:
            size = size_of(2 * scene.radius_BM[b, m])
            fill = FILLS[scene.fill_BM[b, m]]
            words = [
                "a",
                size,
                *([] if fill == "plain" else [fill]),
                names[scene.colour_BM[b, m]],
                KINDS[scene.kind_BM[b, m]],
            ]
            things.append(" ".join(words))
    listed = things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]
    return f"{listed} on a {grounds[scene.background_B[b]]} background"
