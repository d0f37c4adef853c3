"""What a study of generated images says in words: which cell is best, which are not distinguishable, what changes along its axis."""

from itertools import combinations, pairwise

from ldmlab.reports.numbers import Comparison, MetricDeclaration, compare, indistinct, pair_names, said, tie
from ldmlab.reports.study_cells import SEEDS, UNGUIDED, Line, Study, StudyCell
from ldmlab.reports.tables import best_of, listed

PAPERS = {"sampler": "ddim", "objective": "eps_linear", "ldm": "unet"}  # the paper's own choice of a knob begins so
REDUCED = 0.4  # of the baseline's evaluations: 20 of 50
MANY = 8  # cells beyond which pairs are compared along and across the lines, not each with each
NAMES = {
    "sampler": "sampler", "steps": "number of steps", "guidance": "guidance scale", "ldm": "network", "data": "data",
    "guidance_interval": "interval of guidance", "objective": "objective", "ae": "first stage", "cond": "condition",
    "objective/schedule": "noise schedule",
}  # fmt: skip


def title_of(study: Study) -> str:
    """ "Samplers over network evaluations on shapes, 32 px", "Objectives on …"."""
    data = sorted({str(cell.run.choice("data") or cell.run.title.split(" · ")[0]) for cell in study.cells})
    sizes = sorted({int(cell.scores.card["resolution"]) for cell in study.cells if "resolution" in cell.scores.card})
    where = ", ".join(data) + (f", {'/'.join(map(str, sizes))} px" if sizes else "")
    if study.axis is not None and study.axis.knob == "guidance":
        return f"Guidance on {where}"
    others = [knob for knob in study.others if knob not in SEEDS] or study.others
    names = [f"{NAMES[knob]}s" if knob in NAMES and knob != "data" else knob for knob in others]
    what = " and ".join(names) or "samples"
    along = f" over {study.axis.title.removesuffix(' an image')}" if study.axis is not None else ""
    return f"{what[0].upper()}{what[1:]}{along} on {where}"


def question(study: Study) -> str:
    """What varies and what does not, in a sentence."""
    trained = len(study.denoisers)
    who = {0: "No denoiser", 1: "One trained denoiser"}.get(trained, f"{trained} denoisers")
    count = len(study.gaussians)
    who += f" and {count} Gaussian{'s' if count > 1 else ''} in the place of one" if count else ""
    own = [knob for knob in study.knobs if knob not in SEEDS]
    vary = [NAMES.get(knob, knob) for knob in own] + (["seeds"] if len(own) < len(study.knobs) else [])
    return f"{who}; {listed(vary) if vary else 'nothing'} {'vary' if len(vary) > 1 else 'varies'}, all else is equal."


def baseline(study: Study) -> StudyCell:
    """What all cells are compared with: the paper's own choice where it is among them; of its line the most evaluations,
    or no guidance.
    """

    def rank(line: Line) -> int:
        first = line.cells[0].knobs
        return -sum(str(first[knob]).startswith(name) for knob, name in PAPERS.items() if knob in first)

    cells = min(study.lines, key=rank).cells
    return cells[-1] if study.axis is not None and study.axis.knob == "steps" else cells[0]


def difference(base: StudyCell, cell: StudyCell, metric: MetricDeclaration) -> Comparison | None:
    """`cell` less `base`; None where their protocols differ in more than the study varies."""
    return compare(base.compared, cell.compared, metric)


def difference_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of every cell against the baseline; a cell is `value [low, high]`, with the verdict on the leading
    score."""
    base, metrics, rows = baseline(study), study.metrics, []
    for cell in study.cells:
        if cell is not base:
            found, lead = [difference(base, cell, m) for m in metrics], difference(base, cell, study.leading)
            texts = ["–" if d is None else d.text for d in found]
            rows.append([cell.label, *texts, lead.verdict if lead is not None else "not comparable"])
    return ["cell", *(f"Δ {m.head}" for m in metrics), f"in {study.leading.label}"], rows


def compared_pairs(study: Study) -> list[tuple[StudyCell, StudyCell]]:
    """Each with each while they are few; of many, neighbours along their line and lines at the same place."""
    if len(study.cells) <= MANY or study.axis is None:
        return list(combinations(study.cells, 2))
    knob, lines = study.axis.knob, combinations(study.lines, 2)
    pairs = [pair for line in study.lines for pair in pairwise(line.cells)]
    pairs += [(a, b) for one, two in lines for a in one.cells for b in two.cells if a.knobs[knob] == b.knobs[knob]]
    return list({(a.scores.id, b.scores.id): (a, b) for a, b in pairs if a is not b}.values())


def ties(study: Study) -> list[str]:
    """One sentence a score; of many cells how many of the compared pairs, for ≈ in the table says the rest."""
    every = compared_pairs(study)
    found = indistinct(every, study.metrics)
    if len(study.cells) <= MANY:
        return [tie(metric, pair_names(pairs)) for metric, pairs in found]
    which = f" (neighbours of a line, and lines at equal {study.axis.knob})" if study.axis else " of cells"
    return [tie(metric, f"{len(pairs)} of {len(every)} pairs{which}") for metric, pairs in found]


def verdicts(study: Study) -> list[str]:
    """What the study says of its leading score, in a few sentences."""
    cells = [cell for cell in study.cells if study.leading.key in cell.scores.scores]
    if len(cells) < 2 or not study.leading.better:
        return []
    lead = [leader(study, cells)]
    if study.axis is None:
        return [*(lead if len(cells) > 2 else []), *against(study)]
    return [*lead, *(fewer(study) if study.axis.knob == "steps" else guided(study))]


def score_text(study: Study, cell: StudyCell) -> str:
    return said(cell.scores.scores[study.leading.key], study.leading)


def best_cell(study: Study, cells: list[StudyCell]) -> StudyCell:
    scores = [cell.scores.scores[study.leading.key] for cell in cells]
    best = best_of(study.leading, scores)
    return next(cell for cell, score in zip(cells, scores, strict=True) if score is best)


def leader(study: Study, cells: list[StudyCell]) -> str:
    best, metric = best_cell(study, cells), study.leading
    others = [(cell, difference(best, cell, metric)) for cell in cells if cell is not best]
    same = [cell.label for cell, d in others if d is not None and not d.distinguishable]
    more = f" and {len(same) - 6} more" if len(same) > 6 else ""
    rest = (
        f"not distinguishable from it: {', '.join(same[:6])}{more}" if same else "distinguishable from every other cell"
    )
    word = "Lowest" if metric.better == "lower" else "Highest"
    return f"{word} {metric.label}: {best.label}, {score_text(study, best)}; {rest}."


def fewer(study: Study) -> list[str]:
    """Each line at less than half of the baseline's evaluations against the baseline."""
    base, metric = baseline(study), study.leading
    if base.evaluations is None or metric.key not in base.scores.scores:
        return []
    limit = REDUCED * base.evaluations
    found: dict[str, list[str]] = {}
    for line in study.lines:
        within = [cell for cell in line.cells if (cell.evaluations or 0) <= limit]
        d = difference(base, within[-1], metric) if within else None
        if d is not None:
            kind, own = ("worse", "") if d.verdict == "worse" else ("not worse", f"{score_text(study, within[-1])}, ")
            found.setdefault(kind, []).append(f"{within[-1].label} ({own}{d.text})")
    what = f"{base.label} ({metric.label} {score_text(study, base)}) beyond the paired interval"
    kinds = [kind for kind in ("not worse", "worse") if kind in found]
    return [f"At {limit:g} evaluations or fewer {kind} than {what}: {'; '.join(found[kind])}." for kind in kinds]


def guided(study: Study) -> list[str]:
    """Each line: where the leading score is best against no guidance; what the others do from one end to the other. Then
    the lines against the first at equal guidance."""
    found, metric = [], study.leading
    for line in study.lines:
        name = f"{line.label[0].upper()}{line.label[1:]}: " if line.label and len(study.lines) > 1 else ""
        cells = [cell for cell in line.cells if metric.key in cell.scores.scores]
        if not cells:
            continue
        first, best = cells[0], best_cell(study, cells)
        d = difference(first, best, metric)
        word = "least" if metric.better == "lower" else "highest"
        found.append(f"{name}{metric.label} is {word} at {best.knobs['guidance']:g}, {score_text(study, best)}")
        if d is not None and best is not first:
            base = "no guidance" if first.knobs["guidance"] == UNGUIDED else f"guidance {first.knobs['guidance']:g}"
            found[-1] += f", {d.verdict} {'than' if d.distinguishable else 'from'} {base} ({d.text})"
        found[-1] += "."
        moves = moved(study, cells)
        if moves:
            ends = f"{first.knobs['guidance']:g} to {cells[-1].knobs['guidance']:g}"
            found.append(f"{name}from {ends} {', '.join(moves)}.")
    return found + [text for line in study.lines[1:] for text in [across(study, study.lines[0], line)] if text]


def moved(study: Study, cells: list[StudyCell]) -> list[str]:
    """What the other scores do from the first cell to the last."""
    moves = []
    for metric in study.metrics:
        d = difference(cells[0], cells[-1], metric)
        if d is not None and metric.better == "higher" and metric is not study.leading:
            verb = "does not change measurably" if not d.distinguishable else "rises" if d.score.value > 0 else "falls"
            moves.append(f"{metric.label} {verb} ({d.text}{f' {metric.unit}' if metric.unit else ''})")
    return moves


def across(study: Study, one: Line, two: Line) -> str:
    """The leading score of two lines wherever they are at the same guidance."""
    at = {cell.knobs["guidance"]: cell for cell in one.cells}
    found: dict[str, list[str]] = {}
    for cell in two.cells:
        base = at.get(cell.knobs["guidance"])
        d = difference(base, cell, study.leading) if base is not None and base is not cell else None
        if d is not None:
            found.setdefault(d.verdict, []).append(f"{cell.knobs['guidance']:g}")
    text = "; ".join(f"{verdict} at {', '.join(places)}" for verdict, places in found.items())
    return f"{study.leading.label} {two.label} against {one.label}, at equal guidance: {text}." if text else ""


def against(study: Study) -> list[str]:
    """Every cell against the baseline, by verdict."""
    base, metric = baseline(study), study.leading
    found: dict[str, list[str]] = {}
    for cell in study.cells:
        d = difference(base, cell, metric) if cell is not base else None
        if d is not None:
            found.setdefault(d.verdict, []).append(f"{cell.label} ({d.text})")
    text = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in found.items())
    return [f"{metric.label} against {base.label}, {score_text(study, base)}: {text}."] if text else []
