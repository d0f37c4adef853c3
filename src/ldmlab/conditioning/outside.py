"""Folders of others that a conditioner reads: tokenizers and frozen text encoders, in the layout of `transformers`."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ldmlab.errors import ConfigError

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model",
)  # fmt: skip
CONFIG = "config.json"


def located(name: str, option: str) -> Path:
    """A local folder, or that of a name on the hub: from its cache, else downloaded.

    Raises ConfigError, naming `option` and what to put where, for a name that can be found neither here nor there, and for a folder
    without a config.
    """
    local = Path(name).expanduser()
    found = local if local.is_dir() else _from_hub(name, option)
    if not (found / CONFIG).is_file():
        raise ConfigError(f"{option}={name}: {found} holds no {CONFIG}. {_WANTED}")
    return found


_WANTED = (
    f"A folder holds {CONFIG}, model.safetensors and the tokenizer's files (tokenizer.json and tokenizer_config.json), as "
    "save_pretrained of transformers writes them."
)
_KEPT = [
    "*.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.txt",
    "*.model",
]  # of a repository on the hub; no pickles


@functools.cache
def _from_hub(name: str, option: str) -> Path:
    from huggingface_hub import snapshot_download

    if name.count("/") <= 1 and not name.startswith((".", "/", "~")):
        for offline in (True, False):
            try:
                return Path(snapshot_download(name, local_files_only=offline, allow_patterns=_KEPT))
            except Exception:  # of every kind: no network, no such name, no permission
                continue
    raise ConfigError(
        f"{option}={name}: no such folder, and the hub could not give a model of this name (there is no network, or HF_HUB_OFFLINE is "
        f"set, or the name is wrong). Put the model into a folder and give its path: {option}=/path/to/folder. {_WANTED}"
    )


def weights(where: Path, option: str) -> list[str]:
    """The names of the folder's weight files. ConfigError when there are none that load without executing code, and for a damaged one."""
    from safetensors import SafetensorError, safe_open

    found = sorted(where.glob("*.safetensors"))
    if not found:
        raise ConfigError(
            f"{option}: {where} holds no *.safetensors. {_WANTED} Other formats are not read: they may execute code."
        )
    for file in found:
        try:
            with safe_open(file, framework="pt"):  # its header says how long it is
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{option}: {file} is damaged ({error}). Get it again.") from None
    return [file.name for file in found]


def model(config: Any, kind: Any, where: Path, shapes_only: bool, option: str) -> nn.Module:
    """A model of `transformers` from its folder. ConfigError where the weights do not fit."""
    if shapes_only:
        import torch

        with torch.device("meta"):
            made: nn.Module = kind(config.from_pretrained(str(where), local_files_only=True))
        return made
    from transformers.utils import logging

    logging.set_verbosity_error()  # else it lists the weights of the half that is not wanted
    logging.disable_progress_bar()
    try:
        made, report = kind.from_pretrained(
            str(where), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{option}: {where} cannot be read ({' '.join(str(error).split())[:160]}). {_WANTED}"
        ) from None
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(f"{option}: {where} lacks weights of {kind.__name__}: {', '.join(missing[:3])} … {_WANTED}")
    return made


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
