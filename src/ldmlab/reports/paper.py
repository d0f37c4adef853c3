"""What the paper printed, to stand beside what was measured. Packaged data; nothing is computed here but log₂|Z| / f²."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE_8 = Path(__file__).parent / "paper_table8.yaml"


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 8; None where the paper prints a dash. `pm` is what stands after ±."""

    label: str
    f: int
    regulariser: str
    codes: int | None
    c: int | None
    values: dict[str, float | None]  # by our score names: rfid, ris, psnr, ssim, perceptual (the paper's PSIM)
    pm: dict[str, float | None]

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
    rows: tuple[PaperRow, ...]


@cache
def table_8() -> Table8:
    import yaml

    raw: dict[str, Any] = yaml.safe_load(TABLE_8.read_text(encoding="utf-8"))
    names = {"rfid": "r_fid", "ris": "r_is", "psnr": "psnr", "ssim": "ssim", "perceptual": "psim"}
    rows = []
    for row in raw["rows"]:
        label = row.get("name") or f"{row['reg']} f={row['f']}"
        label += "" if row.get("attention", True) else ", no attention"
        values = {ours: row[theirs] for ours, theirs in names.items()}
        pm = {ours: row.get(f"{theirs}_pm") for ours, theirs in names.items()}
        rows.append(PaperRow(label, row["f"], row["reg"], row["codes"], row["c"], values, pm))
    why = " ".join(raw["why_not_comparable"].split())
    return Table8(raw["source"], raw["trained_on"], raw["evaluated_on"], why, tuple(rows))
