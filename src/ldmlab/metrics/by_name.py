"""Scores of named metrics with their usual settings, for callers that hold names and two sets of features."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ldmlab.metrics.evaluate import Scores
from ldmlab.metrics.evaluate import evaluate as evaluate_metrics
from ldmlab.metrics.extraction import extract_all as extract_by_ranks
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.metric import OPTIONS, Inputs, available, check
from ldmlab.metrics.standard import standard
from ldmlab.store.ranks import Ranks


def check_metrics(metrics: Sequence[str], option: str = "eval.metrics") -> None:
    """Raises ConfigError naming `option` for an empty list, a repeated or an unknown metric."""
    standard(metrics, option)


def evaluate(
    samples: FeatureSet,
    reference: FeatureSet,
    metrics: list[str],
    bootstrap: int,
    seed: int,
    options: tuple[str, str] = OPTIONS,
) -> Scores:
    """Scores of generated images against reference images, features of the same extractor."""
    inputs = Inputs(bootstrap=bootstrap, seed=seed, samples=samples, reference=reference, options=options)
    offered = available(logits=samples.logits is not None, classes_of_data=False)
    return evaluate_metrics(check(standard(metrics), offered), inputs)


def extract_all(
    read: Callable[[list[int]], Tensor],
    n: int,
    extractor: nn.Module,
    folder: Path,
    batch_size: int,
    device: torch.device,
    rank: int,
    ranks: int,
    barrier: Callable[[], None],
    progress: Callable[[int], None],
    name: str = "features",
) -> FeatureSet:
    """`extraction.extract_all` with a process's place among the ranks spelled out."""
    one = Ranks(rank, ranks, barrier, lambda _name, _total: progress)
    return extract_by_ranks(read, n, extractor, folder, batch_size, device, one, name)
