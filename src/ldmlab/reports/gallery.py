"""gallery.html: the same noise across the cells of a study, a column a cell; sliders where cells differ in guidance or steps."""

from typing import Any, NamedTuple

from ldmlab.reports import document as doc
from ldmlab.reports.points import Explored, Value, script_json
from ldmlab.reports.study_cells import OF_GUIDANCE, UNGUIDED, Study, StudyCell, words

HOW = "Each row is one noise and condition, drawn in every cell; the first of each class, unselected."
NEAREST = (
    " Where a cell was not sampled at a slider's place, its nearest place stands under its name, in another colour."
)
SLIDERS = {"steps": "evaluations", "guidance": "guidance"}  # knob: what it is called


class Slider(NamedTuple):
    """A knob of sampling in which cells differ; its places from left to right."""

    knob: str
    title: str
    places: tuple[float, ...]


class Drawn(NamedTuple):
    """One cell in a column of the gallery, at its places on the sliders; None where it has no such knob (a closed form)."""

    column: str
    point: str
    at: tuple[float | None, ...]


def sliders(study: Study) -> list[Slider]:
    """Guidance and steps, where the cells differ in them."""
    knobs = [knob for knob in SLIDERS if knob in study.knobs]
    places = {knob: {at for cell in study.cells if (at := _at(cell, knob)) is not None} for knob in knobs}
    return [Slider(knob, SLIDERS[knob], tuple(sorted(places[knob]))) for knob in knobs if len(places[knob]) > 1]


def drawn(study: Study, slid: list[Slider]) -> list[Drawn]:
    """Each cell in the column that its other knobs say. A cell without guidance belongs to every column that it does not
    contradict: an interval or a rescaling of guidance has nothing to act on there.
    """
    moved = {slider.knob for slider in slid}
    others = tuple(knob for knob in study.knobs if knob not in moved)
    bound = tuple(knob for knob in others if knob not in OF_GUIDANCE)
    found = []
    for cell in study.cells:
        free = "guidance" in moved and cell.knobs["guidance"] == UNGUIDED
        like = [c for c in study.cells if all(c.knobs[k] == cell.knobs[k] for k in bound)] if free else []
        guided = [c for c in like if c.knobs["guidance"] != UNGUIDED]
        at = tuple(_at(cell, slider.knob) for slider in slid)
        names = dict.fromkeys(words(c, others, study.knobs) for c in (guided or [cell]))
        found += [Drawn(name, cell.scores.id, at) for name in names]
    return found


def _at(cell: StudyCell, knob: str) -> float | None:
    value = (cell.evaluations or None) if knob == "steps" else cell.knobs[knob]
    return None if value is None else float(value)


def page(explored: Explored, told: dict[str, Any], of: doc.Document, others: list[tuple[str, str]]) -> bytes:
    """told: what the scripts of both pages read. of: the study's own page. others: links to the pages beside it."""
    slid = sliders(explored.study)
    shown = {point["id"] for point in told["points"] if "strip" in point}
    cells = [cell._asdict() for cell in drawn(explored.study, slid) if cell.point in shown]
    leading = f"score.{explored.study.leading.key}"
    points = []
    for record, point in zip(told["points"], explored.points, strict=True):
        score = point.values.get(leading)
        text = f"{explored.study.leading.label} {score.text}" if isinstance(score, Value) else ""
        points += [{k: v for k, v in record.items() if k != "values"} | {"score": text}] if point.id in shown else []
    data = {"points": points, "noises": told["noises"], "sliders": [each._asdict() for each in slid], "drawn": cells}
    lead = HOW + (NEAREST if slid else "")
    own = doc.Document(f"Gallery: {of.title}", of.over, lead, [], wide=True, beside=others)
    return own.html("gallery.html.j2", data=script_json(data)).encode()
