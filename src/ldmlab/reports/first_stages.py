"""The page of a study of first stages: what each one loses, what it costs, and what its latent looks like.

Beside the page lie `table.csv` (every score, full precision), `cells.csv` (what each cell is) and `paper.csv`. The same
images are shown across cells. Letters: N images, H W space.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldmlab.errors import DataError
from ldmlab.reports import document as doc
from ldmlab.reports import explore, latent_diagnostics, numbers, tables
from ldmlab.reports.collect import read_runs
from ldmlab.reports.first_stage_cells import (
    CellPair,
    FirstStageCell,
    all_indistinct,
    along_f,
    at_equal_f,
    read_cells,
    verdicts,
)  # fmt: skip
from ldmlab.reports.first_stage_figures import latent_figures, noise_figures, trade_offs
from ldmlab.reports.numbers import KNOWN, plain
from ldmlab.reports.paper import SCORES, Table8, paper_csv, table_8
from ldmlab.reports.pictures import Pictures, strips
from ldmlab.reports.points import read_points
from ldmlab.reports.records import Run, varied
from ldmlab.reports.run import READING, card_facts, check_folder, training_figures
from ldmlab.reports.study import GOES_ON, missing_notes
from ldmlab.reports.tables import ScoreRow, ScoreTable

# What stands in the table of scores; the rest is in table.csv and in the section of each latent.
SHOWN = (
    "psnr", "linear_psnr", "gain_over_linear", "ssim", "perceptual", "rfid", "ris", "bits_per_pixel",
    "entropy_bits_per_pixel", "codebook_usage",
)  # fmt: skip
SPEED_NOTE = "Images/s depend on the machine: compare them within this table only."
QUESTION = "What does each first stage lose, at what rate, and what does its latent look like?"
ERROR_GAIN = 4
CROPS = 4


def ends_there(folder: Path) -> bool:
    """Whether the run in this folder ends at its first stage: it scores reconstructions and has no denoiser."""
    stages = [entry["stage"] for entry in json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]]
    return "reconstructions" in stages and "denoiser" not in stages


def report(
    run_folders: list[Path], out: Path, study: str, missing: list[tuple[str, str]], title: str | None = None
) -> Path:
    """Writes the page of a study of first stages to the folder `out`, replacing an earlier one file by file.

    run_folders: folders that hold a run.json. missing: (words, why) of cells that failed. Returns the path of
    index.html. Raises DataError when no cell is finished, or naming the file, when a finished stage's result is missing
    or damaged; nothing is written then.
    """
    runs = read_runs([Path(folder) for folder in run_folders])
    check_folder(Path(out))
    cells = read_cells(runs)
    if not cells:
        way_out = f"Make it: python src/train.py -m sweeps={study}"
        raise DataError(f"study={study}: no first stage is finished yet. {way_out}")
    scores = score_table(cells, runs)
    explored = read_points(runs, labels={cell.run.id: cell.label for cell in cells})
    page = document(cells, runs, scores, study, missing_notes(missing, runs), title)
    page = replace(page, beside=explore.beside(explored))
    records = {"table.csv": tables.csv_rows([scores]), "cells.csv": cells_csv(cells), "paper.csv": paper_csv(table_8())}
    if diagnosed := latent_diagnostics.csv_records(cells, runs):
        records["diagnostics.csv"] = diagnosed
    files = {name: numbers.csv_text(rows).encode() for name, rows in records.items()}
    return doc.write(Path(out), page.files() | files | explore.files(explored, page, Path(out)))


def document(
    cells: list[FirstStageCell],
    runs: list[Run],
    scores: ScoreTable,
    study: str,
    missing: list[doc.Note],
    title: str | None,
) -> doc.Document:
    trade = trade_offs(cells)
    lead, _ = training_figures([replace(cell.run, name=cell.label) for cell in cells])
    said = [doc.Note("comparison", text) for text in verdicts(cells)]
    sections = [
        doc.Section("", [*([doc.Notes(said, "verdicts")] if said else []), doc.Figures(trade[:2])], "answer"),
        score_section(cells, scores),
        identity(cells),
        doc.Section("Rate and distortion", [doc.Figures(trade[2:])] if trade[2:] else [], "figures"),
        reconstructions(cells),
        latent_diagnostics.section(cells, runs),
        doc.Section("Latents", [doc.Figures(noise_figures(cells)), *map(latent, cells)], "latents"),
        doc.Section("Training", [doc.Figures(lead)] if lead else [], "training"),
        protocol(cells, study),
    ]
    over = f"Study {study} · {len(cells)} first stage{'s' if len(cells) > 1 else ''}"
    heading = title or f"First stages on {data_name(cells[0])}, {cells[0].resolution} px"
    kept = [section for section in sections if section.blocks]
    return doc.Document(heading, over, QUESTION, kept, "", missing, GOES_ON, True)


def data_name(cell: FirstStageCell) -> str:
    """The folder of the pictures, or the generator's name."""
    root = (cell.run.config.get("data") or {}).get("root")
    return Path(str(root)).name if root else str(cell.compared.card["data"]).rpartition("-")[0]


# ---- scores ---------------------------------------------------------------------------------------------------------


def score_table(cells: list[FirstStageCell], runs: list[Run]) -> ScoreTable:
    """A row a cell, in their order; unfinished runs last."""
    named = {cell.run.id: (n, cell.label) for n, cell in enumerate(cells)}
    known = {cell.compared.id for cell in cells}
    own = [run for run in runs if run.id in named or (run.first_stage is not None and run.first_stage.id not in known)]
    own.sort(key=lambda run: named.get(run.id, (len(cells), ""))[0])
    labelled = [replace(r, name=named[r.id][1]) if r.id in named else r for r in own]
    found = tables.first_stage_table(labelled, "Reconstruction of val images")
    assert found is not None  # there is a cell
    return replace(found, notes=tuple(note for note in found.notes if note.kind != "tie"))  # all pairs are named below


def score_section(cells: list[FirstStageCell], scores: ScoreTable) -> doc.Section:
    by_id = {cell.compared.id: cell for cell in cells}

    def labels(row: ScoreRow) -> list[doc.Entry]:
        cell = by_id.get(row.source.id) if row.source is not None else None
        first = doc.Entry(cell.label, href=f"#cell-{cell.compared.id}") if cell else doc.Entry(row.label)
        codes = numbers.count(cell.codes) if cell else "–"
        return [first, doc.Entry(str(cell.c) if cell else "–"), doc.Entry(codes)]

    table = tables.shown_table(scores.only(SHOWN), ["first stage", "c", "|Z|"], labels)
    ties = [doc.Note("tie", numbers.tie(m, numbers.pair_names(pairs))) for m, pairs in all_indistinct(cells)]
    notes = doc.Notes([*ties, *limits(cells)])
    more = f"{READING} · [cells.csv](cells.csv), [paper.csv](paper.csv)"
    blocks: list[doc.Block] = [
        replace(table, title=""),
        *([notes] if notes.notes else []),
        doc.Paragraph(more, "small"),
    ]
    for title, pairs in (
        ("From one f to the next", along_f(cells)),
        ("One regulariser against another at equal f", at_equal_f(cells)),
    ):
        if pairs:
            note = "Δ: second less first. Brackets: paired 95 % interval over the same images."
            blocks.append(doc.Section(title, [pair_table(pairs), doc.Paragraph(note, "small")]))
    return doc.Section("Scores", [*blocks, paper_section(table_8())], "scores")


def pair_table(pairs: list[CellPair]) -> doc.Table:
    metrics = [KNOWN[key] for key in KNOWN if any(key in pair.differences for pair in pairs)]
    rows = [
        [p.title, *(p.differences[m.key].text if m.key in p.differences else "–" for m in metrics)] for p in pairs
    ]  # fmt: skip
    return doc.Table(["from → to", *(f"Δ {m.head}" for m in metrics)], doc.entries(rows))


def paper_section(paper: Table8) -> doc.Section:
    why = f"{paper.why_not_comparable} The rate is ours, log₂|Z| / f²."
    heads = ["paper's row", "c", "|Z|", "PSNR (dB)", "SSIM", "PSIM", "R-FID", "R-IS", "bit/pixel, ours"]
    rows = []
    for row in paper.rows:
        sizes = [numbers.count(row.c), numbers.count(row.codes)]
        rows.append([row.label, *sizes, *(row.printed[n] for n in SCORES), plain(row.bits_per_pixel)])
    blocks = [
        doc.Paragraph("Not comparable with the rows above: for its trend over f alone."),
        doc.Paragraph(why, "small"),
    ]
    return doc.Section("The paper's Table 8, not comparable", [*blocks, doc.Table(heads, doc.entries(rows))])


def limits(cells: list[FirstStageCell]) -> list[doc.Note]:
    """What a reader must know of the scores beside their cards."""
    found = []
    distances = list(dict.fromkeys(str(cell.compared.card.get("perceptual")) for cell in cells))
    if any("perceptual" in cell.compared.scores for cell in cells):
        found.append(f"Perceptual: {', '.join(distances)}, a distance of LPIPS type in the extractor's features.")
    top = next((cell.is_of_originals for cell in cells if cell.is_of_originals is not None), None)
    if top is not None:
        text = " ".join(numbers.shown(top))
        found.append(f"R-IS of the val images themselves, so of a first stage that loses nothing: {text}.")
    sampled = [(cell, both) for cell in cells if (both := cell.psnr_of_samples) is not None]
    if sampled:
        each = "; ".join(f"{cell.label} {of_mean:.1f} → {of_sample:.1f} dB" for cell, (of_sample, of_mean) in sampled)
        found.append(
            "The KL rate is that of a posterior sample, to the prior N(0, I); PSNR is of the posterior mean. From mean to "
            f"sample, on {len(sampled[0][0].latent['psnr_of_samples'])} images: {each}."
        )
    for cell in cells:
        trained = cell.run.stage("autoencoder")
        for images, text in trained.alarms if trained else []:
            found.append(f"While {cell.label} was trained, after {images} images: {text}")
    return [doc.Note("remark", text) for text in found]


# ---- what each one is -----------------------------------------------------------------------------------------------


def identity(cells: list[FirstStageCell]) -> doc.Section:
    heads = ["first stage", "c", "|Z|", "latent", "elements, ratio", "bits, ratio", "encoder", "decoder", "codebook"]
    heads += ["training images", "training time", "CPU time", "encode (images/s)", "decode (images/s)"]
    rows = []
    for x in cells:
        (c, h, w), n, speed = x.latent_shape, x.facts["parameters"], x.facts["speed"]
        size = [str(c), numbers.count(x.codes), f"{h}×{w}×{c}"]
        size += [plain(x.facts["compression_elements"]), plain(x.bits_ratio)]
        size += [numbers.millions(n["encoder"]), numbers.millions(n["decoder"])]
        size += [numbers.millions(n["regulariser"]) if n["regulariser"] else "–"]
        cost = [numbers.count(x.facts["training_images"]), numbers.seconds(x.training_seconds)]
        cost.append(numbers.seconds(x.training_cpu_seconds))
        rows.append([x.label, *size, *cost, plain(speed["encode"]), plain(speed["decode"])])
    ratios = "Ratio of elements: image (3 H W of RGB) / (c h w). Ratio of bits: those of a pixel (24 of 8-bit RGB) / bits a pixel."
    note = f"{ratios} {numbers.CPU_TIME} {machine(cells)}"
    table = doc.Table(heads, doc.entries(rows))
    return doc.Section("What each one is, and what it costs", [table, doc.Paragraph(note, "small")], "cost")


def machine(cells: list[FirstStageCell]) -> str:
    """Batch, device and threads behind the images/s, and the machine; several when cells differ."""
    said = []
    for cell in cells:
        speed, on = cell.facts["speed"], cell.compared.provenance.get("machine") or cell.run.machine
        cpu = on.get("gpu") if speed["device"] == "cuda" else on.get("cpu")
        warm = "first batch left out" if speed["warm_up"] else "a single batch, without warm-up"
        threads = f"{speed['threads']} thread{'s' if speed['threads'] > 1 else ''}"
        device = f"{speed['device']}{f' ({cpu})' if cpu else ''}"
        said.append(f"batch {speed['batch']}, {threads}, {speed['precision']}, {device}, {cell.resolution} px, {warm}")
    loads = [cell.facts["speed"]["load"] for cell in cells]
    each = "; ".join(dict.fromkeys(said))
    return f"Images/s: {each}; load average of the machine meanwhile {min(loads):g} to {max(loads):g}. {SPEED_NOTE}"


def cells_csv(cells: list[FirstStageCell]) -> list[dict[str, Any]]:
    """What each cell is, in full precision."""
    records = []
    for x in cells:
        (c, h, w), sampled, speed = x.latent_shape, x.psnr_of_samples or (None, None), x.facts["speed"]
        record = {"cell": x.label, "ae": x.option, "f": x.f, "regulariser": x.regulariser, "codes": x.codes, "c": c}
        record |= {"latent_h": h, "latent_w": w, "elements": x.elements}
        record |= {"compression_elements": x.facts["compression_elements"], "compression_bits": x.bits_ratio}
        record |= {f"parameters_{part}": x.facts["parameters"][part] for part in ("encoder", "decoder", "regulariser")}
        record |= {"training_images": x.facts["training_images"], "training_seconds": x.training_seconds}
        record |= {"training_cpu_seconds": x.training_cpu_seconds}
        record |= {f"{part}_images_per_second": speed[part] for part in ("encode", "decode")}
        record |= {f"speed_{name}": speed[name] for name in ("batch", "device", "threads", "load")}
        record |= {"psnr_of_posterior_samples": sampled[0], "psnr_of_same_images_at_mean": sampled[1]}
        records.append(record | {"run_id": x.run.id, "stage_id": x.compared.id})
    return records


def protocol(cells: list[FirstStageCell], study: str) -> doc.Section:
    blocks: list[doc.Block] = []
    differ = varied([cell.run for cell in cells])
    if differ:
        table = tables.varied_table([cell.label for cell in cells], differ)
        blocks.append(doc.Section("What differs between the cells", [table], fold=True, muted=str(len(differ))))
    for cell in cells:
        inside: list[doc.Block] = [doc.Code(cell.run.command), doc.Paragraph(f"`{cell.compared.place}`", "small")]
        inside += [card_facts(cell.compared), doc.FactList(numbers.facts(cell.compared.provenance))]
        inside += [doc.Code(cell.run.yaml)]
        muted = "command, protocol card, provenance, configuration"
        blocks.append(doc.Section(cell.label, inside, fold=True, muted=muted, only_page=True))
    commands = [*dict.fromkeys(cell.run.command for cell in cells), f"python src/report.py study={study}"]
    blocks.append(doc.Section("Commands", [doc.Code("\n".join(commands))], fold=True))
    return doc.Section("Runs, protocol and configuration", blocks, "protocol")


# ---- pictures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DetailSquare:
    """A square of one image, `side` pixels from (y, x)."""

    image: int
    y: int
    x: int
    side: int


def reconstructions(cells: list[FirstStageCell]) -> doc.Section:
    """The originals, then each cell's reconstructions and errors; then squares of them, enlarged without smoothing."""
    original, same = cells[0].shown.original_NHWC, same_images(cells)
    crops = find_crops(original)
    rows = [("Original", "", original, False)]
    zoomed = [("Original", "", cut(original, crops), False)]
    for cell in same:
        score, rebuilt = cell.compared.scores.get("psnr"), cell.shown.reconstruction_NHWC
        psnr = "" if score is None else f"{score.value:.1f} dB"
        rows += [(cell.label, psnr, rebuilt, False), ("", f"error × {ERROR_GAIN}", error_map(original, rebuilt), True)]
        zoomed.append((cell.label, psnr, cut(rebuilt, crops), False))
    text = f"The first {len(original)} of the val images scored, unselected; dB: mean over all of them."
    others = [cell.label for cell in cells if cell not in same]
    text += f" Not shown, for they saw other images: {', '.join(others)}." if others else ""
    detail = f"Squares of {crops[0].side} pixels where the original has most detail, enlarged without smoothing."
    zoom = doc.Section("Zoomed", [strips("crops", zoomed, 168), doc.Paragraph(detail, "small")])
    return doc.Section(
        "Reconstructions", [strips("reconstructions", rows, 96), doc.Paragraph(text, "small"), zoom], "reconstructions"
    )


def error_map(original_NHWC: Any, reconstruction_NHWC: Any) -> Any:
    """Absolute difference per colour, times ERROR_GAIN, clipped at 255; uint8."""
    import numpy as np

    difference = np.abs(original_NHWC.astype(int) - reconstruction_NHWC.astype(int))
    return np.clip(ERROR_GAIN * difference, 0, 255).astype(np.uint8)


def same_images(cells: list[FirstStageCell]) -> list[FirstStageCell]:
    import numpy as np

    return [cell for cell in cells if np.array_equal(cell.shown.original_NHWC, cells[0].shown.original_NHWC)]


def find_crops(original_NHWC: Any, n: int = CROPS) -> list[DetailSquare]:
    """In each of the first images the square of a quarter of the side (at least 16 pixels) with the most detail
    (squared gradient); of these the n with most of it, in the order of the images. Chosen from the originals alone.
    """
    import numpy as np

    side = max(16, original_NHWC.shape[1] // 4)
    grey = original_NHWC.astype(float).mean(axis=3)
    detail = np.zeros_like(grey)
    detail[:, 1:] += np.diff(grey, axis=1) ** 2
    detail[:, :, 1:] += np.diff(grey, axis=2) ** 2
    table = np.pad(detail.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))  # sums of squares from four corners
    sums = table[:, side:, side:] - table[:, :-side, side:] - table[:, side:, :-side] + table[:, :-side, :-side]
    most = sorted(range(len(sums)), key=lambda i: -float(sums[i].max()))[:n]
    places = {i: divmod(int(sums[i].argmax()), sums.shape[2]) for i in sorted(most)}
    return [DetailSquare(i, y, x, side) for i, (y, x) in places.items()]


def cut(images_NHWC: Any, crops: list[DetailSquare]) -> Any:
    import numpy as np

    return np.stack([images_NHWC[c.image, c.y : c.y + c.side, c.x : c.x + c.side] for c in crops])


# ---- latents --------------------------------------------------------------------------------------------------------


def latent_maps(cell: FirstStageCell) -> Pictures:
    """The first three principal components of the shown images' latents as red, green and blue."""
    name = f"latents-{cell.compared.id}"
    return strips(name, [("", "", cell.latent["pca_maps"], False)], 96)


def latent(cell: FirstStageCell) -> doc.Section:
    share = ", ".join(f"{100 * s:.0f} %" for s in cell.latent["pca_share"])
    caption = f"First principal components of the channels as red, green, blue; {share} of the variance."
    _, h, w = cell.latent_shape
    blocks: list[doc.Block] = [latent_maps(cell), doc.Paragraph(caption, "small"), doc.Figures(latent_figures(cell))]
    blocks.append(channels(cell))
    return doc.Section(cell.label, blocks, f"cell-{cell.compared.id}", muted=f"{h}×{w}×{cell.c}")


def channels(cell: FirstStageCell) -> doc.Section:
    """Mean and standard deviation of each channel; of few channels their correlations."""
    mean, std, correlation = (cell.latent[name] for name in ("mean", "std", "correlation"))
    related = range(cell.c if cell.c <= 16 else 0)
    rows = [
        [str(i), f"{mean[i]:.3f}", f"{std[i]:.3f}", *(f"{correlation[i][j]:.2f}" for j in related)]
        for i in range(cell.c)
    ]
    raw = [plain(cell.compared.scores[name].value) for name in ("latent_mean", "latent_std")]
    note = f"Of the standardised latent, z = (raw − shift) · scale. Raw latent: mean {raw[0]}, standard deviation {raw[1]}."
    table = doc.Table(["channel", "mean", "std", *(f"r{j}" for j in related)], doc.entries(rows))
    muted = f"mean, standard deviation{', correlation' if cell.c > 1 else ''}"
    return doc.Section("Channels", [table, doc.Paragraph(note, "small")], fold=True, muted=muted, only_page=True)
