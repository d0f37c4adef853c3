"""Files that are whole or not there: writing beside the place and renaming, JSON, sha256. Every room writes through these.

What the machine refuses (a full disk, a read-only store, a file where a folder should be) becomes one sentence.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ldmlab.errors import DataError

_WAYS_OUT = {
    errno.ENOSPC: "the disk is full. Free some space, or choose another place",
    errno.EDQUOT: "the disk quota is used up. Free some space, or choose another place",
    errno.EROFS: "it is read-only. Choose a place that can be written",
    errno.EACCES: "you may not write there. Choose a place that can be written",
    errno.EPERM: "you may not write there. Choose a place that can be written",
    errno.ENOTDIR: "a file stands where a folder is needed. Choose another place",
    errno.EEXIST: "a file stands where a folder is needed. Choose another place",
    errno.EISDIR: "a folder stands where a file is needed. Choose another place",
    errno.ENAMETOOLONG: "its name is too long. Choose a shorter one",
}
_SHORT = re.compile(r"\d+ requested and \d+ written")  # how NumPy says that a disk is full
_CODE = re.compile(r"\(os error (\d+)\)")  # how safetensors, which is not Python, names the cause

MISSING = " is missing. Run the same command again; it builds what is not there."
DAMAGED = "Remove its folder and run the same command to build it again."


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_problem(path: Path, error: BaseException) -> DataError | None:
    """The sentence for a file that could not be written; None when the error is another one."""
    codes = [cause.errno for cause in _chain(error) if isinstance(cause, OSError) and cause.errno in _WAYS_OUT]
    code = codes[0] if codes else None
    if code is None and (found := _CODE.search(str(error))) and int(found[1]) in _WAYS_OUT:
        code = int(found[1])
    if code is None and isinstance(error, OSError) and _SHORT.fullmatch(str(error)):
        code = errno.ENOSPC
    if code is None:
        return None
    return DataError(f"{path} cannot be written: {_WAYS_OUT[code]} (store=… for results, out=… for exports).")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the machine refuses inside the block into a DataError that names `path` and the way out."""
    try:
        yield
    except Exception as error:  # torch and safetensors raise their own kinds for a full disk
        if problem := write_problem(path, error):
            raise problem from None
        raise


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to; renamed onto `path` when the block ends well, removed when it does not.

    Raises DataError when the disk is full, the place is read-only or no folder can stand there.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        beside = Path(name)
        try:
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.chmod(0o644)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any, compact: bool = False) -> None:
    """JSON, one value a line; `compact`: ASCII on one line with sorted keys, so that equal values are equal bytes."""
    if compact:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    else:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def read_arrays(path: Path, missing: str = MISSING, damaged: str = DAMAGED) -> dict[str, np.ndarray]:
    """The arrays of a .npz file. Raises DataError when it is missing or damaged; executes nothing that it may hold.

    missing: what the message says after the path. damaged: the way out, after the cause.
    """
    with _reading(path, missing, damaged), np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def read_array(path: Path, missing: str = MISSING, damaged: str = DAMAGED) -> np.ndarray:
    """A .npy file, memory-mapped and read-only. Raises DataError when it is missing or damaged (`read_arrays`)."""
    with _reading(path, missing, damaged):
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return found


@contextlib.contextmanager
def _reading(path: Path, missing: str, damaged: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}{missing}") from None
    except PermissionError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. Make it readable, or choose another store=…"
        ) from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}). {damaged}") from None


def read_json(path: Path, missing: str = MISSING, damaged: str = DAMAGED) -> Any:
    """Raises DataError when the file is missing, unreadable or not JSON in UTF-8 (`read_arrays`)."""
    with _reading(path, missing, damaged):
        return json.loads(path.read_text(encoding="utf-8"))
