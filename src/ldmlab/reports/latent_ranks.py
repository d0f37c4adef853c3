"""Which diagnostic of a latent ranks first stages as their samples' FID does (`stage=diagnostics`, `metrics.rank_correlation`)."""

from typing import Any, NamedTuple

from ldmlab.metrics.intervals import Score
from ldmlab.metrics.rank_correlation import FEWEST, spearman
from ldmlab.reports import document as doc
from ldmlab.reports import latent_diagnostics, numbers
from ldmlab.reports.first_stage_cells import read_cells
from ldmlab.reports.latent_diagnostics import HEADS, read_diagnostics
from ldmlab.reports.records import Estimate, Run
from ldmlab.reports.study_cells import Study
from ldmlab.studies.cells import CellTable

BOOTSTRAP = 1000
FEWEST_GIVEN_F = 8  # first stages: with fewer the bootstrap of a partial correlation is narrow by accident
NOTE = (
    "Spearman's rank correlation of each diagnostic with the FID of samples over {count} first stages; given f: Pearson's partial "
    "correlation of the ranks, from {given} first stages on. Brackets: 95 % over resampled first stages. Arrows: what is said to make a "
    "latent easier to denoise, so ↓ expects a positive correlation and ↑ a negative one."
)
TOO_FEW = "A rank correlation with FID needs {fewest} first stages with a diagnosed latent and scored samples; there are {count}."


class Diagnosed(NamedTuple):
    """A first stage: its f, the mean ln FID of its denoisers at the end of training, its latent's diagnostics."""

    f: int
    ln_fid: float
    scores: dict[str, Estimate]


def diagnosed(study: Study, table: CellTable, runs: list[Run]) -> list[Diagnosed]:
    """The first stages of the study that some run has diagnosed."""
    import numpy as np

    by_denoiser = {cell.denoiser: cell for cell in table.cells}
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        record = run.stage("reconstructions")
        if record is not None and record.id not in found and (read := read_diagnostics(run)):
            found[record.id] = read
    share, values = table.shares[-1], dict[str, list[float]]()
    arms = {}
    for each in study.cells:
        record, cell = each.run.stage("reconstructions"), by_denoiser.get(each.denoiser.id if each.denoiser else "")
        if record is not None and cell is not None and record.id in found and (point := cell.at(share)) is not None:
            values.setdefault(record.id, []).append(float(np.log(point.value)))
            arms[record.id] = cell.arm
    return [Diagnosed(arms[id_].f, float(np.mean(own)), found[id_]["scores"]["latent"]) for id_, own in values.items()]


def blocks(study: Study, table: CellTable, runs: list[Run]) -> list[doc.Block]:
    """Correlations, and the diagnostics themselves, folded; nothing where no latent was diagnosed."""
    found = diagnosed(study, table, runs)
    if not found:
        return []
    section = latent_diagnostics.section(read_cells(runs), runs)
    below = doc.Section("The diagnostics themselves", section.blocks, fold=True, muted=f"{len(found)} latents")
    names = [name for name in HEADS if sum(name in each.scores for each in found) >= FEWEST]
    if not names:
        return [doc.Paragraph(TOO_FEW.format(fewest=FEWEST, count=len(found)), "small"), below]
    rows = []
    for name in names:
        own = [each for each in found if name in each.scores]
        x, y, f = (
            [each.scores[name].value for each in own],
            [each.ln_fid for each in own],
            [float(each.f) for each in own],
        )
        given_f = _said(spearman(x, y, BOOTSTRAP, 0, f)) if len(own) >= FEWEST_GIVEN_F else "–"
        rows.append([HEADS[name], _said(spearman(x, y, BOOTSTRAP, 0)), given_f, str(len(own))])
    heads = ["diagnostic", "rank correlation with FID", "given f", "first stages"]
    return [
        doc.Table(heads, doc.entries(rows)),
        doc.Paragraph(NOTE.format(count=len(found), given=FEWEST_GIVEN_F), "small"),
        below,
    ]


def _said(score: Score | None) -> str:
    """Of two digits: more would pretend."""
    if score is None:
        return "undefined"
    value, low, high = (numbers.number(x, 2) for x in (score.value, score.low, score.high))
    return f"{value} [{low}, {high}]"
