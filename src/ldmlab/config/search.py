"""Where configuration files lie: conf/, sweeps/, and the folders a user adds with `hydra.searchpath=[file:///…]`."""

import functools
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from omegaconf import OmegaConf

from ldmlab.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"
SEARCHPATH = "hydra.searchpath"


def folders(words: Sequence[str] = ()) -> list[Path]:
    """conf/ and the folders that `words` add, in the order in which they are looked through."""
    return [CONF, *(folder for word in words for folder in _added(word))]


def _added(word: str) -> list[Path]:
    key, _, value = word.lstrip("+").partition("=")
    if key != SEARCHPATH:
        return []
    places = [place.strip().strip("'\"") for place in value.strip().strip("[]").split(",")]
    return [_folder(place) for place in places if place]


def _folder(place: str) -> Path:
    """Raises ConfigError for a place that is none, which Hydra would only warn of."""
    if place.startswith("pkg://"):
        try:
            found = importlib.util.find_spec(place.removeprefix("pkg://"))
        except (ImportError, ValueError):
            found = None
        at = [Path(p) for p in (found.submodule_search_locations or [])] if found else []
        if at:
            return at[0]
        raise ConfigError(f"{SEARCHPATH}: {place} is not a package that can be imported. Set PYTHONPATH to its folder.")
    if not place.startswith("file://"):
        raise ConfigError(f"{SEARCHPATH}: {place} must begin with file:// (a folder) or pkg:// (a package).")
    folder = Path(unquote(place.removeprefix("file://")))
    if not folder.is_dir():
        raise ConfigError(
            f"{SEARCHPATH}: {place} is not a folder. Write {SEARCHPATH}=[file:///its/whole/path], with a group such as cond/ in it."
        )
    return folder


def groups(words: Sequence[str] = ()) -> list[str]:
    """The configuration groups a user can choose from."""
    found = {
        p.name
        for folder in folders(words)
        for p in folder.iterdir()
        if p.is_dir() and p.name not in ("hydra", "sweeps")
    }
    return [*sorted(name for name in found if not name.startswith((".", "_"))), "sweeps"]


def subgroups(group: str, words: Sequence[str] = ()) -> list[str]:
    """The groups inside a group, one level down: `ae` has ae/loss and ae/regulariser."""
    found = {f"{group}/{p.name}" for folder in folders(words) for p in (folder / group).glob("*/") if p.is_dir()}
    return sorted(name for name in found if not name.rpartition("/")[2].startswith((".", "_")))


def is_group(group: str, words: Sequence[str] = ()) -> bool:
    return group == "sweeps" or any((folder / group).is_dir() for folder in folders(words))


def group_options(group: str, words: Sequence[str] = ()) -> list[str]:
    """The options of a group (`ae`, `ae/loss`, `sweeps`), helpers with a leading underscore left out."""
    found = {p.stem for place in _places(group, words) for p in place.glob("*.yaml") if not p.name.startswith("_")}
    return sorted(found, key=_natural)


def option_file(group: str, option: str, words: Sequence[str] = ()) -> Path | None:
    """The yaml of an option; where two folders have one, the first wins, as in Hydra."""
    return next((file for place in _places(group, words) if (file := place / f"{option}.yaml").is_file()), None)


def _places(group: str, words: Sequence[str]) -> list[Path]:
    """The folders of a group: of studies also sweeps/ at the root."""
    return [*([ROOT / "sweeps"] if group == "sweeps" else []), *(folder / group for folder in folders(words))]


def read(file: Path) -> Any:
    """What a yaml holds, its references as they stand. It is shared until the file changes; nobody may change it."""
    status = file.stat()
    return _read(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _read(file: Path, changed: int, size: int) -> Any:
    return OmegaConf.load(file)


def line_of(file: Path, key: str) -> int | None:
    """The line on which a yaml sets a key, counted from 1; None where it does not."""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if re.search(rf"(^|[\s{{,]){re.escape(key)}\s*:", line):
            return number
    return None


def shown(file: Path) -> str:
    """A file's path as a person would type it: from the root of the checkout, or whole."""
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)


def listed(names: Iterable[str]) -> str:
    """`a, b, c`, or `nothing`."""
    return ", ".join(names) or "nothing"


def _natural(text: str) -> list[Any]:
    return [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", text)]
