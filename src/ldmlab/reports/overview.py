"""What lies in a store now, for its site: stage folders with their states and sizes, runs, studies, what is being built and its curves.

Everything is read anew when it changed, and nothing is written: a lock is looked at, never taken.
"""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from ldmlab.errors import DataError
from ldmlab.reports.collect import read_rows, read_run
from ldmlab.reports.drawing import smooth
from ldmlab.reports.figures import window
from ldmlab.reports.records import POSITION, Run, is_number
from ldmlab.store.files import read_json
from ldmlab.store.lock import holder
from ldmlab.store.store import LOCK

APART = ("runs", "reports", "sweeps", "throughput", "queue")  # folders of a store that hold no stages
# Where the configuration says how many images a stage trains on
TARGETS = {"autoencoder": ("ae", "fit"), "denoiser": ("ldm", "fit"), "extractor": ("eval", "extractor_fit")}
MOST = 400  # points of a curve that a browser gets
State = Literal["done", "running", "unfinished", "outside the store"]


class StageFolder(NamedTuple):
    """kind: `denoiser` … · size: bytes on disk · files: how many · holder: who builds it · changed: seconds since 1970."""

    kind: str
    name: str
    state: State
    size: int
    files: int
    seconds: float | None
    holder: str
    changed: float

    @property
    def place(self) -> str:
        return f"{self.kind}/{self.name}"


class Job(NamedTuple):
    """A cell of a sweep as it was last run. code: its exit code; None: it has not ended."""

    words: str
    code: int | None
    log: str


@dataclass
class Overview:
    """Reads `root`, a store. What a file says is remembered until the file changes."""

    root: Path
    _seen: dict[Path, tuple[Any, Any]] = field(default_factory=dict)

    def inside(self, *parts: str) -> Path | None:
        """A path below the store; None for one that leads out of it (`..`, a symlink) or to a hidden file."""
        names = [name for part in parts for name in part.split("/")]
        if any(name.startswith(".") or "\0" in name for name in names):
            return None
        try:
            path = self.root.joinpath(*parts).resolve()
        except (OSError, ValueError, RuntimeError):
            return None
        return path if path.is_relative_to(self.root) else None

    def _once(self, path: Path, stamp: Any, read: Any) -> Any:
        known = self._seen.get(path)
        if known is None or known[0] != stamp:
            self._seen[path] = known = (stamp, read())
        return known[1]

    # ---- stages ----

    def stages(self) -> list[StageFolder]:
        """Every stage folder, by kind, the youngest first."""
        kinds = [path.name for path in self._folders(self.root) if path.name not in APART]
        found = [self.stage(kind, path.name) for kind in kinds for path in self._folders(self.root / kind)]
        return sorted((each for each in found if each is not None), key=lambda s: (s.kind, -s.changed))

    @staticmethod
    def _folders(path: Path) -> list[Path]:
        try:
            with os.scandir(path) as entries:
                return [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        except OSError:  # gone, or not to be read
            return []

    def stage(self, kind: str, name: str) -> StageFolder | None:
        """One stage folder, `<name>-<id>`; None when there is no such folder."""
        folder = self.root / kind / name
        if kind in APART or "-" not in name or not folder.is_dir():
            return None
        if self.inside(kind, name) is None:
            return StageFolder(kind, name, "outside the store", 0, 0, None, "", 0.0)
        seal, changed = folder / "done.json", _changed(folder)
        if seal.is_file():
            size, files = self._once(folder, ("sealed", changed), lambda: usage(folder))
            said = self._once(seal, _stamp(seal), lambda: read_json(seal))
            return StageFolder(kind, name, "done", size, files, said.get("seconds"), "", changed)
        running = holder(folder / LOCK)
        size, files = usage(folder)
        return StageFolder(
            kind, name, "running" if running else "unfinished", size, files, None, running or "", changed
        )

    def others(self) -> dict[str, int]:
        """Bytes on disk of what is no stage, by its place: runs and their pages, sweeps, caches."""
        kinds = self._folders(self.root)
        caches = [
            path for kind in kinds if kind.name not in APART for path in self._folders(kind) if "-" not in path.name
        ]
        found = [path for path in (*(kind for kind in kinds if kind.name in APART), *caches) if not path.is_symlink()]
        return {path.relative_to(self.root).as_posix(): usage(path)[0] for path in found}

    def files(self, stage: StageFolder) -> list[tuple[str, int]]:
        """(path inside the folder, bytes) of each of its files that may be shown, by name."""
        at = self.root / stage.kind / stage.name
        names = sorted(Path(where, name).relative_to(at).as_posix() for where, _, own in os.walk(at) for name in own)
        seen = [(name, path) for name in names if (path := self.inside(stage.kind, stage.name, name)) is not None]
        return [(name, info.st_size) for name, path in seen if (info := _lstat(path)) is not None]

    def target(self, stage: StageFolder) -> int | None:
        """The images that it trains on in all; None for a stage that does not train, or says nothing."""
        path = self.inside(stage.kind, stage.name, "config.yaml")
        if path is None or not path.is_file() or stage.kind not in TARGETS:
            return None
        config = self._once(path, _stamp(path), lambda: yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER))
        for name in TARGETS[stage.kind]:
            config = (config or {}).get(name)
        images = config.get("images") if isinstance(config, Mapping) else None
        return int(images) if isinstance(images, (int, float)) else None

    # ---- curves ----

    def curves(self, stage: StageFolder) -> list[dict[str, Any]]:
        """Each logged quantity: {"name", "lines": [{"split", "points", "mean"}]}, as pairs (images, value), thinned."""
        path = self.inside(stage.kind, stage.name, "metrics.jsonl")
        if path is None or not path.is_file():
            return []
        found: list[dict[str, Any]] = self._once(path, _stamp(path), lambda: read_curves(path))
        return found

    # ---- runs and studies ----

    def runs(self) -> list[tuple[str, Run | str, list[str]]]:
        """(folder, the run or why it cannot be read, its studies), the youngest first."""
        paths = [path for folder in self._folders(self.root / "runs") if (path := folder / "run.json").is_file()]
        paths = [path for path in paths if self.inside("runs", path.parent.name)]
        ordered = sorted(paths, key=lambda path: -path.stat().st_mtime)
        return [(path.parent.name, *self._once(path, _stamp(path), lambda path=path: _read(path))) for path in ordered]

    def run(self, name: str) -> tuple[Run | str, list[str]] | None:
        path = self.inside("runs", name, "run.json")
        if path is None or not path.is_file():
            return None
        found: tuple[Run | str, list[str]] = self._once(path, _stamp(path), lambda: _read(path))
        return found

    def studies(self) -> dict[str, list[Job]]:
        """By name: the cells of its sweep as it was last run, none where that is not known."""
        found: dict[str, list[Job]] = {name: [] for *_, names in self.runs() for name in names}
        for folder in self._folders(self.root / "sweeps"):
            path = self.inside("sweeps", folder.name, "jobs.json")
            if path is not None and path.is_file():
                jobs, at = (
                    self._once(path, _stamp(path), lambda path=path: read_json(path)["jobs"]),
                    f"sweeps/{folder.name}",
                )
                found[folder.name] = [Job(" ".join(j["words"]), j["exit_code"], f"{at}/{j['log']}") for j in jobs]
        return dict(sorted(found.items()))

    def reports(self) -> list[tuple[str, str]]:
        """(its place, its title) of each page of several runs in the store, the youngest first."""
        pages = [page for folder in self._folders(self.root / "reports") if (page := folder / "index.html").is_file()]
        pages = [page for page in pages if self.inside("reports", page.parent.name)]
        ordered = sorted(pages, key=lambda page: -page.stat().st_mtime)
        return [(f"reports/{page.parent.name}/index.html", _title(page.with_name("report.md"))) for page in ordered]


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _read(path: Path) -> tuple[Run | str, list[str]]:
    try:
        return read_run(path.parent), [str(name) for name in read_json(path).get("studies") or []]
    except DataError as error:
        return str(error), []


def _title(path: Path) -> str:
    return _text(path).partition("\n")[0].lstrip("# ").replace("\\", "") or path.parent.name


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _stamp(path: Path) -> tuple[int, int, int]:
    info = path.stat()
    return info.st_mtime_ns, info.st_size, info.st_ino


def _changed(folder: Path) -> float:
    """When anything directly inside was last written; 0 for a folder that is gone."""
    return max([0.0, *(info.st_mtime for path in (folder, *_listed(folder)) if (info := _lstat(path)) is not None)])


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _lstat(path: Path) -> os.stat_result | None:
    """None for a file that was renamed or removed since it was listed: a training does so all the time."""
    try:
        return path.lstat()
    except OSError:
        return None


def usage(folder: Path) -> tuple[int, int]:
    """(bytes on disk, files) of a folder; a hard link counts once, a symlink is not followed."""
    paths = [Path(at, name) for at, _, names in os.walk(folder) for name in names]
    infos = [info for path in paths if (info := _lstat(path)) is not None]
    sizes = {(info.st_dev, info.st_ino): info.st_blocks * 512 for info in infos}
    return sum(sizes.values()), len(sizes)


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The curves of a metrics.jsonl that may still be written to: its last line may be half there."""
    rows = read_rows(path, False, "")
    names = dict.fromkeys(key for row in rows for key, value in row.items() if is_number(value) and key not in POSITION)
    splits = dict.fromkeys(row.get("split", "train") for row in rows)
    found = []
    for name in names:
        lines = []
        for split in splits:
            named = [row for row in rows if row.get("split", "train") == split and is_number(row.get(name))]
            own = [(row["images"], row[name]) for row in named if math.isfinite(row[name])]
            if own:
                means = smooth([float(value) for _, value in own], window(len(own)))
                kept = thinned(len(own))
                mean = [(own[i][0], float(f"{means[i]:.6g}")) for i in kept]
                lines.append({"split": split, "points": [own[i] for i in kept], "mean": mean})
        found += [{"name": name, "lines": lines}] if lines else []
    return found


def thinned(n: int, most: int = MOST) -> list[int]:
    """Places of at most `most` of n values, evenly, the first and the last among them."""
    return list(range(n)) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]


def ago(seconds: float) -> str:
    """ "3 s", "2 min", "5 h", "4 d" before now."""
    past = max(time.time() - seconds, 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if past >= size:
            return f"{past // size:.0f} {unit}"
    return f"{past:.0f} s"


def size_text(size: float) -> str:
    """1.2 GB, 34 MB, 5 kB: powers of 1000."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
