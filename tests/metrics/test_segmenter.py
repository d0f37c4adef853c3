"""The segmenter that judges maps: mIoU in closed form, sizes, and that it learns the maps of the run's own data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmlab.config.compose import load
from ldmlab.metrics.iou import Confusion
from ldmlab.metrics.segmenter import Segmenter, load_segmenter
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.run import prepare
from ldmlab.pipeline.segmenter import SegmenterStage


def test_miou_by_hand() -> None:
    truth = torch.tensor([[[0, 0], [1, 1]], [[0, 0], [0, 0]]])
    said = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 2]]])
    found = Confusion(4)
    found.update(said[:1], truth[:1])
    found.update(said[1:], truth[1:])
    # class 0: 4 of 6 pixels in both, union 6; class 1: 2 of 3; classes 2 and 3 are never true and do not count
    assert found.miou() == pytest.approx((4 / 6 + 2 / 3) / 2) and found.pixels_right() == pytest.approx(6 / 8)
    score = found.score(200, 0, "by hand")
    assert score.value == pytest.approx(found.miou()) and score.n == 2 and score.low <= score.value <= score.high
    perfect = Confusion(4)
    perfect.update(truth, truth)
    assert perfect.score(200, 0, "").low == perfect.miou() == 1.0


@pytest.mark.parametrize("side", [16, 17, 36])
def test_any_size_from_16(side: int) -> None:
    net = Segmenter(5, 8).eval()
    image = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    said = net(image)
    assert said.logits_BKHW.shape == (2, 5, side, side) and said.depth_BHW.shape == (2, side, side)
    assert said.depth_BHW.min() > 0 and said.depth_BHW.max() < 1
    torch.testing.assert_close(net(image.float() / 127.5 - 1).logits_BKHW, said.logits_BKHW)
    assert torch.equal(net.classes_of(image), said.logits_BKHW.argmax(1))


@pytest.mark.slow
def test_it_learns_the_maps_of_the_run_s_data(tmp_path: Path) -> None:
    """One object kind would be guessed from background alone; here it must beat an answer of background everywhere."""
    words = ["debug=tiny", "data.resolution=16", "data.train_images=512", "data.val_images=64", "runtime.threads=1"]
    words += ["segmenter.width=16", "segmenter.fit.images=2000", "segmenter.fit.lr=4e-3", f"store={tmp_path}"]
    plan = prepare(load(words))
    ctx = Context(plan.resolved.cfg, plan, make_accelerator("cpu"))
    folder = plan.stage(SegmenterStage).make(ctx)
    known = json.loads((folder / "scores.json").read_text())
    assert known["pixels_right"] > 0.75 and known["miou"] > 1.5 * known["miou_of_background"]
    net = load_segmenter(folder)
    sample = plan.stage(SegmenterStage)._data("val")[0]
    image = torch.from_numpy(sample["image"]).permute(2, 0, 1)[None]
    ground = sample["segmentation"] == 0
    depth = net(image).depth_BHW[0].numpy()
    assert depth[ground].mean() > depth[~ground].mean()  # the background is the farthest
    assert np.isfinite(depth).all()
