"""Shards far away, streamed through webdataset in an order seeded per epoch.

The training loop uses map-style data sets only (any image of the run by its number), so `data=shards` copies remote
shards once (`fetch.py`). This is the stream, for sets that fit on no disk, in one's own code.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import IterableDataset, get_worker_info

from ldmlab.data.address import REMOTE, address_of, fetch_manifest, open_stream
from ldmlab.data.base import Sample, Split, digest
from ldmlab.data.fields import label, restored
from ldmlab.data.manifest import ShardRecord
from ldmlab.data.members import decoded, extension_of
from ldmlab.data.tarindex import PICTURES
from ldmlab.data.transforms import CROP_RULE, center_crop, read_rgb
from ldmlab.data.view import View
from ldmlab.errors import ConfigError, DataError
from ldmlab.randomness import seed_of


class RemoteShards(IterableDataset[Sample]):
    """Streams the shards of one split from `root`: `pipe:<command>`, http(s):// or s3:// (read with `aws s3 cp`).

    root:        the shard's name is appended with a slash, or put where `{shard}` stands:
                 `pipe:ssh host cat /data/{shard}`.
    manifest:    path or address of the manifest.json that prepare wrote; it gives lengths, and each shard's sha256 is
                 compared with it.
    rank, ranks: this process takes every `ranks`-th shard of the epoch's order; DataLoader workers divide its shards
                 again.

    The order is a pure function of (seed, epoch): shards are permuted, then the samples within each shard. A shard is
    held in memory while it is handed out, after its content was checked.
    """

    def __init__(
        self,
        root: str,
        resolution: int,
        manifest: str,
        split: Split = "train",
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        flip: bool = True,
    ):
        if not str(root).startswith(REMOTE):
            raise DataError(
                f"data.root={root} is not remote ({', '.join(REMOTE)}). For a local folder use data=shards."
            )
        if not 0 <= rank < ranks:
            raise ConfigError(f"rank {rank} of {ranks} does not exist.")
        self.root = str(root)
        self.resolution = resolution
        self.split = split
        self.flip = flip
        self.seed, self.rank, self.ranks = seed, rank, ranks
        self.manifest, _ = fetch_manifest(manifest)
        self._shards: list[ShardRecord] = self.manifest.splits.get(split, [])
        if len(self._shards) < ranks:
            raise ConfigError(
                f"data.root={root} has {len(self._shards)} shards of {split!r} for {ranks} processes; "
                "each needs at least one. Use fewer processes, or prepare with a smaller images_per_shard."
            )
        labelled = all(shard.labels is not None for shard in self._shards)
        self.class_names = tuple(self.manifest.class_names)
        self._beside = [restored(stored) for stored in self.manifest.declared]
        self.declared = (*([label(len(self.class_names))] if labelled else []), *self._beside)
        self.fields: tuple[str, ...] = tuple(field.name for field in self.declared)
        self.epoch, self.skip_shards = 0, 0

    def set_epoch(self, epoch: int, skip_shards: int = 0) -> None:
        """The next iteration is epoch `epoch`, without the first `skip_shards` shards of this rank (those a resumed run
        has used up)."""
        self.epoch, self.skip_shards = epoch, skip_shards

    def shards(self) -> list[ShardRecord]:
        """This rank's shards of the current epoch, in order."""
        order = list(self._shards)
        random.Random(seed_of(self.seed, "shards", self.epoch)).shuffle(order)
        return order[self.rank :: self.ranks][self.skip_shards :]

    def count(self) -> int:
        """Images that this rank will hand out in the current epoch, over all its workers."""
        return sum(shard.images for shard in self.shards())

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        shards = self.shards() if worker is None else self.shards()[worker.id :: worker.num_workers]
        for shard in shards:
            samples = self._load(shard)
            random.Random(seed_of(self.seed, "samples", self.epoch, shard.name)).shuffle(samples)
            for sample in samples:
                yield self._decode(shard, sample)

    def fingerprint(self) -> str:
        """sha256 (hex) over the manifest's shard hashes, class names, crop rule and resolution: equal to that of a
        local copy."""
        return digest(
            {
                "shards": [shard.sha256 for shard in self._shards],
                "class_names": self.class_names,
                "split": self.split,
                "crop": CROP_RULE,
                "resolution": self.resolution,
            }
        )

    def _load(self, shard: ShardRecord) -> list[dict[str, Any]]:
        from webdataset.tariterators import group_by_keys, tar_file_iterator

        url = address_of(self.root, shard.name)
        try:
            with open_stream(url) as stream:
                hashed = _Hashed(stream)
                files = ({**file, "__url__": url} for file in tar_file_iterator(hashed))
                samples = list(group_by_keys(files))
                while hashed.read(1 << 20):
                    pass  # what follows the last member belongs to the hash
        except Exception as error:
            raise DataError(f"{url} cannot be read: {error}. Check the address and the connection.") from error
        if hashed.sha256.hexdigest() != shard.sha256:
            raise DataError(
                f"{url} is cut off or altered: {hashed.count} bytes with sha256 {hashed.sha256.hexdigest()[:16]}…, "
                f"{shard.bytes} bytes with {shard.sha256[:16]}… in the manifest. Upload it again."
            )
        return samples

    def _decode(self, shard: ShardRecord, sample: dict[str, Any]) -> Sample:
        content = next(sample[extension] for extension in PICTURES if extension in sample)
        try:
            picture = read_rgb(content)
            found: Sample = {"image": center_crop(picture, self.resolution)}
            if "label" in self.fields:
                found["label"] = int(sample["cls"])
            view = View(*picture.size, self.resolution)
            found |= {f.name: view.of(f, decoded(f, sample[extension_of(f)])) for f in self._beside}
        except Exception as error:
            raise DataError(f"{shard.name}: the sample {sample['__key__']} cannot be read: {error}.") from error
        return found


class _Stream(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Hashed:
    """A stream that hashes what is read from it."""

    def __init__(self, stream: _Stream):
        self.stream, self.sha256, self.count = stream, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(size)
        self.sha256.update(content)
        self.count += len(content)
        return content
