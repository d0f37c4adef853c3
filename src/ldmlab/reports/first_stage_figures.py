"""Figures of a study of first stages: rate and distortion over f, latent size and bits; noise, histograms, spectra.

Shape letters: N images, C channels, J bins, F frequencies, S noise levels.
"""

import math
from collections.abc import Callable

from ldmlab.reports.figures import HEIGHT, Figure, Series, round_ticks, score_line, score_panel, slug
from ldmlab.reports.first_stage_cells import FirstStageCell, regularisers
from ldmlab.reports.numbers import KNOWN, common_card

LEADING = ("psnr", "rfid")  # over f, elements and bits
OTHERS = ("ssim", "perceptual", "ris")  # over f
F_AXIS, ELEMENTS_AXIS, BITS_AXIS = "down-sampling factor f", "latent elements an image", "bits a pixel"
SHORT = {F_AXIS: "f", ELEMENTS_AXIS: "elements", BITS_AXIS: "bits"}  # for file names
MANY_CHANNELS = 4  # more are drawn alike, without names
GREY = 6  # the palette's neutral colour, for lines that are no cell
BITS_NOTE = " KL: the KL term, an upper bound. Codebooks: log₂|Z| / f²; dashed, with the entropy of the codes."
CODEC_NOTE = (
    " Grey, on the same val images: JPEG and WebP without their headers; where 8 divides the size, principal components of 8×8 "
    "patches rounded, at the entropy of each (low for few images). Pictures that were JPEG or WebP before "
    "flatter these two: only lossless ones compare."
)
SPECTRUM_NOTE = "Radial mean over channels, each over its variance. A flat line is a latent without spatial redundancy."


def trade_offs(cells: list[FirstStageCell]) -> list[Figure]:
    """PSNR and rFID over f, over the latent's elements and over its bits a pixel; then the other scores over f."""
    found = [over(cells, key, axis) for axis in (F_AXIS, ELEMENTS_AXIS, BITS_AXIS) for key in LEADING]
    found += [over(cells, key, F_AXIS) for key in OTHERS]
    return [figure for figure in found if figure is not None]


def over(cells: list[FirstStageCell], key: str, axis: str) -> Figure | None:
    """One score over one property, a line a regulariser, with the interval of each score.

    Points of another protocol stay loose. On the axis of bits a codebook has a second line, with the entropy of its
    codes in place of log₂|Z|. None when nobody has the score.
    """
    metric, card = KNOWN[key], common_card([cell.compared for cell in cells], key)
    series = []
    for n, kind in enumerate(regularisers(cells)):
        own = [cell for cell in cells if cell.regulariser == kind and key in cell.compared.scores]
        for x_of, name, dashed in _axes(axis, kind):
            points = sorted(((x, cell) for cell in own if (x := x_of(cell)) > 0), key=lambda point: point[0])
            if points:
                records = [(x, cell.compared) for x, cell in points]
                series.append(score_line(name, records, metric, card, dashed=dashed, colour=n))
    if not series:
        return None
    if axis == BITS_AXIS and key == "psnr":
        series += codec_lines(cells)
    xs = sorted({x for s in series for x in s.images})
    ticks = tuple(xs) if axis == F_AXIS else round_ticks(xs[0], xs[-1], 5)
    note = f"Bands: 95 % interval of each score over images.{BITS_NOTE if axis == BITS_AXIS else ''}"
    note += CODEC_NOTE if any(s.colour == GREY for s in series) else ""
    title = f"Reconstructions, {metric.label}"
    return score_panel(metric, series, f"-over-{SHORT[axis]}", title, note, 20, x=axis, span="log", ticks=ticks)


def codec_lines(cells: list[FirstStageCell]) -> list[Series]:
    """Codecs without training, on the val images of the cells; none where cells do not all have the same."""
    if not cells[0].codecs or any(cell.codecs != cells[0].codecs for cell in cells):
        return []
    cell = cells[0]
    rates = [c.compared.scores["bits_per_pixel"].value for c in cells if "bits_per_pixel" in c.compared.scores]
    most = 1.5 * max(rates, default=math.inf)  # where no first stage is, a codec's line only makes the figure flat
    return [
        Series(
            name, [p["bits_per_pixel"] for p in points], [p["psnr"] for p in points], colour=GREY, dashed=n > 0,
            style="line", sources=(cell.compared.place,),
        )
        for n, (name, every) in enumerate(cell.codecs.items())
        if (points := [p for p in every if 0 < p["bits_per_pixel"] <= most])  # nothing of a flat picture is left in the scan
    ]  # fmt: skip


def _axes(axis: str, kind: str) -> list[tuple[Callable[[FirstStageCell], float], str, bool]]:
    """(x of a cell, 0 where it has none; name of the line; dashed) for each line of a regulariser on this axis."""
    if axis != BITS_AXIS:
        return [(lambda cell: float(cell.f if axis == F_AXIS else cell.elements), kind, False)]

    def rate(key: str) -> Callable[[FirstStageCell], float]:
        return lambda cell: cell.compared.scores[key].value if key in cell.compared.scores else 0.0

    lines = [(rate("bits_per_pixel"), kind, False)]
    return lines if kind == "KL" else [*lines, (rate("entropy_bits_per_pixel"), f"{kind} entropy", True)]


def noise_figures(cells: list[FirstStageCell]) -> list[Figure]:
    """PSNR of what is decoded from noised latents over the noise level, all cells in each figure: noise added, and a
    diffusion's mixture. Colour is f; a second regulariser is dashed.
    """
    import numpy as np

    factors, kinds = sorted({cell.f for cell in cells}), regularisers(cells)
    N = cells[0].latent["noised_additive"].shape[1]
    note = f"σ in standard deviations of the latent. Mean of {N} images; intervals are in the data."
    found = []
    for key, y, title in (
        ("noised_additive", "PSNR of D(z + σ n) (dB)", "Noise added to the latent"),
        ("noised_preserving", "PSNR of D(√(1−σ²) z + σ n) (dB)", "The latent of a diffusion at noise level σ"),
    ):
        series = []
        for cell in cells:
            psnr_SN, levels = cell.latent[key], cell.latent["noise_levels"].tolist()
            mean_S = psnr_SN.mean(axis=1)
            half_S = 1.96 * psnr_SN.std(axis=1, ddof=1) / np.sqrt(psnr_SN.shape[1])
            low, high, dashed = mean_S - half_S, mean_S + half_S, kinds.index(cell.regulariser) % 2 == 1
            series.append(
                Series(
                    cell.label, levels, mean_S.tolist(), low.tolist(), high.tolist(), dashed=dashed, style="line",
                    colour=factors.index(cell.f), sources=(cell.compared.place,),
                )
            )  # fmt: skip
        found.append(Figure(slug(key.replace("_", "-")), title, y, tuple(series), note, x="σ", height=HEIGHT * 1.35))
    return found


def latent_figures(cell: FirstStageCell) -> list[Figure]:
    """The histogram of each channel and the spectrum beside that of the images."""
    import numpy as np

    latent, source = cell.latent, (cell.compared.place,)
    middle_J = ((latent["edges"][1:] + latent["edges"][:-1]) / 2).tolist()
    C, name = len(latent["density"]), slug(cell.label.replace("=", "").replace("|", ""))
    few = C <= MANY_CHANNELS
    histogram = [
        Series(
            f"channel {i}" if few and C > 1 else "", middle_J, latent["density"][i].astype(float).tolist(),
            colour=i if few else 0, style="line", sources=source,
        )
        for i in range(C)
    ]  # fmt: skip
    lines = []
    for label, cycles_F, power_F, colour in (
        ("images", latent["image_cycles"], latent["image_power"], GREY),
        ("latent", latent["cycles"], latent["power"].mean(axis=0), 0),
    ):
        kept = np.flatnonzero((cycles_F > 0) & (power_F > 0))
        if len(kept):
            x, y = cycles_F[kept].astype(float).tolist(), power_F[kept].astype(float).tolist()
            lines.append(Series(label, x, y, colour=colour, dashed=colour == GREY, style="line", sources=source))
    ends = [x for s in lines for x in s.images]
    each = "" if few else f"{C} channels, one line each. "
    return [
        Figure(
            f"latent-histogram-{name}", f"Channels of {cell.label}", "density", tuple(histogram),
            f"{each}Posterior means of {cell.facts['latent_images']} images, standardised.",
            x="latent value", span="free", from_zero=True,
        ),
        Figure(
            f"latent-spectrum-{name}", f"Spectrum of {cell.label}", "power, white noise = 1", tuple(lines), SPECTRUM_NOTE,
            log=True, x="cycles per image side", span="log", ticks=round_ticks(min(ends), max(ends)) if ends else (),
        ),
    ]  # fmt: skip
