"""The paper's own rows of its result tables, by the name of their experiment: `experiment=paper/<name>`. Packaged data, read once.

Scores of Table 8 are those of `paper_table8.yaml`, of Tables 13 and 14 those of Fig. 6 and 7 in `paper_figures.yaml`; all else
stands in `paper_rows.yaml`.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ldmlab.reports import paper, paper_figures

FILE = Path(__file__).parent / "paper_rows.yaml"
SOURCE = "Rombach et al. 2022, arXiv 2112.10752v2"

LABELS = {
    "fid": "FID", "is": "IS", "precision": "precision", "recall": "recall", "fid_val": "FID to val", "fid_train": "FID to train",
    "psnr": "PSNR", "ssim": "SSIM", "rfid": "R-FID", "ris": "R-IS", "inpaint_fid": "FID", "inpaint_lpips": "LPIPS",
    "inpaint_fid_40_50": "FID (40-50 %)", "inpaint_lpips_40_50": "LPIPS (40-50 %)",
}  # fmt: skip
"""A score of a row: what it is called."""


@dataclass(frozen=True)
class PaperRow:
    """One row of a result table.

    scores: digit by digit as printed, by the names of LABELS. printed: its number of parameters as printed ("274M", ""), of: the
    parts that are counted for it (unet, conditioner, logits, first_stage, classifier, vgg16), differs: why the count is another
    one. days: V100 days of Table 18. unprinted: options whose value is not printed. apart: what print and code disagree on, or
    what was chosen.
    """

    name: str
    table: str
    line: str
    scores: dict[str, str]
    printed: str = ""
    of: tuple[str, ...] = ()
    differs: str = ""
    days: float | None = None
    unprinted: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        return f"Table{'s' if ',' in self.table else ''} {self.table.replace(', ', ' and ')}"

    @property
    def scored(self) -> str:
        return ", ".join(f"{LABELS[name]} {value}" for name, value in self.scores.items())

    def agrees(self, millions: float) -> bool:
        """Whether a count is what is printed, to its last digit, rounded."""
        unit = {"M": 1, "B": 1000}[self.printed[-1]]
        digits = len(self.printed[:-1].partition(".")[2])
        return round(millions / unit, digits) == float(self.printed[:-1])


@cache
def rows() -> dict[str, PaperRow]:
    """All rows, in the order of the tables."""
    import yaml

    raw: dict[str, Any] = yaml.load(FILE.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # as it stands there
    found = {}
    for name, row in raw["rows"].items():
        size = row.get("size", {})
        scores = row.get("scores") or _elsewhere(name, row["table"], row["line"])
        days = float(row["days"]) if "days" in row else None
        apart = tuple(raw["texts"].get(text, text) for text in row["apart"])
        found[name] = PaperRow(
            name, row["table"], row["line"], scores, size.get("printed", ""), tuple(size.get("of", ())), size.get("differs", ""),
            days, tuple(row.get("unprinted", ())), apart,
        )  # fmt: skip
    return found


def _elsewhere(name: str, table: str, line: str) -> dict[str, str]:
    """Scores of a first stage, or of a denoiser of the study: from the files that other pages read."""
    f = int(name.rpartition("f")[2]) if table in ("13", "14") else 0
    if table == "13":
        facts = paper_figures.paper()["fig_6"]
        return {key: str(facts[key][f][facts["late"]]) for key in ("fid", "is")}
    if table == "14":
        return {"fid": f"{math.exp(paper_figures.paper()['fig_7']['celeba_hq'][f][-1][1]):.2f}"}
    (found,) = (row for row in paper.table_8().rows if _stage_line(row) == line)
    return {key: found.printed[key] for key in ("rfid", "ris", "psnr", "ssim")}


def _stage_line(row: paper.PaperFirstStage) -> str:
    """A first stage of Table 8 in words: "VQ f=4, 8192 codes, c=3, no attention"."""
    codes = "" if row.codes is None else f", {row.codes} codes"
    return f"{row.regulariser} f={row.f}{codes}, c={row.c}{', no attention' if 'no attention' in row.label else ''}"
