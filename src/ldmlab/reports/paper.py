"""What the paper printed, to stand beside what was measured. Packaged data; nothing is computed here but log₂|Z| / f²."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SCORES = {"psnr": "psnr", "ssim": "ssim", "perceptual": "psim", "rfid": "r_fid", "ris": "r_is"}  # our name: the file's
TABLE_8 = Path(__file__).parent / "paper_table8.yaml"


@dataclass(frozen=True)
class PaperFirstStage:
    """A row of Table 8 by our score names (rfid, ris, psnr, ssim, and perceptual for the paper's PSIM)."""

    label: str
    f: int
    regulariser: str
    codes: int | None
    c: int | None
    values: dict[str, float | None]  # None where the paper prints a dash
    pm: dict[str, float | None]  # what stands after ±
    printed: dict[str, str]  # both, digit by digit as the paper has them

    @property
    def bits_per_pixel(self) -> float | None:
        """log₂|Z| / f², ours; the paper does not print it."""
        return math.log2(self.codes) / self.f**2 if self.codes else None


@dataclass(frozen=True)
class Table8:
    source: str
    trained_on: str
    evaluated_on: str
    why_not_comparable: str
    rows: tuple[PaperFirstStage, ...]


def _number(text: str | None) -> float | None:
    return None if text in (None, "null") else float(str(text))


def _printed(value: str, pm: str | None) -> str:
    return "–" if value == "null" else value if pm is None else f"{value} ± {pm}"


@cache
def table_8() -> Table8:
    import yaml

    text = TABLE_8.read_text(encoding="utf-8")
    raw: dict[str, Any] = yaml.load(text, Loader=yaml.BaseLoader)  # every leaf as the text that stands there
    rows = []
    for row in raw["rows"]:
        label = row.get("name") or f"{row['reg']} f={row['f']}"
        label += "" if row.get("attention", "true") == "true" else ", no attention"
        codes, c = _number(row["codes"]), _number(row["c"])
        values = {ours: _number(row[theirs]) for ours, theirs in SCORES.items()}
        pm = {ours: _number(row.get(f"{theirs}_pm")) for ours, theirs in SCORES.items()}
        printed = {ours: _printed(row[theirs], row.get(f"{theirs}_pm")) for ours, theirs in SCORES.items()}
        sizes = (None if codes is None else int(codes), None if c is None else int(c))
        rows.append(PaperFirstStage(label, int(row["f"]), row["reg"], *sizes, values, pm, printed))
    why = " ".join(raw["why_not_comparable"].split())
    return Table8(raw["source"], raw["trained_on"], raw["evaluated_on"], why, tuple(rows))


def paper_csv(paper: Table8) -> list[dict[str, Any]]:
    records = []
    for row in paper.rows:
        record = {"row": row.label, "f": row.f, "regulariser": row.regulariser, "codes": row.codes, "c": row.c}
        for name in ("rfid", "ris", "psnr", "ssim", "perceptual"):
            record |= {name: row.values[name], f"{name}_pm": row.pm[name]}
        records.append(record)
    return records
