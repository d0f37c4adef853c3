"""runtime.channels_last, runtime.workers: as given, or what is faster."""

import pytest
import torch
from omegaconf import OmegaConf

from ldmlab.config import execution
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("word", "precision", "want"),
    [("auto", "fp32", True), ("auto", "bf16", False), ("true", "bf16", True), ("false", "fp32", False)],
)
def test_words(word: str, precision: str, want: bool) -> None:
    cfg = load(["debug=tiny", f"runtime.channels_last={word}"]).cfg
    assert execution.channels_last(cfg, CPU, precision) is want


@pytest.mark.parametrize(
    ("word", "device", "read_at_once", "ranks", "want"),
    [("auto", "cpu", False, 1, 0), ("auto", "cuda", True, 1, 0), ("auto", "cuda", False, 1, 8), ("auto", "cuda", False, 8, 3),
     ("3", "cpu", True, 1, 3)],
)  # fmt: skip
def test_who_reads_ahead(
    word: str, device: str, read_at_once: bool, ranks: int, want: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of 32 cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(32))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    cfg = OmegaConf.create({"runtime": {"workers": word}})
    assert execution.workers(cfg, torch.device(device), read_at_once) == want


def test_other_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.channels_last must be one of auto, true, false; got 'fast'"):
        load(["debug=tiny", "runtime.channels_last=fast"])
