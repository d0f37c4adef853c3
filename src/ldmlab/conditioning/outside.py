"""Folders of others that a conditioner reads: tokenizers and frozen text encoders, in the layout of `transformers`."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from ldmlab.errors import ConfigError

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model",
)  # fmt: skip
CONFIG = "config.json"


def folder(path: str, option: str) -> Path:
    """A local folder; ConfigError, naming `option`, where there is none."""
    found = Path(path).expanduser()
    if not found.is_dir():
        raise ConfigError(f"{option}={path}: no such folder. Give the path of one that is there.")
    return found


def digest(where: Path, names: Sequence[str]) -> str:
    """sha256 (hex) of those of the named files that the folder has; a folder that was moved keeps it."""
    found = [where / name for name in names if (where / name).is_file()]
    return _digest(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in found))


@functools.cache
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of (path, size, time of change), once a process for files that stay."""
    total = hashlib.sha256()
    for path, size, _ in files:
        total.update(f"{Path(path).name}\x1f{size}\x1f".encode())
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
