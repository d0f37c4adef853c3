"""WebDataset tars as a map-style data set: random access through byte offsets, every shard checked at start.

Shape letters: H W pixels, N images of the split.
"""

import hashlib
import json
import os
import re
import threading
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ldmlab.data.address import REMOTE
from ldmlab.data.base import SPLITS, ImageDataset, Sample, Split, digest
from ldmlab.data.bits import opened, pixel_kind, square
from ldmlab.data.fetch import local_copy
from ldmlab.data.fields import Field, label, restored, text
from ldmlab.data.files import in_order, picture_problem, workers, write_json
from ldmlab.data.manifest import NAME, Manifest, ShardRecord, parse_manifest
from ldmlab.data.members import CAPTION, decoded, extension_of
from ldmlab.data.tarindex import index_tar
from ldmlab.data.transforms import CROP_RULE
from ldmlab.data.view import View
from ldmlab.errors import ConfigError, DataError
from ldmlab.ranges import File, Given, ImageBits, ImageChannels, Pixels, Range
from ldmlab.store.files import sha256_file
from ldmlab.store.lock import locked
from ldmlab.terminal import progress


class Shards:
    """The tars `<split>-*.tar` in a local folder, made by `prepare` (with `manifest.json`) or elsewhere (with
    `classes.json`).

    With a manifest the shards must be the ones it lists, byte for byte. Without one every shard must be structurally
    whole and its numbering without gaps; from the second start on (with `cache`) all shards of the first must be there
    with the same content. A missing first or last shard cannot be noticed at the very first start without a manifest.
    A shard is read in full, and its first picture decoded, when it is new or its size or mtime changed; otherwise its
    last check counts. `verify` reads and decodes everything.

    root:       a folder; or `pipe:<command>`, http(s)://, s3:// of a set with a manifest, which is copied into `cache` once.
    channels, bits: of the images (`bits.opened`).
    captions:   of a set without a manifest, the members `<key>.txt` are the field caption, where there are any.
    val_shards: of tars whose names say no split (img2dataset's 00000.tar …), the last so many in the order of names are val, the rest
                train. 0: names say it.
    cache:      folder for the index and the hashes; None makes them anew at every start.
    """

    def __init__(
        self,
        root: File,
        resolution: Pixels,
        split: Annotated[Split, Given] = "train",
        flip: bool = True,
        channels: ImageChannels = 3,
        bits: ImageBits = 8,
        captions: bool = True,
        val_shards: Annotated[int, Range(at_least=0, at_most=1_000_000)] = 0,
        cache: Annotated[Path | None, Given] = None,
    ):
        if resolution < 1:
            raise ConfigError(f"data.resolution={resolution} must be 1 or more.")
        if split not in SPLITS:
            raise ConfigError(f"split must be one of {', '.join(SPLITS)}; got {split!r}.")
        self.root = _folder(root, split, cache)
        self.resolution, self.channels, self.bits = resolution, channels, bits
        self.split = split
        self.flip = flip
        self._val_shards = val_shards
        manifest = read_manifest(self.root)
        shards = _Check(self.root, split, manifest, cache, val_shards)()
        labelled = {shard.labels is not None for shard in shards}
        if len(labelled) == 2:
            bare = next(shard.name for shard in shards if shard.labels is None)
            raise DataError(
                f"{self.root / bare} has no labels (.cls members), other shards of {split!r} have. Make it again."
            )
        self._names = [shard.name for shard in shards]
        self._sha256 = [shard.sha256 for shard in shards]
        self._shard = np.repeat(np.arange(len(shards)), [shard.images for shard in shards])
        self._offset = np.concatenate([np.array(shard.offsets, dtype=np.int64) for shard in shards])
        self._size = np.concatenate([np.array(shard.sizes, dtype=np.int64) for shard in shards])
        self._labels = np.concatenate([np.array(shard.labels or [], dtype=np.int64) for shard in shards])
        self._labelled = labelled == {True}
        self.class_names = _class_names(self.root, manifest, self._labels) if self._labelled else ()
        self._beside = _beside(self.root, manifest, shards, captions)
        self._members = {
            field.name: np.concatenate(
                [np.array(shard.members[extension_of(field)], dtype=np.int64) for shard in shards]
            )
            for field in self._beside
        }
        self.declared = (*([label(len(self.class_names))] if self._labelled else []), *self._beside)
        self.fields: tuple[str, ...] = tuple(field.name for field in self.declared)
        self._in_two_splits = [] if manifest is None else manifest.in_two_splits
        self._files = _OpenFiles()

    def __len__(self) -> int:
        return len(self._offset)

    def __getitem__(self, i: int) -> Sample:
        file, what, offset = self.root / self._names[self._shard[i]], "the picture", int(self._offset[i])
        try:
            picture = opened(self._files.read(file, offset, int(self._size[i])), self.channels, self.bits)
            sample: Sample = {"image": square(picture, self.resolution)}
            if self._labelled:
                sample["label"] = int(self._labels[i])
            view = View(*picture.size, self.resolution)
            for field in self._beside:
                what, (offset, size) = f"the {field.name}", map(int, self._members[field.name][i])
                sample[field.name] = view.of(field, decoded(field, self._files.read(file, offset, size)))
        except Exception as error:
            raise DataError(
                f"{file}: {what} at byte {offset} cannot be read: {error}. Make the shard again."
            ) from error
        return sample

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        return [self[i] for i in indices]

    def labels(self) -> np.ndarray:
        """int64 [N]."""
        if not self._labelled:
            raise DataError(f"data.root={self.root}: the shards of {self.split!r} have no labels (.cls members).")
        return self._labels

    def split_record(self) -> dict[str, object]:
        """How the splits were made, for cards: by the names of the shards."""
        rule = f"the last {self._val_shards} shards are val" if self._val_shards else f"shards named {self.split}-*"
        return {"rule": rule, "split": self.split, "images": len(self)}

    def in_two_splits(self, other: ImageDataset) -> list[list[str]]:
        """Groups of paths with equal content in different splits, as `prepare` found them; [] without a manifest."""
        return self._in_two_splits

    def fingerprint(self) -> str:
        """sha256 (hex) over the shards' contents in order, class names, crop rule and resolution."""
        return digest(
            {
                "shards": self._sha256,
                "class_names": self.class_names,
                "split": self.split,
                "crop": CROP_RULE,
                "resolution": self.resolution,
                **pixel_kind(self.channels, self.bits),
            }
        )


class _OpenFiles:
    """Files opened at their first use in this process; the longest unused is closed when there are too many."""

    LIMIT = 64

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, file: Path, offset: int, size: int) -> bytes:
        with self._lock:
            if file not in self._open:
                if len(self._open) >= self.LIMIT:
                    os.close(self._open.popitem(last=False)[1])
                self._open[file] = os.open(file, os.O_RDONLY)
            self._open.move_to_end(file)
            # pread has no shared position, so a forked worker may use the descriptors that it inherits
            content = os.pread(self._open[file], size, offset)
        if len(content) != size:
            raise OSError(f"the file ends {size - len(content)} bytes early")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


_READ = 2  # version of what a check reads of a shard: 2 also where all its members lie


class _Check:
    """Finds the shards of one split and makes sure that they are what they were."""

    def __init__(self, root: Path, split: Split, manifest: Manifest | None, cache: Path | None, val_shards: int = 0):
        self.root, self.split, self.val_shards = root, split, val_shards
        self.expected = None if manifest is None else {record.name: record for record in manifest.splits.get(split, [])}
        place = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
        self.memory = None if cache is None else Path(cache) / f"shards-{split}-{place}.json"

    def __call__(self) -> list[ShardRecord]:
        """Records of all shards in order of name; DataError naming the first that is missing, cut off or altered."""
        remembered = self._recall()
        names = sorted(self.expected) if self.expected is not None else self._numbered()
        if not names:
            there = sorted({name.split("-")[0] for name in _tars(self.root)}) or ["no tar files at all"]
            raise DataError(
                f"data.root={self.root} has no shards {self.split}-*.tar; it has {', '.join(there)}. "
                "Give a folder of WebDataset tars, or make one with src/prepare.py."
            )
        if self.expected is None and not self.val_shards and (lost := sorted(set(remembered) - set(names))):
            raise DataError(f"{self.root / lost[0]} is missing: it was there before. {self._accept()}")
        stamps = {name: self._stamp(name) for name in names}
        jobs = [(name, stamps[name], remembered.get(name)) for name in names]
        records: list[ShardRecord] = []
        found = in_order(lambda job: self._one(*job), jobs, workers())
        new = sum(not self._seen(remembered.get(name), stamps[name]) for name in names)
        if new:
            with progress(f"checking {self.root}", len(names), "shards") as advance:
                for record in found:
                    records.append(record)
                    advance(1)
        else:
            records = list(found)
        memory = {name: self._remembered(stamps[name], r) for name, r in zip(names, records, strict=True)}
        if self.memory is not None and memory != remembered:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            with locked(Path(f"{self.memory}.building")):
                write_json(self.memory, memory)
        return records

    def _one(self, name: str, stamp: list[int], known: dict[str, Any] | None) -> ShardRecord:
        file = self.root / name
        before = None if known is None else ShardRecord(**known["record"])
        wanted = before if self.expected is None else self.expected[name]
        if wanted is not None and stamp[0] != wanted.bytes:
            how = "is cut off" if stamp[0] < wanted.bytes else "has grown"
            raise DataError(f"{file} {how}: {stamp[0]} bytes instead of {wanted.bytes}. {self._accept()}")
        if before is not None and before == wanted and self._seen(known, stamp):
            return before
        sha256 = sha256_file(file)
        if wanted is not None and sha256 != wanted.sha256:
            raise DataError(
                f"{file} was altered: its sha256 is {sha256[:16]}…, not {wanted.sha256[:16]}…. {self._accept()}"
            )
        if self.expected is None:
            index = index_tar(file)
            wanted = ShardRecord(
                name, stamp[0], sha256, index.offsets, index.sizes, index.labels, index.members, index.partial
            )
        assert wanted is not None
        _decode_first(file, wanted)
        return wanted

    @staticmethod
    def _remembered(stamp: list[int], record: ShardRecord) -> dict[str, Any]:
        return {"stamp": stamp, "record": asdict(record), "decoded": _READ}

    @staticmethod
    def _seen(known: dict[str, Any] | None, stamp: list[int]) -> bool:
        """Whether this very file was read in full before, and a picture of it decoded."""
        return known is not None and known["stamp"] == stamp and known.get("decoded") == _READ

    def _accept(self) -> str:
        if self.expected is not None:
            return f"Copy it again from where {NAME} came from, or run prepare again into a new folder."
        return f"Copy it again; if the new content is meant, delete {self.memory} and repeat the command."

    def _stamp(self, name: str) -> list[int]:
        try:
            stat = (self.root / name).stat()
        except FileNotFoundError:
            raise DataError(f"{self.root / name} is missing. {self._accept()}") from None
        return [stat.st_size, stat.st_mtime_ns]

    def _numbered(self) -> list[str]:
        """The tars of the split by file name; DataError when their numbers leave a gap."""
        prefix = "" if self.val_shards else f"{self.split}-"
        names = sorted(name for name in _tars(self.root) if name.startswith(prefix))
        numbers = {int(found[1]): name for name in names if (found := re.fullmatch(rf"{prefix}(\d+)\.tar", name))}
        for number in range(min(numbers, default=0), max(numbers, default=-1)):
            if number not in numbers:
                width = len(next(iter(numbers.values()))) - len(f"{prefix}.tar")
                lost = self.root / f"{prefix}{number:0{width}d}.tar"
                raise DataError(f"{lost} is missing, and shards after it are there. Copy it again.")
        if not self.val_shards or not names:
            return names
        if self.val_shards >= len(names):
            raise DataError(
                f"data.val_shards={self.val_shards} leaves none of the {len(names)} shards in {self.root} to train on. Lower it."
            )
        return (
            names[-self.val_shards :]
            if self.split == "val"
            else names[: -self.val_shards]
            if self.split == "train"
            else []
        )

    def _recall(self) -> dict[str, Any]:
        if self.memory is None or not self.memory.exists():
            return {}
        try:
            return json.loads(self.memory.read_text())
        except ValueError as error:
            raise DataError(f"{self.memory} is damaged: {error}. Delete it: it will be made again.") from error


def _decode_first(file: Path, record: ShardRecord) -> None:
    """DataError when the first picture of a shard is none: a shard of text, of damaged pictures, of decompression bombs."""
    with open(file, "rb") as opened:
        content = os.pread(opened.fileno(), record.sizes[0], record.offsets[0])
    if (problem := picture_problem(content)) is not None:
        raise DataError(
            f"{file}: the first picture (byte {record.offsets[0]}) cannot be read: {problem}. Make the shard again."
        )


def _tars(root: Path) -> list[str]:
    return [entry.name for entry in os.scandir(root) if entry.name.endswith(".tar") and not entry.name.startswith(".")]


def _folder(root: str, split: Split, cache: Path | None) -> Path:
    if str(root).startswith(REMOTE):
        if cache is None:
            raise DataError(f"data.root={root} is remote and needs a folder to be copied to (cache).")
        return local_copy(str(root), split, Path(cache))
    place = Path(root).expanduser()
    if not place.is_dir():
        state = "is a file" if place.exists() else "does not exist"
        raise DataError(f"data.root={root} {state}. Give the folder that holds the shards (<split>-*.tar).")
    if not any(place.iterdir()):
        raise DataError(f"data.root={root} is empty. Give the folder that holds the shards (<split>-*.tar).")
    return place


def read_manifest(root: Path) -> Manifest | None:
    """The manifest of a prepared folder; None where there is none."""
    file = root / NAME
    return parse_manifest(file.read_text(), file) if file.exists() else None


def _beside(root: Path, manifest: Manifest | None, shards: list[ShardRecord], captions: bool) -> list[Field]:
    """The fields beside picture and label: those of the manifest, else captions; DataError where some samples have none."""
    if manifest is not None:
        return [restored(stored) for stored in manifest.declared]
    field = text(CAPTION)
    extension = extension_of(field)
    having = [shard for shard in shards if extension in shard.members]
    if not captions or (not having and not any(extension in shard.partial for shard in shards)):
        return []
    if len(having) < len(shards):
        bare = next(shard for shard in shards if extension not in shard.members)
        raise DataError(
            f"{root / bare.name}: {bare.partial.get(extension, 0)} of its {bare.images} samples have a caption (.{extension}). Make it "
            "again, or leave captions out with data.captions=false."
        )
    return [field]


def _class_names(root: Path, manifest: Manifest | None, labels: np.ndarray) -> tuple[str, ...]:
    """From the manifest, else from classes.json, else the numbers themselves."""
    file = root / "classes.json"
    highest = int(labels.max())
    if manifest is not None:
        names = list(manifest.class_names)
    elif file.exists():
        try:
            names = json.loads(file.read_text())
        except ValueError as error:
            raise DataError(
                f"{file} is not JSON: {error}. It should be a list of class names in label order."
            ) from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{file} should be a list of class names in label order.")
    else:
        names = [str(k) for k in range(highest + 1)]
    if highest >= len(names):
        made = "prepare the set again" if manifest is not None else f"remove {file} to call classes by their numbers"
        raise DataError(
            f"data.root={root}: the label {highest} occurs, but there are only {len(names)} class names in "
            f"{NAME if manifest is not None else file.name}. Add the names from label {len(names)} on, or {made}."
        )
    return tuple(names)
