"""Confidence intervals of accuracies by bootstrap over images, and McNemar's exact test of two models.

Errors on questions about the same image are correlated, so images are resampled, each with all of its questions
(the cluster bootstrap; Davison and Hinkley 1997, section 3.8). Shapes: N questions, K measures of each, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REPLICATES = 2000
TAIL = 0.025
"""Probability of each tail: intervals are 95 % intervals."""

FEW_IMAGES = 10
"""With fewer images a bootstrap treats the sample as the whole population; intervals are then the whole range."""

Interval = tuple[float, float]


def bootstrap_means(
    values: NDArray[np.float64], images: Sequence[str], seed: int = 0, replicates: int = REPLICATES
) -> NDArray[np.float64]:
    """Return float64 [R, K]: means of `values` [N, K] over images drawn with replacement; `images` names each row's.

    All measures of a replicate use the same images, so that differences of columns are paired.
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
        # A ratio of sums: images have different numbers of questions, so replicates differ in size.
        replicate[:] = (times_drawn @ sums) / (times_drawn @ sizes)
    return means


def interval(replicates: NDArray[np.float64]) -> Interval:
    """Return the central 95 % of replicates [R]."""
    low, high = np.quantile(replicates, [TAIL, 1 - TAIL])
    return float(low), float(high)


def difference_interval(replicates: NDArray[np.float64], images: int) -> Interval:
    """Return the 95 % interval of a difference of accuracies, from its `replicates` [R] over `images` images."""
    return interval(replicates) if images >= FEW_IMAGES else (-1.0, 1.0)


def accuracy_interval(correct: NDArray[np.float64], replicates: NDArray[np.float64], images: int) -> Interval:
    """Return the 95 % interval of a mean of zeros and ones [N], from its `replicates` [R] over `images` images.

    If all answers are right, or all wrong, the bootstrap interval has no width. It is replaced by the exact interval
    for as many trials as there are images (Clopper and Pearson 1934): agreement of a few images proves little.
    """
    # Solves bound^images = TAIL, the exact limit where all of `images` trials agree.
    bound: float = TAIL ** (1 / images)
    if correct.min() == 1:
        return bound, 1.0
    if correct.max() == 0:
        return 0.0, 1 - bound
    return interval(replicates) if images >= FEW_IMAGES else (0.0, 1.0)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the hypothesis that two models are right equally often (exact, McNemar 1947).

    `only_first` and `only_second` count the questions that only one of the models gets right; under the hypothesis they
    divide like tosses of a fair coin. The test assumes independent questions; where several share an image, trust the
    interval of the difference more.
    """
    trials, fewer = only_first + only_second, min(only_first, only_second)
    # In logarithms, since binomial coefficients of thousands of trials overflow a float.
    log_half = trials * math.log(0.5)
    log_ways = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(ways + log_half) for ways in log_ways))
