"""`compare=convolution`: each way is measured, and the table names the one that the networks take."""

import pytest

from ldmlab.bench import convolution
from ldmlab.bench.command import run
from ldmlab.config.compose import load
from ldmlab.networks import convolution as networks


@pytest.mark.parametrize("amx", [True, False])
def test_the_table_names_the_way_in_use(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "has_amx", lambda: amx)
    monkeypatch.setattr(
        convolution, "SHAPES", [convolution.MapShape(2, 16, "few"), convolution.MapShape(8, 16, "many")]
    )
    words = ["compare=convolution", "bench.rounds=2", "runtime.threads=1"]
    rows = run(load(words).cfg, "python src/bench.py " + " ".join(words)).rows
    whats = ["convolution, forward", "convolution, training", "linear map, forward"]
    assert [(row["side"], row["dtype"], row["what"]) for row in rows] == [
        (side, dtype, what) for side in (2, 8) for dtype in ("float32", "bfloat16") for what in whats
    ]
    low = "product" if amx else "convolution"
    assert [row["chosen"] for row in rows] == [
        "convolution", "convolution", "copied", low, low, "copied",
        "convolution", "convolution", "not copied", "convolution", "convolution", "copied",
    ]  # fmt: skip
    assert all(row["usual_seconds"] > 0 and row["other_seconds"] > 0 for row in rows)
