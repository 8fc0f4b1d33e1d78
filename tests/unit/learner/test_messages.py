"""What ranks are started with and report, and how their parts add up."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path

from medr1_ray.config import Config
from medr1_ray.learner.messages import Gap, PolicyStatistics, RankSettings, TokenSums


def test_a_rank_gets_the_sections_that_it_reads_and_they_travel() -> None:
    config = Config.model_validate(
        {
            "run": {"dir": Path("run")},
            "data": {"format": "phantoms", "root": Path("data")},
            "model": {"lora": {"rank": 4}, "dtype": "bfloat16"},
            "train": {"steps": 9, "seed": 3},
            "rollout": {"temperature": 0.7},
            "loss": {"kl_beta": 0.5},
            "reference": {"placement": "cpu"},
            "learner": {"world_size": 2, "zero_stage": 2},
            "cluster": {"sync_timeout_seconds": 11},
        }
    )
    settings = pickle.loads(pickle.dumps(RankSettings.of(config)))
    assert settings == RankSettings.of(config)
    assert settings.model.lora.rank == 4
    assert (settings.train.steps, settings.train.seed, settings.temperature) == (9, 3, 0.7)
    assert (settings.loss.kl_beta, settings.reference.placement, settings.takes_kl) == (0.5, "cpu", True)
    assert (settings.learner.world_size, settings.cluster.sync_timeout_seconds) == (2, 11)
    supervised = config.model_copy(update={"objective": "sft"})
    assert not RankSettings.of(supervised).takes_kl


def test_sums_add_and_maxima_stay() -> None:
    one = TokenSums(4, 1.5, 1, 2, 3.0, 1, 0.5, 2, 0.25, 0.125, 2, 1.0)
    other = TokenSums(6, 1.25, 10, 20, 30.0, 10, 5.0, 3, 2.5, 0.5, 3, 10.0)
    total = TokenSums(10, 1.5, 11, 22, 33.0, 11, 5.5, 5, 2.75, 0.5, 5, 11.0)
    assert one + other == other + one == total
    assert one + TokenSums() == one, "nothing changes nothing, maxima included"
    assert TokenSums().ratio_max == -math.inf
    broken = replace(one, gap_max=math.nan)
    assert math.isnan((broken + other).gap_max)
    assert math.isnan((other + broken).gap_max)


def test_gaps_are_joined_by_their_tokens() -> None:
    # (3 * 1 + 1 * 5) / 4 tokens.
    assert Gap(1.0, 4.0, 3) + Gap(5.0, 5.0, 1) == Gap(2.0, 5.0, 4)
    assert Gap(1.0, 4.0, 3) + Gap() == Gap() + Gap(1.0, 4.0, 3) == Gap(1.0, 4.0, 3)
    assert Gap() + Gap() == Gap() == Gap(0.0, 0.0, 0)
    for gap in (Gap(math.nan, math.nan, 1) + Gap(1.0, 1.0, 1), Gap(1.0, 1.0, 1) + Gap(math.nan, math.nan, 1)):
        assert math.isnan(gap.mean)
        assert math.isnan(gap.max)


def test_the_gap_of_an_update_is_that_of_its_own_version() -> None:
    statistics = PolicyStatistics(1.0, 0.0, 0.0, 1.0, 0.0, None, 4, 1e-6, 1e-5, 0.5)
    assert Gap.of(statistics) == Gap(1e-6, 1e-5, 4)
    of_older_ones_only = PolicyStatistics(1.0, 0.0, 0.0, 1.0, 0.0, None, 0, None, None, 0.5)
    assert Gap.of(of_older_ones_only) == Gap(0.0, 0.0, 0)
