"""Group-relative advantages: what makes a reward better or worse than the others of its group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-4
"""Added to the standard deviation, as Med-R1 does; DeepSeek-Math (arXiv 2402.03300) divides by it alone."""


def group_advantages(rewards: NDArray[np.float32], std: bool) -> NDArray[np.float32]:
    """Advantages of one group: (r - mean) / (unbiased std + 1e-4), or r - mean where `std` is off.

    GRPO (Shao et al., arXiv 2402.03300, section 4.1.2); without the division Dr. GRPO (arXiv 2503.20783, section 3.2).

    Args:
        rewards: float32 [G], finite.

    Returns float32 [G]. A group whose rewards are all equal gets exactly 0: the float mean of equal numbers need not
    equal them.
    """
    if rewards.max() == rewards.min():
        return np.zeros_like(rewards)
    # In float64, so that the result is rounded once.
    wide = rewards.astype(np.float64)
    advantages = wide - wide.mean()
    if std:
        advantages /= wide.std(ddof=1) + EPSILON
    return np.asarray(advantages, np.float32)
