"""The ratio across borders over elsewhere: known steps, none at all, no border."""

import numpy as np
import pytest

from ldmlab.errors import ConfigError
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.window_borders import WindowBorders, border_ratio


def test_a_step_at_every_border_counts_as_much_as_it_is_higher() -> None:
    """Lines at 4, 8 … of 32: windows of 16 overlapping by 8 begin and end at 8, 16, 24."""
    image = np.zeros((1, 32, 32, 3), np.uint8)
    for line in range(4, 32, 4):
        image[:, line:] += 3 if line % 8 == 0 else 1
    image = image + image.transpose(0, 2, 1, 3)
    assert border_ratio(image, 16, 8, 4) == pytest.approx([3.0])


def test_noise_has_no_borders_and_the_metric_is_the_mean_over_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 96, 3), dtype=np.uint8)
    import torch

    inputs = Inputs(
        100, 0, FeatureSet(np.zeros((20, 1), np.float32)), read_samples=lambda rows: torch.from_numpy(images[rows])
    )
    score = WindowBorders(32, 16, 4).compute(inputs).scores["window_borders"]
    assert score.value == pytest.approx(1.0, abs=0.01) and score.low < 1.0 < score.high and score.n == 20


def test_without_a_border_there_is_no_ratio() -> None:
    with pytest.raises(ConfigError, match="no border of windows of 16"):
        border_ratio(np.zeros((1, 16, 16, 3), np.uint8), 16, 8, 4)
    with pytest.raises(ConfigError, match="multiples of grid=4"):
        border_ratio(np.zeros((1, 32, 32, 3), np.uint8), 18, 8, 4)
