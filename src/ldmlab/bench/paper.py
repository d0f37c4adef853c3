"""`compare=paper`: what each row of the paper's tables would cost on one H200, by counted operations; nothing is measured.

`python -m ldmlab.bench.paper` writes these numbers, with what `reports/paper_rows.yaml` knows, into the headers of
conf/experiment/paper/*.yaml and into docs/guide/paper_experiments.md; a test compares.
"""

import re
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ldmlab import build
from ldmlab.bench import record
from ldmlab.config.compose import CONF, ROOT, load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.costs import parameters_of
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.run import prepare
from ldmlab.reports.paper_rows import PaperRow, rows

SPEED = 495e12  # FLOP/s of an H200 with dense TF32, by its data sheet (989 with sparsity): rows train in fp32, as the paper did
UTILISATION = 0.35  # of it that training and sampling are assumed to reach; measured nowhere
DAY = 86_400
A100_DAYS = 2.2  # V100 days in one A100 day, the paper's factor (Table 18)
VGG16 = 14.71e6  # parameters of its convolutions: LPIPS
PARTS = {
    "first stage": ("autoencoder", "reconstructions"), "denoiser": ("tokenizer", "latents", "denoiser", "noisy_classifier"),
    "samples": ("samples",),
}  # fmt: skip
"""A part of the bill → stages of the plan."""
FOLDER = CONF / "experiment" / "paper"
PAGE = ROOT / "docs/guide/paper_experiments.md"
TABLE = re.compile(r"(?<=<!-- rows -->\n).*?(?=<!-- end -->)", re.S)


@dataclass(frozen=True)
class Bill:
    """What a row is and costs. flops: by part; millions: counted parameters of the parts that its printed number has, or of the network."""

    row: PaperRow
    flops: dict[str, float]
    millions: float
    images: int  # of the denoiser's training; of the first stage's where that is the row
    words: str  # that a person has to add: where data and weights lie

    def days(self, part: str | None = None) -> float:
        """On one H200."""
        flops = sum(self.flops.values()) if part is None else self.flops[part]
        return flops / (SPEED * UTILISATION * DAY)


@cache
def bill(name: str, *words: str) -> Bill:
    """Plans `experiment=paper/<name>` without data and adds up."""
    with tempfile.TemporaryDirectory() as store:
        plan = prepare(planned(name, store, words))
    flops = {
        part: sum(row.images * row.flops for stage, row in plan.rows if stage.name in names)
        for part, names in PARTS.items()
    }
    row, cfg = rows()[name], plan.resolved.cfg
    counts = counted(plan)
    of = row.of or (("first_stage",) if cfg.until == "autoencoder" else ("unet",))
    fit = cfg.ae.fit if cfg.until == "autoencoder" else cfg.ldm.fit
    spent, millions = {part: work for part, work in flops.items() if work}, sum(counts[part] for part in of) / 1e6
    return Bill(row, spent, millions, fit.images, places(cfg))


def planned(name: str, store: str, words: tuple[str, ...] = ()) -> Any:
    """The composition of a dry run whose data are nowhere."""
    return load([f"experiment=paper/{name}", "dry_run=true", f"store={store}", *words])


def counted(plan: Plan) -> dict[str, int]:
    """Parameters of the parts that printed numbers are sums of."""
    resolved = plan.resolved
    reader = cast(nn.Module, resolved.conditioner)
    own = resolved.cfg.cond.conditioner
    found = {
        "unet": parameters_of(resolved.denoiser.network),
        "conditioner": parameters_of(reader),
        "vgg16": int(VGG16),
    }
    found["first_stage"] = parameters_of(resolved.autoencoder)
    found["logits"] = (
        (own.dim + 1) * own.vocab_size if "vocab_size" in own else 0
    )  # of the official transformer; unused
    if resolved.cfg.guidance.classifier is not None:
        with build.shapes_only():
            found["classifier"] = parameters_of(
                build.noisy_classifier(resolved.cfg, resolved.autoencoder, resolved.data)
            )
    return found


# ---- the table on the terminal ---------------------------------------------------------------------------------------------

COLUMNS = [
    record.Column("experiment", "experiment=paper/…"), record.Column("table", "table"),
    record.Column("millions", "parameters", lambda n: f"{n:.2f} M"), record.Column("printed", "printed"),
    record.Column("images", "training images", lambda n: f"{n:,}".replace(",", " ")), record.Column("flop", "FLOP", lambda n: f"{n:.2g}"),
    *(record.Column(part, f"{part}, days", lambda n: said(n)) for part in PARTS),
    record.Column("days", "H200 days", lambda n: said(n)), record.Column("paper", "A100 days, paper", lambda n: said(n)),
]  # fmt: skip


def compare_paper(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """A row for each experiment that `bench.family` names, for all without it. Other words reach every one: ldm.fit.precision=bf16."""
    known = rows()
    if strange := [name for name in cfg.bench.family if name not in known]:
        raise ConfigError(f"bench.family: {strange[0]} is no row of the paper's tables. There are: {', '.join(known)}.")
    own = tuple(word for word in words if not word.startswith(("compare=", "bench.", "out=", "store=", "runtime.")))
    report = record.Report("paper", COLUMNS)
    for name in cfg.bench.family or known:
        record.announce(f"paper/{name}")
        made = bill(name, *own)
        parts = {part: made.days(part) for part in made.flops}
        row, total = made.row, sum(made.flops.values())
        about = {
            "experiment": name,
            "table": row.table,
            "millions": made.millions,
            "printed": row.printed or "–",
            "images": made.images,
        }
        report.rows.append(
            {**about, "flop": total, **parts, "days": made.days(), "paper": row.days and row.days / A100_DAYS}
        )
    report.notes = [
        f"an H200 at {RATE} is assumed; perceptual and adversarial networks of a first stage are not counted"
    ]
    return report


RATE = f"{UTILISATION * 100:.0f} % of {SPEED / 1e12:.0f} TFLOP/s (dense TF32)"


def said(days: float) -> str:
    """2.3, 12, 0.04: two digits."""
    return f"{days:.0f}" if days >= 9.95 else f"{float(f'{days:.2g}'):g}"


# ---- headers of the yaml files, and the page -------------------------------------------------------------------------------


def header(made: Bill) -> str:
    """The comment that a row's yaml begins with."""
    row = made.row
    total = sum(made.flops.values())
    parts = ", ".join(f"{part} {said(made.days(part))}" for part, work in made.flops.items() if work > 0.01 * total)
    lines = [
        f"{row.place}, {row.line}. The paper: {row.scored}",
        f"python src/train.py experiment=paper/{row.name} {made.words}   (dry_run=true plans without data)",
        f"One H200: about {said(made.days())} days ({parts}), {total:.2g} FLOP at {RATE}",
        f"{made.millions:.2f} M parameters{sized(row)}",
        *([f"Not printed: {', '.join(row.unprinted)}"] if row.unprinted else []),
        *row.apart,
    ]  # fmt: skip
    wrapped = [textwrap.wrap(line[0].upper() + line[1:] if line[1:2].islower() and not line.startswith("python") else line, 138,
                             break_long_words=False, break_on_hyphens=False) for line in lines]  # fmt: skip
    return "".join(f"# {'  ' if n else ''}{line}\n" for each in wrapped for n, line in enumerate(each))


def sized(row: PaperRow) -> str:
    """What the count is of, and what is printed."""
    words = {"unet": "UNet", "logits": "its unused logits head", "first_stage": "first stage", "vgg16": "VGG16"}
    of = ", ".join(words.get(part, part) for part in row.of)
    differs = f": {row.differs}" if row.differs else ""
    return f" ({of}), printed {row.printed}{differs}" if row.printed else " (not printed)"


def places(cfg: DictConfig) -> str:
    """The words that say where the data of a row lie, and the weights that it begins with."""
    pair = "train" in cfg.data and isinstance(cfg.data.train, DictConfig)
    given = [f"{path}=…" for path in ("ae.weights", "ldm.start") if OmegaConf.select(cfg, path) is not None]
    return " ".join([*(["data.train.root=…", "data.val.root=…"] if pair else ["data.root=…"]), *given])


def yaml_text(made: Bill, before: str) -> str:
    """The row's file with its header as it must be."""
    return f"# @package _global_\n{header(made)}{before[before.index('defaults:') :]}"


def page_rows(made: list[Bill]) -> Iterator[str]:
    """Lines of the page's table."""
    yield "| table | `experiment=paper/…` | row | the paper | parameters, printed | H200 days | A100 days, paper |\n"
    yield "|---|---|---|---|---|---|---|\n"
    for each in made:
        row, size = each.row, f"{each.millions:.2f} M"
        size += f", {row.printed}{'' if row.agrees(each.millions) else ' †'}" if row.printed else ""
        paper = "" if row.days is None else said(row.days / A100_DAYS)
        yield f"| {row.table} | `{row.name}` | {row.line} | {row.scored} | {size} | {said(each.days())} | {paper} |\n"


def page(made: list[Bill], before: str) -> str:
    """The page with its table as it must be."""
    return TABLE.sub(lambda _: "".join(page_rows(made)), before)


def write() -> None:
    """Every header, and the page."""
    made = [bill(name) for name in rows()]
    for each in made:
        file = FOLDER / f"{each.row.name}.yaml"
        file.write_text(yaml_text(each, file.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(page(made, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
