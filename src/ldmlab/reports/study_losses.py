"""The losses of a study's denoisers over training."""

from dataclasses import replace

from ldmlab.reports import figures
from ldmlab.reports.figures import Figure
from ldmlab.reports.study_cells import Study, trained_label


def loss_figures(study: Study) -> list[Figure]:
    """The loss of each denoiser over training, whole and by noise level, on validation images where they are logged;
    none for a single denoiser."""
    cells = study.denoisers
    if len(cells) < 2:
        return []
    runs = [replace(cell.run, name=trained_label(cell, study)) for cell in cells]
    names = dict.fromkeys(name for cell in cells if cell.denoiser for name in cell.denoiser.quantities())
    wanted, found = [name for name in names if name == "loss" or name.startswith("loss_t")], []
    for name in wanted:
        validated = all(cell.denoiser and len(cell.denoiser.curve(name, "val").values) > 1 for cell in cells)
        title = loss_title(name, len(wanted) - 1)
        figure = figures.logged(runs, "denoiser", name, title, ("val",) if validated else ("train",))
        if figure is not None:
            found.append(replace(figure, series=tuple(replace(s, split="") for s in figure.series)))
    return found


def loss_title(name: str, bins: int) -> str:
    if name == "loss":
        return "loss"
    n = int(name.removeprefix("loss_t"))
    return f"loss, {'least noise' if n == 0 else 'most noise' if n == bins - 1 else f'part {n + 1} of {bins}'}"
