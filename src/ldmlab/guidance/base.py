"""The interface of a kind of guidance: one object a kind, from its options to the denoise callable that it wraps.

A new kind is one file with one subclass of `Guidance` and one yaml (docs/guide/extending.md).

Shape letters: B batch, C channels, H W space.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise, Denoiser, denoise_with
from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.windows import Windows, windowed


@dataclass(frozen=True)
class Model:
    """A finished denoiser and the objective that it was trained with. windows: it sees latents through them; None: whole."""

    denoiser: Denoiser
    objective: Objective
    windows: Windows | None = None

    @property
    def denoise(self) -> Denoise:
        whole = denoise_with(self.denoiser, self.objective)
        return whole if self.windows is None else windowed(whole, self.windows)


@dataclass(frozen=True)
class ModelPair:
    """One condition, encoded by the conditioners of two models (autoguidance)."""

    strong: Any
    weak: Any


@dataclass(frozen=True)
class Binding:
    """A batch of samples to come, as guidance needs to know it.

    batch: the condition fields of the images ("label": int64 [B] …), on the device. null: the null condition of the denoiser.
    both: the condition and the null condition in one batch of 2B, prepared for the network; None where nobody needs it.
    schedule: the denoiser's. windows: through which denoisers see the latent; None: whole. pieces: windows of the size of training,
    where the latent is larger, for what understands no other size.
    """

    batch: Mapping[str, Any]
    null: Any
    both: Any
    schedule: Schedule
    windows: Windows | None = None
    pieces: Windows | None = None


class Results(Protocol):
    """Where a guidance finds what it needs once per sampling."""

    @property
    def resolution(self) -> int: ...  # of the images of training
    @property
    def size(self) -> tuple[int, int]: ...  # of the samples, height and width in pixels
    @property
    def channels(self) -> int: ...  # of the images
    @property
    def device(self) -> torch.device: ...
    def stage(self, name: str) -> Any: ...  # the finished result of a stage of this run, on the device
    def decode_with_slope(self, z_BCHW: Tensor) -> Tensor: ...  # standardised latent → image in [-1, 1], differentiable


@dataclass
class SampleCost:
    """Floating-point operations of one sample, put together by sampler and guidance.

    evaluations: of the denoiser that the sampler asks for. passes: forward passes of the denoiser, the null half counted.
    forward: of one pass of all models that take part. backward: 2 where a gradient runs through the denoiser. extra: all else.
    """

    evaluations: int
    forward: float
    decode: float
    schedule: Schedule
    times: list[int]
    flops_of_stage: Callable[[str], float]  # one forward pass of the network that a stage trains
    passes: float = 0.0
    backward: float = 1.0
    extra: float = 0.0

    def __post_init__(self) -> None:
        self.passes = self.passes or float(self.evaluations)

    @property
    def total(self) -> float:
        """Decoding included."""
        return self.passes * self.backward * self.forward + self.decode + self.extra


class Guidance:
    """One kind of guidance. Subclasses are frozen dataclasses of their options, with `bound` and what `load` finds as None.

    name: under which it stands in `guidance.<name>`, on the card and in ids. fields: condition fields it reads of a batch.
    stages: role → name of the stage whose result it needs; these are upstream of the samples. reads_null: it compares with the
    null condition. place: where it acts (`stack.ORDER`); a kind that is not in ORDER acts last, by name.
    """

    name: ClassVar[str] = ""
    fields: ClassVar[tuple[str, ...]] = ()
    stages: ClassVar[dict[str, str]] = {}
    reads_null: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        """What of it decides the samples, for their id; {} when that stands elsewhere."""
        return {}

    def card(self) -> dict[str, Any]:
        """Its entry on the protocol card; {} for none."""
        return self.options()

    def words(self) -> str:
        """Its name and strength in a row of the plan; "" for nothing."""
        scale = getattr(self, "scale", None)
        return self.name if scale is None else f"{self.name} {scale:g}"

    def check(self, resolution: int) -> None:
        """ConfigError where its options cannot be. Called before anything is built."""

    def evaluations(self, steps: int) -> int:
        """Evaluations of a denoiser that it adds to a sampler's `steps`."""
        return 0

    def cost(self, cost: SampleCost) -> None:
        """Adds its operations to those of one sample."""

    @property
    def models(self) -> tuple[Model, ...]:
        """Denoisers beside the sampled one whose conditioners encode each condition too."""
        return ()

    def load(self, results: Results) -> Self:
        """Itself with what it needs from other stages. Called once per sampling."""
        return self

    def bind(self, binding: Binding) -> Self:
        """Itself for one batch of samples."""
        return self.with_values(bound=binding) if hasattr(self, "bound") else self

    def wrap(self, denoise: Denoise) -> Denoise:
        """The guided callable."""
        raise NotImplementedError

    def with_values(self, **values: Any) -> Self:
        return dataclasses.replace(self, **values)  # type: ignore[type-var]


def with_interval(own: dict[str, Any], interval: list[float] | None) -> dict[str, Any]:
    """Options with their interval of sigma / alpha, where there is one."""
    return own if interval is None else {**own, "interval": [float(ratio) for ratio in interval]}
