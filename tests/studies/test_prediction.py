"""What longer training would bring: a power law is met exactly, its interval covers, and no snapshot at half means no prediction."""

import math

import numpy as np
import pytest
from studies.tables import drawn

from ldmlab.studies.cells import CellTable
from ldmlab.studies.prediction import predict


def falling(slope: dict[int, float], at_end: dict[int, float], share: float = 0.5, **spread: float) -> CellTable:
    """ln FID = at_end - slope ln(images / all images) of each f."""
    shares = {s: {f: -slope[f] * math.log(s) for f in slope} for s in (share, 1.0)}
    known = {"first": 0.0, "denoiser": 1e-6, "images": 1e-9} | spread
    return drawn(np.random.default_rng(0), at_end, (2, 2, 1), shares=shares, **known)


@pytest.mark.parametrize("share", [0.4, 0.5])
@pytest.mark.parametrize("times", [1.5, 2.0, 10.0])
def test_a_power_law_is_continued_exactly(share: float, times: float) -> None:
    """f = 2 is behind at the end and falls faster: it is ahead after ten times the images, not after one and a half."""
    slope, at_end = {2: 0.9, 4: 0.5, 8: 0.1}, {2: 3.5, 4: 3.2, 8: 3.4}
    found = predict(falling(slope, at_end, share), times)
    assert found is not None and found.images == round(48_000 * times)
    for arm, interval in found.arms:
        assert interval.value == pytest.approx(at_end[arm.f] - slope[arm.f] * math.log(times), abs=1e-4)
    assert found.best.lowest == ("kl_f2" if times == 10.0 else "kl_f4") and found.best.kept == (found.best.lowest,)


def test_without_a_snapshot_at_half_or_a_second_seed_there_is_none() -> None:
    assert predict(falling({2: 0.5, 4: 0.5}, {2: 3.0, 4: 3.1}, share=0.1)) is None
    shares = {0.5: {2: 0.3, 4: 0.3}, 1.0: {}}
    assert predict(drawn(np.random.default_rng(0), {2: 3.0, 4: 3.1}, (1, 1, 1), shares=shares)) is None


def test_intervals_cover_what_another_training_would_be_at_twice() -> None:
    """Seeds shift a whole curve: 95 % intervals of four arms, drawn 150 times, cover the arms' true means in 92 to 98.5 %."""
    slope, at_end = {2: 0.7, 4: 0.5, 8: 0.3, 16: 0.1}, {2: 3.5, 4: 3.2, 8: 3.4, 16: 4.0}
    shares = {s: {f: -slope[f] * math.log(s) for f in slope} for s in (0.5, 1.0)}
    hits = []
    for seed in range(150):
        found = predict(drawn(np.random.default_rng(seed), at_end, (2, 2, 1), shares=shares))
        assert found is not None
        truth = [at_end[arm.f] - slope[arm.f] * math.log(2) for arm, _ in found.arms]
        hits += [interval.low < y < interval.high for y, (_, interval) in zip(truth, found.arms, strict=True)]
    assert 0.92 < np.mean(hits) < 0.985
