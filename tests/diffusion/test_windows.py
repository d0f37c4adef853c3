"""Windows around the denoise callable: the released code's weights, what does not change, what guidance sees, gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldmlab.conditioning.base import Cond
from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.windows import Window, Windows, border_weights, borders, windowed
from ldmlab.guidance.classifier_free import guided

T_B = torch.tensor([700, 30])
Z = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
MAP = torch.randn(2, 2, 12, 20, generator=torch.Generator().manual_seed(1))


def pointwise(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
    """Sees one position at a time, so that no window can change its answer."""
    seen = z * (1 + t_B.view(-1, 1, 1, 1) / 1000) + cond.concat_BCHW.sum(1, keepdim=True)
    return Prediction(seen.tanh(), z - seen)


def numbered(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
    """Differs from window to window."""
    return Prediction(z + z.mean(dim=(1, 2, 3), keepdim=True), z)


def folded(z: Tensor, side: int, stride: int) -> Tensor:
    """z_0 of `numbered` as the released code joins windows: unfold, weigh by the distance to the border, fold, divide."""
    B, C, H, W = z.shape
    parts = F.unfold(z, side, stride=stride).view(B, C, side, side, -1)
    at = torch.arange(side) / (side - 1)
    far = torch.minimum(at, 1 - at)
    weight = torch.minimum(far[:, None], far[None]).clip(0.01, 0.5)[..., None]
    answers = (parts + parts.mean(dim=(1, 2, 3), keepdim=True)) * weight
    total = F.fold(answers.reshape(B, C * side**2, -1), (H, W), side, stride=stride)
    share = F.fold(weight.expand(-1, -1, parts.shape[-1]).reshape(1, side**2, -1), (H, W), side, stride=stride)
    return total / share


@pytest.mark.parametrize(("side", "overlap"), [(8, 4), (4, 0), (4, 2)])
def test_windows_are_joined_as_the_released_code_does(side: int, overlap: int) -> None:
    found = windowed(numbered, Windows(side, overlap))(Z, T_B, Cond()).z0
    torch.testing.assert_close(found, folded(Z, side, side - overlap))
    plain = windowed(numbered, Windows(side, overlap, "mean"))(Z, T_B, Cond()).z0
    assert (plain - found).abs().max() > (1e-3 if overlap else -1)


@pytest.mark.parametrize("weights", ["official", "mean"])
@pytest.mark.parametrize(("side", "overlap"), [(8, 4), (8, 1), (16, 8), (5, 2)])
def test_what_sees_single_positions_is_unchanged(side: int, overlap: int, weights: Any) -> None:
    cond, windows = Cond(concat_BCHW=MAP), Windows(side, overlap, weights)
    whole, found = pointwise(Z, T_B, cond), windowed(pointwise, windows)(Z, T_B, cond)
    torch.testing.assert_close(found.z0, whole.z0)
    torch.testing.assert_close(found.eps, whole.eps)


def test_guidance_around_windows_is_windows_around_guidance_where_it_should_be() -> None:
    cond, null = Cond(concat_BCHW=MAP), Cond(concat_BCHW=torch.zeros_like(MAP))
    seen = guided(windowed(pointwise, Windows(8, 4)), 3.0, null, both=cond.cat(null))(Z, T_B, cond)
    torch.testing.assert_close(seen.z0, guided(pointwise, 3.0, null)(Z, T_B, cond).z0)


def test_every_position_is_in_a_window_and_short_sides_have_their_own() -> None:
    seen = torch.zeros(5, 30)
    for window in Windows(8, 3).places(5, 30):
        seen[window.rows, window.columns] += 1
        assert seen[window.rows, window.columns].shape == (5, 8)
    assert seen.min() == 1 and seen.max() > 1
    assert list(borders(30, 8, 3)) == [5, 8, 10, 13, 15, 18, 20, 22, 23, 28]
    assert border_weights(3, 5).tolist()[1] == pytest.approx([0.01, 0.25, 0.5, 0.25, 0.01])
    with pytest.raises(ValueError, match="cannot overlap"):
        Windows(8, 8)


def test_the_gradient_is_that_without_computing_again() -> None:
    weight = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(2))

    def conv(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        return Prediction(F.conv2d(z, weight, padding=1).tanh(), z)

    windows, leaf = Windows(8, 4), Z.clone().requires_grad_()
    found = windowed(conv, windows)(leaf, T_B, Cond()).z0
    kept = windows.averaged(lambda window: conv(window.of(leaf), T_B, Cond()), 12, 20)[0]
    gradients = [torch.autograd.grad(x.square().sum(), leaf)[0] for x in (found, kept)]
    torch.testing.assert_close(found, kept)
    torch.testing.assert_close(*gradients)


def test_maps_are_cut_and_the_rest_stays() -> None:
    cond = Cond(torch.ones(2, 1, 4), MAP, torch.ones(2, 5))
    inside = Window(slice(2, 6), slice(4, 9)).of_condition(cond)
    assert torch.equal(inside.concat_BCHW, MAP[:, :, 2:6, 4:9])
    assert inside.tokens_BLD is cond.tokens_BLD and inside.vector_BD is cond.vector_BD
