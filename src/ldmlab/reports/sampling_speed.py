"""FID over images a second, as the number of sampling steps changes (the paper's Fig. 7), with the decoder counted and without."""

from collections.abc import Callable

from ldmlab.reports import document as doc
from ldmlab.reports import numbers
from ldmlab.reports.compression import colour_of, named
from ldmlab.reports.compression_cells import KEY, ImagesPerSecond, speed_of
from ldmlab.reports.figures import Figure, round_ticks, score_line, score_panel
from ldmlab.reports.numbers import KNOWN, common_card
from ldmlab.reports.records import StageRecord
from ldmlab.reports.study_cells import Study, StudyCell
from ldmlab.studies.cells import Arm, CellTable

STEEP = 3.0
WAYS: dict[str, tuple[str, Callable[[ImagesPerSecond], float]]] = {
    "both": ("sampler and decoder", lambda speed: speed.both),
    "sampler": ("sampler alone", lambda speed: speed.sampler),
}
NOTE = "From right to left more DDIM steps: {steps}. One denoiser a line; bands over images."
UNTIMED = "Left out: sets of samples that were drawn before speeds were measured ({count}); a new store draws and measures them."


def ladders(study: Study, table: CellTable) -> list[tuple[Arm, list[StudyCell]]]:
    """Of each arm the cells of one denoiser, by rising steps, where there are two at least."""
    by_denoiser = {cell.denoiser: cell.arm for cell in table.cells}
    found: dict[str, list[StudyCell]] = {}
    for cell in (*study.ladder, *study.cells):
        if cell.denoiser is not None and cell.denoiser.id in by_denoiser and KEY in cell.scores.scores:
            found.setdefault(cell.denoiser.id, []).append(cell)
    ordered = {id_: sorted(cells, key=_steps) for id_, cells in found.items() if len(cells) > 1}
    arms = {by_denoiser[id_]: cells for id_, cells in reversed(ordered.items())}
    return [(arm, arms[arm]) for arm in table.arms if arm in arms]


def _steps(cell: StudyCell) -> int:
    return int(cell.scores.card["steps"])


def blocks(study: Study, table: CellTable, paper: list[Figure]) -> list[doc.Block]:
    """Two figures with the paper's beside them, and a table; nothing without a ladder of steps."""
    found = ladders(study, table)
    timed = [(arm, own) for arm, cells in found if len(own := [c for c in cells if speed_of(c.samples)]) > 1]
    if not found:
        return []
    made: list[doc.Block] = [doc.Figures([*(figure(timed, table, way) for way in WAYS), *paper])] if timed else []
    rows = [
        [
            named(arm, table),
            str(_steps(cell)),
            numbers.said(cell.scores.scores[KEY], KNOWN[KEY]),
            *_speeds(cell.samples),
        ]
        for arm, cells in found
        for cell in cells
    ]
    heads = ["first stage", "DDIM steps", KNOWN[KEY].head, *(f"images/s, {words}" for words, _ in WAYS.values())]
    left_out = sum(speed_of(cell.samples) is None for _, cells in found for cell in cells)
    said = [
        measured([cell.samples for _, cells in found for cell in cells]),
        *([UNTIMED.format(count=left_out)] if left_out else []),
    ]
    return [*made, doc.Table(heads, doc.entries(rows)), doc.Paragraph(" ".join(said), "small")]


def figure(found: list[tuple[Arm, list[StudyCell]]], table: CellTable, way: str) -> Figure:
    words, of = WAYS[way]
    card = common_card([cell.compared for _, cells in found for cell in cells], KEY)
    series = []
    for arm, cells in found:
        points = [(of(speed), cell.compared) for cell in cells if (speed := speed_of(cell.samples)) is not None]
        points.sort(key=lambda point: point[0])
        look = {"colour": colour_of(arm.f), "dashed": arm not in table.curve}
        series.append(score_line(named(arm, table), points, KNOWN[KEY], card, **look))
    xs = [x for s in series for x in s.images]
    steps = sorted({_steps(cell) for _, cells in found for cell in cells})
    return score_panel(
        KNOWN[KEY], series, f"-over-speed-{way}", "FID of generated images",
        NOTE.format(steps=", ".join(map(str, steps))), STEEP, x=f"images a second, {words}", span="log",
        ticks=round_ticks(min(xs), max(xs)),
    )  # fmt: skip


def _speeds(samples: StageRecord) -> list[str]:
    speed = speed_of(samples)
    return ["–" if speed is None else numbers.plain(of(speed)) for _, of in WAYS.values()]


def measured(records: list[StageRecord]) -> str:
    """By which clock and on what the speeds were measured; "" where none was."""
    said: dict[str, None] = {}
    for record in records:
        if found := record.provenance.get("sampling"):
            machine = record.provenance.get("machine") or {}
            threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
            where = (
                machine.get("gpu") if record.provenance.get("device", "cpu").startswith("cuda") else machine.get("cpu")
            )
            said[f"{found['clock']}, {threads}, {where or 'machine not recorded'}"] = None
    return f"Images a second: {'; '.join(said)}; without loading and the first batch." if said else ""
