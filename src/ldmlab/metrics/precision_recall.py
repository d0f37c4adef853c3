"""Improved precision and recall (Kynkäänniemi et al. 2019): k-nearest-neighbour balls, k = 3.

Precision: the share of generated images inside a ball of some real image. Recall: the share of real images inside a
ball of some generated one. A ball's radius is the distance to the k-th nearest image of its own set.
**Generated first, real second.**

Equal to torch-fidelity 0.4's `prc_features_to_metric`, which needs all N x M distances (38 GiB at 50 000); here they
exist for one block of rows at a time, at most `BLOCK` of them.

Shape letters: N images of one set, M of the other, D features.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldmlab.errors import ConfigError
from ldmlab.metrics.intervals import Score, share_score
from ldmlab.metrics.metric import OPTIONS, Computed, Inputs, Least, Metric
from ldmlab.ranges import Range

K = 3
BLOCK = 1 << 25  # distances held at a time: 128 MB in float32


class Membership(NamedTuple):
    """Which generated images lie in the real manifold [N], and which real ones in the generated manifold [M]."""

    precise: np.ndarray
    recalled: np.ndarray


@dataclass(frozen=True)
class _Neighbours(Metric):
    """What precision and recall share: k, and one computation for both where k is equal."""

    better: ClassVar[Literal["lower", "higher"] | None] = "higher"

    k: Annotated[int, Range(at_least=1, at_most=1000)] = K

    def compute(self, inputs: Inputs) -> Computed:
        samples, reference = inputs.both()
        found = inputs.once(
            ("membership", self.k), lambda: membership(samples.features, reference.features, self.k, inputs.options)
        )
        return Computed({self.name: _shares(found, inputs.bootstrap, inputs.seed, self.k)[self.name]})

    def least(self, feature_dim: int | None = None) -> Least:
        return Least(self.k + 1, self.k + 1)


class Precision(_Neighbours):
    """The share of generated images inside a ball of some real image."""

    name: ClassVar[str] = "precision"
    label: ClassVar[str] = "precision"
    covers: ClassVar[str] = "the share over other generated images, with these manifolds held fixed"


class Recall(_Neighbours):
    """The share of real images inside a ball of some generated image."""

    name: ClassVar[str] = "recall"
    label: ClassVar[str] = "recall"
    interval: ClassVar[str] = "over reference images at this N"
    covers: ClassVar[str] = "the share over other reference images, with these manifolds held fixed"


def membership(generated: np.ndarray, real: np.ndarray, k: int = K, options: tuple[str, str] = OPTIONS) -> Membership:
    """Yes or no per image, for features [N, D] and [M, D]. Raises ConfigError for sets of k images or fewer."""
    for count, option in zip((len(generated), len(real)), options, strict=True):
        if count <= k:
            raise ConfigError(f"{option}={count}: precision and recall with k={k} need at least {k + 1} images.")
    g_ND, r_MD = torch.from_numpy(np.ascontiguousarray(generated)), torch.from_numpy(np.ascontiguousarray(real))
    return Membership(inside(g_ND, r_MD, radii(r_MD, k)).numpy(), inside(r_MD, g_ND, radii(g_ND, k)).numpy())


def precision_recall_scores(
    generated: np.ndarray, real: np.ndarray, bootstrap: int, seed: int, k: int = K
) -> dict[str, Score]:
    """Precision over the generated images and recall over the real ones, both manifolds held fixed in the intervals."""
    return _shares(membership(generated, real, k), bootstrap, seed, k)


def _shares(found: Membership, bootstrap: int, seed: int, k: int) -> dict[str, Score]:
    return {
        "precision": share_score(found.precise, bootstrap, seed, f"k = {k}, real manifold held fixed"),
        "recall": share_score(
            found.recalled, bootstrap, seed, f"k = {k}, generated manifold held fixed, over real images"
        ),
    }


def radii(x_ND: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row, [N] (the nearest of all is the row itself)."""
    return torch.cat(
        [torch.cdist(part, x_ND).topk(k + 1, largest=False).values[:, k] for part in _blocks(x_ND, len(x_ND))]
    )


def inside(x_ND: Tensor, centre_MD: Tensor, radius_M: Tensor) -> Tensor:
    """Whether each row lies in any of the balls, bool [N]."""
    return torch.cat([(torch.cdist(part, centre_MD) <= radius_M).any(dim=1) for part in _blocks(x_ND, len(centre_MD))])


def _blocks(x_ND: Tensor, columns: int) -> tuple[Tensor, ...]:
    return x_ND.split(max(1, BLOCK // columns))
