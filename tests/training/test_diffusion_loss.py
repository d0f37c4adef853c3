"""The diffusion stage: the paper's loss by hand, draws by position, and a frozen first stage."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.conditioning.compose import Compose
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.paths import Flow, Karras
from ldmlab.diffusion.schedules import LinearSqrtBeta
from ldmlab.diffusion.targets import EDM
from ldmlab.diffusion.timestep_distribution import LogitNormal, LogNormal
from ldmlab.diffusion.weightings import MinSNR
from ldmlab.errors import ConfigError
from ldmlab.networks.unet import UNet
from ldmlab.randomness import Draws
from ldmlab.training.diffusion_loss import DiffusionLoss


class HalfSize(nn.Module):
    """A first stage with moments (mean, log-variance) that can be checked by hand."""

    c = 3

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def moments(self, image_BCHW: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(image_BCHW, 2) * self.gain
        return torch.cat([small, torch.full_like(small, -2.0)], dim=1)

    def sample(self, moments_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        mean, logvar = moments_BCHW.chunk(2, dim=1)
        return mean if noise_BCHW is None else mean + (logvar / 2).exp() * noise_BCHW


class Recorder(nn.Module):
    """A denoiser that keeps what it was asked."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser
        self.asked: list[tuple[Any, ...]] = []

    def forward(self, *asked: Any) -> Tensor:
        self.asked.append(asked)
        return self.denoiser(*asked)


def stage(drop: float = 0.25, seed: int = 5) -> DiffusionLoss:
    torch.manual_seed(0)
    net = UNet(3, 3, 32, [1, 2], 1, attention_factors=[2], heads=2, context_dim=8)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(net, ClassLabel(4, dim=8))
    return DiffusionLoss(denoiser, HalfSize(), Objective("eps", LinearSqrtBeta()), Draws(seed), drop)


def batch(first: int = 16, n: int = 16, **fields: Tensor) -> dict[str, Tensor]:
    image = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = torch.arange(first, first + n)
    return {"image": image[rows], "label": rows % 4, "position": rows} | fields


def test_the_loss_is_equation_three() -> None:
    mine = stage()
    recorder = Recorder(mine.modules["denoiser"])
    mine.modules["denoiser"] = recorder
    loss, logs = mine.loss(batch(), "denoiser", 0)
    (zt, t, seen, drop), draws, position = recorder.asked[0], Draws(5), batch()["position"]
    small = nn.functional.avg_pool2d(batch()["image"], 2) * 2
    z0 = small + torch.exp(torch.tensor(-1.0)) * draws.randn("posterior", position, (3, 8, 8), "cpu")
    eps = draws.randn("eps", position, (3, 8, 8), "cpu")
    bar = LinearSqrtBeta().alpha_bar_T[t].float()[:, None, None, None]
    torch.testing.assert_close(zt, bar.sqrt() * z0 + (1 - bar).sqrt() * eps)
    assert torch.equal(t, (draws.rand("t", position, (), "cpu") * 1000).long())
    assert torch.equal(drop, draws.rand("drop", position, (), "cpu") < 0.25)
    out = recorder.denoiser(zt, t, seen, drop)
    torch.testing.assert_close(loss, nn.functional.mse_loss(out, eps))
    assert logs["loss"] == loss and not logs["loss"].requires_grad
    quarters = torch.stack([logs[f"loss_t{i}"] for i in range(4)])
    torch.testing.assert_close(quarters.mean(), loss.detach())
    in_first = t < 250
    each = (out - eps).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(logs["loss_t0"], 4 * each[in_first].sum().detach() / 16)


def test_cached_moments_train_as_images_do() -> None:
    mine = stage()
    from_images, _ = mine.loss(batch(), "denoiser", 0)
    cached = {k: v for k, v in batch().items() if k != "image"} | {
        "moments": HalfSize().moments(batch()["image"]).detach()
    }
    from_cache, _ = mine.loss(cached, "denoiser", 0)
    torch.testing.assert_close(from_cache, from_images)


def test_no_split_of_the_batch_changes_the_loss() -> None:
    mine = stage()
    whole, _ = mine.loss(batch(0, 16), "denoiser", 0)
    parts = [mine.loss(batch(first, n), "denoiser", 0)[0] for first, n in ((0, 4), (4, 4), (8, 4), (12, 4))]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-5, atol=1e-6)
    other, _ = stage(seed=6).loss(batch(0, 16), "denoiser", 0)
    assert abs(float((other - whole).detach())) > 1e-3


@pytest.mark.parametrize(
    "objective",
    [Objective("flow", Flow(), times=LogitNormal(), stratified=True),
     Objective(EDM(), Karras(), "huber", MinSNR(), LogNormal(), stratified=True)],
)  # fmt: skip
def test_no_split_changes_what_other_objectives_train_on(objective: Objective) -> None:
    mine = stage()
    recorder = Recorder(mine.modules["denoiser"])
    mine = DiffusionLoss(mine.modules["denoiser"], mine.autoencoder, objective, mine.draws, 0.25, batch_size=16)  # type: ignore[arg-type]
    mine.modules["denoiser"] = recorder
    whole, logs = mine.loss(batch(0, 16), "denoiser", 0)
    cuts = ((0, 4), (4, 4), (8, 4), (12, 4))
    parts = [mine.loss(batch(first, n), "denoiser", 0) for first, n in cuts]
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).mean(), whole, rtol=1e-5, atol=1e-6)
    shown, time = (torch.cat([asked[i] for asked in recorder.asked[1:]]) for i in (0, 1))
    torch.testing.assert_close(shown, recorder.asked[0][0])
    assert torch.equal(time, recorder.asked[0][1])
    for i in range(4):  # quarters of the training distribution, of which a stratified batch of 16 has four each
        quarter = torch.stack([log[f"loss_t{i}"] for _, log in parts]).mean()
        torch.testing.assert_close(quarter, logs[f"loss_t{i}"], rtol=1e-5, atol=1e-6)
    u = objective.u(mine.draws, torch.arange(16), 16)
    assert torch.bincount((u * 4).long(), minlength=4).tolist() == [4, 4, 4, 4]


def test_only_the_denoiser_learns() -> None:
    mine = stage()
    mine.autoencoder.train()  # type: ignore[attr-defined]
    mine = DiffusionLoss(mine.modules["denoiser"], mine.autoencoder, mine.objective, mine.draws, 0.25)  # type: ignore[arg-type]
    loss, _ = mine.loss(batch(), "denoiser", 0)
    loss.backward()
    assert not mine.autoencoder.training and mine.autoencoder.gain.grad is None  # type: ignore[attr-defined]
    assert all(p.grad is not None and p.grad.any() for p in mine.modules["denoiser"].parameters())
    assert mine.players == ("denoiser",) and mine.active("denoiser", 0)


def test_dropping_happens_as_often_as_asked() -> None:
    asked = 0.3
    dropped = Draws(5).rand("drop", torch.arange(4000), (), "cpu") < asked
    assert float(dropped.float().mean()) == pytest.approx(asked, abs=5 * (asked * (1 - asked) / 4000) ** 0.5)
    recorder = Recorder(stage().modules["denoiser"])
    mine = stage(drop=0.0)
    mine.modules["denoiser"] = recorder
    mine.loss(batch(), "denoiser", 0)
    assert recorder.asked[0][3] is None


def test_an_unconditional_denoiser_needs_no_labels() -> None:
    denoiser = Denoiser(UNet(3, 3, 32, [1], 1, attention_factors=[], heads=1), Compose([]))
    mine = DiffusionLoss(denoiser, HalfSize(), Objective("v", LinearSqrtBeta(), "l1"), Draws(0))
    images = {k: v for k, v in batch().items() if k != "label"}
    loss, logs = mine.loss(images, "denoiser", 0)
    assert loss.isfinite() and all(v.isfinite() for v in logs.values())


def test_training_teaches() -> None:
    # Latents that are one fixed pattern per class: the loss must fall well below that of answering zero, which is 1.
    denoiser = Denoiser(UNet(3, 3, 32, [1], 1, attention_factors=[1], heads=1, context_dim=8), ClassLabel(4, dim=8))
    mine = DiffusionLoss(denoiser, HalfSize(), Objective("eps", LinearSqrtBeta()), Draws(0), 0.1)
    pattern = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=2e-3)
    losses = []
    for step in range(60):
        position = torch.arange(32) + 32 * step
        moments = torch.cat([pattern[position % 4], torch.full((32, 3, 4, 4), -9.0)], dim=1)
        loss, _ = mine.loss({"moments": moments, "label": position % 4, "position": position}, "denoiser", 32 * step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(1.0, abs=0.1)  # a new network answers zero
    assert sum(losses[-10:]) / 10 < 0.5


@pytest.mark.parametrize("drop", [-0.1, 1.5])
def test_a_drop_that_is_no_probability_is_named(drop: float) -> None:
    with pytest.raises(ConfigError, match=rf"cond\.drop must be from 0 to 1; got {drop}"):
        stage(drop)
