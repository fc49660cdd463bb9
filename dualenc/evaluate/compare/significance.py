"""Is the difference between two encoders on the same queries more than chance? Paired tests by clusters. Numpy only.

If two encoders were alike, each image's difference could as well have had the other sign: the p value is the share of
sign patterns whose total lies as far from 0 as the one that was seen (Fisher's randomisation test; Good, Permutation,
Parametric and Bootstrap Tests of Hypotheses, 3rd ed. 2005, section 3; Efron & Tibshirani, An Introduction to the
Bootstrap, chapter 15). An image keeps one sign for all of its captions, which succeed and fail together: McNemar's exact
test would take five captions for five independent queries. Where each image asks once, the two are the same test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.intervals import clusters
from dualenc.evaluate.ranks import Floats

PATTERNS = 9999  # sign patterns drawn: the least p value is 1 / 10,000
_SIGNS = 1 << 22  # signs held at once


def sign_flip_test(
    difference: npt.ArrayLike, cluster: npt.ArrayLike | None = None, patterns: int = PATTERNS, seed: int = 0
) -> float:
    """Two-sided p value of a mean difference of 0, by sign flips of whole clusters.

    difference (Q,): what one encoder scored less what the other did, query by query. cluster (Q,): queries that share a
    sign; None: each its own. Where the clusters that differ have no more than `patterns` sign patterns, all are
    counted, and p is exact; else `patterns` are drawn, and p = (1 + as far) / (1 + drawn), which is never 0 (Phipson &
    Smyth 2010). The result depends on (seed, differences) alone. No difference at all: 1.

    >>> sign_flip_test([1, 1, 1, 1, 1, 0, 0])  # 2 of 32 patterns are as far from 0
    0.0625
    """
    difference = np.asarray(difference, np.float64)
    number, size = clusters(cluster, len(difference))
    total = np.bincount(number, difference, minlength=len(size))  # (C,) what an image's sign turns
    total = total[total != 0]  # others count alike whatever their sign
    if not len(total):
        return 1.0
    seen = abs(float(total.sum()))
    bound = seen - 1e-9 * float(np.abs(total).sum())  # equal sums, added in another order, are as far
    if 2.0 ** len(total) <= patterns + 1:
        return float((np.abs(_every_sum(total)) >= bound).mean())
    rng = np.random.default_rng(seed)
    block, far = max(1, _SIGNS // len(total)), 0
    for start in range(0, patterns, block):
        signs = 2.0 * rng.integers(0, 2, (min(block, patterns - start), len(total)), dtype=np.int8) - 1
        far += int((np.abs(signs @ total) >= bound).sum())
    return (1 + far) / (1 + patterns)


def _every_sum(total: Floats) -> Floats:
    """The sums of all 2^C sign patterns."""
    sums = np.zeros(1)
    for value in total:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for there being several (Holm 1979): below 0.05 all of them, with an error of 5 % for any.

    >>> [round(value, 6) for value in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()
