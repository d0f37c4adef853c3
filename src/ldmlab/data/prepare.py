"""A folder of pictures → WebDataset shards and a manifest; and the check that they are still what they were.

`prepare` may be killed at any moment: every file is written in `<out>/.prepare/` and renamed into its place when whole,
the same command goes on with the first shard that is missing, and the result is byte for byte that of an undisturbed
run. Shards are written with webdataset's TarWriter (the part of ShardWriter that makes the tar: ShardWriter itself
opens the final file at once, which would leave a half one behind), with `mtime=0`.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from ldmlab.data.base import SPLITS, Split, digest
from ldmlab.data.bits import opened, square
from ldmlab.data.duplicates import in_two_splits, sentence
from ldmlab.data.encoding import Encoding
from ldmlab.data.fields import as_stored, restored
from ldmlab.data.files import Found, Survey, in_order, readable, workers, write_json
from ldmlab.data.folder import Labels, list_folder
from ldmlab.data.listing import Listing
from ldmlab.data.manifest import NAME, Manifest, ShardRecord, parse_manifest
from ldmlab.data.members import decoded, encoded, extension_of
from ldmlab.data.pictures import beside_of
from ldmlab.data.tarindex import index_tar
from ldmlab.data.transforms import CROP_RULE
from ldmlab.data.view import View
from ldmlab.errors import ConfigError, DataError
from ldmlab.store.files import sha256_file
from ldmlab.terminal import progress

log = logging.getLogger(__name__)

_WORK = ".prepare"
_LOCK = ".lock"


def prepare(
    root: str | Path,
    out: str | Path,
    resolution: int,
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    labels: Labels = "auto",
    images_per_shard: int = 1000,
    format: Literal["jpg", "png", "webp"] = "jpg",
    quality: int = 95,
    max_unreadable: int = 0,
    licence: str = "",
) -> Manifest:
    """Packs the pictures of `root`, cropped to `resolution`, into shards in `out`; returns the manifest.

    Splits and classes are found as by `Folder`. Within a split the pictures stand in the order of sha256(relative
    path), so classes are mixed. The same command after an interruption continues; after the end it only says that it is
    finished.

    Raises DataError when a source picture cannot be read (beyond `max_unreadable`, named), changes under way, or when
    `out` holds something else.
    """
    listing = list_folder(root, val_fraction, test_fraction, labels)
    encoding = Encoding(format, quality)
    return pack(listing, out, resolution, encoding, images_per_shard, max_unreadable, licence)


def pack(
    listing: Listing,
    out: str | Path,
    resolution: int,
    encoding: Encoding,
    images_per_shard: int = 1000,
    max_unreadable: int = 0,
    licence: str = "",
) -> Manifest:
    """The pictures of a listing, with all that stands beside them; otherwise as `prepare`."""
    if resolution < 1 or images_per_shard < 1:
        raise ConfigError(f"resolution={resolution} and images_per_shard={images_per_shard} must be 1 or more.")
    target = Path(out).expanduser()
    _check_target(target)
    (target / _WORK).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(target / _LOCK, timeout=0):
            return _pack(listing, target, resolution, images_per_shard, encoding, max_unreadable, licence)
    except Timeout:
        raise DataError(
            f"{target} is being prepared by another process. Wait for it, or give another folder."
        ) from None


def _pack(
    listing: Listing, out: Path, resolution: int, per_shard: int, encoding: Encoding, max_unreadable: int, licence: str
) -> Manifest:
    found, good = _survey(listing, out / _WORK, max_unreadable, encoding.bits)
    ordered = {split: sorted(paths, key=_place) for split, paths in good.items() if paths}
    if "train" not in ordered:
        listing.pictures("train")
        raise DataError(f"data.root={listing.root}: no picture of the split 'train' can be read.")
    draft = Manifest(
        plan="",
        resolution=resolution,
        crop=CROP_RULE,
        encoding=encoding.said(),
        versions=encoding.versions(),
        split_rule=listing.rule,
        fields=[*([] if listing.class_of is None else ["label"]), *(part.field.name for part in listing.beside)],
        class_names=list(listing.class_names),
        splits={},
        sources={split: [[path, found[path].sha256] for path in paths] for split, paths in ordered.items()},
        unreadable={path: what.problem for path, what in found.items() if what.problem is not None},
        in_two_splits=in_two_splits({s: [(path, found[path].sha256) for path in ordered[s]] for s in ordered}),
        licence=licence,
        declared=[as_stored(part.field) for part in listing.beside],
    )
    draft = replace(draft, plan=_plan(draft, per_shard, _beside(listing, ordered, out / _WORK)))
    if draft.in_two_splits:
        log.warning(sentence(draft.in_two_splits))
    if (finished := _finished(out, draft)) is not None:
        shutil.rmtree(out / _WORK)
        return finished
    _begin(out, draft)
    writer = _ShardMaker(listing, out, resolution, encoding, found)
    splits: dict[Split, list[ShardRecord]] = {}
    with progress("packing", sum(map(len, ordered.values()))) as advance:
        for split, paths in ordered.items():
            starts = range(0, len(paths), per_shard)
            splits[split] = [
                writer(f"{split}-{k:05d}", paths[s : s + per_shard], s, advance) for k, s in enumerate(starts)
            ]
    manifest = replace(draft, splits=splits)
    _place_json(out, "classes.json", list(listing.class_names))
    _place_json(out, NAME, manifest.to_json())
    shutil.rmtree(out / _WORK)
    return manifest


def _survey(
    listing: Listing, work: Path, max_unreadable: int, bits: int
) -> tuple[dict[str, Found], dict[Split, list[str]]]:
    paths = [path for split in SPLITS for path in listing.paths[split]]
    found = Survey(listing.root, work, bits=bits, contents=listing.contents)(paths)
    good = set(readable(listing.root, found, max_unreadable))
    return found, {split: [path for path in listing.paths[split] if path in good] for split in SPLITS}


def _place(path: str) -> bytes:
    return hashlib.sha256(os.fsencode(path)).digest()


def _beside(listing: Listing, ordered: dict[Split, list[str]], work: Path) -> dict[str, Any]:
    """What decides the fields beside the pictures; {} without any."""
    paths = [path for split in ordered.values() for path in split]
    return (
        {"beside": {part.field.name: part.contents(paths, work) for part in listing.beside}} if listing.beside else {}
    )


def _plan(draft: Manifest, per_shard: int, beside: dict[str, Any]) -> str:
    facts = {**draft.to_json(), "images_per_shard": per_shard, **beside}
    return digest({name: value for name, value in facts.items() if name not in ("plan", "versions", "splits")})


def _check_target(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"out={out} is a file. Give a new or an empty folder.")
    if out.is_dir() and not (out / NAME).exists() and not (out / _WORK).exists() and any(out.iterdir()):
        raise DataError(f"out={out} is not empty and was not made by prepare. Give a new or an empty folder.")


def _finished(out: Path, draft: Manifest) -> Manifest | None:
    """The manifest in `out` when it was made by the same options; None when there is none yet."""
    file = out / NAME
    if not file.exists():
        return None
    manifest = parse_manifest(file.read_text(), file)
    if manifest.plan != draft.plan:
        raise DataError(
            f"out={out} already holds another finished data set ({_difference(manifest, draft)}). "
            "Nothing was changed. Give another folder, or remove that one."
        )
    for record in (record for records in manifest.splits.values() for record in records):
        size = (out / record.name).stat().st_size if (out / record.name).exists() else None
        if size != record.bytes:
            state = "is missing" if size is None else f"has {size} bytes instead of {record.bytes}"
            raise DataError(
                f"{out / record.name} {state}. Remove the folder and repeat the command, or copy that shard again."
            )
    return manifest


def _difference(old: Manifest, new: Manifest) -> str:
    before, after = old.to_json(), new.to_json()
    names = ("resolution", "crop", "encoding", "split_rule", "class_names", "sources", "unreadable", "licence")
    return "different " + ", ".join([name for name in names if before[name] != after[name]] or ["images_per_shard"])


def _begin(out: Path, draft: Manifest) -> None:
    """Writes down what is being made; DataError when something else was begun here."""
    file = out / _WORK / "plan.json"
    plan = {"plan": draft.plan, "versions": draft.versions}
    if not file.exists():
        write_json(file, plan)
        return
    begun = json.loads(file.read_text())
    if begun != plan:
        what = "options or pictures" if begun["plan"] != plan["plan"] else f"library versions ({begun['versions']})"
        raise DataError(
            f"out={out} holds an unfinished data set made with other {what}. "
            "Repeat the first command to finish it, or remove the folder."
        )


def _place_json(out: Path, name: str, value: object) -> None:
    write_json(out / _WORK / name, value)
    os.replace(out / _WORK / name, out / name)


class _ShardMaker:
    """Writes one shard, or finds it finished."""

    def __init__(self, listing: Listing, out: Path, resolution: int, encoding: Encoding, found: dict[str, Found]):
        self.listing, self.out, self.resolution = listing, out, resolution
        self.encoding, self.found = encoding, found

    def __call__(self, name: str, paths: list[str], first: int, advance: Callable[[int], None]) -> ShardRecord:
        file, note = self.out / f"{name}.tar", self.out / _WORK / f"{name}.json"
        if file.exists() and note.exists():
            record = ShardRecord(**json.loads(note.read_text()))
            if record.bytes == file.stat().st_size and record.sha256 == sha256_file(file):
                advance(len(paths))
                return record
        self._write(file, name.split("-")[0], paths, first, advance)
        index = index_tar(file)
        record = ShardRecord(
            file.name, file.stat().st_size, sha256_file(file), index.offsets, index.sizes, index.labels, index.members
        )
        write_json(note, asdict(record))
        return record

    def _write(self, file: Path, split: str, paths: list[str], first: int, advance: Callable[[int], None]) -> None:
        from webdataset.writer import TarWriter

        labels = self.listing.labels(paths)
        part = self.out / _WORK / f"{file.name}.part"
        with open(part, "wb") as stream:
            with TarWriter(stream, mtime=0, encoder=False) as tar:
                for n, content in enumerate(in_order(self._encode, paths, workers())):
                    sample: dict[str, Any] = {
                        "__key__": f"{split}{first + n:08d}",
                        self.encoding.format: content[0],
                        **content[1],
                    }
                    if labels:
                        sample["cls"] = str(labels[n]).encode()
                    tar.write(sample)
                    advance(1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)

    def _encode(self, path: str) -> tuple[bytes, dict[str, bytes]]:
        """The picture, and the other members by extension."""
        content = self.listing.contents.read(path)
        if hashlib.sha256(content).hexdigest() != self.found[path].sha256:
            raise DataError(
                f"{self.listing.root / path} changed while the data set was being made. Repeat the command."
            )
        picture = opened(content, self.encoding.channels, self.encoding.bits)
        view = View(*picture.size, self.resolution)
        members = {
            extension_of(part.field): encoded(part.field, beside_of(part, path, picture.size, view, self.listing.root))
            for part in self.listing.beside
        }
        return self.encoding(square(picture, self.resolution)), members


def verify(out: str | Path, say: Callable[[str], None] = print) -> Manifest:
    """Recomputes everything that the manifest says of `out`, one line per shard through `say`; DataError naming every
    bad shard."""
    folder = Path(out).expanduser()
    file = folder / NAME
    if not file.exists():
        way_out = (
            " It holds an unfinished data set: repeat the command that made it."
            if (folder / _WORK).exists()
            else " Give the folder that prepare made: out=/shards/name."
        )
        raise DataError(f"{file} does not exist, so there is nothing to verify against.{way_out}")
    manifest = parse_manifest(file.read_text(), file)
    bad: list[str] = []
    for split, records in manifest.splits.items():
        for record in records:
            problem = _problem(folder, record, manifest)
            say(f" {record.name}  {split} · {record.images} images · {problem or 'ok'}")
            if problem:
                bad.append(f"{record.name}: {problem}")
    listed = {record.name for records in manifest.splits.values() for record in records}
    for extra in sorted(path.name for path in folder.glob("*.tar") if path.name not in listed):
        say(f" {extra}  is not in the manifest")
        bad.append(f"{extra}: is not in the manifest")
    if (
        not (folder / "classes.json").exists()
        or json.loads((folder / "classes.json").read_text()) != manifest.class_names
    ):
        bad.append("classes.json: differs from the manifest")
    if bad:
        raise DataError(
            f"{folder}: {len(bad)} problem{'s' if len(bad) > 1 else ''}. " + "; ".join(bad) + ". Copy or prepare again."
        )
    return manifest


def _problem(folder: Path, record: ShardRecord, manifest: Manifest) -> str | None:
    file = folder / record.name
    if not file.exists():
        return "missing"
    if (size := file.stat().st_size) != record.bytes:
        return f"{size} bytes instead of {record.bytes}"
    if sha256_file(file) != record.sha256:
        return "altered: its sha256 is another one"
    index = index_tar(file)
    if (index.offsets, index.sizes, index.labels, index.members) != (
        record.offsets,
        record.sizes,
        record.labels,
        record.members,
    ):
        return "the manifest's offsets or labels are not those of the shard"
    content = file.read_bytes()
    for field in map(restored, manifest.declared):
        for key, (offset, length) in zip(index.keys, index.members[extension_of(field)], strict=True):
            try:
                decoded(field, content[offset : offset + length])
            except Exception as error:
                return f"{field.name} of {key} cannot be read: {error}"
    for key, offset, length in zip(index.keys, index.offsets, index.sizes, strict=True):
        try:
            size_found = opened(content[offset : offset + length], bits=manifest.encoding.get("bits", 8)).size
        except Exception as error:
            return f"{key} cannot be read: {error}"
        if size_found != (manifest.resolution, manifest.resolution):
            return f"{key} is {size_found[0]}x{size_found[1]} pixels, not {manifest.resolution}x{manifest.resolution}"
    return None
