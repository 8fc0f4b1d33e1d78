"""The modes that a cluster allows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.helpers.cluster.modes import Mode, modes
from benchmarks.helpers.cluster.settings import FULL_SIZE
from medr1_ray.config.loading import load_config
from tests.repository import REPOSITORY

TINY = REPOSITORY / "configs" / "phantom_cpu.yaml"


def of_gpus(gpus: int, *given: str) -> list[Mode]:
    config = load_config([FULL_SIZE], ["run.dir=x", "train.prompts_per_step=32", *given])
    return modes(gpus, config, {override.partition("=")[0] for override in given})


def without_gpus(*given: str) -> list[Mode]:
    return modes(0, load_config([TINY], given), {override.partition("=")[0] for override in given})


def test_without_gpus_weights_go_through_the_store_and_fewer_engines_are_compared() -> None:
    assert [mode.name for mode in without_gpus()] == [
        "1 rank, 2 engines, object_store, sync",
        "1 rank, 2 engines, object_store, async",
        "1 rank, 1 engine, object_store, sync",
        "1 rank, 1 engine, object_store, async",
    ]


def test_one_gpu_is_shared() -> None:
    assert [mode.name for mode in of_gpus(1)] == [
        "1 rank, 1 engine on the same GPUs, ipc, sync",
        "1 rank, 1 engine on the same GPUs, object_store, sync",
    ]


def test_two_gpus_are_split_or_shared() -> None:
    assert [mode.name for mode in of_gpus(2)] == [
        "1 rank, 1 engine, nccl, sync",
        "1 rank, 1 engine, nccl, async",
        "1 rank, 1 engine, object_store, sync",
        "1 rank, 1 engine, object_store, async",
        "2 ranks, 2 engines on the same GPUs, ipc, sync",
    ]


def test_eight_gpus_are_split_in_several_ways_each_synchronous_and_asynchronous() -> None:
    found = of_gpus(8)
    apart = [mode for mode in found if not mode.colocated]
    assert [(mode.ranks, mode.engines) for mode in apart[::2]] == [(4, 4), (4, 4), (2, 6), (7, 1), (1, 7)]
    assert [mode.transport for mode in apart[::2]] == ["nccl", "object_store", "nccl", "nccl", "nccl"]
    assert [mode.max_staleness for mode in apart] == [0, 1] * 5
    assert found[10:] == [mode for mode in found if mode.colocated]
    assert [(mode.ranks, mode.engines, mode.transport) for mode in found[10:]] == [(8, 8, "ipc")]


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8, 17])
@pytest.mark.parametrize("given", [[], ["rollout.gpus_per_actor=2", "rollout.tensor_parallel_size=2"]])
def test_every_mode_is_a_valid_run_that_fits_the_gpus(gpus: int, given: Sequence[str]) -> None:
    if gpus < 3 and given:
        with pytest.raises(ValueError, match=rf"^no mode is possible on {gpus} GPUs? with .*--gpus N"):
            of_gpus(gpus, *given)
        return
    found = of_gpus(gpus, *given)
    assert len({mode.name for mode in found}) == len({mode.folder for mode in found}) == len(found)
    for mode in found:
        config = load_config([FULL_SIZE], ["run.dir=x", "train.prompts_per_step=32", *given, *mode.settings])
        devices = mode.ranks * config.learner.gpus_per_rank + mode.engines * config.rollout.gpus_per_actor
        assert 0 < devices <= gpus
        assert (config.learner.world_size, config.rollout.actors) == (mode.ranks, mode.engines)
        assert config.cluster.weight_transport == mode.transport
        assert config.train.overlaps == (mode.max_staleness > 0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["rollout.actors=3"], {(5, 3)}),
        (["learner.world_size=2"], {(2, 1), (2, 4), (2, 6), (2, 2)}),
        (["rollout.actors=2", "learner.world_size=1"], {(1, 2)}),
        (["cluster.colocated=true", "learner.gpus_per_rank=0.5", "rollout.gpus_per_actor=0.5"], {(8, 8)}),
    ],
)
def test_what_is_given_is_not_varied(given: list[str], expected: set[tuple[int, int]]) -> None:
    if "cluster.colocated=true" in given:  # which is refused with other numbers than this
        config = load_config([FULL_SIZE], ["run.dir=x", "train.prompts_per_step=32", "learner.world_size=1", *given])
        found = modes(8, config, {override.partition("=")[0] for override in given})
    else:
        found = of_gpus(8, *given)
    assert {(mode.ranks, mode.engines) for mode in found} == expected


def test_given_transport_and_staleness_are_kept() -> None:
    store = of_gpus(8, "cluster.weight_transport=object_store")
    assert {mode.transport for mode in store} == {"object_store"}
    assert len({(mode.ranks, mode.engines) for mode in store}) == 5
    assert {mode.max_staleness for mode in of_gpus(8, "train.max_staleness=3")} == {3}
    assert {mode.max_staleness for mode in of_gpus(8, "train.max_staleness=0")} == {0}


def test_a_section_given_as_a_mapping_counts_for_its_settings() -> None:
    config = load_config([TINY], ["rollout={actors: 3}"])
    assert {mode.engines for mode in modes(0, config, {"rollout"})} == {3}


def test_without_importance_weights_nothing_is_asynchronous() -> None:
    assert {mode.max_staleness for mode in without_gpus("loss.importance_cap=null")} == {0}


def test_several_optimizer_steps_a_batch_need_as_much_staleness_to_overlap() -> None:
    assert {mode.max_staleness for mode in without_gpus("train.minibatches=2", "train.steps=2")} == {0, 2}


def test_settings_that_need_gpus_are_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match=r"^no mode is possible on 0 GPUs .*--config configs/phantom_cpu\.yaml$"):
        of_gpus(0)
