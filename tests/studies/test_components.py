"""Intervals over retrained cells: their coverage in simulations of the studies' own designs, and closed forms."""

import numpy as np
import pytest
from studies.tables import drawn

from ldmlab.studies.best import best
from ldmlab.studies.components import Nested

TRUTH = {1: 0.3, 2: 0.2, 4: 0.0, 8: 0.05, 16: 0.4}


def hand(y: list[float], arms: str, firsts: str, denoisers: str, images: float = 0.0) -> Nested:
    n = len(y)
    return Nested(tuple(arms), tuple(firsts), tuple(denoisers), (True,) * n, np.array(y), images * np.eye(n))


@pytest.mark.parametrize(
    ("seeds", "first", "denoiser", "images"),
    [
        ((2, 2, 1), 0.08, 0.10, 0.03),  # seeds={first_stage: 2, denoiser: 2}
        ((2, 2, 2), 0.08, 0.10, 0.03),
        ((1, 2, 1), 0.00, 0.10, 0.03),  # the small study: two denoisers an arm
        ((1, 2, 1), 0.00, 0.02, 0.04),  # images say more than seeds
    ],
)  # fmt: skip
def test_the_interval_of_a_difference_covers_the_truth(
    seeds: tuple[int, int, int], first: float, denoiser: float, images: float
) -> None:
    """95 % nominal, 93 to 97 % wanted; the binomial error of 2 400 differences that share cells is about 0.8 %."""
    rng, hits = np.random.default_rng(1), []
    for _ in range(600):
        nested = drawn(rng, TRUTH, seeds, first, denoiser, images).nested({"last": 1.0})
        assert nested is not None
        for f in (2, 4, 8, 16):
            found = nested.contrast({f"kl_f{f}": 1.0, "kl_f1": -1.0})
            assert found is not None
            hits.append(found.low <= TRUTH[f] - TRUTH[1] <= found.high)
    assert 0.93 <= np.mean(hits) <= 0.97, np.mean(hits)


def test_an_interval_over_images_alone_is_too_narrow() -> None:
    """What the combined interval is for: without the seeds it covers a third."""
    rng, hits = np.random.default_rng(2), []
    for _ in range(200):
        nested = drawn(rng, TRUTH).nested({"last": 1.0})
        assert nested is not None
        w_N = nested.weights({"kl_f4": 1.0, "kl_f8": -1.0})
        half = 1.96 * float(np.sqrt(w_N @ nested.covariance_NN @ w_N))
        hits.append(abs(w_N @ nested.y_N - (TRUTH[4] - TRUTH[8])) <= half)
    assert np.mean(hits) < 0.6


def test_the_set_of_best_arms_has_the_best_one_in_it() -> None:
    rng, kept, sizes = np.random.default_rng(3), [], []
    for _ in range(150):
        nested = drawn(rng, TRUTH).nested({"last": 1.0})
        assert nested is not None
        found = best(nested, tuple(f"kl_f{f}" for f in TRUTH))
        assert found is not None and found.lowest in found.kept
        kept.append("kl_f4" in found.kept)
        sizes.append("kl_f16" in found.kept)
    assert np.mean(kept) >= 0.93 and np.mean(sizes) < 0.5  # and what is far is ruled out


def test_balanced_components_are_those_of_the_analysis_of_variance() -> None:
    """Searle et al. 1992, the balanced nested design: sigma_D^2 = MS_D, sigma_A^2 = (MS_A - MS_D) / d."""
    y = [1.0, 1.2, 2.0, 2.4, 5.0, 5.6, 4.0, 4.2]
    nested = hand(y, "ppppqqqq", "00110011", "01010101")
    ms_d = (0.02 + 0.08 + 0.18 + 0.02) / 4
    ms_a = (2 * ((1.1 - 1.65) ** 2 + (2.2 - 1.65) ** 2) + 2 * ((5.3 - 4.7) ** 2 + (4.1 - 4.7) ** 2)) / 2
    assert nested.df_K == (2, 4, 0)
    assert nested.variance_K == pytest.approx([(ms_a - ms_d) / 2, ms_d, 0])
    found = nested.contrast({"p": 1.0})
    assert found is not None and found.value == pytest.approx(1.65) and found.df == pytest.approx(2)  # MS_A alone
    assert (found.high - found.low) / 2 == pytest.approx(4.302653 * (ms_a / 4) ** 0.5, rel=1e-5)


def test_components_are_never_negative_and_unvaried_ones_are_none() -> None:
    nested = hand([1.0, 2.0, 1.0, 2.0], "pppp", "0011", "0101")  # first stages agree exactly
    assert [c.variance for c in nested.components] == [0.0, pytest.approx(0.5), None]
    quiet = hand([1.0, 1.01], "pp", "00", "01", images=1.0)  # the images explain more than there is
    assert [c.variance for c in quiet.components] == [None, 0.0, None]


def test_one_seed_alone_has_no_interval() -> None:
    assert hand([1.0, 2.0], "pq", "00", "00", 0.01).contrast({"p": 1.0, "q": -1.0}) is None
    assert hand([1.0, 2.0], "pp", "00", "00", 0.01).contrast({"p": 1.0}) is None  # sampled twice, trained once


def test_unbalanced_cells_have_the_expected_sums_of_squares() -> None:
    """One failed cell: the moments that the estimates solve for are the mean of many simulated ones."""
    arms, firsts, denoisers = "ppppppqqqqq", "00011122233", "01201201201"
    rng, found = np.random.default_rng(4), []
    for _ in range(400):
        effect = rng.normal(0, 0.3, 4)
        found.append(hand([effect[int(k)] + rng.normal(0, 0.2) for k in firsts], arms, firsts, denoisers)._moments[0])
    expected = hand([0.0] * 11, arms, firsts, denoisers)._moments[1] @ [0.09, 0.04, 0.0]
    assert np.mean(found, axis=0)[:2] == pytest.approx(expected[:2], rel=0.1)


def test_first_stages_alone_stand_for_denoisers_too_and_are_never_too_narrow() -> None:
    """seeds={first_stage: 2}: one variance for both, given to pixels as well, which have less of it."""
    rng, hits = np.random.default_rng(5), []
    for _ in range(300):
        nested = drawn(rng, TRUTH, (2, 1, 1), 0.10, 0.05).nested({"last": 1.0})
        assert nested is not None
        for f, other in ((2, 4), (4, 8), (8, 16), (4, 1)):
            found = nested.contrast({f"kl_f{f}": 1.0, f"kl_f{other}": -1.0})
            assert found is not None
            hits.append(found.low <= TRUTH[f] - TRUTH[other] <= found.high)
    assert np.mean(hits) >= 0.93
