"""The one order in which all guidance acts, and how it is bound to a batch of samples.

    auto              each prediction of the network is moved away from the weaker model's
    classifier_free   the null condition, rescaled, within its interval: both halves are predictions of the above
    classifier        a classifier of noisy latents pushes the above; nothing differentiates the denoiser
    image             its gradient runs through the first two and the decoder, and it sees what the classifier left
    small_image       likewise, towards each sample's own small image
    clip              the same way, towards a text, of what the images left

Inside the null condition the weak model costs one more evaluation for each half; outside it could not tell the halves from each other.
Kinds from outside the package act last, in the order of their names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.windows import Windows
from ldmlab.guidance.base import Binding, Guidance, Model, ModelPair

ORDER = ("auto", "classifier_free", "classifier", "image", "small_image", "clip")


def in_order(kinds: Iterable[Guidance]) -> tuple[Guidance, ...]:
    """From the network outwards."""
    return tuple(
        sorted(kinds, key=lambda kind: (ORDER.index(kind.name) if kind.name in ORDER else len(ORDER), kind.name))
    )


def stacked(denoise: Denoise, kinds: Sequence[Guidance]) -> Denoise:
    """`denoise` wrapped by every bound kind, in order; itself without any."""
    for kind in in_order(kinds):
        denoise = kind.wrap(denoise)
    return denoise


@dataclass(frozen=True)
class Bound:
    """What a sampler needs for one batch: the callable that it evaluates, and the condition of the batch."""

    denoise: Denoise
    cond: Any


@dataclass(frozen=True)
class Towards:
    """Second conditions of a batch (as `batch` of `Guided.bind`), and the share of the way to them, [B] in [0, 1]."""

    batch: Mapping[str, Any]
    share_B: Tensor


@dataclass(frozen=True)
class Guided:
    """A denoiser with all guidance of its samples, loaded; `bind` ties it to the conditions of a batch.

    pieces: as of `Binding`. The model's windows are all models'.
    """

    model: Model
    kinds: tuple[Guidance, ...] = ()
    pieces: Windows | None = None

    def bind(
        self,
        batch: Mapping[str, Any],
        n: int,
        size: tuple[int, int],
        device: torch.device | str,
        towards: Towards | None = None,
    ) -> Bound:
        """Conditions are encoded here, and read by the networks, once for all steps.

        Args:
            batch: condition fields of the images; {} without a condition.
            n: images. size: height and width of the latent.
            towards: a second condition of each image, and how far it is on the way there.
        """
        models = [self.model, *(model for kind in self.kinds for model in kind.models)]
        conditions = [m.denoiser.condition(dict(batch)) for m in models]
        if towards is not None:
            others = [m.denoiser.condition(dict(towards.batch)) for m in models]
            conditions = [c.towards(o, towards.share_B) for c, o in zip(conditions, others, strict=True)]
        null = [m.denoiser.null(n, size, device) for m in models]
        alone = [m.denoiser.prepared(c) for m, c in zip(models, conditions, strict=True)]
        both = None
        if any(kind.reads_null for kind in self.kinds) and not null[0].empty:
            both = _paired([m.denoiser.prepared(c.cat(z)) for m, c, z in zip(models, conditions, null, strict=True)])
        binding = Binding(batch, null[0], both, self.model.objective.schedule, self.model.windows, self.pieces)
        return Bound(stacked(self.model.denoise, [kind.bind(binding) for kind in self.kinds]), _paired(alone))

    def unconditional(self, n: int, size: tuple[int, int], device: torch.device | str) -> Bound:
        """`bind` for the null condition, asked of nothing: guidance that reads a condition, or compares with the null one, is silent."""
        kinds = [kind for kind in self.kinds if not kind.reads_null and not kind.fields]
        models = [self.model, *(model for kind in kinds for model in kind.models)]
        null = [m.denoiser.null(n, size, device) for m in models]
        alone = [m.denoiser.prepared(z) for m, z in zip(models, null, strict=True)]
        binding = Binding({}, null[0], None, self.model.objective.schedule, self.model.windows, self.pieces)
        return Bound(stacked(self.model.denoise, [kind.bind(binding) for kind in kinds]), _paired(alone))


def _paired(conditions: list[Any]) -> Any:
    return conditions[0] if len(conditions) == 1 else ModelPair(*conditions)
