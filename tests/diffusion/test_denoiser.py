"""The denoiser: dropping per example, the learned null token, and guidance around the denoise callable."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ldmlab.conditioning.base import Cond
from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.conditioning.compose import Compose
from ldmlab.diffusion.denoiser import Denoiser, denoise_with
from ldmlab.diffusion.objectives import Objective, Prediction
from ldmlab.diffusion.schedules import LinearSqrtBeta
from ldmlab.errors import ConfigError
from ldmlab.guidance.classifier_free import guided
from ldmlab.networks.dit import DiT
from ldmlab.networks.unet import UNet


def denoiser() -> Denoiser:
    torch.manual_seed(0)
    net = UNet(4, 4, 32, [1, 2], 1, attention_factors=[2], heads=2, context_dim=8)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return Denoiser(net, ClassLabel(3, dim=8)).double()


Z = torch.randn(4, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T_B = torch.tensor([0, 10, 500, 999])
BATCH: dict[str, Any] = {"label": torch.tensor([0, 1, 2, 0])}


def test_dropping_is_per_example() -> None:
    model = denoiser()
    drop = torch.tensor([True, False, True, False])
    mixed = model(Z, T_B, BATCH, drop)
    kept = model(Z, T_B, BATCH)
    null = model.network(Z, T_B, model.conditioner.null(4, (8, 8), "cpu"))
    torch.testing.assert_close(mixed, torch.where(drop[:, None, None, None], null, kept), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(kept, null)


def test_the_null_row_learns_from_dropped_examples_only() -> None:
    model = denoiser()
    rows = model.conditioner.embedding.weight
    for drop, learns in (
        ([False] * 4, [True, True, True, False]),
        ([True, False, True, False], [True, True, False, True]),
    ):
        model.zero_grad()
        model(Z, T_B, BATCH, torch.tensor(drop)).square().mean().backward()
        assert rows.grad.abs().sum(dim=1).gt(0).tolist() == learns


def test_denoise_reads_a_ready_condition() -> None:
    model, objective = denoiser(), Objective("eps", LinearSqrtBeta())
    predicted = denoise_with(model, objective)(Z, T_B, model.condition(BATCH))
    torch.testing.assert_close(predicted.eps, model(Z, T_B, BATCH))
    torch.testing.assert_close(objective.schedule.zt(predicted.z0, predicted.eps, T_B), Z, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_guidance_is_the_formula_in_one_call(scale: float) -> None:
    model, objective = denoiser(), Objective("v", LinearSqrtBeta())
    plain = denoise_with(model, objective)
    sizes: list[int] = []

    def counted(z: Tensor, t: Tensor, cond: Any) -> Prediction:
        sizes.append(len(z))
        return plain(z, t, cond)

    cond, null = model.condition(BATCH), model.conditioner.null(4, (8, 8), "cpu")
    out = guided(counted, scale, null)(Z, T_B, cond)
    assert sizes == [8]
    with_class, without = plain(Z, T_B, cond), plain(Z, T_B, null)
    expected = without.eps + scale * (with_class.eps - without.eps)
    torch.testing.assert_close(out.eps, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(objective.schedule.zt(out.z0, out.eps, T_B), Z, rtol=1e-8, atol=1e-8)


def test_scale_one_is_the_callable_itself_and_nonsense_is_refused() -> None:
    plain = denoise_with(denoiser(), Objective("eps", LinearSqrtBeta()))
    assert guided(plain, 1.0, Cond()) is plain
    with pytest.raises(ConfigError, match=r"sampler\.guidance=2.0 needs a condition"):
        guided(plain, 2.0, Compose([]).null(4, (8, 8), "cpu"))
    with pytest.raises(ConfigError, match=r"sampler\.guidance must be at least 0"):
        guided(plain, -1.0, Cond(tokens_BLD=torch.zeros(4, 1, 8)))


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_bf16_multiplies_coarsely_and_answers_in_float32(name: str) -> None:
    """Tokens read once included. What the sampler computes is exact: z_t is alpha z_0 + sigma eps to float32's rounding."""
    model = denoiser().float().eval().requires_grad_(False)
    if name == "dit":
        model.network = DiT(4, 4, width=32, blocks=2, heads=2, context_dim=8)
        for parameter in model.network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    objective, z = Objective("v", LinearSqrtBeta()), Z.float()
    times = torch.tensor([0, 10, 500, 900])
    exact = model.denoise(objective)(z, times, model.prepared(model.condition(BATCH)))
    model.use_bf16(torch.device("cpu"))
    coarse = model.denoise(objective)(z, times, model.prepared(model.condition(BATCH)))
    error = ((coarse.eps - exact.eps).square().mean() / exact.eps.square().mean()).sqrt()
    assert coarse.eps.dtype == coarse.z0.dtype == torch.float32 and 1e-4 < error < 0.03
    torch.testing.assert_close(objective.schedule.zt(coarse.z0, coarse.eps, times), z, rtol=1e-5, atol=1e-5)
