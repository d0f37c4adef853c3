"""`compare=kv_cache`: both ways are one function, and each is measured."""

import pytest

from ldmlab.bench import kv_cache as keys
from ldmlab.bench.command import run
from ldmlab.config.compose import load
from ldmlab.networks.dit import DiT


def test_kept_and_read_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"small": (lambda: DiT(4, 4, width=32, blocks=1, heads=2, patch=2, context_dim=512), 4, 8)}
    monkeypatch.setattr(keys, "NETWORKS", small)
    words = ["compare=kv_cache", "bench.rounds=1", "runtime.threads=1"]
    rows = run(load(words).cfg, "python src/bench.py " + " ".join(words)).rows
    assert [row["tokens"] for row in rows] == [1, 77]
    assert all(row["difference"] < 1e-5 and row["kept_seconds"] > 0 and row["read_seconds"] > 0 for row in rows)
