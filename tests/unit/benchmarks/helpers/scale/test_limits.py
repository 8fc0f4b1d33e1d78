"""What holds up a cluster, by hand: steps of 640 groups on 40 GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.helpers.scale.limits import (
    GPUS,
    GROUPS_PER_GPU,
    MODES,
    Cluster,
    Costs,
    Mode,
    clusters,
    gpus_to_fill,
    limits,
    table,
    verdict,
)
from medr1_ray.config.loading import load_config
from medr1_ray.sizing.time import Split, StepTime
from tests.repository import REPOSITORY

# Of nothing but the GPUs is there too little.
FREE = Costs(driver_seconds=1e-6, encoder_seconds=1e-6, reward_seconds=1e-6, sent_bytes=0.0)


def cluster(rollout: float = 8.0, update: float = 4.0, sync: float = 2.0, **settings: object) -> Cluster:
    """A step takes the longer of rollout and update, and the sync."""
    given = {"train.prompts_per_step": 640, "data.image_size": 84, "data.encoders": 2, "reward.actors": 3, **settings}
    overrides = [f"{key}={value}" for key, value in given.items()]
    config = load_config([REPOSITORY / "configs" / "phantom_cpu.yaml"], overrides)
    return Cluster(config, Split(10, 30, StepTime(rollout, update, sync, overlapped=True)))


def test_the_rates_of_all_parts() -> None:
    costs = Costs(driver_seconds=0.005, encoder_seconds=0.01, reward_seconds=0.02, sent_bytes=10_000)
    found = limits(cluster(), costs)
    assert found.rates == pytest.approx(
        {
            "engines": 80.0,  # 640 groups in 8 s
            "learner": 160.0,
            "sync": 320.0,
            "driver": 200.0,
            "encoders": 200.0,  # two, 10 ms each
            "images": 1.75e9 / 52_336,  # a second, for two copies of 21,168 bytes, and 10,000 besides
            "rewards": 150.0,
        }
    )
    assert found.step == pytest.approx(64.0)  # 640 groups in 8 s + 2 s
    assert found.together == found.step
    assert found.bottlenecks == ["engines"]


@pytest.mark.parametrize(
    ("seconds", "costs", "lowest", "together"),
    [
        ({}, FREE, "engines", 64.0),
        ({"rollout": 4.0, "update": 8.0}, FREE, "learner", 64.0),
        ({"rollout": 1.0, "update": 1.0, "sync": 9.0}, FREE, "sync", 64.0),
        # Parts beside the GPUs count from where they are slower than the step, not than the engines alone (80).
        ({}, Costs(1 / 70, 1e-6, 1e-6, 0.0), "engines", 64.0),
        ({}, Costs(1 / 50, 1e-6, 1e-6, 0.0), "driver", 50.0),
        ({}, Costs(1 / 50, 2 / 40, 1e-6, 0.0), "encoders", 40.0),
        ({}, Costs(1 / 50, 2 / 40, 3 / 30, 0.0), "rewards", 30.0),
        ({}, Costs(1 / 50, 2 / 40, 3 / 30, 1.75e9 / 20 - 42_336), "images", 20.0),  # bytes besides the pixels
    ],
)
def test_the_slowest_part_is_named(seconds: dict[str, float], costs: Costs, lowest: str, together: float) -> None:
    found = limits(cluster(**seconds), costs)
    assert found.bottlenecks[0] == lowest
    assert found.together == pytest.approx(together)


def test_the_gpus_that_fill_a_driver() -> None:
    # 64 groups a second on 40 GPUs are 1.6 for each: 0.5 ms a group are 2,000 a second, those of 1,250 GPUs.
    assert gpus_to_fill(0.5e-3, cluster()) == 1250
    assert gpus_to_fill(0.5e-3, cluster(rollout=18.0)) == 2500


def test_the_time_of_an_engine() -> None:
    # 640 groups in 8 s on 30 engines.
    assert cluster().engine_seconds == pytest.approx(0.375)


def test_the_verdict_names_each_bottleneck_and_what_to_change() -> None:
    small = cluster()
    # Twice the groups in the same time: 128 a second, of which the encoders do 100 and the driver 110.
    large = cluster(**{"train.prompts_per_step": 1280})
    # Three reward actors do 120, and four what the GPUs can.
    costs = Costs(driver_seconds=1 / 110, encoder_seconds=2 / 100, reward_seconds=3 / 120, sent_bytes=0.0)
    first, second, driver = verdict([small, large], costs)
    assert first == "40 GPUs: the bottleneck is generation in the engines: add GPUs (rollout.actors)"
    # 50 each: three do what the driver can.
    assert second == (
        "40 GPUs: the bottleneck is the encoder actors: set data.encoders=3\n"
        "    then, at 40, the driver: no setting helps, a group must cost it less (medr1_ray/pool)\n"
        "    then, at 40, the reward actors: set reward.actors=4"
    )
    # 3.2 groups a second for each GPU; 110, 1,667 and 5,000 a second.
    assert driver == (
        "the driver is slower than the GPUs from 35 GPUs on at the 9.09 ms a group measured; "
        "from 521 at 0.6 ms, from 1,563 at 0.2 ms"
    )
    assert "0.6" not in verdict([small], FREE)[-1]  # it is there
    assert len(verdict([large, large], costs)) == 2


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_the_shipped_settings_on_every_size(mode: Mode) -> None:
    found = clusters(mode, REPOSITORY / "configs" / "hardware" / "h100_l40s.yaml")
    assert [size.gpus for size in found] == list(GPUS)
    assert [size.config.train.prompts_per_step for size in found] == [GROUPS_PER_GPU * gpus for gpus in GPUS]
    assert {size.config.cluster.weight_transport for size in found} == {"nccl"}
    for size in found:
        assert 1 < limits(size, FREE).step / size.gpus < 20
    # The largest are held up by the pixels even so, which leave one node.
    assert {limits(size, FREE).bottlenecks[0] for size in found[:3]} <= {"engines", "learner", "sync"}
    assert limits(found[-1], FREE).bottlenecks == ["images"]
    header, *rows = table(found, FREE).splitlines()
    assert header.split()[-3:] == ["step", "all", "lowest"]
    assert [re.split(r"\s{2,}", row.strip())[0] for row in rows] == ["8", "16", "64", "256", "1,000"]


def test_hardware_without_rates_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    file.write_text("hardware: {}\n")
    with pytest.raises(ValueError, match=r"hardware.learner.matmul_flops_per_second .* must be set"):
        clusters(MODES[0], file)
