"""runtime.channels_last: true, false, or what is faster."""

import pytest
import torch

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


def test_other_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.channels_last must be one of auto, true, false; got 'fast'"):
        load(["debug=tiny", "runtime.channels_last=fast"])
