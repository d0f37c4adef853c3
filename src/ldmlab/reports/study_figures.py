"""Figures of a study of generated images: every score along the axis or cell by cell, and the loss at each noise level."""

from dataclasses import replace

from ldmlab.reports import dot_rows, figures
from ldmlab.reports.collect import Score
from ldmlab.reports.figures import HEIGHT, Figure, Series, round_ticks, slug
from ldmlab.reports.study_cells import ASKED, Axis, Cell, Line, Study, words
from ldmlab.reports.study_tables import bare, metrics_of
from ldmlab.reports.tables import Metric, common_card, differences

BANDS = "95 % interval of each score"
COINCIDE = 0.02  # of an interval's width: nearer than this at every point, two lines are drawn as one
FEW = 4  # lines that a panel of usual height holds, with their bands


def score_figures(study: Study) -> list[Figure]:
    """One figure a score."""
    return [over(study, metric, study.axis) if study.axis else rows(study, metric) for metric in metrics_of(study)]


def _interval(score: Score) -> tuple[float, float]:
    return score.value if score.low is None else score.low, score.value if score.high is None else score.high


def _loose(study: Study, cells: tuple[Cell, ...]) -> list[bool]:
    """Which of them are scored under another protocol than most."""
    reference = common_card([bare(cell.scores) for cell in study.cells])
    return [bool(differences(bare(cell.scores).card, reference.card if reference else {})) for cell in cells]


def rows(study: Study, metric: Metric) -> Figure:
    series = []
    for n, cell in enumerate(cell for cell in study.cells if metric.key in cell.scores.scores):
        score, k = cell.scores.scores[metric.key], metric.factor
        low, high = _interval(score)
        series.append(
            Series(
                cell.label, [float(n)], [score.value * k], [low * k], [high * k], _loose(study, (cell,)), colour=n,
                style="points", sources=(cell.scores.place,),
            )
        )  # fmt: skip
    note = f"Bars: {BANDS}." + (" Hollow: another protocol." if any(s.loose[0] for s in series) else "")
    return dot_rows.DotRows(
        slug(metric.key), f"{metric.label} of generated images", metric.head, tuple(series), note, x="row",
        height=dot_rows.height(len(series)),
    )  # fmt: skip


def over(study: Study, metric: Metric, axis: Axis) -> Figure:
    """A score along the axis, a line of cells a line; lines that lie on each other are drawn once, under all their names."""
    series = []
    for n, together in enumerate(coinciding(study, axis)):
        cells = tuple(cell for cell in together[0].cells if metric.key in cell.scores.scores)
        if not cells:
            continue
        scores, k = [cell.scores.scores[metric.key] for cell in cells], metric.factor
        series.append(
            Series(
                ", ".join(line.label for line in together), [cell.at(axis) for cell in cells], [s.value * k for s in scores],
                [_interval(s)[0] * k for s in scores], [_interval(s)[1] * k for s in scores], _loose(study, cells),
                dashed=n >= len(figures.MARKERS), colour=n, style="points", sources=tuple(c.scores.place for c in cells),
            )
        )  # fmt: skip
    xs = sorted({x for s in series for x in s.images})
    values = [v for s in series for v in s.values]
    log = metric.better == "down" and min(values) > 0 and max(values) / min(values) > 10
    note = f"Bars, the lines a little apart: {BANDS}." if len(series) > FEW else f"Bands: {BANDS}."
    if any(any(s.loose) for s in series):
        note += " Hollow points have another protocol and are not joined."
    ticks = round_ticks(xs[0], xs[-1]) if axis.log else tuple(xs)
    return Figure(
        f"{slug(metric.key)}-over-{axis.short}", f"{metric.label} of generated images", metric.head, tuple(series), note, log,
        x=axis.title, span="log" if axis.log else "free", ticks=ticks,
        height=HEIGHT if len(series) <= FEW else HEIGHT * 1.5, bars=len(series) > FEW,
    )  # fmt: skip


def coinciding(study: Study, axis: Axis) -> list[list[Line]]:
    """The lines, those together that agree in every score (ddim without noise and euler are one rule)."""
    groups: list[list[Line]] = []
    for line in study.lines:
        same = next((group for group in groups if _agree(group[0], line, axis)), None)
        if same is None:
            groups.append([line])
        else:
            same.append(line)
    return groups


def _agree(one: Line, two: Line, axis: Axis) -> bool:
    if [cell.at(axis) for cell in one.cells] != [cell.at(axis) for cell in two.cells]:
        return False
    for a, b in zip(one.cells, two.cells, strict=True):
        if set(a.scores.scores) != set(b.scores.scores) or differences(bare(a.scores).card, bare(b.scores).card):
            return False
        for key, score in a.scores.scores.items():
            low, high = _interval(score)
            if abs(score.value - b.scores.scores[key].value) > COINCIDE * (high - low):
                return False
    return True


def loss_figures(study: Study) -> list[Figure]:
    """The loss of each denoiser over training, whole and by noise level, on validation images where they are logged;
    none for a single denoiser."""
    cells = study.denoisers
    if len(cells) < 2:
        return []
    runs = [replace(cell.run, name=trained_label(cell, study)) for cell in cells]
    names = dict.fromkeys(n for cell in cells if cell.denoiser for n in cell.denoiser.quantities())
    wanted = [n for n in names if n == "loss" or n.startswith("loss_t")]
    found = []
    for name in wanted:
        validated = all(cell.denoiser and len(cell.denoiser.curve(name, "val").values) > 1 for cell in cells)
        only = ("val",) if validated else ("train",)
        figure = figures.logged(runs, "denoiser", name, _title(name, len(wanted) - 1), only)
        if figure is not None:
            series = tuple(replace(s, split="") for s in figure.series)
            found.append(replace(figure, series=series))
    return found


def _title(name: str, bins: int) -> str:
    if name == "loss":
        return "loss"
    n = int(name.removeprefix("loss_t"))
    which = "least noise" if n == 0 else "most noise" if n == bins - 1 else f"part {n + 1} of {bins}"
    return f"loss, {which}"


def trained_label(cell: Cell, study: Study) -> str:
    """The cell's label without what does not belong to its denoiser; the denoiser's own name where nothing is left."""
    own = tuple(knob for knob in study.knobs if knob not in ASKED)
    named = "" if cell.denoiser is None else cell.denoiser.folder.name.rpartition("-")[0]
    return words(cell, own, study.knobs) or named
