"""Randomness is a function of position and purpose, however the work is cut."""

import pytest
import torch

from ldmlab.randomness import BLOCK, Draws, ImageNoise, seed_of


def test_seed_of_tells_labels_apart() -> None:
    assert seed_of(1, "a") == seed_of(1, "a")
    seeds = {seed_of(1, "a"), seed_of("1", "a"), seed_of(1, "a", ""), seed_of("1a"), seed_of(11, "a"), seed_of(2, "a")}
    assert len(seeds) == 6
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("cut", [1, 3, 8, 16])
def test_draws_do_not_depend_on_how_positions_are_cut(cut: int) -> None:
    draws = Draws(seed=5)
    whole = draws.randn("eps", torch.arange(3, 51), (2, 3), "cpu")
    pieces = [draws.randn("eps", p, (2, 3), "cpu") for p in torch.arange(3, 51).split(cut)]
    assert torch.equal(whole, torch.cat(pieces))
    assert not torch.equal(whole, draws.randn("t", torch.arange(3, 51), (2, 3), "cpu"))
    assert not torch.equal(whole, Draws(6).randn("eps", torch.arange(3, 51), (2, 3), "cpu"))


def test_draws_are_standard_and_independent_across_blocks() -> None:
    x = Draws(0).randn("eps", torch.arange(4096 * BLOCK // 8), (8,), "cpu").double()
    assert abs(x.mean()) < 4 / x.numel() ** 0.5
    assert abs(x.var() - 1) < 4 * (2 / x.numel()) ** 0.5
    rows = x[: len(x) // BLOCK * BLOCK].reshape(-1, BLOCK * 8)
    correlation = torch.corrcoef(rows[:64]) - torch.eye(64, dtype=torch.float64)
    assert correlation.abs().max() < 6 / rows.shape[1] ** 0.5
    u = Draws(0).rand("t", torch.arange(10_000), (), "cpu")
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.02


def test_positions_must_be_consecutive() -> None:
    with pytest.raises(ValueError, match="consecutive"):
        Draws(0).rand("t", torch.tensor([0, 2]), (), "cpu")


def test_image_noise_belongs_to_the_image() -> None:
    seeds = list(range(16))
    many, one = ImageNoise(seeds, (3, 4, 4)), ImageNoise([7], (3, 4, 4))
    for _ in range(3):
        assert torch.equal(many()[7], one()[0])
