"""Randomness is a function of position and purpose, however and wherever the work is cut."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtri
from torch import Tensor

from ldmlab.randomness import (
    WORD,
    Draws,
    ImageNoise,
    minus_log,
    normal,
    philox,
    rounded_sqrt,
    seed_of,
    stratified,
    uniform,
)


def test_seed_of_tells_labels_apart() -> None:
    assert seed_of(1, "a") == seed_of(1, "a")
    seeds = {seed_of(1, "a"), seed_of("1", "a"), seed_of(1, "a", ""), seed_of("1a"), seed_of(11, "a"), seed_of(2, "a")}
    assert len(seeds) == 6
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([WORD] * 4, [WORD] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: list[int], key: list[int], wanted: str) -> None:
    def column(*words: int) -> Tensor:
        return torch.tensor(words)[:, None, None]

    found = philox(column(counter[0], counter[2]), column(counter[1], counter[3]), column(*key))
    assert " ".join(f"{word:08x}" for word in found.flatten().tolist()) == wanted


def test_normal_is_the_quantile_of_the_word_with_both_tails_alike() -> None:
    rng = torch.Generator().manual_seed(0)
    word = torch.cat([torch.randint(2**32, (200_000,), generator=rng), torch.arange(1000), 2**31 + torch.arange(-9, 9)])
    wanted = torch.from_numpy(ndtri((word.numpy() + 0.5) / 2**32))
    found = normal(word)
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert (found - wanted).abs().max() < 3e-6
    assert torch.equal(normal(WORD - word), -found)
    assert abs(float(found.abs().max()) - 6.338) < 1e-3


def test_minus_log_is_the_logarithm() -> None:
    p = torch.logspace(-10, -0.3, 10_000)
    assert ((minus_log(p) + p.double().log()) / p.double().log()).abs().max() < 3e-7


def test_roots_are_rounded_as_numpy_rounds_them_whatever_the_length() -> None:
    """MKL's are not, and which are wrong depends on the CPU: then normal numbers would too."""
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 40
    assert torch.equal(rounded_sqrt(x), torch.from_numpy(np.sqrt(x.numpy())))
    word = torch.arange(2**32 - 50_000, 2**32)  # the far tail, where there is a root
    assert torch.equal(normal(word), torch.cat([normal(part) for part in word.split(3)]))


def test_uniform_stays_below_one() -> None:
    assert uniform(torch.tensor([0, 255, 256, WORD])).tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]


def test_golden_numbers_of_every_kind_of_draw() -> None:
    """Fixed to the last bit: on another device or with another release of torch these are the same numbers."""
    position = torch.arange(2**33, 2**33 + 2)
    assert Draws(5).rand("t", position, (), "cpu").tolist() == GOLDEN["rand"]
    assert Draws(5).randn("eps", position, (3,), "cpu").flatten().tolist() == GOLDEN["randn"]
    noise = ImageNoise([7, 2**63 - 1], (2,))
    assert [noise().flatten().tolist(), noise().flatten().tolist()] == GOLDEN["image"]


@pytest.mark.parametrize("cut", [1, 3, 8, 16])
def test_draws_do_not_depend_on_how_positions_are_cut(cut: int) -> None:
    draws = Draws(seed=5)
    whole = draws.randn("eps", torch.arange(3, 51), (2, 3), "cpu")
    pieces = [draws.randn("eps", p, (2, 3), "cpu") for p in torch.arange(3, 51).split(cut)]
    assert torch.equal(whole, torch.cat(pieces))
    assert not torch.equal(whole, draws.randn("t", torch.arange(3, 51), (2, 3), "cpu"))
    assert not torch.equal(whole, Draws(6).randn("eps", torch.arange(3, 51), (2, 3), "cpu"))


def test_draws_are_standard_and_independent_across_positions() -> None:
    x = Draws(0).randn("eps", torch.arange(40_000), (16,), "cpu").double()
    assert abs(x.mean()) < 4 / x.numel() ** 0.5
    assert abs(x.var() - 1) < 4 * (2 / x.numel()) ** 0.5
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
    rows = x.reshape(-1, 10_000)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows), dtype=torch.float64)
    assert correlation.abs().max() < 5 / rows.shape[1] ** 0.5
    for lag in (1, 2, 3, 4, 16, 64):  # neighbours in a row, in a block of four, in the next rows
        flat = x.flatten()
        assert abs(float((flat[lag:] * flat[:-lag]).mean())) < 4.5 / len(flat) ** 0.5
    u = Draws(0).rand("t", torch.arange(100_000), (), "cpu")
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3


def test_positions_must_be_consecutive() -> None:
    with pytest.raises(ValueError, match="consecutive"):
        Draws(0).rand("t", torch.tensor([0, 2]), (), "cpu")


def test_stratified_numbers_fill_each_part_once_and_stay_below_one() -> None:
    u = stratified(Draws(3), "t", torch.arange(0, 4096), 64)
    assert u.dtype == torch.float32 and u.min() >= 0 and u.max() < 1
    turned = (u.view(-1, 64) - u.view(-1, 64)[:, :1]) % 1.0  # from the group's own uniform number
    wanted = np.arange(64) / 64
    assert np.abs(turned.numpy() - wanted).min(axis=0).max() < 1e-6
    pieces = [stratified(Draws(3), "t", p, 64) for p in torch.arange(0, 4096).split(100)]
    assert torch.equal(u, torch.cat(pieces))


def test_image_noise_belongs_to_the_image() -> None:
    seeds = list(range(16))
    many, one = ImageNoise(seeds, (3, 4, 4)), ImageNoise([7], (3, 4, 4))
    drawn = []
    for _ in range(3):
        drawn.append(many())
        assert torch.equal(drawn[-1][7], one()[0])
    x = torch.stack(drawn).flatten(1)
    assert torch.corrcoef(x).fill_diagonal_(0).abs().max() < 5 / math.sqrt(x.shape[1])


GOLDEN = {
    "rand": [0.450428307056427, 0.1784563660621643],
    "randn": [
        -1.3116270303726196,
        -1.6912795305252075,
        -0.24298536777496338,
        -0.948535680770874,
        0.006736947689205408,
        2.7757318019866943,
    ],
    "image": [
        [-0.4074539244174957, 0.6992963552474976, 1.3503092527389526, 0.7452811598777771],
        [0.8113009333610535, -0.405892938375473, 0.8531238436698914, 0.4286988377571106],
    ],
}
