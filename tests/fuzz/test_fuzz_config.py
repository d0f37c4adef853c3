"""All options of all kinds of parts, inside and outside their declarations: accepted and sound, or refused in one good sentence."""

import math
import os
import time

import pytest
from fuzz_judge import Fuzzed, cases, judge, options_of
from fuzz_options import BASE, COMPOSITIONS, HOSTILE, Option, text_of
from hypothesis import HealthCheck, Phase, given, seed, settings

from ldmlab.config.compose import load
from ldmlab.config.values import misfit

CASES = int(os.environ.get("LDMLAB_FUZZ_CASES", "150"))
MINUTES = float(os.environ.get("LDMLAB_FUZZ_MINUTES", "0"))  # make fuzz: batches of cases until the time is over
FIRST = int(os.environ.get("LDMLAB_FUZZ_FIRST", "0"))  # seed of the first batch; another one gives other cases
TRAINED_EVERY = 1 if MINUTES else 25  # of the cases, one in so many is prepared and trained too
QUIET = {"deadline": None, "database": None, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}


def run(number: int, first: int) -> Fuzzed:
    """`number` cases of the batch that `first` seeds."""
    seen = Fuzzed()

    @seed(first)
    @settings(max_examples=number, **QUIET)
    @given(cases())
    def each(case: tuple[list[str], list[str]]) -> None:
        total = seen.counts.total()
        judge(*case, seen, train=total % TRAINED_EVERY == 0)

    each()
    return seen


def test_accepted_and_sound_or_refused_in_one_good_sentence() -> None:
    ends, batch, total = time.monotonic() + 60 * MINUTES, FIRST, Fuzzed()
    while batch == FIRST or time.monotonic() < ends:
        seen = run(CASES, batch)
        total.counts += seen.counts
        total.bad += seen.bad
        batch += 1
        if MINUTES:
            print(f"after {total.counts.total()} cases\n{total.table()}", flush=True)
    assert not total.bad, total.table()
    assert total.counts["accepted"] >= 0.4 * total.counts.total(), total.table()


@pytest.mark.parametrize("which", range(len(COMPOSITIONS)), ids=lambda i: " ".join(COMPOSITIONS[i]) or "default")
def test_every_value_that_stands_in_the_composition_is_accepted_when_typed(which: int) -> None:
    """All options at once, each typed with the value that it has: the completed configuration is the same."""
    before = load([*BASE, *COMPOSITIONS[which]]).cfg
    untyped = {"ldm.network.width"} if before.ldm.budget.parameters is not None else set()
    words = [f"{path}={text_of(option.value)}" for path, option in options_of(which).items() if path not in untyped]
    typed = {word.partition("=")[0] for word in words}
    groups = [w for w in [*BASE, *COMPOSITIONS[which]] if w.partition("=")[0] not in typed]
    assert len(words) > 100
    assert load([*groups, *words]).cfg == before


def test_no_number_is_not_finite() -> None:
    """Whatever an option is, NaN is refused, and so is infinity where a number may stand."""
    numbers = 0
    for which in range(len(COMPOSITIONS)):
        for path, option in options_of(which).items():
            if _takes_numbers(option):
                numbers += 1
                for value in (math.nan, math.inf, -math.inf, [math.nan], 10**15 if "images" not in path else -1):
                    assert misfit(value, option.hint) is not None or "seed" in path or "budget" in path, (path, value)
    assert numbers > 200


def _takes_numbers(option: Option) -> bool:
    return any(word in repr(option.hint) for word in ("int", "float")) and not isinstance(option.value, (bool, str))


def test_the_hostile_words_hold_each_kind() -> None:
    assert {"nan", "inf", "null", "''", "[1,1]", "${nope}", "${seed}"} <= set(HOSTILE)
