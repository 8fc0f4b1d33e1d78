"""Prices of hardware."""

from __future__ import annotations

import pytest

from medr1_ray.config import Device, HardwareSettings


def test_the_price_of_all_devices_needs_both_prices() -> None:
    priced = HardwareSettings(learner=Device(price_per_hour=4), rollout=Device(price_per_hour=1.5))
    # 2 * 4 + 3 * 1.5; a rank may have half a device.
    assert priced.price_per_hour(2, 3) == pytest.approx(12.5)
    assert priced.price_per_hour(0.5, 0) == pytest.approx(2)
    free = HardwareSettings(learner=Device(price_per_hour=0), rollout=Device(price_per_hour=1.5))
    assert free.price_per_hour(2, 3) == pytest.approx(4.5), "nothing is a price, too"
    assert HardwareSettings(learner=Device(price_per_hour=4)).price_per_hour(2, 3) is None
    assert HardwareSettings(rollout=Device(price_per_hour=4)).price_per_hour(2, 3) is None
