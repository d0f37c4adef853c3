"""Spearman's rank correlation across the cells of a study, plain and partial, with a bootstrap interval over cells.

Shape letters: N cells, R resamples.
"""

from collections.abc import Sequence

import numpy as np

from ldmlab.metrics.intervals import Score, centred, check_bootstrap, interval_text, resamples

FEWEST = 4  # cells


def spearman(
    x: Sequence[float], y: Sequence[float], bootstrap: int, seed: int, given: Sequence[float] | None = None
) -> Score | None:
    """Rank correlation of x and y over N cells; `given`: partial on a third number of each cell, such as f.

    Partial: Pearson's partial correlation of the ranks, (r_xy - r_xg r_yg) / √((1 - r_xg²)(1 - r_yg²)): what x says of y
    among cells of equal g, if ranks depend on g linearly. The interval is over resampled cells; resamples in which it is
    undefined are left out, and the method says how many. None where it is undefined for the cells themselves: x, y all
    equal, or a function of g alone. Raises ValueError for fewer than 4 cells or unequal lengths.
    """
    check_bootstrap(bootstrap)
    columns = [np.asarray(values, dtype=np.float64) for values in (x, y, *([given] if given is not None else []))]
    N = len(columns[0])
    if N < FEWEST or any(len(column) != N for column in columns):
        raise ValueError(
            f"a rank correlation needs {FEWEST} cells and as many of each; got {[len(c) for c in columns]}"
        )
    value = _partial(columns)
    if value is None:
        return None
    drawn = [np.repeat(np.arange(N), counts_N) for counts_N in resamples(N, bootstrap, seed, "cells")]
    found = [_partial([column[rows] for column in columns]) for rows in drawn]
    defined_R = np.array([each for each in found if each is not None])
    low, high = centred(value, defined_R, -1.0, 1.0) if len(defined_R) > 1 else (-1.0, 1.0)
    kind = "Spearman" if given is None else "partial Spearman"
    left_out = f", {len(found) - len(defined_R)} undefined" if len(defined_R) < len(found) else ""
    method = f"{kind} over {N} cells; {interval_text(bootstrap).replace('images', 'cells')}{left_out}"
    return Score(value, low, high, N, method, seed, tuple(map(float, defined_R)), "the cells of studies like this one")


def _partial(columns: list[np.ndarray]) -> float | None:
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(column) for column in columns])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.square(ranks).sum(axis=1))
    if (norms == 0).any():
        if len(columns) < 3 or norms[2] > 0 or (norms[:2] == 0).any():
            return None
        ranks, norms = ranks[:2], norms[:2]  # g is equal in all cells: nothing to hold fixed
    r = (ranks @ ranks.T) / np.outer(norms, norms)
    if len(r) == 2:
        return float(r[0, 1].clip(-1, 1))
    left = (1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)
    return None if left < 1e-9 else float(((r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt(left)).clip(-1, 1))
