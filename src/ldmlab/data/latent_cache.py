"""The latent cache: every training image encoded once, with a certificate that ties it to the autoencoder that made it.

Letters: N images, M mirrors (1, or 2: as it is, mirrored), C moment channels, H W latent space. What is stored are the posterior's moments
(KL: mean and log-variance; VQ: vectors before quantisation), so that training draws a fresh posterior sample at every visit,
exactly as encoding on the fly does. A block is one `.npy` of at most `BLOCK` images, written beside its place and renamed.
"""

import bisect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmlab.data.base import ImageDataset, to_batch
from ldmlab.data.batches import to_float
from ldmlab.data.parcel import on_device
from ldmlab.errors import DataError
from ldmlab.store.files import atomic, read_array, read_json, write_json
from ldmlab.store.ranks import Ranks

BLOCK = 2048
CERTIFIED = 64
TOLERANCE = {"float16": 2e-3, "float32": 1e-4}
"""Largest difference to a new encoding, relative to the channel's spread, by the type stored (float16 keeps 11 bits)."""


class LatentCache:
    """A map-style data set of moments; every field comes, by index, from the data set that was encoded.

    Labels come without looking at an image. Other fields are read with their image, which is not encoded again. `image`: the
    image is handed out too, for conditions that are made from it.
    """

    def __init__(self, folder: Path, dataset: ImageDataset, image: bool = False):
        self.folder, self.dataset, self.image = folder, dataset, image
        self.card: dict[str, Any] = read_json(folder / "latents.json")
        self.flip: bool = dataset.flip
        self.resolution, self.class_names = dataset.resolution, dataset.class_names
        self.fields, self.declared = dataset.fields, dataset.declared
        self.starts: list[int] = self.card["starts"]
        self._blocks: dict[int, np.ndarray] = {}
        self._labels = dataset.labels() if "label" in dataset.fields else None

    def __len__(self) -> int:
        return int(self.card["images"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": {}}  # a worker process opens its own maps

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {k: v[0] for k, v in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """A whole batch: {"moments": B M C H W in the stored type} and the fields of the data set, not mirrored."""
        batch: dict[str, Any] = {"moments": self.moments(indices)}
        if self.image or set(self.fields) - {"label"}:
            samples = to_batch(self.dataset.__getitems__(indices))
            batch |= {field: samples[field] for field in (*self.fields, *(["image"] if self.image else []))}
        elif self._labels is not None:
            batch["label"] = torch.from_numpy(self._labels[np.asarray(indices)])
        return batch

    def moments(self, indices: list[int]) -> Tensor:
        """[B, M, C, H, W] in the stored type, without any field."""
        return torch.from_numpy(np.stack([self._row(i) for i in indices]))

    def _row(self, index: int) -> np.ndarray:
        block = bisect.bisect_right(self.starts, index) - 1
        if block not in self._blocks:
            self._blocks[block] = read_array(block_path(self.folder, block))
        row: np.ndarray = self._blocks[block][index - self.starts[block]]
        return row


def block_path(folder: Path, block: int) -> Path:
    return folder / f"moments-{block:05d}.npy"


@torch.no_grad()
def encode_all(
    dataset: ImageDataset,
    moments: Callable[[Tensor], Tensor],
    folder: Path,
    dtype: str,
    device: torch.device,
    batch_size: int,
    ranks: Ranks,
) -> None:
    """Write every missing block; blocks are dealt to ranks in turn, and finished ones of an earlier attempt stay.

    Raises DataError when a value does not fit into `dtype`.
    """
    starts = list(range(0, len(dataset), BLOCK))
    advance = ranks.progress("latents", len(dataset))
    for start in starts[ranks.rank :: ranks.count]:
        path = block_path(folder, start // BLOCK)
        stop = min(start + BLOCK, len(dataset))
        if not path.exists():
            rows = [
                encode(dataset, list(range(begin, min(begin + batch_size, stop))), moments, device)
                for begin in range(start, stop, batch_size)
            ]
            block = np.concatenate(rows)
            _fits(block, dtype)
            with atomic(path) as beside, beside.open("wb") as file:
                np.save(file, block.astype(dtype))
        advance(stop - start)
    ranks.barrier()
    if ranks.main:
        indices = np.linspace(0, len(dataset) - 1, min(CERTIFIED, len(dataset))).astype(int).tolist()
        certificate = encode(dataset, indices, moments, device)
        with atomic(folder / "certificate.npy") as beside, beside.open("wb") as file:
            np.save(file, certificate.astype(np.float32))
        write_json(
            folder / "latents.json",
            {
                "images": len(dataset), "starts": starts, "dtype": dtype, "mirrors": certificate.shape[1],
                "shape": list(certificate.shape[2:]), "certificate": indices,
                "mean": certificate.mean(axis=(0, 1, 3, 4)).tolist(), "std": certificate.std(axis=(0, 1, 3, 4)).tolist(),
            },
        )  # fmt: skip
    ranks.barrier()


@torch.no_grad()
def encode(
    dataset: ImageDataset, indices: list[int], moments: Callable[[Tensor], Tensor], device: torch.device
) -> np.ndarray:
    """Moments of some images, float32 [N, M, C, H, W]."""
    image_BCHW = to_float(on_device(to_batch(dataset.__getitems__(indices))["image"], device))
    mirrors = [image_BCHW, image_BCHW.flip(3)] if dataset.flip else [image_BCHW]
    return torch.stack([moments(m).float() for m in mirrors], dim=1).cpu().numpy()


def verify(cache: LatentCache, moments: Callable[[Tensor], Tensor], device: torch.device) -> float:
    """Encode the certified images again; the largest difference relative to the channels' spread.

    Raises DataError when the cache, or the certificate beside it, is not what this autoencoder makes of these images.
    """
    indices = cache.card["certificate"]
    fresh = encode(cache.dataset, indices, moments, device)
    spread = fresh.std(axis=(0, 1, 3, 4), keepdims=True) + 1e-6
    stored = cache.__getitems__(indices)["moments"].float().numpy()
    written = read_array(cache.folder / "certificate.npy")
    worst = 0.0
    for name, other in (("moments", stored), ("certificate", written)):
        difference = float((np.abs(other - fresh) / spread).max())
        worst = max(worst, difference)
        if not difference <= TOLERANCE[cache.card["dtype"]] * max(1.0, float(np.abs(fresh / spread).max())):
            raise DataError(
                f"{cache.folder}: {name} differ from a new encoding of the same images by {difference:.3g} standard deviations. "
                "The cache is stale or altered; remove the folder and run the same command to make it again."
            )
    return worst


def _fits(block: np.ndarray, dtype: str) -> None:
    largest = float(np.abs(block).max())
    if not np.isfinite(largest):
        raise DataError("a latent is not finite: the autoencoder has diverged. Train it with a smaller ae.fit.lr.")
    if largest > float(np.finfo(dtype).max):
        raise DataError(
            f"a latent of {largest:.3g} does not fit into latents.dtype={dtype}; use latents.dtype=float32."
        )
