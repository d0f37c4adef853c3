"""The cells of a study of generated images, and what varies among them: the axis, the lines, the labels.

What decides a score is on its protocol card (how the denoiser was sampled) and in its run's configuration (how it was
trained). A *knob* is whatever of the two differs among the cells without following from another knob: `steps` may differ
because the samplers do, but is a knob only where it differs within one sampler.
"""

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from ldmlab.config.schema import TARGETS
from ldmlab.reports.figures import JOINED
from ldmlab.reports.numbers import KNOWN, MetricDeclaration, metrics_of
from ldmlab.reports.records import Run, StageRecord, flatten

TRAINED = ("data", "ae", "ldm", "cond", "objective")  # groups of options behind a denoiser
OF_SAMPLER = ("steps", "eta", "grid")  # of the card: they may follow from the sampler
# Fields of the card
OF_SAMPLING = ("sampler", *OF_SAMPLER, "guidance", "guidance_interval", "guidance_rescale", "weights")
# what a study of samples may vary; in all else the cards must be equal
STUDIED = (*OF_SAMPLING, "sampler_options", "evaluations", "seed")
SEEDS = (
    "seed",
    "ae.seed",
    "ldm.seed",
    "sampling seed",
)  # knobs that make a cell anew; no difference that a study asks for
UNGUIDED = 1.0  # the guidance at which the fields below say nothing
OF_GUIDANCE = ("guidance_interval", "guidance_rescale")


class Axis(NamedTuple):
    """knob: what is varied · title: of the axis · log: whether it is logarithmic · short: for headings and file names"""

    knob: str
    title: str
    short: str
    log: bool


AXES = (
    Axis("steps", "network evaluations an image", "evaluations", True),
    Axis("guidance", "guidance scale", "guidance", False),
)


@dataclass(frozen=True)
class StudyCell:
    """One run's last scored samples. `knobs`: the study's knobs with this cell's values; `label` tells it from others."""

    run: Run
    samples: StageRecord
    scores: StageRecord
    knobs: dict[str, Any]
    label: str = ""

    @cached_property
    def compared(self) -> StageRecord:
        """The scores with the part of their card that all cells of a study must share."""
        card = {name: value for name, value in self.scores.card.items() if name not in STUDIED}
        return replace(self.scores, card=card)

    @property
    def evaluations(self) -> int | None:
        """Of the denoiser for one image; a guided pair counts as one."""
        return self.scores.card.get("evaluations") or self.scores.card.get("steps")

    @property
    def closed_form(self) -> bool:
        """Whether nothing was trained in the place of the denoiser (`ldm=gaussian`), so that no sampler has steps."""
        return self.scores.card.get("steps") is None

    @property
    def denoiser(self) -> StageRecord | None:
        return self.run.stage("denoiser")

    @property
    def fit(self) -> dict[str, Any]:
        """`ldm.fit` of its configuration, with what was tuned; empty in a run that has none."""
        tuned = {path.removeprefix("ldm.fit."): value for path, value in self.run.tuned.items()}
        return dict((self.run.config.get("ldm") or {}).get("fit") or {}) | tuned

    def at(self, axis: Axis) -> float:
        return float((self.evaluations if axis.knob == "steps" else self.knobs[axis.knob]) or 0)


@dataclass(frozen=True)
class Line:
    """Cells that differ in the axis alone, along it."""

    label: str
    cells: tuple[StudyCell, ...]


@dataclass(frozen=True)
class Study:
    """`cells` in the order of their lines; without an axis every cell is a line of its own. ladder: in a study of first stages the
    cells that draw from the same denoisers in other numbers of steps; they are in no line.
    """

    cells: tuple[StudyCell, ...]
    knobs: tuple[str, ...]
    axis: Axis | None
    lines: tuple[Line, ...]
    ladder: tuple[StudyCell, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """The knobs beside the axis."""
        return tuple(knob for knob in self.knobs if self.axis is None or knob != self.axis.knob)

    @cached_property
    def metrics(self) -> list[MetricDeclaration]:
        return metrics_of([cell.scores for cell in self.cells])

    @property
    def leading(self) -> MetricDeclaration:
        """What the sentences are about: FID, where it is measured, else the first metric that has a direction."""
        directed = [metric for metric in self.metrics if metric.better]
        return next((m for m in directed if m.key == "fid"), (directed or self.metrics or [KNOWN["fid"]])[0])

    @property
    def denoisers(self) -> list[StudyCell]:
        """The first cell of each denoiser that was trained."""
        found: dict[str, StudyCell] = {}
        for cell in self.cells:
            if cell.denoiser is not None and not cell.closed_form:
                found.setdefault(cell.denoiser.id, cell)
        return list(found.values())

    @property
    def gaussians(self) -> list[StudyCell]:
        """The cells with a Gaussian in the place of the denoiser."""
        return [cell for cell in self.cells if cell.closed_form]


def scored(run: Run) -> StudyCell | None:
    """The run's last snapshot that has scores, and None without one."""
    done = [s for s in run.snapshots if s.scores is not None and s.scores.done and s.samples is not None]
    last = done[-1] if done else None
    return StudyCell(run, last.samples, last.scores, {}) if last and last.samples and last.scores else None


def read_study(runs: list[Run], laddered: bool = True) -> Study:
    """The finished cells of the runs, each set of scores once. laddered: other numbers of steps may stand apart (`apart`)."""
    found: dict[str, StudyCell] = {}
    for run in runs:
        cell = scored(run)
        if cell is not None:
            found.setdefault(cell.scores.id, cell)
    cells, ladder = apart(list(found.values())) if laddered else (list(found.values()), [])
    trained = [cell for cell in cells if not cell.closed_form]
    deciding = [options(cell) for cell in (trained if len(trained) > 1 else cells)]
    knobs = tuple(knob for knob in dict.fromkeys(k for each in deciding for k in each) if is_knob(knob, deciding))
    cells, ladder = (_seeds_together([_with(cell, knobs) for cell in each]) for each in (cells, ladder))
    axis = next((axis for axis in AXES if axis.knob in knobs and _repeats(cells, knobs, axis)), None)
    others = tuple(knob for knob in knobs if axis is None or knob != axis.knob)
    cells = [replace(cell, label=label(cell, knobs, axis)) for cell in cells]
    names = {cell.denoiser.id: cell.label for cell in cells if cell.denoiser}
    ladder = [replace(c, label=f"{names[c.denoiser.id]} {c.scores.card['steps']} steps") for c in ladder if c.denoiser]
    lines = tuple(_lines(cells, others, axis))
    ordered = tuple(dict.fromkeys(cell.scores.id for line in lines for cell in line.cells))
    by_id = {cell.scores.id: cell for cell in cells}
    return Study(tuple(by_id[id_] for id_ in ordered), knobs, axis, lines, tuple(ladder))


def _with(cell: StudyCell, knobs: tuple[str, ...]) -> StudyCell:
    own = options(cell)
    return replace(cell, knobs={knob: own.get(knob) for knob in knobs})


def _seeds_together(cells: list[StudyCell]) -> list[StudyCell]:
    """Cells that differ in seeds alone stand together, closed forms last; else the order they came in.

    Of cells that run side by side any may end first.
    """
    places: dict[str, int] = {}
    keys = [repr([item for item in cell.knobs.items() if "seed" not in item[0]]) for cell in cells]
    for key in keys:
        places.setdefault(key, len(places))
    order = sorted(range(len(cells)), key=lambda i: (cells[i].closed_form, places[keys[i]]))
    return [cells[i] for i in order]


def apart(cells: list[StudyCell]) -> tuple[list[StudyCell], list[StudyCell]]:
    """(the cells of a study, those that draw from its denoisers in other numbers of steps); the latter only where first stages vary.

    The study's number of steps is the one with most scores, over denoisers, snapshots and metrics. Where all have as many, steps are an
    axis of the study and nothing stands apart. Where samples are scored twice by one extractor, the cell with fewer scores is left out.
    """
    first_stages = {on.id for cell in cells if (on := cell.run.stage("autoencoder")) is not None}
    counts: Counter[int] = Counter()
    for cell in cells:
        if not cell.closed_form:
            counts[int(cell.scores.card["steps"])] += sum(len(s.scores.scores) for s in cell.run.snapshots if s.scores)
    if len(first_stages) < 2 or len(set(counts.values())) < 2:
        return cells, []
    usual = max(counts, key=lambda number: counts[number])
    own = [cell for cell in cells if cell.closed_form or cell.scores.card["steps"] == usual]
    denoisers = {cell.denoiser.id for cell in own if cell.denoiser}
    other = [cell for cell in cells if cell not in own]
    ladder = [cell for cell in other if cell.denoiser and cell.denoiser.id in denoisers]
    return [c for c in own if not any(_within(c, d) for d in own)] + [c for c in other if c not in ladder], ladder


def _within(cell: StudyCell, other: StudyCell) -> bool:
    """Whether `other` has the scores of the same samples and more."""
    same = cell.samples.id == other.samples.id and cell.scores.card.get("extractor_hash") == other.scores.card.get(
        "extractor_hash"
    )
    return same and set(cell.scores.scores) < set(other.scores.scores)


def links(study: Study) -> dict[str, str]:
    """The store's places of each cell → its part of the page; of means, its row of the table of scores."""
    found: dict[str, str] = {}
    for cell in (*study.cells, *study.ladder):
        anchor = f"cell-{cell.scores.id}"
        scored = [s.scores for s in cell.run.snapshots if s.scores is not None]
        found[cell.scores.place] = anchor
        for record in (*scored, *cell.run.stages):
            found.setdefault(record.place, anchor)
            if cell not in study.ladder:
                found.setdefault(f"{record.place}{JOINED}", f"row-{cell.scores.id}")
    return found


def options(cell: StudyCell) -> dict[str, Any]:
    """Everything that may be a knob: chosen groups, options of training, and how the denoiser was sampled."""
    config = cell.run.config
    trained = flatten({group: config[group] for group in (*TRAINED, "seed") if group in config})
    budget = (config.get("ldm") or {}).get("budget") or {}
    if any(budget.get(target) for target in (*TARGETS, "fair")):  # the budget chose these
        for name in ("width", "level_channels", "blocks", "heads", "head_channels"):
            trained.pop(f"ldm.network.{name}", None)
    chosen = {group: cell.run.choice(group) for group in TRAINED}
    chosen |= {group: name for group, name in cell.run.choices.items() if "/" in group and group_of(group) in TRAINED}
    return chosen | trained | sampled(cell.scores.card)


def sampled(card: dict[str, Any]) -> dict[str, Any]:
    """How the denoiser was sampled. Classifier-free guidance is three knobs, other kinds are `<kind>.<option>`."""
    found, kinds = {name: card.get(name) for name in OF_SAMPLING}, card.get("guidance")
    found["sampling seed"] = card.get("seed")
    found |= {f"sampler.{name}": value for name, value in (card.get("sampler_options") or {}).items()}
    if not isinstance(kinds, dict):
        return found
    own = kinds.get("classifier_free", {})
    found |= {"guidance": own.get("scale", UNGUIDED), "guidance_interval": own.get("interval")}
    found |= {"guidance_rescale": own.get("rescale")}
    return found | flatten({kind: said for kind, said in kinds.items() if kind != "classifier_free"})


def group_of(knob: str) -> str:
    """The first part of its name: "objective" of "objective.schedule.T" and of the group "objective/schedule"."""
    return knob.replace("/", ".").partition(".")[0]


def owners(knob: str, known: Container[str]) -> tuple[str, ...]:
    """The groups, outermost first, whose choices may already say it: ("ae", "ae/network") of "ae.network.width"."""
    if knob in OF_SAMPLER:
        return ("sampler",)
    if group_of(knob) not in (*TRAINED, "sampler"):
        return ()
    parts = knob.replace("/", ".").split(".")[:-1]
    groups = ("/".join(parts[: n + 1]) for n in range(len(parts)))
    return tuple(group for group in groups if group in known)


def is_knob(knob: str, every: list[dict[str, Any]]) -> bool:
    """Whether it varies, and within one choice of its groups where their choices vary too."""
    groups = owners(knob, {name for each in every for name in each})
    by_choice: dict[str, set[str]] = {}
    for each in every:
        if knob in OF_GUIDANCE and each.get("guidance") == UNGUIDED:
            continue
        chosen = repr([each.get(group) for group in groups])
        by_choice.setdefault(chosen, set()).add(repr(each.get(knob)))
    return any(len(values) > 1 for values in by_choice.values())


def word(knob: str, value: Any, knobs: tuple[str, ...]) -> str:
    """A knob's value as a label says it; "" where it needs no word."""
    if knob in (*TRAINED, "sampler", "weights", "grid") or "/" in knob:
        return "–" if value is None else str(value)
    if knob == "steps":
        return f"{value} steps"
    if knob == "guidance_interval":
        return "everywhere" if value is None else "in " + "–".join(f"{ratio:g}" for ratio in value)
    if knob == "guidance_rescale":
        return f"rescale {value:g}" if value else ""
    if knob in ("guidance", "eta", "seed", "sampling seed"):
        return f"{knob} {value}" if value is None else f"{knob} {value:g}"
    group, _, last = knob.rpartition(".")
    if last == "scale" and group.partition(".")[0] not in TRAINED:  # of another kind of guidance
        return "" if value is None else f"{group} {value:g}"
    ambiguous = sum(other.rpartition(".")[2] == last for other in knobs) > 1
    return f"{knob if ambiguous else last}={'null' if value is None else value}"


def words(cell: StudyCell, which: tuple[str, ...], knobs: tuple[str, ...]) -> str:
    return " ".join(text for knob in which if (text := word(knob, cell.knobs[knob], knobs)))


def label(cell: StudyCell, knobs: tuple[str, ...], axis: Axis | None) -> str:
    """ "ddim at 50 evaluations", "guidance 2 in 0.56–5.8", "eps_linear"."""
    others = tuple(knob for knob in knobs if axis is None or knob != axis.knob)
    if cell.closed_form and cell.run.choice("ldm"):
        own = words(cell, tuple(knob for knob in others if knob not in (*SEEDS, "ldm", *OF_SAMPLING)), knobs)
        return f"{own} {cell.run.choice('ldm')}".strip()
    if axis is not None and axis.knob == "guidance" and cell.knobs["guidance"] == UNGUIDED:
        others = tuple(knob for knob in others if knob not in OF_GUIDANCE)
    said = words(cell, others, knobs)
    if axis is None:
        return said or cell.run.label
    if axis.knob == "steps":
        return " ".join(part for part in (said, f"at {cell.evaluations} evaluations") if part)
    return " ".join(part for part in (f"guidance {cell.knobs['guidance']:g}", said) if part)


def trained_label(cell: StudyCell, study: Study) -> str:
    """The cell's label without what does not belong to its denoiser; the denoiser's own name where nothing is left."""
    own = tuple(knob for knob in study.knobs if group_of(knob) in (*TRAINED, "seed"))
    named = "" if cell.denoiser is None else cell.denoiser.folder.name.rpartition("-")[0]
    return words(cell, own, study.knobs) or named


def _key(cell: StudyCell, knobs: tuple[str, ...]) -> str:
    return repr([cell.knobs[knob] for knob in knobs])


def _repeats(cells: list[StudyCell], knobs: tuple[str, ...], axis: Axis) -> bool:
    """Whether two cells differ in the axis alone."""
    keys = [_key(cell, tuple(k for k in knobs if k != axis.knob)) for cell in cells]
    return len(set(keys)) < len(keys)


def _lines(cells: list[StudyCell], others: tuple[str, ...], axis: Axis | None) -> list[Line]:
    """A line per combination of the other knobs. Cells without guidance begin every line of a guidance axis that they
    do not contradict: an interval or a rescaling has nothing to act on there.
    """
    if axis is None:
        return [Line(cell.label, (cell,)) for cell in cells]
    free = OF_GUIDANCE if axis.knob == "guidance" else ()
    bound = tuple(knob for knob in others if knob not in free)
    shared = [cell for cell in cells if free and cell.knobs["guidance"] == UNGUIDED]
    own = [cell for cell in cells if cell not in shared] or shared
    groups: dict[str, list[StudyCell]] = {}
    for cell in own:
        groups.setdefault(_key(cell, others), []).append(cell)
    lines = []
    for members in groups.values():
        joins = [cell for cell in shared if _key(cell, bound) == _key(members[0], bound) and cell not in members]
        ordered = sorted([*joins, *members], key=lambda cell: cell.at(axis))
        lines.append(Line(words(members[0], others, others), tuple(ordered)))
    return lines
