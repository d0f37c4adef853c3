"""The parts of the page of a study of f, in the order in which a reader needs them (docs/guide/studies.md#which-f)."""

from dataclasses import replace

from ldmlab.reports import (
    compression,
    fid_sources,
    latent_ranks,
    paper_figures,
    predicted,
    sampling_speed,
    training_curves,
)
from ldmlab.reports import document as doc
from ldmlab.reports.chain_figures import chain_figures
from ldmlab.reports.compression_cells import KEY, TrainingWork, read_table
from ldmlab.reports.figures import Figure
from ldmlab.reports.records import Run
from ldmlab.reports.study_cells import Study
from ldmlab.studies.cells import CellTable

SCORES = (KEY, "is")  # over training


OfF = tuple[CellTable, list[doc.Block], list[doc.Section]]
"""The cells, what stands at the head of the page, sections below it."""


def sections(study: Study, runs: list[Run], work: TrainingWork, name: str) -> OfF:
    """Of a study with one f what its arms differ in; nothing where that cannot be said either."""
    table = read_table(study, work)
    head, judged = compression.blocks(table, name)
    if not table.cells or not table.varies_f:
        return table, head, judged
    tables = {key: found for key in SCORES if (found := table if key == KEY else read_table(study, work, key)).cells}
    paper = len(table.curve) > 1
    curves = beside(
        training_curves.figures(tables), {key: paper_figures.over_training(key) for key in tables} if paper else {}
    )
    made = [
        *judged[:1],
        doc.Section("FID and IS over training", [doc.Figures(curves)] if curves else [], "budgets"),
        doc.Section("Training until a FID is reached", training_curves.reach_blocks(table), "reach"),
        doc.Section("At twice the training", predicted.blocks(table), "twice"),
        doc.Section(
            "FID over the speed of sampling", sampling_speed.blocks(study, table, paper_figures.over_speed()), "speed"
        ),
        doc.Section("Where the FID comes from", fid_sources.blocks(study, table), "sources"),
        doc.Section("Rate and distortion along the chain", chain_blocks(study, table, runs), "chain"),
        doc.Section("What makes a latent easy", latent_ranks.blocks(study, table, runs), "latents"),
        *judged[1:],
        doc.Section("The paper's numbers", paper_figures.blocks(table), "paper"),
    ]
    return table, head, [section for section in made if section.blocks]


def beside(ours: list[Figure], paper: dict[str, list[Figure]]) -> list[Figure]:
    """Each of the paper's figures after ours of the same score and axis: steps after images, days after seconds."""
    after = {
        f"{key}-over-{axis}": figure
        for key, found in paper.items()
        for axis, figure in zip(("images", "seconds"), found, strict=True)
    }
    return [each for figure in ours for each in (figure, after.get(figure.name)) if each is not None]


def chain_blocks(study: Study, table: CellTable, runs: list[Run]) -> list[doc.Block]:
    """One chain a first stage, of the runs that have it (eval.metrics=[…,rate_distortion])."""
    arms = {cell.denoiser: cell.arm for cell in table.cells}
    named: dict[str, Run] = {}
    for run in runs:
        denoiser, chain = run.stage("denoiser"), run.stage("chain")
        if denoiser is not None and chain is not None and chain.done and denoiser.id in arms:
            arm = arms[denoiser.id]
            named.setdefault(arm.name, replace(run, name=compression.named(arm, table)))
    ordered = [arm for arm in table.arms if arm.name in named]
    of_f = [compression.colour_of(arm.f) for arm in ordered]
    colours = of_f if len(set(of_f)) == len(of_f) else None
    figures = chain_figures([named[arm.name] for arm in ordered], colours)
    return [doc.Figures(figures)] if figures else []
