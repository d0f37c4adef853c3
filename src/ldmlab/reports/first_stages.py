"""The page of a study of first stages: what each one loses, what it costs, and what its latent looks like.

Writes `index.html`, `report.md`, `table.csv` (every score, full precision), `cells.csv` (what each cell is), `paper.csv`
and `figures/`, like `page.report`.
"""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldmlab.errors import DataError
from ldmlab.reports import comparisons, first_stage_figures, first_stage_pictures, page, tables
from ldmlab.reports.cells import Cell, read_cells
from ldmlab.reports.collect import Run, read_runs, varied
from ldmlab.reports.comparisons import Pair
from ldmlab.reports.figures import Figure, files
from ldmlab.reports.paper import Table8, table_8
from ldmlab.reports.tables import Metric, Table
from ldmlab.reports.text import markdown_table, millions, plain

# What stands in the table of scores; the rest is in table.csv and in the section of each latent.
SHOWN = ("psnr", "ssim", "perceptual", "rfid", "ris", "bits_per_pixel", "entropy_bits_per_pixel", "codebook_usage")
SPEED_NOTE = "Images/s are a measurement of the machine, not a result: they compare within one table alone."
QUESTION = "What does each first stage lose, at what rate, and what does its latent look like?"


def ends_there(folder: Path) -> bool:
    """Whether the run in this folder ends at its first stage: it scores reconstructions and has no denoiser."""
    stages = [entry["stage"] for entry in json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]]
    return "reconstructions" in stages and "denoiser" not in stages


def data_name(cell: Cell) -> str:
    """The folder of the pictures, or the generator's name."""
    options = cell.run.config.get("data") or {}
    return Path(str(options["root"])).name if options.get("root") else str(cell.record.card["data"]).rpartition("-")[0]


def score_table(cells: list[Cell], runs: list[Run]) -> Table:
    """The table of `tables.first_stage_table` with the cells' labels, in their order; unfinished runs last."""
    named = {cell.run.id: (n, cell.label) for n, cell in enumerate(cells)}
    known = {cell.record.id for cell in cells}
    own = [run for run in runs if run.id in named or (run.first_stage is not None and run.first_stage.id not in known)]
    own.sort(key=lambda run: named.get(run.id, (len(cells), ""))[0])
    found = tables.first_stage_table([replace(r, name=named[r.id][1]) if r.id in named else r for r in own])
    assert found is not None  # there is a cell
    notes = tuple(
        (mark, text.replace("best of the runs' last snapshots", "best of the column"))
        for mark, text in found.notes
        if not text.startswith("Not distinguishable")  # all pairs are named below, not the first two alone
    )
    return replace(found, title="Reconstruction of val images", notes=notes)


def narrowed(table: Table, keys: tuple[str, ...]) -> Table:
    """The same rows with some of the metrics, in the order of `keys`."""
    order = [i for key in keys for i, metric in enumerate(table.metrics) if metric.key == key]
    rows = tuple(replace(row, cells=tuple(row.cells[i] for i in order)) for row in table.rows)
    return replace(table, metrics=tuple(table.metrics[i] for i in order), rows=rows)


def ties(cells: list[Cell]) -> list[str]:
    """One sentence per score whose pairs of cells cannot all be told apart."""
    return [
        f"Not distinguishable in {metric.label} by {tables.PAIRED}: {'; '.join(f'{a.label} and {b.label}' for a, b in pairs)}."
        for metric, pairs in comparisons.indistinct(cells)
    ]


def difference(pair: Pair, metric: Metric) -> tuple[str, str]:
    """(value, interval) of b − a with its sign."""
    score = pair.differences.get(metric.key)
    if score is None:
        return "–", ""
    text, interval = tables.shown(score, metric.factor)
    return (f"+{text}" if score.value > 0 else text), interval


def machine(cells: list[Cell]) -> str:
    """Batch, device and threads behind the images/s, and the machine; several when cells differ."""
    said = []
    for cell in cells:
        speed, on = cell.speed, cell.record.provenance.get("machine") or cell.run.machine
        cpu = on.get("gpu") if speed["device"] == "cuda" else on.get("cpu")
        warm = "first batch left out" if speed["warm_up"] else "a single batch, without warm-up"
        said.append(
            f"batch {speed['batch']}, {speed['threads']} thread{'s' if speed['threads'] > 1 else ''}, {speed['precision']}, "
            f"{speed['device']}{f' ({cpu})' if cpu else ''}, {cell.resolution} px, {warm}"
        )
    loads = [cell.speed["load"] for cell in cells]
    each = "; ".join(dict.fromkeys(said))
    return f"Images/s: {each}; load average of the machine meanwhile {min(loads):g} to {max(loads):g}. {SPEED_NOTE}"


def cells_csv(cells: list[Cell]) -> str:
    """What each cell is, in full precision."""
    out = io.StringIO()
    names = [
        "cell", "ae", "f", "regulariser", "codes", "c", "latent_h", "latent_w", "elements", "compression_elements",
        "compression_bits", "parameters_encoder", "parameters_decoder", "parameters_regulariser", "training_images",
        "training_seconds", "encode_images_per_second", "decode_images_per_second", "speed_batch", "speed_device",
        "speed_threads", "speed_load", "psnr_of_posterior_samples", "psnr_of_same_images_at_mean", "run_id", "stage_id",
    ]  # fmt: skip
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for x in cells:
        c, h, w = x.latent_shape
        ratio, sampled = x.bits_ratio, psnr_of_samples(x)
        writer.writerow(
            [
                x.label, x.option, x.f, x.regulariser, x.codes or "", c, h, w, x.elements,
                repr(x.facts["compression_elements"]), "" if ratio is None else repr(ratio), x.parameters["encoder"],
                x.parameters["decoder"], x.parameters["regulariser"], x.training_images, x.training_seconds or "",
                repr(x.speed["encode"]), repr(x.speed["decode"]), x.speed["batch"], x.speed["device"], x.speed["threads"],
                x.speed["load"], *(("", "") if sampled is None else map(repr, sampled)), x.run.id, x.record.id,
            ]
        )  # fmt: skip
    return out.getvalue()


def psnr_of_samples(cell: Cell) -> tuple[float, float] | None:
    """(PSNR of decoded posterior samples, of the same images' decoded means) in dB; None without a posterior."""
    if "psnr_of_samples" not in cell.latent:
        return None
    return float(cell.latent["psnr_of_samples"].mean()), float(cell.latent["noised_additive"][0].mean())


def paper_csv(paper: Table8) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["rfid", "ris", "psnr", "ssim", "perceptual"]
    writer.writerow(["row", "f", "regulariser", "codes", "c", *(k for n in names for k in (n, f"{n}_pm"))])
    for row in paper.rows:
        numbers = [v for n in names for v in (row.values[n], row.pm[n])]
        writer.writerow(
            ["" if v is None else v for v in (row.label, row.f, row.regulariser, row.codes, row.c, *numbers)]
        )
    return out.getvalue()


def identity_rows(cells: list[Cell]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): what each cell is and what it costs."""
    heads = [
        "first stage", "c", "|Z|", "latent", "elements, ratio", "bits, ratio", "encoder", "decoder", "codebook",
        "training images", "training time", "encode (images/s)", "decode (images/s)",
    ]  # fmt: skip
    rows = []
    for x in cells:
        c, h, w = x.latent_shape
        n = x.parameters
        rows.append(
            [
                x.label, str(c), "–" if x.codes is None else tables.count(x.codes), f"{h}×{w}×{c}",
                plain(x.facts["compression_elements"]), plain(x.bits_ratio), millions(n["encoder"]), millions(n["decoder"]),
                millions(n["regulariser"]) if n["regulariser"] else "–", tables.count(x.training_images),
                page.seconds(x.training_seconds), plain(x.speed["encode"]), plain(x.speed["decode"]),
            ]
        )  # fmt: skip
    return heads, rows


def pair_rows(pairs: list[Pair]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows); a cell is `value [low, high]`."""
    metrics = comparisons.metrics_of(pairs)
    heads = ["from → to", *(f"Δ {m.head}" for m in metrics)]
    return heads, [[pair.title, *(" ".join(difference(pair, m)).strip() for m in metrics)] for pair in pairs]


def paper_rows(paper: Table8) -> tuple[list[str], list[list[str]]]:
    names = ("psnr", "ssim", "perceptual", "rfid", "ris")
    heads = ["paper's row", "c", "|Z|", "PSNR (dB)", "SSIM", "PSIM", "R-FID", "R-IS", "bit/pixel, ours"]
    rows = [
        [
            row.label, "–" if row.c is None else str(row.c), "–" if row.codes is None else tables.count(row.codes),
            *(row.printed[name] for name in names), plain(row.bits_per_pixel),
        ]
        for row in paper.rows
    ]  # fmt: skip
    return heads, rows


def markdown(
    title: str,
    study: str,
    cells: list[Cell],
    scores: Table,
    missing: list[tuple[str, str]],
    drawn: list[Figure],
    latent_figures: list[Figure],
) -> str:
    paper = table_8()
    lines = [f"# {tables.escape(title)}", "", QUESTION, ""]
    lines += [f"- {sentence}" for sentence in comparisons.verdicts(cells)]
    lines += [f"- missing: `{words}`, {tables.escape(why)}" for words, why in missing]
    lines += ["", "## Scores", "", tables.markdown(scores).rstrip()]
    lines += [f"- {tables.escape(text)}" for text in ties(cells)]
    lines += [f"- {tables.escape(text)}" for text in limits(cells)]
    lines += ["", "## What each one is", "", *markdown_table(*identity_rows(cells)), "", tables.escape(machine(cells))]
    for heading, pairs in (
        ("From one f to the next", comparisons.along_f(cells)),
        ("One regulariser against another at equal f", comparisons.at_equal_f(cells)),
    ):
        if pairs:
            lines += ["", f"## {heading}", "", *markdown_table(*pair_rows(pairs))]
            lines += ["", "Brackets: paired 95 % interval over the same images."]
    lines += ["", "## The paper's Table 8, not comparable", "", tables.escape(paper.why_not_comparable), ""]
    lines += markdown_table(*paper_rows(paper))
    lines += ["", "## Figures", "", *(f"![{tables.escape(f.alt)}](figures/{f.name}.svg)\n" for f in drawn)]
    lines += ["## Reconstructions", "", "![originals and reconstructions](figures/reconstructions.png)", ""]
    lines += [f"Errors, times {first_stage_pictures.ERROR_GAIN}:", "", "![errors](figures/errors.png)", ""]
    lines += ["Where the originals have most detail:", "", "![crops](figures/crops.png)", "", "## Latents", ""]
    lines += ["The first three principal components of the channels as red, green and blue:", ""]
    lines += ["![latents as colours](figures/latents.png)", ""]
    lines += [f"![{tables.escape(f.alt)}](figures/{f.name}.svg)\n" for f in latent_figures]
    lines += ["## Commands", "", *(f"    {' '.join(cell.run.command.split())}" for cell in cells), ""]
    lines += [f"    python src/report.py study={study}"]
    return "\n".join(lines) + "\n"


def limits(cells: list[Cell]) -> list[str]:
    """What a reader must know of the scores beside their cards."""
    found = []
    distances = list(dict.fromkeys(str(cell.record.card.get("perceptual")) for cell in cells))
    if any("perceptual" in cell.record.scores for cell in cells):
        found.append(f"Perceptual: {', '.join(distances)}, a distance of LPIPS type in the extractor's features.")
    top = next((cell.is_of_originals for cell in cells if cell.is_of_originals is not None), None)
    if top is not None:
        text, interval = tables.shown(top)
        found.append(f"R-IS of the val images themselves, so of a first stage that loses nothing: {text} {interval}.")
    sampled = [(cell, both) for cell in cells if (both := psnr_of_samples(cell)) is not None]
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
    return found


def render(title: str, study: str, **given: Any) -> str:
    environment = page.environment()
    environment.filters |= {"plain": plain, "millions": millions}
    return environment.get_template("first_stages.html.j2").render(title=title, study=study, question=QUESTION, **given)


def report(
    run_folders: list[Path], out: Path, study: str, missing: list[tuple[str, str]], title: str | None = None
) -> Path:
    """Writes the report of a study of first stages to the folder `out`, replacing an earlier one file by file.

    run_folders: folders that hold a run.json. missing: (words, why) of cells that failed. Returns the path of
    index.html. Raises DataError when no cell is finished, or naming the file, when a finished stage's result is missing
    or damaged; nothing is written then.
    """
    runs = read_runs([Path(folder) for folder in run_folders])
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; a report needs a folder to write to.")
    cells = read_cells(runs)
    if not cells:
        raise DataError(
            f"study={study}: no first stage is finished yet. Make it: python src/train.py -m sweeps={study}"
        )
    heading = title or f"First stages on {data_name(cells[0])}, {cells[0].resolution} px"
    scores = score_table(cells, runs)
    trade = first_stage_figures.trade_offs(cells)
    noise = first_stage_figures.noise_figures(cells)
    latents = [(cell, first_stage_figures.latent_figures(cell)) for cell in cells]
    curves = page.training_figures([replace(cell.run, name=cell.label) for cell in cells])[0]
    every = [*trade, *noise, *(figure for _, own in latents for figure in own), *curves]
    contents = {name: data for figure in every for name, data in files(figure).items()}
    contents |= {f"figures/{name}.png": data for name, data in first_stage_pictures.sheets(cells).items()}
    contents["table.csv"] = tables.write_csv([scores]).encode()
    contents["cells.csv"] = cells_csv(cells).encode()
    contents["paper.csv"] = paper_csv(table_8()).encode()
    narrow = narrowed(scores, SHOWN)
    of_latents = [figure for _, own in latents for figure in own]
    contents["report.md"] = markdown(heading, study, cells, narrow, missing, [*trade, *noise], of_latents).encode()
    steps, versus = comparisons.along_f(cells), comparisons.at_equal_f(cells)
    contents["index.html"] = render(
        heading,
        study,
        runs=runs,
        cells=cells,
        verdicts=comparisons.verdicts(cells),
        missing=missing,
        unfinished=[(run, record) for run in runs for record in run.unfinished],
        scores=narrow,
        by_stage={cell.record.id: cell for cell in cells},
        identity=identity_rows(cells),
        machine=machine(cells),
        notes=[*ties(cells), *limits(cells)],
        comparisons=[
            (heading, pair_rows(pairs))
            for heading, pairs in (
                ("From one f to the next", steps),
                ("One regulariser against another at equal f", versus),
            )
            if pairs
        ],
        paper=table_8(),
        trade=page.draw(trade),
        noise=page.draw(noise),
        strips=first_stage_pictures.side_by_side(cells),
        crops=first_stage_pictures.zoomed(cells),
        crop_side=first_stage_pictures.find_crops(cells[0].shown.original_NHWC)[0].side,
        others=[c.label for c in cells if c not in first_stage_pictures.same_images(cells)],
        latents=[(cell, first_stage_pictures.latent_maps(cell), page.draw(own)) for cell, own in latents],
        training=page.draw(curves),
        varied=varied([cell.run for cell in cells]) if len(cells) > 1 else {},
    ).encode()
    page.write_all(out, contents, "index.html")
    return out / "index.html"
