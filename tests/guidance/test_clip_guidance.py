"""Guidance by a tiny random CLIP: a step up its slope makes the decoded picture more like the text; what it needs is said in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conditioning.outside_models import TEXTS, save
from torch import Tensor

from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Cosine
from ldmlab.errors import ConfigError
from ldmlab.guidance.base import Binding
from ldmlab.guidance.clip import ClipGuidance

SCHEDULE = Cosine()


class Run:
    """Latents are pictures at a quarter of the size, by repetition."""

    resolution, size, channels, device = 24, (24, 40), 3, torch.device("cpu")

    def stage(self, name: str) -> Any:
        raise AssertionError(name)

    def decode_with_slope(self, z_BCHW: Tensor) -> Tensor:
        return z_BCHW.repeat_interleave(4, 2).repeat_interleave(4, 3)


def shrunk(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
    alpha, sigma = (f(t_B)[:, None, None, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    return Prediction(alpha * z, sigma * z)


def test_the_prediction_moves_towards_the_text(tmp_path: Path) -> None:
    kind = ClipGuidance(str(save(tmp_path / "clip", "clip", seed=3)), TEXTS[0], scale=0.05)
    kind.check(24)
    loaded = kind.load(Run()).bind(Binding({}, None, None, SCHEDULE))
    z, t_B = 0.3 * torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0)), torch.tensor([400, 600])
    before, after = shrunk(z, t_B, None), loaded.wrap(shrunk)(z, t_B, None)
    assert loaded.log_p is not None
    assert (loaded.log_p(after.z0) > loaded.log_p(before.z0) + 1e-4).all()
    assert set(kind.options()) == {"scale", "prompt", "model"} and len(kind.options()["model"]) == 64


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ConfigError, match=r"guidance\.clip\.model is not set: guidance=clip needs a CLIP model"):
        ClipGuidance(prompt="a star").check(32)
    with pytest.raises(ConfigError, match=r"guidance\.clip\.model=/nowhere: no such folder"):
        ClipGuidance("/nowhere", "a star").check(32)
    with pytest.raises(ConfigError, match=r"guidance\.clip\.prompt is empty"):
        ClipGuidance("/nowhere", " ").check(32)
