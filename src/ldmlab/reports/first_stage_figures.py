"""Figures of a study of first stages: rate and distortion over f, latent size and bits; noise, histograms, spectra.

Shape letters: N images, C channels, J bins, F frequencies, S noise levels.
"""

from typing import Any

from ldmlab.reports.cells import Cell, regularisers
from ldmlab.reports.collect import Score
from ldmlab.reports.figures import HEIGHT, Figure, Series, round_ticks, slug
from ldmlab.reports.tables import FIRST_STAGE_METRICS, Metric, common_card, differences

LEADING = ("psnr", "rfid")  # over f, elements and bits
OTHERS = ("ssim", "perceptual", "ris")  # over f
F_AXIS, ELEMENTS_AXIS, BITS_AXIS = "down-sampling factor f", "latent elements an image", "bits a pixel"
SHORT = {F_AXIS: "f", ELEMENTS_AXIS: "elements", BITS_AXIS: "bits"}  # for file names
MANY_CHANNELS = 4  # more are drawn alike, without names
GREY = 6  # the palette's neutral colour: for what is not a cell


def metric(key: str) -> Metric:
    return next(m for m in FIRST_STAGE_METRICS if m.key == key)


def trade_offs(cells: list[Cell]) -> list[Figure]:
    """PSNR and rFID over f, over the latent's elements and over its bits a pixel; then the other scores over f."""
    found = [over(cells, key, axis) for axis in (F_AXIS, ELEMENTS_AXIS, BITS_AXIS) for key in LEADING]
    found += [over(cells, key, F_AXIS) for key in OTHERS]
    return [figure for figure in found if figure is not None]


def over(cells: list[Cell], key: str, axis: str) -> Figure | None:
    """One score over one property, a line a regulariser, with the interval of each score.

    Points of another protocol stay loose. On the axis of bits a codebook has a second line, with the entropy of its
    codes in place of log₂|Z|. None when nobody has the score.
    """
    what = metric(key)
    reference = common_card([cell.record for cell in cells])
    series = []
    for n, kind in enumerate(regularisers(cells)):
        for x_of, name, dashed in _axes(axis, kind):
            points = [
                (x, cell)
                for cell in cells
                if cell.regulariser == kind and key in cell.record.scores
                for x in [x_of(cell)]
                if x is not None and x > 0
            ]
            points.sort(key=lambda point: point[0])
            if points:
                scores = [cell.record.scores[key] for _, cell in points]
                series.append(
                    Series(
                        name,
                        [x for x, _ in points],
                        [s.value for s in scores],
                        [_bound(s, s.low) for s in scores],
                        [_bound(s, s.high) for s in scores],
                        [bool(differences(c.record.card, reference.card if reference else {})) for _, c in points],
                        dashed=dashed,
                        colour=n,
                        style="points",
                        sources=tuple(cell.record.place for _, cell in points),
                    )
                )
    if not series:
        return None
    values = [v for s in series for v in s.values]
    xs = sorted({x for s in series for x in s.images})
    log = what.better == "down" and min(values) > 0 and max(values) / min(values) > 20
    ticks = tuple(xs) if axis == F_AXIS else round_ticks(xs[0], xs[-1], 5)
    note = "Bands: 95 % interval of each score over images."
    if axis == BITS_AXIS:
        note += " KL: the KL term, an upper bound. Codebooks: log₂|Z| / f²; dashed, with the entropy of the codes."
    if any(any(s.loose) for s in series):
        note += " Hollow points have another protocol and are not joined."
    return Figure(
        f"{slug(key)}-over-{SHORT[axis]}",
        f"Reconstructions, {what.label}",
        what.head,
        tuple(series),
        note,
        log,
        x=axis,
        span="log",
        ticks=ticks,
    )


def _bound(score: Score, bound: float | None) -> float:
    return score.value if bound is None else bound


def _axes(axis: str, kind: str) -> list[tuple[Any, str, bool]]:
    """(x of a cell, name of the line, dashed) for each line of a regulariser on this axis."""
    if axis == F_AXIS:
        return [(lambda cell: float(cell.f), kind, False)]
    if axis == ELEMENTS_AXIS:
        return [(lambda cell: float(cell.elements), kind, False)]

    def rate(key: str) -> Any:
        return lambda cell: cell.record.scores[key].value if key in cell.record.scores else None

    lines = [(rate("bits_per_pixel"), kind, False)]
    return lines if kind == "KL" else [*lines, (rate("entropy_bits_per_pixel"), f"{kind} entropy", True)]


def noise_figures(cells: list[Cell]) -> list[Figure]:
    """PSNR of what is decoded from noised latents over the noise level, all cells in each figure: noise added, and a
    diffusion's mixture. Colour is f; a second regulariser is dashed.
    """
    import numpy as np

    factors, kinds = sorted({cell.f for cell in cells}), regularisers(cells)
    found = []
    for key, what, formula in (
        ("noised_additive", "PSNR of D(z + σ n)", "Noise added to the latent"),
        ("noised_preserving", "PSNR of D(√(1−σ²) z + σ n)", "The latent of a diffusion at noise level σ"),
    ):
        series = []
        for cell in cells:
            psnr_SN, levels_S = cell.latent[key], cell.latent["noise_levels"]
            mean_S = psnr_SN.mean(axis=1)
            half_S = 1.96 * psnr_SN.std(axis=1, ddof=1) / np.sqrt(psnr_SN.shape[1])
            series.append(
                Series(
                    cell.label,
                    levels_S.tolist(),
                    mean_S.tolist(),
                    (mean_S - half_S).tolist(),
                    (mean_S + half_S).tolist(),
                    dashed=kinds.index(cell.regulariser) % 2 == 1,
                    colour=factors.index(cell.f),
                    style="line",
                    sources=(cell.record.place,),
                )
            )
        N = cells[0].latent[key].shape[1]
        note = f"σ in standard deviations of the latent. Mean of {N} images; intervals are in the data."
        found.append(
            Figure(
                slug(key.replace("_", "-")), formula, f"{what} (dB)", tuple(series), note, x="σ", height=HEIGHT * 1.35
            )
        )
    return found


def latent_figures(cell: Cell) -> list[Figure]:
    """The histogram of each channel and the spectrum beside that of the images."""
    import numpy as np

    edges_J, density_CJ = cell.latent["edges"], cell.latent["density"]
    middle_J = ((edges_J[1:] + edges_J[:-1]) / 2).tolist()
    C, name = len(density_CJ), slug(cell.label.replace("=", "").replace("|", ""))
    few = C <= MANY_CHANNELS
    histogram = tuple(
        Series(
            f"channel {i}" if few and C > 1 else "", middle_J, density_CJ[i].astype(float).tolist(),
            colour=i if few else 0, style="line", sources=(cell.record.place,),
        )
        for i in range(C)
    )  # fmt: skip
    k_F, power_F = cell.latent["cycles"], cell.latent["power"].mean(axis=0)
    of_images_F = cell.latent["image_power"]
    lines = []
    for label, cycles, power, colour, dashed in (
        ("images", cell.latent["image_cycles"], of_images_F, GREY, True),
        ("latent", k_F, power_F, 0, False),
    ):
        kept = np.flatnonzero((cycles > 0) & (power > 0))
        if len(kept):
            x, y = cycles[kept].astype(float).tolist(), power[kept].astype(float).tolist()
            lines.append(Series(label, x, y, colour=colour, dashed=dashed, style="line", sources=(cell.record.place,)))
    ends = [x for s in lines for x in s.images]
    n = cell.facts["latent_images"]
    each = f"{C} channels, one line each. " if not few else ""
    return [
        Figure(
            f"latent-histogram-{name}", f"Channels of {cell.label}", "density", histogram,
            f"{each}Posterior means of {n} images, standardised.", x="latent value", span="free", from_zero=True,
        ),
        Figure(
            f"latent-spectrum-{name}", f"Spectrum of {cell.label}", "power, white noise = 1", tuple(lines),
            "Radial mean over channels, each over its variance. A flat line is a latent without spatial redundancy.",
            log=True, x="cycles per image side", span="log", ticks=round_ticks(min(ends), max(ends)) if ends else (),
        ),
    ]  # fmt: skip
