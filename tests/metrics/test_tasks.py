"""Scores of tasks: rank correlation and fills by hand, the rows beside samples, and what each row must come to."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from ldmlab.conditioning.inpaint import Inpaint
from ldmlab.conditioning.low_resolution import LowResolution, resized
from ldmlab.conditioning.source import HeldOut
from ldmlab.data.batches import to_float, to_uint8
from ldmlab.data.shapes import Shapes
from ldmlab.metrics.beside import NULL, Measure, TaskMetric
from ldmlab.metrics.depth import DepthCorrelation, rank_correlations
from ldmlab.metrics.evaluate import evaluate
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.fills import PATCH, known_patches, mean_fill, patch_fill
from ldmlab.metrics.inpainting import Inpainting
from ldmlab.metrics.intervals import Score
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.segmenter import Segmenter
from ldmlab.metrics.semantic import MeanIoU
from ldmlab.metrics.superresolution import SuperResolution
from ldmlab.store.checkpoint import save_tensors
from ldmlab.store.files import write_json

N = 24


def features(image_BHWC: Any) -> FeatureSet:
    """Four numbers of each image: FID by them is a distance of colours and contrast."""
    x = torch.as_tensor(np.asarray(image_BHWC)).double().flatten(1, 2) / 255
    return FeatureSet(torch.cat([x.mean(1), x.std((1, 2))[:, None]], dim=1).float().numpy())


class Squares(torch.nn.Module):
    """A distance for the place of the perceptual one."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one - other).square().mean(dim=(1, 2, 3))


def inputs(folder: Path, samples: np.ndarray, needs: tuple[str, ...], conditioner: Any = None) -> Inputs:
    """Held-out shapes as conditions; the null condition's samples are a grey image each."""
    data = Shapes(32, "val", val_images=N, fields=["segmentation", "depth"], cached=False)
    source = HeldOut(data, needs, 0)
    (folder / NULL).mkdir(exist_ok=True)
    np.save(folder / NULL / "images.npy", np.full_like(samples, 128))
    return Inputs(
        20, 0, features(samples), features(source.images(list(range(N)))), read_samples=lambda rows: torch.from_numpy(samples[rows]),
        pairs=lambda rows: (torch.from_numpy(samples[rows]), source.images(rows)), conditions=source,
        stages={NULL: folder / NULL, "segmenter": folder / "segmenter"}, conditioner=conditioner,
        features_of=lambda batches: features(torch.cat(list(batches))),
        distance=Squares(),
    )  # fmt: skip


def true_images(needs: tuple[str, ...] = ("image", "position")) -> np.ndarray:
    data = Shapes(32, "val", val_images=N, fields=["segmentation", "depth"], cached=False)
    return HeldOut(data, needs, 0).images(list(range(N))).numpy()


# ---- the rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Two(TaskMetric):
    name: ClassVar[str] = "two"
    label: ClassVar[str] = "two"
    measures: ClassVar[tuple[Measure, ...]] = (Measure("a", "A", "lower"), Measure("b", "B", "higher", "dB"))
    rows: ClassVar[dict[str, str]] = {"null": "null condition", "flat": "flat"}

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        return {m.key: Score(float(len(row)), 0, 9, 2, "", 0) for m in self.measures}


def test_each_row_is_named_and_declared() -> None:
    found = evaluate([Two()], Inputs(20, 0))
    assert list(found.values) == ["two_a", "two_b", "two_a_null", "two_b_null", "two_a_flat", "two_b_flat"]
    assert found.metrics["two_b_flat"]["beside"] == "flat" and found.metrics["two_b_flat"]["measure"] == "two_b"
    assert found.metrics["two_b"]["unit"] == "dB" and "beside" not in found.metrics["two_b"]
    assert Two().needs == (f"stage:{NULL}",)
    without = Two(null_condition=False)
    assert without.needs == () and list(evaluate([without], Inputs(20, 0)).values) == [
        "two_a",
        "two_b",
        "two_a_flat",
        "two_b_flat",
    ]


# ---- maps and depths -----------------------------------------------------------------------------------------------------


def segmenter(folder: Path, seed: int = 0) -> None:
    """One that is not trained: its answers are some function of the image, the same for equal images."""
    torch.manual_seed(seed)
    net = Segmenter(11, 8)
    (folder / "segmenter").mkdir(exist_ok=True)
    save_tensors(folder / "segmenter" / "weights.safetensors", net.state_dict())
    write_json(folder / "segmenter" / "network.json", {"classes": 11, "width": 8})


def test_real_images_as_samples_score_as_real_images(tmp_path: Path) -> None:
    segmenter(tmp_path)
    needs = ("segmentation", "depth")
    given = inputs(tmp_path, true_images(needs), needs)
    for metric, trivial in ((MeanIoU(), "background"), (DepthCorrelation(), "mean")):
        found = evaluate([metric], given).values
        assert set(found) == {metric.name, *(f"{metric.name}_{row}" for row in ("null", trivial, "real"))}
        own, real = found[metric.name], found[f"{metric.name}_real"]
        assert own.value == real.value and own.value != found[f"{metric.name}_null"].value
    background = evaluate([MeanIoU()], given).values["miou_background"].value
    maps = given.conditions.batch(list(range(N)))["segmentation"]  # type: ignore[union-attr]
    assert background == pytest.approx(float((maps == 0).float().mean()) / len(maps.unique()))


def test_rank_correlations_are_scipy_s() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (6, 50)).astype(float), rng.random((6, 50))
    wanted = [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(rank_correlations(x, y), wanted, atol=1e-12)
    assert rank_correlations(np.ones((1, 50)), y[:1]).tolist() == [0.0]
    np.testing.assert_allclose(rank_correlations(y, np.exp(y)), 1.0)


# ---- super-resolution ----------------------------------------------------------------------------------------------------


def test_a_bicubic_enlargement_scores_as_the_bicubic_row(tmp_path: Path) -> None:
    needs = ("image", "position")
    condition, truth = LowResolution((3, 8, 8), 32), true_images()
    batch = {"image": to_float(torch.from_numpy(truth)), "position": torch.arange(N)}
    enlarged = to_uint8(resized(condition.small(batch), (32, 32))).numpy()
    metric = SuperResolution(regression=False)
    assert (
        f"stage:{NULL}" in metric.needs
        and "stage:regressed" not in metric.needs
        and "conditions:small_image" in metric.needs
    )
    found = evaluate([metric], inputs(tmp_path, enlarged, needs, condition)).values
    for measure in ("psnr", "ssim", "perceptual", "fid"):
        own, bicubic, null = (found[f"superres_{measure}{row}"].value for row in ("", "_bicubic", "_null"))
        assert own == pytest.approx(bicubic) and own != null
    mse = np.square(enlarged.astype(float) - truth).mean(axis=(1, 2, 3))
    assert found["superres_psnr"].value == pytest.approx((10 * np.log10(255**2 / mse)).mean())
    perfect = evaluate([metric], inputs(tmp_path, truth, needs, condition)).values
    assert perfect["superres_perceptual"].value == 0 and perfect["superres_fid"].value < 1e-4
    assert perfect["superres_psnr"].low > bicubic


# ---- inpainting ----------------------------------------------------------------------------------------------------------


def test_fills_keep_what_is_known() -> None:
    rng = np.random.default_rng(0)
    image, hole = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8), np.zeros((20, 24), bool)
    hole[5:12, 8:20] = True
    hole[0, 0] = True
    for fill in (mean_fill, patch_fill):
        found = fill(image, hole)
        assert found.dtype == np.uint8 and np.array_equal(found[~hole], image[~hole])
    assert (mean_fill(image, hole)[hole] == image[~hole].mean(axis=0).round().astype(np.uint8)).all()


def test_the_nearest_patch_continues_a_pattern() -> None:
    """Stripes whose period the patch sees are continued without an error; a mean colour is not."""
    y, x = np.mgrid[:32, :32]
    image = np.repeat(((x + y) % 4 < 2)[:, :, None] * np.uint8(255), 3, axis=2)
    hole = np.zeros((32, 32), bool)
    hole[10:22, 12:20] = True
    assert np.array_equal(patch_fill(image, hole), image) and not np.array_equal(mean_fill(image, hole), image)


def test_without_a_known_patch_the_mean_is_taken() -> None:
    rng = np.random.default_rng(0)
    image, hole = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), np.ones((16, 16), bool)
    hole[::6] = False
    assert len(known_patches(image.astype(np.float32), ~hole)) == 0 and PATCH > 1
    assert np.array_equal(patch_fill(image, hole), mean_fill(image, hole))
    assert (patch_fill(image, np.ones_like(hole)) == 128).all()


def test_inpainting_by_the_share_that_was_hidden(tmp_path: Path) -> None:
    needs = ("image", "position")
    condition, truth = Inpaint((3, 8, 8), 32, None, ["box"]), true_images()
    metric = Inpainting(shares=[0.2])
    given = inputs(tmp_path, truth, needs, condition)
    found = evaluate([metric], given)
    assert list(metric.bins()) == ["", "0_20", "20_100"]
    assert found["inpainting_perceptual"].value == 0 and found["inpainting_fid"].value < 1e-4  # the truth itself
    hole = condition.mask(given.conditions.batch(list(range(N))))[:, 0].numpy() > 0  # type: ignore[union-attr]
    filled = np.stack([mean_fill(image, mask) for image, mask in zip(truth, hole, strict=True)])
    apart = np.square((filled.astype(float) - truth) / 127.5).mean(axis=(1, 2, 3)) / hole.mean(axis=(1, 2))
    small = hole.mean(axis=(1, 2)) <= 0.2
    assert 4 < small.sum() < N - 4
    for bin_, rows in (("", np.ones(N, bool)), ("_0_20", small), ("_20_100", ~small)):
        assert found[f"inpainting_perceptual{bin_}_mean"].value == pytest.approx(apart[rows].mean(), rel=1e-5)
    assert found["inpainting_fid_mean"].value > found["inpainting_fid"].value
    few = evaluate([metric], replace(given, samples=FeatureSet(np.random.rand(N, 64)), reference=FeatureSet(np.random.rand(N, 64)),
                                     features_of=lambda batches: FeatureSet(np.random.rand(N, 64)), shared={}))  # fmt: skip
    assert "inpainting_fid_0_20" not in few.values and "0% to 20% hidden" in few.warnings[0]
