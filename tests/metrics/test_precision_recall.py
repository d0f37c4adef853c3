"""Precision and recall: toy sets that tell generated from real, torch-fidelity as oracle, bounded memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ldmlab.errors import ConfigError
from ldmlab.metrics import precision_recall
from ldmlab.metrics.precision_recall import membership, precision_recall_scores


def test_generated_first_real_second():
    """A generator stuck on one of two real modes: everything it makes is real (precision 1), half is missed (recall 0.5)."""
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((200, 4)), rng.standard_normal((200, 4)) + 100
    generated, real = one[:100] + 1e-3, np.concatenate([one, other])
    scores = precision_recall_scores(generated.astype(np.float32), real.astype(np.float32), 100, 0)
    assert scores["precision"].value == 1
    assert scores["recall"].value <= 0.5
    swapped = precision_recall_scores(real.astype(np.float32), generated.astype(np.float32), 100, 0)
    assert swapped["precision"].value <= 0.5 and swapped["recall"].value == 1
    assert scores["precision"].low < 1 == scores["precision"].high  # no false certainty at the border


def test_a_set_against_itself():
    x = np.random.default_rng(1).standard_normal((50, 3)).astype(np.float32)
    found = membership(x, x)
    assert found.precise.all() and found.recalled.all()


@pytest.mark.parametrize("block", [1 << 25, 5000])
def test_equal_to_torch_fidelity(monkeypatch, block):
    from torch_fidelity.metric_prc import prc_features_to_metric

    monkeypatch.setattr(precision_recall, "BLOCK", block)
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((700, 24)), rng.standard_normal((900, 24)) * 1.1 + 0.1
    expected = prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), prc_neighborhood=3, verbose=False)
    found = membership(x, y)
    assert found.precise.mean() == pytest.approx(expected["precision"], abs=1e-7)
    assert found.recalled.mean() == pytest.approx(expected["recall"], abs=1e-7)
    assert 0.1 < found.precise.mean() < 0.99 and 0.1 < found.recalled.mean() < 0.99  # or the test would say nothing


@pytest.mark.slow
def test_memory_is_one_block():
    """10 000 x 10 000 distances are 400 MB in float32; with blocks of 32 MB (of 128 for the customary numbers of images) the
    peak above the start must stay below a third of one matrix.
    """
    code = (
        "import resource, numpy as np\n"
        "from ldmlab.metrics import precision_recall\n"
        "membership, precision_recall.BLOCK = precision_recall.membership, precision_recall.BLOCK // 4\n"
        "rng = np.random.default_rng(0)\n"
        "x, y = (rng.standard_normal((10_000, 8)).astype('f') for _ in range(2))\n"
        "membership(x[:2000], y[:2000])\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); membership(x, y); print(peak() - before)\n"
    )
    grown = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 133, f"{grown:.0f} MB"


def test_too_few_images():
    x = np.random.default_rng(3).standard_normal((10, 2)).astype(np.float32)
    with pytest.raises(ConfigError, match=r"eval\.samples=3: .* k=3 need at least 4"):
        membership(x[:3], x)
    with pytest.raises(ConfigError, match=r"eval\.reference\.images=3"):
        membership(x, x[:3])
    membership(x[:4], x[:4])
