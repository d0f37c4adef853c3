"""The two look-ups agree, and only one of them grows with the batch."""

import pytest
import torch

from ldmlab.autoencoders.regularisers.vq import nearest
from ldmlab.bench.codebook import compare_codebook, differing, naive
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError


def test_indices_are_identical() -> None:
    torch.manual_seed(0)
    h_MC, code_KC = torch.randn(3000, 4), torch.randn(2048, 4)
    assert torch.equal(nearest(h_MC.double(), code_KC.double()), naive(h_MC.double(), code_KC.double()))
    assert differing(h_MC, code_KC) == 0


def test_memory_does_not_grow_with_the_batch() -> None:
    words = ["ae=vq_f8", "data.resolution=256", "bench.rounds=1", "ae.regulariser.codes=8192"]
    report = [
        compare_codebook(load([*words, f"bench.batch_size={b}"]).cfg, [], torch.device("cpu")).rows[0] for b in (1, 3)
    ]
    assert report[1]["ours_bytes"] < 1.05 * report[0]["ours_bytes"] < report[0]["peer_bytes"]
    assert report[1]["peer_bytes"] == pytest.approx(3 * report[0]["peer_bytes"], rel=0.01)
    assert all(row["differing"] == 0 for row in report)


def test_no_codebook() -> None:
    with pytest.raises(ConfigError, match="add ae=vq_f8"):
        compare_codebook(load(["compare=codebook"]).cfg, [], torch.device("cpu"))
