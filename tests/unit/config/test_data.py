"""Settings of the data that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.config import DataSettings


def test_limits_without_rates_and_the_wrong_way_round() -> None:
    with pytest.raises(ValueError, match=r"data\.pass_rates=None with data\.min_pass_rate=0\.1, .*together"):
        DataSettings(format="phantoms", root="x", min_pass_rate=0.1)
    with pytest.raises(ValueError, match=r"data\.pass_rates=online with .*data\.max_pass_rate=1\.0.*together"):
        DataSettings(format="phantoms", root="x", pass_rates="online")
    with pytest.raises(ValueError, match=r"data\.min_pass_rate=0\.8 is above data\.max_pass_rate=0\.2"):
        DataSettings(format="phantoms", root="x", pass_rates="r", min_pass_rate=0.8, max_pass_rate=0.2)


def test_questions_of_one_pass_rate_alone_may_be_wanted() -> None:
    settings = DataSettings(format="phantoms", root="x", pass_rates="online", min_pass_rate=0.5, max_pass_rate=0.5)
    assert settings.online_pass_rate_limits == (0.5, 0.5)


def test_online_is_no_file() -> None:
    settings = DataSettings(format="phantoms", root="x", pass_rates="online", min_pass_rate=0.1)
    assert settings.online_pass_rate_limits == (0.1, 1.0)
    of_file = DataSettings(format="phantoms", root="x", pass_rates="rates.jsonl", min_pass_rate=0.1)
    assert of_file.pass_rates == Path("rates.jsonl")
    assert of_file.online_pass_rate_limits is None
