"""Rate and distortion of Gaussian data under the best denoiser: every point of the curve has a closed form."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.linear_gaussian import z0_error
from ldmlab.diffusion.objectives import Objective, Prediction
from ldmlab.diffusion.paths import Flow, Karras
from ldmlab.diffusion.schedules import Cosine, LinearSqrtBeta, Schedule
from ldmlab.diffusion.targets import EDM
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.rate_distortion import Chain, RateDistortion, chain_times, curves, joined, walk

SIZE = 8  # of the image; the latent is its grey 4x4 average with two channels of unequal variance
VARIANCE_C = torch.tensor([0.8, 0.1], dtype=torch.float64)
N = 400
GENERATOR = torch.Generator().manual_seed(0)
OBJECTIVES = {
    "eps": Objective("eps", LinearSqrtBeta()),
    "v": Objective("v", Cosine()),
    "z0": Objective("z0", LinearSqrtBeta()),
    "flow": Objective("flow", Flow()),
    "edm": Objective(EDM(), Karras()),
}


def levels(schedule: Schedule, t: int) -> tuple[Tensor, Tensor]:
    alpha, sigma = schedule.at(t)
    return torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)


def best(objective: Objective) -> Denoise:
    """E[z0 | z_t] as a network of this objective would answer, read back by the objective."""

    def denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        alpha, sigma = levels(objective.schedule, int(t_B[0]))
        variance_C11 = VARIANCE_C[:, None, None]
        z0 = alpha * variance_C11 / (alpha**2 * variance_C11 + sigma**2) * zt_BCHW
        return objective.prediction(objective.target_of(z0, (zt_BCHW - alpha * z0) / sigma, t_B), zt_BCHW, t_B)

    return denoise


def decode(z_BCHW: Tensor) -> Tensor:
    """A linear decoder: each latent number is a 2x2 square of one colour, a tenth of it, far from black and white."""
    colours = torch.stack([z_BCHW[:, 0], z_BCHW[:, 1], torch.zeros_like(z_BCHW[:, 0])], dim=1) / 10
    return colours.repeat_interleave(2, 2).repeat_interleave(2, 3)


def gaussian_chain(objective: Objective, times: list[int]) -> Chain:
    z0 = torch.randn(N, 2, 4, 4, generator=GENERATOR, dtype=torch.float64) * VARIANCE_C.sqrt()[:, None, None]
    eps = torch.randn(z0.shape, generator=GENERATOR, dtype=torch.float64)
    image8 = ((decode(z0) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    return walk(best(objective), objective.schedule, None, z0, eps, image8, decode, times)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gaussian_data_has_the_closed_form(name: str) -> None:
    """Each term is (SNR(s) - SNR(t)) / 2 times the linear floor, RMSE is the decoded floor; within what 400 images scatter."""
    objective = OBJECTIVES[name]
    schedule, times = objective.schedule, chain_times(objective.schedule, 40)
    found, D, dimensions = gaussian_chain(objective, times), 32, 3 * SIZE**2 * math.log(2)
    alpha, sigma = levels(schedule, times[0])
    nats = D / 2 * float((alpha**2 * VARIANCE_C + sigma**2 - 1 - 2 * sigma.log()).mean())
    for k, t in enumerate(times):
        bits_N, mse_N = found.bits_SN[k], found.mse_SN[k]
        assert bits_N.mean() == pytest.approx(nats / dimensions, abs=4 * bits_N.std() / N**0.5 + 1e-9)
        alpha, sigma = levels(schedule, t)
        error_C = z0_error(VARIANCE_C, alpha, sigma)
        lost = 12.75**2 * float(error_C.sum()) / 3  # of three colours, the third is constant
        assert mse_N.mean() == pytest.approx(lost, abs=4 * mse_N.std() / N**0.5 + 2 / 12 + 0.02 * lost)  # two roundings
        if k + 1 < len(times):
            after, before = levels(schedule, times[k + 1]), (alpha, sigma)
            difference = float((after[0] / after[1]) ** 2 - (before[0] / before[1]) ** 2)
            nats += difference / 2 * D * float(error_C.mean())
    assert (np.diff(found.bits_SN, axis=0) > 0).all()


def test_a_fine_chain_costs_the_mutual_information() -> None:
    """½ log(1 + SNR v) nats a number (Guo, Shamai & Verdú 2005): the bound of ever more steps, which no chain falls below."""
    objective = Objective("v", Karras())
    alpha, sigma = levels(objective.schedule, 0)
    exact = 32 / 2 * float((1 + (alpha / sigma) ** 2 * VARIANCE_C).log().mean()) / (3 * SIZE**2 * math.log(2))
    costs = {}
    for steps in (25, 100, 1000):
        found = gaussian_chain(objective, chain_times(objective.schedule, steps))
        costs[steps] = float(found.bits_SN[-1].mean()), 4 * float(found.bits_SN[-1].std()) / N**0.5
    assert costs[25][0] > costs[100][0] > costs[1000][0] > exact - costs[1000][1]
    assert costs[1000][0] < exact * 1.02 + costs[1000][1]


def test_times_are_even_in_log_snr_and_include_the_ends() -> None:
    for schedule in (LinearSqrtBeta(), Cosine(), Flow(), Karras()):
        times = chain_times(schedule, 20)
        assert times[0] == 999 and times[-1] == 0 and len(times) <= 21
        snr = [schedule.at(t).alpha / schedule.at(t).sigma for t in times[2:-2]]
        ratios = np.diff(np.log(snr))
        assert (ratios > 0).all() and ratios.max() < 2 * np.median(ratios)
    assert chain_times(Cosine(), 1000) == list(range(999, -1, -1))


def test_curves_and_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chain = Chain(rng.uniform(1, 2, (3, 50)), rng.uniform(4, 9, (3, 50)), None)
    found = curves(chain, 200, 0)
    assert found["rmse"]["value"][0] == pytest.approx(math.sqrt(chain.mse_SN[0].mean())) and "perceptual" not in found
    for curve in found.values():
        assert all(
            low < value < high for value, low, high in zip(curve["value"], curve["low"], curve["high"], strict=True)
        )
    half = 1.96 * chain.bits_SN[-1].std() / 50**0.5
    assert found["bits"]["high"][-1] - found["bits"]["value"][-1] == pytest.approx(half, rel=0.3)
    (tmp_path / "chain.json").write_text(json.dumps({"curves": found, "images": 50, "seed": 0}))
    metric = RateDistortion()
    scores = metric.compute(Inputs(200, 0, stages={"chain": tmp_path})).scores
    assert scores["rate_distortion_bits"].value == pytest.approx(chain.bits_SN[-1].mean()) and set(scores) < set(
        metric.declarations()
    )
    one, other = (
        Chain(chain.bits_SN[:, :20], chain.mse_SN[:, :20], None),
        Chain(chain.bits_SN[:, 20:], chain.mse_SN[:, 20:], None),
    )
    assert (joined([one, other]).bits_SN == chain.bits_SN).all()
