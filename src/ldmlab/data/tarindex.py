"""Where the samples of one local tar shard lie, and whether the shard is whole.

A shard is an uncompressed tar in WebDataset's layout: consecutive members `<key>.<extension>` make one sample; the key
ends at the first dot of the file name. A sample has one picture (jpg, jpeg, png, webp) and may have a label (`cls`, a
decimal integer) and other members (`members.py`).
"""

import os
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ldmlab.errors import DataError

PICTURES = ("jpg", "jpeg", "png", "webp")
_END = bytes(1024)  # a tar ends with two zero blocks


@dataclass(frozen=True)
class TarIndex:
    """Byte positions of the pictures, in order; `labels` is None when no sample has one. members: [offset, size] of the other
    members by extension, of those that every sample has; partial: how many samples have one of the others."""

    keys: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[int] | None
    members: dict[str, list[list[int]]] = field(default_factory=dict)
    partial: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)


def split_name(member: str) -> tuple[str, str]:
    """(key, lower-case extension) by WebDataset's rule: the folder belongs to the key, the extension starts at the
    first dot."""
    folder, slash, name = member.rpartition("/")
    stem, _, extension = name.partition(".")
    return folder + slash + stem, extension.lower()


def index_tar(file: Path) -> TarIndex:
    """Reads every header of a shard; DataError naming the shard when it is cut off, damaged, compressed or not of this
    layout."""
    size = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as tar:
            members = tar.getmembers()
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{file} is not a whole uncompressed tar: {error}. Copy or make it again.") from error
    with open(file, "rb") as opened:
        # tarfile stops without a word where a file ends on the border of a member, or where a header is damaged
        end = max((-(-(m.offset_data + m.size) // 512) * 512 for m in members), default=0)
        opened.seek(end)
        if opened.read(len(_END)) != _END:
            last = f"after {members[-1].name}" if members else "at its start"
            cut = "is cut off" if size <= end else "is damaged"
            raise DataError(f"{file} {cut} {last} (byte {end} of {size}). Copy or make it again.")
        return _group(file, [m for m in members if m.isreg()], opened.fileno())


def _group(file: Path, members: list[tarfile.TarInfo], descriptor: int) -> TarIndex:
    samples: list[tuple[str, dict[str, tarfile.TarInfo]]] = []
    for member in members:
        key, extension = split_name(member.name)
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
        if extension in samples[-1][1]:
            raise DataError(
                f"{file}: the sample {key} has two members .{extension}. Keys must differ before their first dot."
            )
        samples[-1][1][extension] = member
    pictures = [_picture(file, key, parts) for key, parts in samples]
    if not pictures:
        raise DataError(f"{file} holds no samples. Remove it, or make it again.")
    if len({key for key, _ in samples}) != len(samples):
        raise DataError(
            f"{file}: a key comes back after other samples. The members of a sample must follow each other."
        )
    with_label = [parts["cls"] for _, parts in samples if "cls" in parts]
    if len(with_label) not in (0, len(samples)):
        bare = next(key for key, parts in samples if "cls" not in parts)
        raise DataError(f"{file}: {len(with_label)} of {len(samples)} samples have a label (.cls); {bare} has none.")
    labels = [_label(file, member, descriptor) for member in with_label] or None
    found = Counter(ext for _, parts in samples for ext in parts if ext not in PICTURES and ext != "cls")
    whole = sorted(ext for ext, count in found.items() if count == len(samples))
    others = {ext: [[parts[ext].offset_data, parts[ext].size] for _, parts in samples] for ext in whole}
    partial = {ext: count for ext, count in sorted(found.items()) if count < len(samples)}
    return TarIndex(
        [key for key, _ in samples],
        [m.offset_data for m in pictures],
        [m.size for m in pictures],
        labels,
        others,
        partial,
    )


def _picture(file: Path, key: str, parts: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    pictures = [member for extension, member in parts.items() if extension in PICTURES]
    if len(pictures) != 1:
        names = ", ".join(f".{extension}" for extension in parts)
        raise DataError(
            f"{file}: the sample {key} has {len(pictures)} pictures among {names}; "
            f"it must have one of {', '.join(PICTURES)}."
        )
    return pictures[0]


def _label(file: Path, member: tarfile.TarInfo, descriptor: int) -> int:
    text = os.pread(descriptor, member.size, member.offset_data)
    try:
        label = int(text)
    except ValueError:
        label = -1
    if label < 0:
        raise DataError(f"{file}: {member.name} holds {text[:20]!r}; a label is a decimal integer from 0 up.")
    return label
