"""A longer training of the same goes on where a finished one ended: which one, from where, and why another one cannot.

Order of the data, noise, warm-up and averages are functions of the images seen. So two trainings that differ in `fit.images`,
`fit.cooldown`, `fit.snapshots` and `ldm.power_ema` alone are one training up to the first of their cool-downs, bit for bit at
equal threads, and a point that one has kept with its optimiser's state serves the other. The id of the longer one says nothing
of it, for its result is the same.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ldmlab.errors import DataError
from ldmlab.store.files import read_json
from ldmlab.store.store import Address, Store, canonical, make_id
from ldmlab.terminal import number
from ldmlab.training.kept import STATE, Start
from ldmlab.training.loop import cooldown_begins, images_at

if TYPE_CHECKING:
    from ldmlab.pipeline.stage import Stage

LENGTH = ("images", "cooldown", "snapshots")  # of a budget; all else of it must be equal


@dataclass(frozen=True)
class Training:
    """What the options of an address say of a training: its budget, the widths of its averages, and all else as text."""

    fit: Any  # a loop.FitOptions
    widths: frozenset[float]
    rest: str

    @classmethod
    def of(cls, group: str, options: dict[str, Any]) -> "Training":
        """group: where the budget stands, `ae` or `ldm`."""
        rest = copy.deepcopy(options)
        fit, widths = SimpleNamespace(**rest[group]["fit"]), frozenset(rest[group].pop("power_ema", ()))
        rest[group]["fit"] = {name: value for name, value in rest[group]["fit"].items() if name not in LENGTH}
        return cls(fit, widths, canonical(rest))

    def points(self, folder: Path) -> dict[int, Path]:
        """Images seen → the files kept there in its finished `folder`, up to where its cool-down begins."""
        found = {int(place.name): place for place in (folder / "snapshots").glob("[0-9]*")}
        flat = cooldown_begins(self.fit)
        if flat == images_at(self.fit, 1.0):
            found[flat] = folder
        return {images: place for images, place in found.items() if images <= flat}


@dataclass(frozen=True)
class Continuation:
    """The point of a finished training from which another goes on; or, without one, why the finished ones do not serve."""

    start: Start | None
    refused: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """For the plan's column of states."""
        return f"continues {self.start.origin['id']} from {number(self.start.images)} images" if self.start else ""


def find(stage: "Stage", group: str, keep_state: bool) -> Continuation:
    """The furthest kept point of the store from which the training of `stage` can begin.

    Args:
        stage: whose address has the training's options.
        group: where in them its budget stands, `ae` or `ldm`.
        keep_state: whether it is asked to keep the optimisers' state, then at the earlier points too.
    """
    store, mine = stage.plan.store, stage.address
    wanted, starts, refused = Training.of(group, mine.options), [], []
    for seal in sorted((store.root / stage.name).glob("*/done.json")):
        folder, options = seal.parent, _options(seal.parent, mine)
        if options is None or options == mine.options or (options.get(group) or {}).get("fit") is None:
            continue
        theirs = Training.of(group, options)
        if theirs.rest != wanted.rest:
            continue
        found = _start(wanted, theirs, folder, keep_state) if _whole(store, folder) else "it was altered"
        if isinstance(found, str):
            refused.append(f"{stage.name} {_id(folder)} ({number(theirs.fit.images)} img) is not continued: {found}")
        else:
            starts.append(found)
    best = max(starts, key=lambda start: start.images, default=None)
    return Continuation(best, () if best else tuple(refused))


def _start(wanted: Training, theirs: Training, folder: Path, keep_state: bool) -> Start | str:
    """The furthest point of `theirs` that serves, with the earlier ones that are asked for; or what is missing."""
    points, flat = theirs.points(folder), cooldown_begins(wanted.fit)
    with_state = {images: place for images, place in points.items() if (place / STATE).is_file() and images <= flat}
    if not with_state:
        return (
            f"it kept no optimiser's state within the first {number(min(flat, cooldown_begins(theirs.fit)))} images, up to which "
            "the learning rates agree (fit.keep_state, fit.cooldown)"
        )
    if missing := wanted.widths - theirs.widths:
        return f"it kept no average of ldm.power_ema={sorted(missing)}"
    branch = {flat} if keep_state and flat < images_at(wanted.fit, 1.0) else set()
    asked = {images_at(wanted.fit, moment) for moment in wanted.fit.snapshots} | branch
    kept = with_state if keep_state else points
    for images in sorted(with_state, reverse=True):
        earlier = {n for n in asked if n <= images}
        if earlier <= set(kept):
            origin: dict[str, str | int] = {"id": _id(folder), "images": images}
            return Start(with_state[images], images, {n: kept[n] for n in sorted(earlier)}, folder, origin)
    first = min(asked - set(kept))
    return f"it kept no snapshot at {number(first)} images, which fit.snapshots asks for"


def _id(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def _options(folder: Path, mine: Address) -> dict[str, Any] | None:
    """The options on a finished stage's card, where they make its id together with what `mine` stands on and its version.

    None for a stage on other data or of another version, and for a card that is older, altered or cannot be read.
    """
    try:
        card = read_json(folder / "card.json")
        options = card.get("options") if isinstance(card, dict) else None
        known = isinstance(options, dict) and make_id(mine.stage, mine.version, options, mine.upstream) == _id(folder)
    except (DataError, ValueError):  # damaged, or a number that no card has
        return None
    return options if known else None


def _whole(store: Store, folder: Path) -> bool:
    """Whether a finished stage is what was sealed."""
    try:
        return not store.alterations(folder)
    except DataError:
        return False
