"""The manifest of a prepared data set: what is in it, byte by byte, and where it came from."""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from ldmlab.data.base import SPLITS, Split
from ldmlab.errors import DataError

FORMAT = "ldmlab shards 1"
NAME = "manifest.json"
_SHARD_NAME = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._-]*\.tar"
)  # shard names become parts of paths and of `pipe:` commands


@dataclass(frozen=True)
class ShardRecord:
    """One tar: its content hash, and per sample the picture's byte offset, size and label."""

    name: str
    bytes: int
    sha256: str
    offsets: list[int]
    sizes: list[int]
    labels: list[int] | None

    @property
    def images(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True)
class Manifest:
    """Everything known of a prepared data set. `sources[split][n]` is [relative path, sha256] of the file behind image
    n."""

    plan: str  # hash of options and source contents: equal plans make equal shards
    resolution: int
    crop: str
    encoding: dict[str, Any]  # format, quality
    versions: dict[str, str | None]  # Pillow and its codecs, which decide the bytes
    split_rule: str
    fields: list[str]
    class_names: list[str]
    splits: dict[Split, list[ShardRecord]]
    sources: dict[Split, list[list[str]]]
    unreadable: dict[str, str] = field(default_factory=dict)  # left out: path → problem
    in_two_splits: list[list[str]] = field(default_factory=list)  # paths with equal content in different splits
    licence: str = ""

    def images(self, split: Split) -> int:
        return sum(shard.images for shard in self.splits[split])

    def to_json(self) -> dict[str, Any]:
        shards = {
            split: {"images": self.images(split), "shards": [{"images": s.images, **asdict(s)} for s in records]}
            for split, records in self.splits.items()
        }
        return {"format": FORMAT, **asdict(self), "splits": shards}


def parse_manifest(text: str, where: object) -> Manifest:
    """The manifest in `text`; DataError naming `where` when it is not one or contradicts itself."""
    try:
        stored = json.loads(text)
        if stored.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        counts = {split: entry["images"] for split, entry in stored["splits"].items()}
        stored["splits"] = {
            split: [_record(shard) for shard in entry["shards"]] for split, entry in stored["splits"].items()
        }
        manifest = Manifest(**stored)
        for split, count in counts.items():
            if split not in SPLITS or manifest.images(split) != count or len(manifest.sources[split]) != count:
                raise ValueError(f"the counts of the split {split!r} disagree")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where} is not a usable manifest: {error}. Run prepare again into a new folder.") from error
    return manifest


def _record(stored: dict[str, Any]) -> ShardRecord:
    count = stored.pop("images")
    record = ShardRecord(**stored)
    if not _SHARD_NAME.fullmatch(record.name):
        raise ValueError(f"{record.name!r} is not a shard name")
    if not count == len(record.offsets) == len(record.sizes) or (
        record.labels is not None and len(record.labels) != count
    ):
        raise ValueError(f"the counts of {record.name} disagree")
    return record
