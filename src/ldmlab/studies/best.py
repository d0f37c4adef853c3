"""Which arm is best, and which cannot be ruled out as the best."""

from dataclasses import dataclass

import numpy as np

from ldmlab.studies.components import LEVEL, Nested

DRAWS = 20_000


@dataclass(frozen=True)
class Best:
    """lowest: the arm with the lowest mean. kept: the arms that cannot be ruled out, a set that has the best arm in it in 95 %
    of studies. share: of the draws of the parametric bootstrap in which an arm was the lowest.
    """

    lowest: str
    kept: tuple[str, ...]
    share: dict[str, float]


def best(nested: Nested, arms: tuple[str, ...]) -> Best | None:
    """The confidence set of the arm with the lowest mean; None where nothing was trained twice or there is one arm.

    Parametric bootstrap over arm means: an arm is ruled out when it lies further above some other arm, in standard errors of
    their difference, than the largest of these distances does in 95 % of draws in which all arms are equal (subset selection
    after Gupta, with unequal variances).
    """
    if len(arms) < 2 or not nested.retrained:
        return None
    w_AN = np.array([nested.weights({arm: 1.0}) for arm in arms])
    mean_A, covariance_AA = w_AN @ nested.y_N, w_AN @ nested.variance_NN() @ w_AN.T
    differences = [w_AN[i] - w_AN[j] for i in range(len(arms)) for j in range(i)]
    df = min(1e6, *(nested.df_of(d_N) for d_N in differences), nested.df_of(differences[0]))
    rng = np.random.default_rng(0)
    draws_DA = rng.multivariate_normal(np.zeros(len(arms)), covariance_AA, DRAWS, method="eigh")
    draws_DA *= np.sqrt(df / rng.chisquare(df, DRAWS))[:, None]
    variance_A = np.diag(covariance_AA)
    se_AA = np.sqrt(np.maximum(variance_A[:, None] + variance_A[None, :] - 2 * covariance_AA, 1e-24))
    off_AA = ~np.eye(len(arms), dtype=bool)
    kept = []
    for i, arm in enumerate(arms):
        others = off_AA[i]
        limit = np.quantile(((draws_DA[:, [i]] - draws_DA) / se_AA[i])[:, others].max(1), LEVEL)
        if ((mean_A[i] - mean_A) / se_AA[i])[others].max() <= limit:
            kept.append(arm)
    lowest_D = (mean_A + draws_DA).argmin(1)
    share = {arm: float((lowest_D == i).mean()) for i, arm in enumerate(arms)}
    return Best(arms[int(mean_A.argmin())], tuple(kept), share)
