"""What a person asked of a run, read and checked against its parts; and how its samples then begin, and what is mixed in them.

Shape letters: N images, B batch, C channels, H W space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.conditioning.asked import Asked
from ldmlab.conditioning.given import given_conditions, photograph
from ldmlab.conditioning.source import ConditionSource, GivenCondition, InTurn, OneOf, content_of
from ldmlab.data.base import channels_of
from ldmlab.data.batches import to_float, to_uint8
from ldmlab.errors import ConfigError
from ldmlab.pipeline.sampling import image_seed
from ldmlab.samplers.base import Schedule
from ldmlab.samplers.sampler import Sampler
from ldmlab.samplers.start import Start

if TYPE_CHECKING:
    from ldmlab.pipeline.resolved import Resolved

NoiseOf = Callable[[Sequence[int], Sequence[int], Any], Callable[[], Tensor]]
"""(seeds, shape of a latent, device) → noise; called once per draw."""


@dataclass(frozen=True)
class Request:
    """Conditions that were given (() where they are the run's usual ones), and pictures to begin from, uint8 [H, W, 3]."""

    asked: Asked
    given: tuple[GivenCondition, ...] = ()
    pictures: tuple[np.ndarray, ...] = ()

    def source(self, usual: Callable[[], ConditionSource], n: int) -> ConditionSource:
        """The conditions of n samples. What is of one sample, or goes from one seed to another, keeps one condition."""
        if self.asked.interpolate == "conditions":
            first, last = self.given
            return Between(first, last, n)
        source = InTurn(self.given) if self.given else usual()
        return OneOf(source) if self.asked.variations is not None or self.asked.interpolate == "seeds" else source

    def seeds(self, seed: int, n: int) -> list[int]:
        """Of n samples: those that were given, or `image_seed(seed, 0)` and on; the conditions of one round share a seed.

        Samples between two seeds have the first one's; their further noise is mixed as the first draw is.
        """
        asked, given = self.asked, self.asked.seeds
        if asked.interpolate is not None:
            return [given[0] if given else image_seed(seed, 0)] * n
        if asked.variations is not None:  # number 0 is the sample itself
            return [image_seed(seed, 1 + i) for i in range(n)]
        rounds = [i // asked.conditions for i in range(n)]
        return [given[j] if given else image_seed(seed, j) for j in rounds]

    def origin(self, seed: int) -> int:
        """The seed of the sample whose variations were asked for."""
        return self.asked.seeds[0] if self.asked.seeds else image_seed(seed, 0)

    def shares(self, indices: Sequence[int], n: int) -> Tensor:
        """How far each image of an interpolation is on its way, [B] from 0 to 1."""
        return torch.tensor([share(i, n) for i in indices], dtype=torch.float64)

    def noise_of(self, noise_of: NoiseOf, indices: Sequence[int], n: int) -> NoiseOf:
        """Noise as `noise_of` makes it; between two seeds where that was asked."""
        if self.asked.interpolate != "seeds":
            return noise_of
        first, last = self.asked.seeds
        share_B = self.shares(indices, n)

        def between(seeds: Sequence[int], shape: Sequence[int], device: Any) -> Callable[[], Tensor]:
            one, other = noise_of([first] * len(seeds), shape, device), noise_of([last] * len(seeds), shape, device)
            return lambda: spherical(one(), other(), share_B)

        return between

    def words(self, sampler: Sampler, schedule: Schedule) -> str:
        """What a row of the plan says of it; of a start how noisy it is, and the steps that are left."""
        asked, share = self.asked, self.asked.strength or self.asked.variations
        said = [f"{len(self.given)} given condition{'s' if len(self.given) > 1 else ''}"] if self.given else []
        if share is not None:
            times = sampler.times(schedule.T)
            left = Start(torch.empty(0), share).times(times, schedule.T)
            level = schedule.at(left[0])
            of = "pictures" if asked.strength else "variations of a sample"
            said.append(
                f"{of} at {share:g} (σ/α {level.sigma / max(level.alpha, 1e-9):.2g}, {len(left) - 1} of {len(times) - 1} steps)"
            )
        said += [f"between two {asked.interpolate}"] if asked.interpolate else []
        said += [f"{len(asked.seeds)} given seed{'s' if len(asked.seeds) > 1 else ''}"] if asked.seeds else []
        return " · ".join(said)

    def options(self) -> dict[str, Any]:
        """What of it decides the samples: contents of files, not where they lie."""
        found: dict[str, Any] = {
            name: value
            for name in ("seeds", "strength", "variations", "interpolate")
            if (value := getattr(self.asked, name)) not in (None, ())
        }
        if "seeds" in found:
            found["seeds"] = list(found["seeds"])
        if self.given:
            found["conditions"] = [condition.record(1) for condition in self.given]
        if self.pictures:
            found["pictures"] = [content_of(picture) for picture in self.pictures]
        return found


def share(i: int, n: int) -> float:
    """How far image i of n is on the way from the first to the last."""
    return i / (n - 1) if n > 1 else 0.0


@dataclass(frozen=True)
class Between:
    """On the way from one condition to another over n images. `batch` is of the first, `other` of the second; the network's
    inputs are mixed (`guidance.stack.Towards`)."""

    first: GivenCondition
    last: GivenCondition
    n: int

    @property
    def fields(self) -> tuple[str, ...]:
        return self.first.fields

    def batch(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        return self.first.batch(indices)

    def other(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        return self.last.batch(indices)

    def describe(self, i: int) -> str:
        return f"{self.first.describe(i)} → {self.last.describe(i)}, {share(i, self.n):.0%} of the way"

    def picture(self, i: int) -> np.ndarray | None:
        return (self.first if share(i, self.n) < 0.5 else self.last).picture(i)

    def record(self, n: int) -> dict[str, Any]:
        """Of both ends."""
        return {"fields": list(self.fields), "given": True, "ends": [self.first.record(1), self.last.record(1)]}


class Beginning:
    """What samples begin from where it is not noise: pictures, or one sample that `origin` draws (z_0, [1, C, H, W])."""

    def __init__(self, request: Request, ae: Autoencoder, device: torch.device, origin: Callable[[], Tensor]):
        self._request, self._ae, self._device, self._origin = request, ae, device, origin
        self._z0_1CHW: Tensor | None = None

    @property
    def pictured(self) -> bool:
        return bool(self._request.pictures) or self._request.asked.variations is not None

    @torch.no_grad()
    def start(self, indices: Sequence[int]) -> Start | None:
        """For these samples; None: noise."""
        asked = self._request.asked
        if asked.strength is not None:
            return Start(self._ae.encode(to_float(self._pictures(indices)).to(self._device)), asked.strength)
        if asked.variations is not None:
            return Start(self._one().expand(len(indices), -1, -1, -1), asked.variations)
        return None

    @torch.no_grad()
    def picture(self, i: int) -> np.ndarray:
        """What sample i begins from, uint8 [H, W, 3]."""
        image_1HW3 = self._pictures([i]) if self._request.pictures else to_uint8(self._ae.decode(self._one())).cpu()
        seen_HW3: np.ndarray = image_1HW3[0].numpy()
        return seen_HW3

    def record(self, n: int) -> dict[str, Any]:
        """For conditions.json: how far each sample of an interpolation is."""
        return {"share": self._request.shares(range(n), n).tolist()} if self._request.asked.interpolate else {}

    def _pictures(self, indices: Sequence[int]) -> Tensor:
        pictures = self._request.pictures
        return torch.from_numpy(np.stack([pictures[i % len(pictures)] for i in indices]))

    def _one(self) -> Tensor:
        if self._z0_1CHW is None:
            self._z0_1CHW = self._origin()
        return self._z0_1CHW


def request_of(asked: Asked | None, found: "Resolved") -> Request | None:
    """None where nothing was asked. Raises ConfigError for what this run cannot do, before anything is loaded."""
    if asked is None or not asked.anything:
        return None
    cfg = found.cfg
    if asked.prompt and cfg.cond.prompt is not None:
        raise ConfigError("prompt=… and cond.prompt=… are both given. Leave one out.")
    given = given_conditions(asked, found.conditioner, found.condition_fields, found.data, found.size, cfg.cond.label)
    pictures: tuple[np.ndarray, ...] = ()
    if asked.strength is not None:
        if {"image", "small_image"} & set(found.condition_fields):
            raise ConfigError(
                f"strength={asked.strength:g} starts from a picture, and this denoiser reads image=… as its condition. Leave strength out."
            )
        pictures = tuple(photograph(path, found.size, channels_of(found.data)) for path in asked.image)
    if found.denoiser.closed_form and (asked.strength is not None or asked.variations is not None):
        raise ConfigError(
            "ldm=gaussian draws samples in closed form and starts from nothing. Leave strength=… and variations=… out."
        )
    if asked.interpolate == "conditions":
        _check_mixing(found)
    return Request(asked, given, pictures)


def _check_mixing(found: "Resolved") -> None:
    """Conditions can be mixed as the network reads them; what keeps pixels of one, or reads its label elsewhere, cannot."""
    if any(kind.fields for kind in found.guidance):
        raise ConfigError(
            "interpolate=conditions: a guidance of this run reads the class itself, which has nothing between. Leave it out."
        )
    if hasattr(found.conditioner, "complete") or any(
        hasattr(p, "complete") for p in getattr(found.conditioner, "parts", ())
    ):
        raise ConfigError(
            "interpolate=conditions: a filled hole keeps the pixels of one picture. Use interpolate=seeds."
        )


def spherical(one_BCHW: Tensor, other_BCHW: Tensor, share_B: Tensor) -> Tensor:
    """Between two draws of noise along the great circle through them (Shoemake 1985), so that the mixture has their length.

    share_B: 0 is the first, exactly, and 1 the other.
    """
    a_BD, b_BD = one_BCHW.double().flatten(1), other_BCHW.double().flatten(1)
    cosine_B = torch.nn.functional.cosine_similarity(a_BD, b_BD, dim=1).clamp(-1, 1)
    angle_B, share_B = cosine_B.acos(), share_B.to(cosine_B.device)
    straight_B = angle_B.sin() < 1e-6  # the same noise twice
    sine_B = torch.where(straight_B, 1.0, angle_B.sin())
    first_B = torch.where(straight_B, 1 - share_B, ((1 - share_B) * angle_B).sin() / sine_B)
    second_B = torch.where(straight_B, share_B, (share_B * angle_B).sin() / sine_B)
    mixed_BD = first_B[:, None] * a_BD + second_B[:, None] * b_BD
    return mixed_BD.view(one_BCHW.shape).to(one_BCHW.dtype)
