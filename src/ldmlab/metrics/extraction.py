"""Features of samples, references and reconstructions: one pass of one extractor, shared by all ranks, kept for resampling.

Letters: N images, B batch, H W space, C channels, D features, K classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldmlab.data.base import to_batch
from ldmlab.data.batches import eight_bits
from ldmlab.metrics.features import FeatureSet, extract
from ldmlab.randomness import seed_of
from ldmlab.store.files import atomic, read_arrays
from ldmlab.store.ranks import Ranks

PART = 2048  # images a part file


def extract_all(
    read: Callable[[list[int]], Tensor],
    n: int,
    extractor: nn.Module,
    folder: Path,
    batch_size: int,
    device: torch.device,
    ranks: Ranks,
    name: str = "features",
    title: str | None = None,
) -> FeatureSet:
    """Features of images 0…n-1 in order, written to `<name>.npz`; `read(indices)` gives uint8 BHWC.

    title: what the progress display calls it; None: `name`.

    Parts are dealt to ranks in turn and those of an earlier attempt stay, so neither ranks nor restarts change the result.
    """
    progress = ranks.progress(title or name, n)
    starts = list(range(0, n, PART))
    for start in starts[ranks.rank :: ranks.count]:
        path = folder / f".{name}-{start:08d}.npz"
        indices = list(range(start, min(start + PART, n)))
        if not path.exists():
            batches = (
                read(indices[begin : begin + batch_size]).permute(0, 3, 1, 2)
                for begin in range(0, len(indices), batch_size)
            )
            save_features(path, extract(batches, extractor, device))
        progress(len(indices))
    ranks.barrier()
    if ranks.main:
        parts = [load_features(folder / f".{name}-{start:08d}.npz") for start in starts]
        save_features(folder / f"{name}.npz", FeatureSet.concatenate(parts))
        for start in starts:
            (folder / f".{name}-{start:08d}.npz").unlink()
    ranks.barrier()
    return load_features(folder / f"{name}.npz")


def save_features(path: Path, features: FeatureSet) -> None:
    arrays = {"features": features.features}
    if features.logits is not None:
        arrays["logits"] = features.logits
    with atomic(path) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_features(path: Path) -> FeatureSet:
    arrays = read_arrays(path)
    return FeatureSet(arrays["features"], arrays.get("logits"))


class Original:
    """Real images of a data set by row, through its own loader: `read(rows)` → uint8 BHWC.

    exact: uint16 where the data has 16 bits.
    """

    def __init__(self, dataset: Any, indices: list[int], exact: bool = False):
        self.dataset, self.indices, self.exact = dataset, indices, exact

    def __call__(self, rows: list[int]) -> Tensor:
        image: Tensor = to_batch(self.dataset.__getitems__([self.indices[i] for i in rows]))["image"]
        return image if self.exact else eight_bits(image)


def reference_indices(length: int, images: int | None) -> list[int]:
    """All of a split, or a fixed random subset of it (the same for every run)."""
    if images is None or images >= length:
        return list(range(length))
    rng = np.random.Generator(np.random.PCG64(seed_of("reference", length)))
    return sorted(rng.permutation(length)[:images].tolist())
