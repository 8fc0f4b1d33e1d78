"""The learner as one object around ranks without Ray: who is sent what, and whose failure it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from medr1_ray.base.manifest import NotSavedError, StoredFile
from medr1_ray.base.shared_file import SharedFile
from medr1_ray.cluster.resources import NotStartedError
from medr1_ray.config import Config
from medr1_ray.learner import handle as module
from medr1_ray.learner import rank_calls
from medr1_ray.learner.batching import in_order
from medr1_ray.learner.handle import Learner
from medr1_ray.learner.messages import (
    BatchSize,
    GroupLogprobs,
    LearnerLostError,
    LogprobsRequest,
    OptimizerStep,
    RankReport,
    TokenSums,
    UpdateRequest,
)
from medr1_ray.types import Span
from medr1_ray.weights.messages import WeightBucket, WeightGroup, WeightUpdate
from tests.unit.learner.small_groups import group, group_of_lengths


class Ranks:
    """All ranks, in the place of Ray. A call's reference is (rank, method, arguments)."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[int, str, tuple[Any, ...]]] = []
        self.answers: dict[str, Callable[..., Any]] = {}
        self.raises: dict[int, Exception] = {}
        self.silent: set[int] = set()
        self.killed: list[int] = []
        self.given_back = 0
        self.nodes = ["a", "b"]

    def arguments_of(self, method: str) -> list[tuple[Any, ...]]:
        return [arguments for _, asked, arguments in self.asked if asked == method]

    def wait(self, references: list[Any], num_returns: int = 1, timeout: float | None = None) -> Any:
        ready = [reference for reference in references if reference.rank not in self.silent][:num_returns]
        if not ready:
            assert timeout is not None
            self.now += timeout
        return ready, [reference for reference in references if reference not in ready]

    def get(self, references: list[Any]) -> list[Any]:
        for reference in references:
            if reference.rank in self.raises:
                raise self.raises[reference.rank]
        return [self.answers[each.method](each.rank, *each.arguments) for each in references]


class Reference:
    def __init__(self, rank: int, method: str, arguments: tuple[Any, ...]) -> None:
        self.rank, self.method, self.arguments = rank, method, arguments


class Rank:
    def __init__(self, ranks: Ranks, number: int) -> None:
        self._ranks, self.number = ranks, number

    def __getattr__(self, method: str) -> Any:
        return _Method(self._ranks, self.number, method)


class _Method:
    def __init__(self, ranks: Ranks, rank: int, method: str) -> None:
        self._ranks, self._rank, self._method = ranks, rank, method

    def remote(self, *arguments: Any) -> Reference:
        self._ranks.asked.append((self._rank, self._method, arguments))
        return Reference(self._rank, self._method, arguments)


class Place:
    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.group: Any = None

    def node_ids(self) -> list[str]:
        return self._ranks.nodes

    def give_back(self) -> None:
        self._ranks.given_back += 1


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    ranks = Ranks()
    monkeypatch.setattr(module, "ask_for_place", lambda name, demand, strategy: Place(ranks))
    monkeypatch.setattr(module, "wait_for_place", lambda place, limit, say, meanwhile: None)
    monkeypatch.setattr(module, "start_rank", lambda config, place, rank, name: Rank(ranks, rank))
    monkeypatch.setattr(module.ray, "wait", ranks.wait)
    monkeypatch.setattr(module.ray, "get", ranks.get)
    monkeypatch.setattr(module.ray, "kill", lambda rank: ranks.killed.append(rank.number))
    monkeypatch.setattr(rank_calls.time, "monotonic", lambda: ranks.now)
    ranks.answers["rendezvous_address"] = lambda rank: "host:1"
    marks = tmp_path_factory.mktemp("marks")
    ranks.answers["open_log"] = lambda rank, files, run: SharedFile.mark("run.dir", marks, marks / f".learner-{rank}")
    ranks.answers["start"] = lambda rank, meeting: "cpu"
    ranks.answers["update"] = update_report
    ranks.answers["prepare"] = prepared
    return ranks


def update_report(rank: int, request: UpdateRequest) -> RankReport:
    """A loss of 1 a rank, and as many tokens as its groups have."""
    micro_batches = [each for part in request.mini_batches for each in part.micro_batches]
    tokens = sum(request.groups[i].completions.token_ids.size for each in micro_batches for i in each.groups)
    span = Span(f"learner-{rank}", "forward_backward", 0.0, 1.0)
    return RankReport((OptimizerStep(1.0, 0.5, 1e-3),), TokenSums(tokens=tokens, kl=2.0 * tokens), (span,))


def prepared(rank: int, request: LogprobsRequest) -> list[Any]:
    """For each token of a row the number of its completions' tokens."""
    sizes = [request.groups[i][1].token_ids.size for i in in_order(request.micro_batches)]
    return [np.full(size, size, np.float32) for size in sizes]


def a_learner(
    ranks: Ranks,
    files: tuple[SharedFile, ...] = (),
    *,
    kl_beta: float = 0.0,
    updates: int = 1,
    parts: int = 1,
    write_behind: bool = True,
    **settings: Any,
) -> Learner:
    config = Config.model_validate(
        {
            "run": {"dir": Path("run"), "write_behind": write_behind},
            "data": {"format": "phantoms", "root": Path("data")},
            "train": {"steps": 12, "updates_per_rollout": updates, "minibatches": parts},
            "rollout": {"max_tokens": 64},
            "loss": {"kl_beta": kl_beta},
            "learner": {"world_size": 2, "micro_batch_tokens": 30, **settings},
            "cluster": {"update_timeout_seconds": 20, "sync_timeout_seconds": 10, "start_timeout_seconds": 40},
        }
    )
    return Learner(config, files)


GROUPS = [group(name, tokens, (1.0, 0.0)) for name, tokens in zip("abcde", (10, 24, 9, 16, 12), strict=True)]
EQUAL = [group(name, 20, (1.0, 1.0)) for name in "xy"]


def test_all_ranks_start_at_the_address_of_the_first(ranks: Ranks) -> None:
    a_learner(ranks, peak_flops=1e12).start()
    logs, *started = [ranks.asked[:2], *ranks.asked[2:]]
    assert [(number, method) for number, method, _ in logs] == [(0, "open_log"), (1, "open_log")]
    assert started == [(0, "rendezvous_address", ()), *((rank, "start", ("tcp://host:1",)) for rank in (0, 1))]


def test_ranks_on_one_node_meet_at_a_file_and_open_no_port(ranks: Ranks) -> None:
    ranks.nodes = ["a", "a"]
    ranks.answers["rendezvous_file"] = lambda rank: "file:///tmp/of-rank-0/ranks"
    learner = a_learner(ranks, peak_flops=1e12)
    learner.start()
    assert ranks.arguments_of("start") == [("file:///tmp/of-rank-0/ranks",)] * 2
    assert ranks.arguments_of("rendezvous_address") == []
    assert learner.nodes() == [("learner-0", "a"), ("learner-1", "a")]


def test_ranks_and_driver_look_for_each_others_files_before_a_model_is_loaded(ranks: Ranks, tmp_path: Path) -> None:
    ours = SharedFile.mark("run.dir", tmp_path, tmp_path / "logs" / ".driver")
    theirs = [SharedFile.mark("run.dir", tmp_path, tmp_path / f".learner-{rank}") for rank in (0, 1)]
    ranks.answers["open_log"] = lambda rank, files, run: theirs[rank]
    a_learner(ranks, (ours,), peak_flops=1e12).start()
    assert [method for _, method, _ in ranks.asked[:3]] == ["open_log", "open_log", "rendezvous_address"]
    assert ranks.arguments_of("open_log")[0] == ((ours,), Path("run"))
    assert not any(mark.path.exists() for mark in theirs), "they are not left behind"
    SharedFile.mark("run.dir", tmp_path, theirs[0].path)
    with pytest.raises(ValueError, match=r"^run\.dir=.* does not see .*\.learner-0 of node .* \(with other content\)"):
        a_learner(ranks, (ours,)).start()
    theirs[0].path.unlink()
    with pytest.raises(ValueError, match=r"\.learner-0 of node .* \(No such file or directory\)"):
        a_learner(ranks, (ours,)).start()
    assert len(ranks.arguments_of("start")) == 2, "nothing is loaded after that"


def test_groups_of_equal_rewards_skip_the_model_and_count_in_the_normalisers(ranks: Ranks) -> None:
    learner = a_learner(ranks, peak_flops=1e12)
    learner.start()
    report = learner.update([*GROUPS, *EQUAL], 3)
    requests = [request for (request,) in ranks.arguments_of("update")]
    assert sorted(each.prompt.id for request in requests for each in request.groups) == list("abcde")
    # Seven groups of two completions: 4 + 18 + 3 + 10 + 6 tokens, and twice 14 in those that are skipped.
    assert {part.batch for request in requests for part in request.mini_batches} == {BatchSize(14, 41 + 28, 64)}
    assert {request.version for request in requests} == {3}
    assert (report.version, report.groups, report.groups_zero_variance, report.groups_skipped) == (4, 7, 2, 2)
    assert (report.tokens, report.peak_flops) == (69, 2e12)
    assert report.steps == (OptimizerStep(2.0, 0.5, 1e-3),), "the shares of two ranks"
    assert report.statistics.kl == 2.0
    assert [span.actor for span in report.spans] == ["learner-0", "learner-1"]


def test_with_a_kl_all_groups_go_through_the_model_with_the_references_logprobs(ranks: Ranks) -> None:
    learner = a_learner(ranks, kl_beta=0.1)
    report = learner.update([*GROUPS, *EQUAL], 0)
    assert (report.groups_zero_variance, report.groups_skipped) == (2, 0)
    seen = {each.prompt.id: each for (request,) in ranks.arguments_of("update") for each in request.groups}
    assert sorted(seen) == list("abcdexy")
    for each in seen.values():
        assert each.reference_logprobs is not None
        tokens = each.completions.token_ids.size
        assert each.reference_logprobs.tolist() == [tokens] * tokens, each.prompt.id


def test_several_optimizer_steps_are_several_versions(ranks: Ranks) -> None:
    report = a_learner(ranks, updates=3).update(GROUPS, 6)
    assert (report.version, report.passes) == (9, 3)
    report = a_learner(ranks, updates=3, parts=2).update(GROUPS, 6)
    assert (report.version, report.passes) == (12, 3)


def test_a_mini_batch_has_normalisers_of_its_own_and_a_group_for_every_rank(ranks: Ranks) -> None:
    report = a_learner(ranks, parts=2).update([*EQUAL, GROUPS[0], *GROUPS[1:4]], 0)
    requests = [request for (request,) in ranks.arguments_of("update")]
    # x, y and a, then b, c and d: of the first part one group of equal rewards stays, so that both ranks have one.
    assert [len(request.mini_batches) for request in requests] == [2, 2]
    sizes = [BatchSize(6, 28 + 4, 64), BatchSize(6, 18 + 3 + 10, 64)]
    of_first = []
    for request in requests:
        assert [part.batch for part in request.mini_batches] == sizes
        of_first += [request.groups[each.groups[0]].prompt.id for each in request.mini_batches[0].micro_batches]
    assert sorted(of_first) == ["a", "x"]
    assert (report.groups, report.groups_zero_variance, report.groups_skipped, report.tokens) == (6, 2, 1, 63)


def test_a_supervised_step_takes_all_demonstrations(ranks: Ranks) -> None:
    ranks.answers["imitate"] = lambda rank, request: RankReport(
        (OptimizerStep(0.5, 0.25, 1e-3),), TokenSums(), (Span(f"learner-{rank}", "pack", 0.0, 1.0),)
    )
    demonstrations = [(each.prompt, each.completions) for each in [*GROUPS, *EQUAL]]
    report = a_learner(ranks).imitate(demonstrations, 5)
    assert (report.version, report.step, report.tokens) == (6, OptimizerStep(1.0, 0.25, 1e-3), 69)
    requests = [request for (request,) in ranks.arguments_of("imitate")]
    assert sorted(prompt.id for request in requests for prompt, _ in request.demonstrations) == list("abcdexy")
    assert {request.version for request in requests} == {5}


@pytest.mark.parametrize("plain", [False, True])
def test_logprobs_come_in_the_order_of_the_groups(ranks: Ranks, plain: bool) -> None:
    ranks.answers["logprobs"] = lambda rank, request: [
        GroupLogprobs(array, rank) for array in prepared(rank, request)
    ]
    pairs = [(each.prompt, each.completions) for each in GROUPS]
    found = a_learner(ranks).logprobs(pairs, plain=plain)
    assert [each.policy_logprobs.tolist() for each in found] == [[size] * size for size in (4, 18, 3, 10, 6)]
    assert {each.visual_tokens for each in found} == {0, 1}, "both ranks had a part"
    assert {request.plain for (request,) in ranks.arguments_of("logprobs")} == {plain}


def test_work_before_an_update_is_begun_early_and_not_twice(ranks: Ranks) -> None:
    learner = a_learner(ranks, kl_beta=0.1)
    learner.prefetch(GROUPS)  # 71 tokens fill a micro-batch of 30 on both ranks
    assert len(ranks.arguments_of("prepare")) == 2
    learner.update(GROUPS, 0)
    assert len(ranks.arguments_of("prepare")) == 2


def test_an_update_asks_the_ranks_that_have_prepared_a_group(ranks: Ranks) -> None:
    learner = a_learner(ranks, kl_beta=0.1)
    learner.prefetch(GROUPS)
    homes = {
        prompt.id: rank
        for rank, (request,) in enumerate(ranks.arguments_of("prepare"))
        for prompt, _ in request.groups
    }
    # Dealt out anew, the groups that come besides would send some of them to the other rank.
    learner.update([*EQUAL, *GROUPS], 0)
    of_update = [
        {each.prompt.id for each in request.groups} for (request,) in ranks.arguments_of("update")
    ]
    assert all(prompt_id in of_update[rank] for prompt_id, rank in homes.items())
    assert learner._homes == {}


LONG = group_of_lengths("long", (9, 5, 8, 6), (0.0, 1.0, 2.0, 3.0))
"""34 tokens: for 30 two rows, of the first and the second completion, and of the others."""


def test_a_group_that_is_cut_over_the_ranks_is_one_again_in_every_answer(ranks: Ranks) -> None:
    ranks.answers["prepare"] = lambda rank, request: [
        request.groups[i][1].rollout_logprobs for i in in_order(request.micro_batches)
    ]
    ranks.answers["logprobs"] = lambda rank, request: [
        GroupLogprobs(array, 2) for array in ranks.answers["prepare"](rank, request)
    ]
    learner = a_learner(ranks, kl_beta=0.1)
    (found,) = learner.logprobs([(LONG.prompt, LONG.completions)])
    assert (found.policy_logprobs.tolist(), found.visual_tokens) == (list(range(28)), 2)
    report = learner.update([LONG], 0)
    requests = [request for (request,) in ranks.arguments_of("update")]
    assert [[each.completions.texts for each in request.groups] for request in requests] == [
        [("text 0", "text 1")],
        [("text 2", "text 3")],
    ]
    for request in requests:
        (each,) = request.groups
        assert each.reference_logprobs is not None
        assert each.reference_logprobs.tolist() == each.completions.rollout_logprobs.tolist()
        assert request.mini_batches[0].batch == BatchSize(4, 28, 64)
    assert (report.groups, report.tokens, report.padded_tokens) == (1, 28, 20 + 20)
    whole = a_learner(ranks, kl_beta=0.1, micro_batch_tokens=34).update([LONG], 0)
    assert report.model_flops == whole.model_flops, "what is needed, not what a cut costs"


def test_groups_from_which_nothing_is_learned_are_not_prepared(ranks: Ranks) -> None:
    a_learner(ranks).prefetch([*EQUAL, *GROUPS])
    prepared = {prompt.id for (request,) in ranks.arguments_of("prepare") for prompt, _ in request.groups}
    assert prepared == {each.prompt.id for each in GROUPS}


def test_with_an_engine_awake_on_its_gpu_only_images_are_prepared_early(ranks: Ranks) -> None:
    learner = a_learner(ranks, kl_beta=0.1)
    learner._config = learner._config.model_copy(
        update={"cluster": learner._config.cluster.model_copy(update={"colocated": True})}
    )
    ranks.answers["begin_patches"] = lambda rank, images: []
    learner.prefetch(GROUPS)
    assert ranks.arguments_of("prepare") == []
    images = [len(images) for (images,) in ranks.arguments_of("begin_patches")]
    assert (len(images), sum(images)) == (2, len(GROUPS))
    learner.prefetch(GROUPS)
    learner.update(GROUPS, 0)
    assert len(ranks.arguments_of("begin_patches")) == 2, "once"
    assert len(ranks.arguments_of("prepare")) == 2, "the reference takes its turn in the update"
    assert learner._homes == {}
    learner.prefetch([LONG, *GROUPS])
    images = [images for (images,) in ranks.arguments_of("begin_patches")[2:]]
    assert [sum(image is LONG.prompt.image for image in of_rank) for of_rank in images] == [0, 1], "once for both rows"


def test_the_caller_goes_on_with_its_work_while_the_ranks_do_theirs(ranks: Ranks) -> None:
    ranks.silent = {0, 1}
    times: list[float] = []

    def meanwhile() -> None:
        times.append(ranks.now)
        if ranks.now > 5:
            ranks.silent.clear()

    a_learner(ranks).update(GROUPS, 0, meanwhile)
    assert 5 < ranks.now < 6
    assert len(times) > 20, "about every fifth of a second"


def test_who_is_late_is_named_with_what_it_was_doing_and_the_setting(ranks: Ranks) -> None:
    ranks.silent = {1}
    with pytest.raises(
        LearnerLostError,
        match=r"^learner-1: still updating from policy version 3 after 20 s \(cluster\.update_timeout_seconds\)$",
    ):
        a_learner(ranks).update(GROUPS, 3)
    assert ranks.now == pytest.approx(20)


@pytest.mark.parametrize("death", [ActorDiedError(), OutOfMemoryError("OOM kill reason: 95 % of the memory is used")])
def test_a_rank_that_died_is_named(ranks: Ranks, death: RayError) -> None:
    ranks.silent = {0}
    ranks.raises[1] = death
    with pytest.raises(LearnerLostError, match=r"^learner-1 died while publishing policy version 7"):
        a_learner(ranks).publish_weights(7)
    assert ranks.now == 0, "the other one is not waited for"


def test_a_rank_that_failed_because_another_died_is_not_the_one_that_is_named(ranks: Ranks) -> None:
    ranks.raises[0] = RayTaskError("update", "Traceback\nRuntimeError: Connection closed by peer", RuntimeError())
    ranks.raises[1] = ActorDiedError()
    with pytest.raises(LearnerLostError, match=r"^learner-1 died while publishing policy version 7"):
        a_learner(ranks).publish_weights(7)


def test_a_rank_that_is_killed_as_it_starts_is_a_loss(ranks: Ranks) -> None:
    ranks.raises[1] = ActorDiedError()
    with pytest.raises(LearnerLostError, match=r"^learner-1 died while opening its log"):
        a_learner(ranks).start()


def test_a_rank_that_fails_as_it_starts_or_is_late_is_an_error_of_the_start(ranks: Ranks) -> None:
    text = "The actor died because of an error raised in its creation task\nImportError: no module named torch"
    ranks.raises[1] = ActorDiedError(RayTaskError("__init__", text, ImportError()))
    with pytest.raises(NotStartedError, match=r"^learner-1 did not start: ImportError: no module named torch$"):
        a_learner(ranks).start()
    del ranks.raises[1]
    ranks.silent = {1}
    with pytest.raises(NotStartedError, match=r"^learner-1: still opening its log after .*start_timeout_seconds"):
        a_learner(ranks).start()


def test_a_mistake_of_the_settings_is_told_as_the_rank_tells_it(ranks: Ranks) -> None:
    ranks.raises[1] = RayTaskError("update", "Traceback", ValueError("another number of visual tokens"))
    with pytest.raises(ValueError, match=r"^another number of visual tokens$"):
        a_learner(ranks).update(GROUPS, 0)
    traceback = "Traceback (most recent call last):\n  ...\nRuntimeError: the gradient's norm is nan"
    ranks.raises[1] = RayTaskError("update", traceback, RuntimeError())
    with pytest.raises(RuntimeError, match=r"(?s)^learner-1 failed while updating .*RuntimeError: the gradient's norm"):
        a_learner(ranks).update(GROUPS, 0)


def test_what_the_ranks_publish_is_one_update(ranks: Ranks) -> None:
    def published(rank: int, version: int, to_newcomers: bool) -> WeightUpdate:
        return WeightUpdate(version, (WeightBucket((), 8, "d", {f"GPU-{rank}": rank}),), "digest", to_newcomers)

    ranks.answers["publish_weights"] = published
    update = a_learner(ranks).publish_weights(4, to_newcomers=False)
    assert update.buckets[0].data == {"GPU-0": 0, "GPU-1": 1}
    assert (update.version, update.lasting) == (4, False)
    assert a_learner(ranks).publish_weights(4).lasting, "unless told otherwise an engine may lack everything"


def test_the_caller_goes_on_with_other_work_in_every_wait(ranks: Ranks) -> None:
    learner = a_learner(ranks)
    pairs = [(each.prompt, each.completions) for each in GROUPS]
    ranks.answers["publish_weights"] = lambda rank, version, to_newcomers: WeightUpdate(version, (), "digest")
    ranks.answers["release_weights"] = ranks.answers["load"] = lambda rank, *_: None
    ranks.answers["logprobs"] = lambda rank, request: [GroupLogprobs(each, 1) for each in prepared(rank, request)]
    called: list[str] = []
    for name, call in {
        "publish_weights": lambda **named: learner.publish_weights(1, **named),
        "release_weights": learner.release_weights,
        "load": lambda **named: learner.load(Path("checkpoint-1"), **named),
        "logprobs": lambda **named: learner.logprobs(pairs, **named),
    }.items():
        call(meanwhile=lambda name=name: called.append(name))
    assert called == [name for name in ("publish_weights", "release_weights", "load", "logprobs") for _ in range(2)]


@pytest.mark.parametrize("behind", [True, False])
def test_a_save_is_begun_by_all_ranks(ranks: Ranks, behind: bool) -> None:
    ranks.answers["begin_save"] = lambda rank, folder, behind: None
    polls: list[int] = []
    learner = a_learner(ranks, write_behind=behind)
    learner.begin_save(Path("runs/a"), lambda: polls.append(0))
    assert ranks.arguments_of("begin_save") == [(Path("runs/a").absolute(), behind)] * 2
    assert len(polls) == 2


def test_a_save_is_under_way_until_no_rank_writes(ranks: Ranks) -> None:
    writing = {0: True, 1: True}
    ranks.answers["is_saving"] = lambda rank: writing[rank]
    ranks.answers["begin_save"] = lambda rank, folder, behind: None
    learner = a_learner(ranks)
    assert learner.is_saving()
    writing[0] = False
    assert learner.is_saving()
    # Busy with something else: not waited for, and not asked once more.
    writing[1] = False
    ranks.silent = {1}
    asked = len(ranks.arguments_of("is_saving"))
    before = ranks.now
    for _ in range(3):
        assert learner.is_saving()
    assert len(ranks.arguments_of("is_saving")) == asked + 2
    assert ranks.now - before <= 0.5
    ranks.silent = set()
    assert not learner.is_saving()
    ranks.silent = {1}
    assert learner.is_saving()
    # What was asked about the save before is no answer about this one.
    ranks.silent = set()
    asked = len(ranks.arguments_of("is_saving"))
    learner.begin_save(Path("runs/a"))
    assert not learner.is_saving()
    assert len(ranks.arguments_of("is_saving")) == asked + 2


def test_a_rank_that_dies_while_it_writes_is_named(ranks: Ranks) -> None:
    ranks.raises[1] = ActorDiedError()
    ranks.answers["is_saving"] = ranks.answers["finish_save"] = lambda rank: []
    with pytest.raises(LearnerLostError, match=r"^learner-1 died while writing"):
        a_learner(ranks).is_saving()
    with pytest.raises(LearnerLostError, match=r"^learner-1 died while writing a checkpoint"):
        a_learner(ranks).finish_save()


def test_a_save_has_the_files_of_all_ranks(ranks: Ranks) -> None:
    ranks.answers["finish_save"] = lambda rank: [StoredFile(f"{rank}", 1, "d")]
    assert [file.name for file in a_learner(ranks).finish_save()] == ["0", "1"]


def test_a_rank_without_room_is_told_of_once_no_other_writes(ranks: Ranks) -> None:
    no_room = NotSavedError("learner-0 cannot write")
    ranks.answers["finish_save"] = lambda rank: [] if rank else no_room
    with pytest.raises(NotSavedError, match="learner-0 cannot write"):
        a_learner(ranks).finish_save()
    ranks.silent = {1}
    with pytest.raises(LearnerLostError, match=r"^learner-1: still writing a checkpoint after .*update_timeout"):
        a_learner(ranks).finish_save()
    with pytest.raises(LearnerLostError, match=r"^learner-1: still writing a checkpoint after .*sync_timeout"):
        a_learner(ranks).finish_save(briefly=True)


def test_calls_of_a_broadcast_are_started_and_finished_apart(ranks: Ranks) -> None:
    learner = a_learner(ranks)
    ranks.answers["join_weight_group"] = lambda rank, group: None
    ranks.silent = {0, 1}
    joining = learner.join_weight_group("host:9", 5)
    assert ranks.asked == [(rank, "join_weight_group", (WeightGroup("host:9", 5, 0),)) for rank in (0, 1)]
    assert ranks.now == 0, "it is not waited for"
    with pytest.raises(RuntimeError, match=r"learner-0, learner-1: still joining the weight group after 10 s"):
        learner.finish(joining)


def test_closing_ends_the_ranks_and_gives_back_their_place(ranks: Ranks) -> None:
    learner = a_learner(ranks)
    learner.close()
    assert (ranks.killed, ranks.given_back) == ([0, 1], 1)
    learner.close()
    assert ranks.killed == [0, 1], "safe to call twice"


def test_engines_beside_the_ranks_each_have_their_own_bundle(ranks: Ranks) -> None:
    place_of = a_learner(ranks).places_on_same_gpus()
    places: list[Any] = [place_of(f"rollout-{i}") for i in range(2)]
    assert [place.bundle for place in places] == [0, 1]
    places[0].give_back()
    again: Any = place_of("rollout-2")
    assert again.bundle == 0
