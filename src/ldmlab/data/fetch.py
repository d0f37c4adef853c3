"""Shards far away, copied once: what the training loop reads at random must lie on a disk."""

import hashlib
import os
import shutil
from pathlib import Path

from ldmlab.data.address import address_of, fetch_manifest, open_stream
from ldmlab.data.base import Split
from ldmlab.data.manifest import NAME, Manifest
from ldmlab.errors import DataError
from ldmlab.store.files import sha256_file
from ldmlab.store.lock import locked
from ldmlab.terminal import progress

BLOCK = 1 << 20


def local_copy(root: str, split: Split, cache: Path) -> Path:
    """The folder under `cache` that holds the manifest and this split's shards of a remote `root`; fetches what is missing.

    A shard counts as fetched when it has the manifest's sha256, so a cut connection costs one shard and an altered one is
    never used. Folders are named by the manifest's content: a new version of the set is another folder.

    Raises DataError for an address that cannot be read, a shard that is not the manifest's, and a disk without room.
    """
    manifest, text = fetch_manifest(address_of(root, NAME), f"data.root={root}")
    folder = cache / "remote" / hashlib.sha256(text.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".building"):
        _write(folder / NAME, text.encode())
        _fetch_all(root, manifest, split, folder)
    return folder


def _fetch_all(root: str, manifest: Manifest, split: Split, folder: Path) -> None:
    missing = [s for s in manifest.splits.get(split, []) if not (folder / s.name).exists()]
    needed, free = sum(shard.bytes for shard in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"data.root={root}: {len(missing)} shards of {needed / 1e9:.1f} GB do not fit beside the store, "
            f"where {free / 1e9:.1f} GB are free. Put the store elsewhere: store=<folder>."
        )
    if not missing:
        return
    with progress(f"copying {split}", len(missing), "shards") as advance:
        for shard in missing:
            beside = folder / f".{shard.name}.part"
            address = address_of(root, shard.name)
            try:
                with open_stream(address) as stream, beside.open("wb") as file:
                    while block := stream.read(BLOCK):
                        file.write(block)
            except Exception as error:
                raise DataError(f"{address} cannot be read: {error}. Check the address and the connection.") from error
            if beside.stat().st_size != shard.bytes or sha256_file(beside) != shard.sha256:
                size = beside.stat().st_size
                beside.unlink()
                raise DataError(
                    f"{address} is cut off or altered: {size} bytes came, not the {shard.bytes} bytes with sha256 "
                    f"{shard.sha256[:16]}… of the manifest. Upload it again, or run the same command again."
                )
            os.replace(beside, folder / shard.name)
            advance(1)


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(content)
    os.replace(beside, path)
