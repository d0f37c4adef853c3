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
    """One tar: its content hash, and per sample the picture's byte offset, size and label. members: of the other fields, by the
    extension of their members (`members.extension_of`), [offset, size] per sample; partial: how many samples have a member that
    not all have."""

    name: str
    bytes: int
    sha256: str
    offsets: list[int]
    sizes: list[int]
    labels: list[int] | None
    members: dict[str, list[list[int]]] = field(default_factory=dict)
    partial: dict[str, int] = field(default_factory=dict)

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
    declared: list[dict[str, Any]] = field(default_factory=list)  # fields beside the label (`fields.as_stored`)

    def images(self, split: Split) -> int:
        return sum(shard.images for shard in self.splits[split])

    def to_json(self) -> dict[str, Any]:
        shards = {
            split: {"images": self.images(split), "shards": [_said(s) | {"images": s.images} for s in records]}
            for split, records in self.splits.items()
        }
        return {"format": FORMAT, **_said(self), "splits": shards}


def _said(record: Any) -> dict[str, Any]:
    """Without what sets of pictures and labels alone do not have: their manifests stay as they were."""
    return {
        name: value for name, value in asdict(record).items() if value or name not in ("members", "partial", "declared")
    }


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
    columns: list[list[Any]] = [record.offsets, record.sizes, *record.members.values()]
    columns += [record.labels] if record.labels is not None else []
    if any(len(column) != count for column in columns):
        raise ValueError(f"the counts of {record.name} disagree")
    return record
