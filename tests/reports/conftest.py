"""A store as the stages write it, small enough for a test and real enough to be looked at."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CARD = {
    "reference": "shapes-val-9f31c2",
    "n": 2000,
    "label_mode": "uniform",
    "sampler": "ddim",
    "steps": 50,
    "eta": 0.0,
    "guidance": 1.5,
    "weights": "ema",
    "snapshot_images": 0,
    "rounding": "8 bit",
    "resize": "none",
    "extractor": "shapes",
    "extractor_hash": "8c1d44e0",
    "versions": {"torch": "2.15.0", "ldmlab": "0.1.0"},
    "seeds": "0..1999",
}
CLASSES = ["circle", "square", "triangle", "star", "ring", "cross", "moon", "heart", "arrow", "drop"]
WARNING = "2 000 samples: fewer than the customary 50 000"


def score(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def little_pictures(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Discs on gradients: uint8 [n, size, size, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    images = np.empty((n, size, size, 3), np.uint8)
    for i in range(n):
        ground, disc = rng.uniform(20, 235, (2, 3))
        inside = ((x - rng.uniform(0.3, 0.7)) ** 2 + (y - rng.uniform(0.3, 0.7)) ** 2 < 0.06)[..., None]
        images[i] = np.where(inside, disc, ground * (0.6 + 0.4 * x[..., None]))
    return images


class FakeStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    def autoencoder(self, id_: str = "4ab07e11", psnr: float = 28.412, points: int = 120) -> dict[str, Any]:
        folder = self.root / "autoencoder" / f"kl_f4-{id_}"
        rng = np.random.default_rng(1)
        rows = []
        for i in range(1, points + 1):
            u = i / points
            row = {"images": i * 200, "step": i * 10, "split": "train", "time": i * 0.9}
            row |= {"images_per_second": 222.0 + 9 * rng.standard_normal()}
            row |= {"loss": 40 + 300 * math.exp(-6 * u) + 9 * rng.standard_normal()}
            row |= {"l1": 0.02 + 0.2 * math.exp(-7 * u), "kl": 900 * (1 - math.exp(-5 * u))}
            row |= {"perceptual": 0.1 + 0.5 * math.exp(-4 * u) + 0.02 * rng.standard_normal()}
            rows.append(row)
            if i % 20 == 0:
                val = {"images": i * 200, "step": i * 10, "split": "val", "time": i * 0.9}
                rows.append(val | {"psnr": psnr - 8 * math.exp(-4 * u), "loss": 43 + 290 * math.exp(-6 * u)})
        write_rows(folder / "metrics.jsonl", rows)
        scores: dict[str, Any] = {
            "psnr": score(psnr, 0.081),
            "ssim": score(0.91372, 0.0021),
            "perceptual": score(0.04213, 0.0009),
            "rfid": score(3.2147, 0.22),
            "kl_bits": 2.7183,
            "latent_mean": -0.00312,
            "latent_std": 0.99871,
            "card": {**CARD, "sampler": None, "steps": None},
        }
        write_json(folder / "scores.json", scores)
        (folder / "config.yaml").write_text("network:\n  multipliers: [1, 2, 4]\n  c: 3\n", encoding="utf-8")
        write_json(folder / "card.json", {"git": "1a2b3c4", "host": "bench-2"})
        pictures = little_pictures(16, seed=3)
        blurred = (pictures.astype(np.int16) + np.roll(pictures, 1, axis=2)) // 2
        error = np.clip(4 * np.abs(blurred - pictures), 0, 255)
        strips = [np.concatenate(list(x.astype(np.uint8)), axis=1) for x in (pictures, blurred, error)]
        Image.fromarray(np.concatenate(strips)).save(folder / "reconstructions.png")
        return self.entry("autoencoder", id_, folder, "KL f=4 c=3 · 1.2 M", 108.3)

    def denoiser(self, id_: str = "c01fe9aa", points: int = 200, state: str = "done") -> dict[str, Any]:
        folder = self.root / "denoiser" / f"unet_tiny-{id_}"
        rng = np.random.default_rng(2)
        rows = []
        for i in range(1, points + 1):
            row = {"images": i * 200, "step": i * 4, "split": "train", "time": i * 1.2, "images_per_second": 166.5}
            rows.append(row | {"loss": 0.11 + 0.6 * math.exp(-i / 15) + 0.025 * rng.standard_normal()})
        write_rows(folder / "metrics.jsonl", rows)
        return self.entry("denoiser", id_, folder, "UNet 4.1 M · class_label", 240.7, state=state)

    def snapshot(
        self,
        id_: str,
        images: int,
        fid: float,
        pictures: np.ndarray | None = None,
        labels: bool = True,
        card: dict[str, Any] | None = None,
        class_names: list[str] = CLASSES,
    ) -> list[dict[str, Any]]:
        samples, scores = self.root / "samples" / f"ddim50-{id_}5a", self.root / "scores" / f"shapes-{id_}5c"
        pictures = little_pictures(80, seed=images) if pictures is None else pictures
        samples.mkdir(parents=True)
        np.save(samples / "images.npy", pictures)
        n, kinds = len(pictures), len(class_names)
        conditions: dict[str, Any] = {"seed": list(range(n))}
        if labels:
            conditions |= {"label": [i % kinds for i in range(n)], "class_names": class_names}
        write_json(samples / "conditions.json", conditions)
        good = 1 - fid / 120
        numbers = {
            "fid": score(fid, 0.031 * fid),
            "is": score(2 + 4 * good, 0.08),
            "kid": score(fid / 1500, 0.0011),
            "precision": score(0.3 + 0.4 * good, 0.013),
            "recall": score(0.1 + 0.45 * good, 0.017),
        }
        if labels:
            numbers["label_agreement"] = score(0.1 + 0.7 * good, 0.011)
        result = {
            "snapshot_images": images,
            "scores": numbers,
            "card": CARD | {"snapshot_images": images} | (card or {}),
            "card_short": "2k·ddim50·eta0·w1.5·uniform·shapes-8c1d",
            "warnings": [WARNING],
        }
        write_json(scores / "scores.json", result)
        return [
            self.entry("samples", f"{id_}5a", samples, f"{n} images · DDIM 50", 31.9, {"denoiser": "c01fe9aa"}),
            self.entry("scores", f"{id_}5c", scores, "FID IS KID P R", 8.2, {"samples": f"{id_}5a"}),
        ]

    def entry(
        self,
        stage: str,
        id_: str,
        folder: Path,
        what: str,
        seconds: float | None,
        upstream: Any = None,
        state: str = "done",
    ) -> dict[str, Any]:
        place = Path("../..") / folder.relative_to(self.root)
        return {
            "stage": stage,
            "id": id_,
            "folder": place.as_posix(),
            "state": state,
            "what": what,
            "seconds": seconds,
            "upstream": upstream or {},
        }

    def run(
        self, stages: list[dict[str, Any]], id_: str = "c01fe9", name: str = "kl_f4-unet_tiny", **changes: Any
    ) -> Path:
        folder = self.root / "runs" / f"run-{id_}"
        run = {
            "id": id_,
            "name": name,
            "title": "Shapes at 32 px, KL f = 4, class-conditional",
            "command": "python src/train.py data=shapes ae=kl_f4 ldm=unet_tiny cond=class_label",
            "created": "2026-01-01 12:00",
            "machine": {"cpu": "2 cores", "torch": "2.15.0"},
            "config": {"seed": 0, "ae": {"regulariser": {"weight": 1e-6}}, "ldm": {"network": {"width": 32}}},
            "stages": stages,
        }
        write_json(folder / "run.json", run | changes)
        return folder

    def finished(self, id_: str = "c01fe9", **changes: Any) -> Path:
        """A whole run: two snapshots, ten classes."""
        stages = [
            self.autoencoder(),
            self.denoiser(),
            *self.snapshot("a1", 2000, 96.4),
            *self.snapshot("a2", 40000, 12.83),
        ]
        return self.run(stages, id_, **changes)


@pytest.fixture
def fake_store(tmp_path: Path) -> FakeStore:
    return FakeStore(tmp_path / "store")


@pytest.fixture
def edit() -> Callable[[Path, Callable[[Any], None]], None]:
    """edit(path, change): a JSON file through `change`."""

    def edit(path: Path, change: Callable[[Any], None]) -> None:
        value = json.loads(path.read_text(encoding="utf-8"))
        change(value)
        write_json(path, value)

    return edit
