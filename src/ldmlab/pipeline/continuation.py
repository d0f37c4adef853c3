"""A longer training of the same goes on where a finished one ended: which one, from where, and why another one cannot.

Order of the data, noise, warm-up and averages are functions of the images seen. So two trainings that differ in `fit.images`,
`fit.cooldown`, `fit.snapshots` and `ldm.power_ema` alone are one training up to the first of their cool-downs, bit for bit at
equal threads, and a point that one has kept with its optimiser's state serves the other. The id of the longer one says nothing
of it, for its result is the same. A learning rate that a search found (tune=lr) counts as one that was given: which search found
it does not matter.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from ldmlab.errors import DataError
from ldmlab.store.files import read_json
from ldmlab.store.store import Address, Store, canonical, make_id
from ldmlab.terminal import number
from ldmlab.training.kept import STATE, Start
from ldmlab.training.loop import cooldown_begins, images_at

if TYPE_CHECKING:
    from ldmlab.pipeline.stage import Stage

LENGTH = ("images", "cooldown", "snapshots")  # of a budget; all else of it must be equal
SEARCH = "learning_rate"  # the role of the stage that finds the learning rate, among what a training stands on


@dataclass(frozen=True)
class Training:
    """What the options of an address say of a training: its budget, the widths of its averages, and all else as text."""

    fit: Any  # a loop.FitOptions
    widths: frozenset[float]
    rest: str

    @classmethod
    def of(cls, group: str, options: dict[str, Any], rate: float | None = None) -> "Training":
        """group: where the budget stands, `ae` or `ldm`. rate: the learning rate, where a search found it."""
        rest = copy.deepcopy(options)
        fit, widths = SimpleNamespace(**rest[group]["fit"]), frozenset(rest[group].pop("power_ema", ()))
        found = {} if rate is None else {"lr": rate}
        rest[group]["fit"] = {name: value for name, value in rest[group]["fit"].items() if name not in LENGTH} | found
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


def find(stage: "Stage", group: str, keep_state: bool, rate: float | None = None) -> Continuation:
    """The furthest kept point of the store from which the training of `stage` can begin.

    Args:
        stage: whose address has the training's options.
        group: where in them its budget stands, `ae` or `ldm`.
        keep_state: whether it is asked to keep the optimisers' state, then at the earlier points too.
        rate: the learning rate that a search found for it. Where its search has not ended, nothing can be said yet.
    """
    store, mine = stage.plan.store, stage.address
    if SEARCH in mine.upstream and rate is None:
        return Continuation(None)
    wanted, starts, refused = Training.of(group, mine.options, rate), [], []
    for seal in sorted((store.root / stage.name).glob("*/done.json")):
        folder, kept = seal.parent, _kept(seal.parent, mine)
        if kept is None or _id(folder) == mine.id or (kept.options.get(group) or {}).get("fit") is None:
            continue
        theirs = Training.of(group, kept.options, kept.rate)
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


class Kept(NamedTuple):
    """What a finished training's card says of it: its options, and the learning rate where a search found it."""

    options: dict[str, Any]
    rate: float | None


def _kept(folder: Path, mine: Address) -> Kept | None:
    """Of a finished stage that stands on what `mine` stands on, the search aside.

    None for a stage on other data or of another version, and for a card that is older, altered or cannot be read.
    """
    try:
        card = read_json(folder / "card.json")
        options, upstream = card["options"], card["upstream"]
        known = make_id(mine.stage, mine.version, options, upstream) == _id(folder)
        rate = float(card[SEARCH]["rate"]) if SEARCH in upstream else None
    except (DataError, ValueError, TypeError, KeyError):  # damaged, or a number that no card has
        return None
    return Kept(options, rate) if known and _stands_on(upstream) == _stands_on(mine.upstream) else None


def _stands_on(upstream: Mapping[str, str]) -> dict[str, str]:
    return {role: id_ for role, id_ in upstream.items() if role != SEARCH}


def _whole(store: Store, folder: Path) -> bool:
    """Whether a finished stage is what was sealed."""
    try:
        return not store.alterations(folder)
    except DataError:
        return False
