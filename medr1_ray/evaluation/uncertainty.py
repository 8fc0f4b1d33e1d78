"""How sure a measured fraction is: intervals by bootstrap over images, and McNemar's exact test of two models.

Questions about one image share its errors, so it is images that are drawn again, each with all of its questions
(the cluster bootstrap; Davison and Hinkley 1997, section 3.8). Legend: N questions, K measures of each, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REPLICATES = 2000
TAIL = 0.025
"""Of each side: intervals are of 95 %."""

FEW_IMAGES = 10
"""With fewer, a bootstrap takes what it has seen for all there is; intervals are then the whole range instead."""

Interval = tuple[float, float]


def bootstrap_means(
    values: NDArray[np.float64], images: Sequence[str], seed: int = 0, replicates: int = REPLICATES
) -> NDArray[np.float64]:
    """Float64 [R, K]: the means of `values` [N, K] over images drawn with replacement, `images` naming each row's.

    All measures of a replicate are of the same images, so that differences of columns are paired.
    """
    _, image_of_row = np.unique(np.asarray(images), return_inverse=True)
    count = int(image_of_row.max()) + 1
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, image_of_row, values)
    sizes = np.bincount(image_of_row)
    generator = np.random.default_rng(seed)
    means = np.empty((replicates, values.shape[1]))
    for replicate in means:  # one at a time: all at once would take images x replicates of memory
        times_drawn = np.bincount(generator.integers(count, size=count), minlength=count)
        replicate[:] = (times_drawn @ sums) / (times_drawn @ sizes)
    return means


def interval(replicates: NDArray[np.float64]) -> Interval:
    """The middle 95 % of replicates [R]."""
    low, high = np.quantile(replicates, [TAIL, 1 - TAIL])
    return float(low), float(high)


def difference_interval(replicates: NDArray[np.float64], images: int) -> Interval:
    """The 95 % interval of a difference of accuracies from its `replicates` [R] over `images` images."""
    return interval(replicates) if images >= FEW_IMAGES else (-1.0, 1.0)


def accuracy_interval(correct: NDArray[np.float64], replicates: NDArray[np.float64], images: int) -> Interval:
    """The 95 % interval of a mean of zeros and ones [N] from its `replicates` [R] over `images` images.

    Where all answers are right, or all wrong, a bootstrap has no width. The exact interval of as many trials as there
    are images (Clopper and Pearson 1934) takes its place: nothing is certain because few images agree.
    """
    bound: float = TAIL ** (1 / images)
    if correct.min() == 1:
        return bound, 1.0
    if correct.max() == 0:
        return 0.0, 1 - bound
    return interval(replicates) if images >= FEW_IMAGES else (0.0, 1.0)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value that two models are right equally often (exact, McNemar 1947).

    Of the questions that one model alone gets right, as many as a fair coin says should be either's: `only_first` and
    `only_second` count them. It takes questions as independent; where several share an image, trust the interval of
    the difference more.
    """
    trials, fewer = only_first + only_second, min(only_first, only_second)
    log_half = trials * math.log(0.5)
    log_ways = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(ways + log_half) for ways in log_ways))
