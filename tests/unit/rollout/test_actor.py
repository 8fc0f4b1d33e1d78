"""The rollout actor around a fake engine: what is served when, what comes twice, and what a failure leaves.

The same with vLLM is in tests/integration/rollout/test_actor.py.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medr1_ray.base.shared_file import SharedFile
from medr1_ray.config import ClusterSettings, ModelSettings, RolloutSettings
from medr1_ray.rollout import actor as module
from medr1_ray.rollout.actor import (
    EngineLostError,
    GroupsEndedError,
    NotServingError,
    RolloutActor,
    WeightLoadError,
)
from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.types import Completions, Continuations, GroupRequest, Prompt, Question, Sampling
from medr1_ray.weights.messages import WeightGroup, WeightMember, WeightUpdate
from tests.unit.rollout import fake_vllm
from tests.unit.rollout.fake_vllm import answer

QUESTION = Question("q", "", "Which?", ("CT", "MRI"), 0, "CT", "Modality", "d")
PROMPT = Prompt("p", QUESTION, np.array([1, 2], np.int32), np.zeros((2, 2, 3), np.uint8))
SAMPLING = Sampling(1, 8, 1.0)
CODE = "the driver's code"


class Engine:
    """Answers when `go` is set; `asked` are the request ids."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()
        self.errored = False
        self.error: Exception | None = None
        self.code = [CODE, CODE]
        self.stopped = False
        self.hangs = False

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[Any]:
        self.asked.append(request_id)
        await self.go.wait()
        if self.error:
            raise self.error
        ids = prompt["prompt_token_ids"]
        scores = [None, *({token: SimpleNamespace(logprob=-float(token))} for token in ids[1:])]
        completion = answer([11, 12], [(0, 2, 4)])
        yield SimpleNamespace(outputs=[completion], prompt_token_ids=ids, prompt_logprobs=scores)

    async def collective_rpc(self, method: str) -> list[str]:
        assert method == "medr1_code_digest"
        if self.hangs:
            await asyncio.Event().wait()
        return self.code

    def shutdown(self, timeout: float) -> None:
        self.stopped = True


class Loader:
    """Stands in for `EngineWeights`; `wait` delays a load, `error` ends it."""

    def __init__(self) -> None:
        self.loaded: list[int] = []
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.hangs = False

    async def load(self, update: WeightUpdate) -> float:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        self.loaded.append(update.version)
        return 0.25

    async def sleep(self) -> None:
        await asyncio.Event().wait()

    wake = sleep

    async def join(self, group: WeightGroup, seconds: float) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        self.calls.append(f"join {group.rank_offset} within {seconds:g}")
        if self.error:
            raise self.error


class Case:
    """An actor with its engine and loader, made on the event loop that its calls run on."""

    def __init__(self, folder: Path, **cluster: Any) -> None:
        given = {"sync_timeout_seconds": 200, "rollout_timeout_seconds": 200, **cluster}
        self.engine = Engine()
        self.loader = Loader()
        settings = EngineSettings(
            ModelSettings(), RolloutSettings(), ClusterSettings(weight_transport="nccl", **given), 0, folder
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("medr1_ray.rollout.engine.set_environment", lambda threads: None)
            patch.setattr("medr1_ray.rollout.engine.start_engine", lambda settings, model, index: self.engine)
            self.actor = RolloutActor(settings, 3, CODE)
        self.actor._loader = self.loader  # type: ignore[assignment]

    async def load(self, version: int, *, lasting: bool = True, digest: str = "") -> Any:
        update = WeightUpdate(version, (), digest or f"digest {version}", lasting)
        return await self.actor.load_weights(update)

    async def generate(self, request_id: str) -> Completions:
        ((found, completions),) = await self.actor.generate([GroupRequest(request_id, PROMPT, SAMPLING)])
        assert found == request_id
        return completions

    def start(self, request_id: str) -> asyncio.Task[Any]:
        return asyncio.create_task(self.generate(request_id))

    async def serving(self) -> None:
        await self.load(4)


Run = Callable[[Callable[[Case], Awaitable[None]]], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a test's coroutine with a new case."""
    fake_vllm.install(monkeypatch)
    monkeypatch.setattr(module, "code_digest", lambda: CODE)
    monkeypatch.setattr(module, "write_output_to", lambda path, name: 0)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)

    def runs(test: Callable[[Case], Awaitable[None]], **cluster: Any) -> None:
        async def inside() -> None:
            await asyncio.wait_for(test(Case(tmp_path, **cluster)), timeout=300)

        asyncio.run(inside())

    return runs


def test_it_serves_nothing_before_its_first_weights(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        assert await case.actor.ping() == "rollout-3"
        status = await case.actor.status()
        assert (status.actor, status.version, status.failure) == ("rollout-3", None, "no weights have been loaded yet")
        with pytest.raises(NotServingError, match="rollout-3 serves nothing: no weights"):
            await case.generate("a")
        with pytest.raises(NotServingError):
            await case.actor.likelihoods("a", PROMPT, Continuations(np.int32([7]), np.int32([1])))
        assert case.engine.asked == []
        report = await case.load(4)
        assert (report.version, report.digest, report.paused_seconds) == (4, "digest 4", 0.25)
        case.engine.go.set()
        found = await case.generate("a")
        assert (found.prompt_id, found.actor, found.token_ids.tolist()) == ("p", "rollout-3", [11, 12])
        assert (await case.actor.status()).version == 4

    run(test)


def test_a_call_is_answered_with_what_is_done_of_all_that_were_taken_on(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        await case.serving()
        first = asyncio.create_task(case.actor.generate([GroupRequest("a", PROMPT, SAMPLING)]))
        await asyncio.sleep(0.01)
        others = [GroupRequest(name, PROMPT, SAMPLING) for name in "bc"]
        second = asyncio.create_task(case.actor.generate(others))
        assert await first == [], "the second call has the answer"
        assert (await case.actor.status()).running_requests == 3
        case.engine.go.set()
        assert sorted(name for name, _ in await second) == ["a", "b", "c"]
        assert case.engine.asked == ["a", "b", "c"]
        assert await case.actor.generate([]) == []

    run(test)


def test_requests_in_flight_go_on_over_a_weight_update(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        await case.serving()
        running = case.start("a")
        await asyncio.sleep(0.01)
        await case.load(5)
        case.engine.go.set()
        assert (await running).prompt_id == "p"
        assert case.engine.asked == ["a"]

    run(test)


def test_a_request_that_failed_can_be_repeated(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        await case.serving()
        case.engine.go.set()
        case.engine.error = fake_vllm.VLLMClientError("the prompt is too long")
        with pytest.raises(ValueError, match="rollout-3: the engine refused prompt 'p': the prompt is too long"):
            await case.generate("a")
        case.engine.error = fake_vllm.EngineDeadError()
        with pytest.raises(EngineLostError, match=r"rollout-3: the engine process died: .*rollout-3\.log"):
            await case.generate("a")
        case.engine.error = None
        assert (await case.generate("a")).prompt_id == "p"
        assert case.engine.asked == ["a"] * 3

    run(test)


def test_a_request_ends_at_its_deadline(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        await case.serving()
        with pytest.raises(TimeoutError, match=r"rollout-3: 'p' was unfinished after 0\.045 s .*seconds=0\.05"):
            await case.generate("a")
        assert (await case.actor.status()).running_requests == 0

    run(test, rollout_timeout_seconds=0.05)


def test_a_request_that_a_dead_engine_never_answers_is_ended_at_once(run: Callable[..., None]) -> None:
    """vLLM 0.32 leaves one without an answer that comes just as it notices the death."""

    async def test(case: Case) -> None:
        await case.serving()
        case.engine.errored = True
        with pytest.raises(EngineLostError, match="the engine process died"):
            await case.generate("a")

    run(test)


def test_likelihoods_are_asked_one_by_one_and_answered_together(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        await case.serving()
        case.engine.go.set()
        texts = Continuations(np.array([7, 8, 9], np.int32), np.array([1, 2], np.int32))
        found = await case.actor.likelihoods("a", PROMPT, texts)
        assert sorted(case.engine.asked) == ["a/0", "a/1"]
        assert found.logprobs.tolist() == [-7.0, -17.0]

    run(test)


def test_the_same_update_is_loaded_once_unless_it_is_a_broadcast_in_which_all_must_take_part(
    run: Callable[..., None],
) -> None:
    async def test(case: Case) -> None:
        first, second = await asyncio.gather(case.load(4), case.load(4))
        assert first == second
        assert case.loader.loaded == [4]
        await case.load(4, digest="other parameters")
        await case.load(5, lasting=False)
        await case.load(5, lasting=False)
        assert case.loader.loaded == [4, 4, 5, 5]

    run(test)


def test_an_older_update_is_refused_and_changes_nothing(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        await case.load(5)
        with pytest.raises(ValueError, match="rollout-3 holds policy version 5; version 4 came too late"):
            await case.load(4)
        assert (await case.actor.status()).version == 5
        assert case.loader.loaded == [5]

    run(test)


def test_after_a_load_that_failed_nothing_is_served_until_one_succeeds(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        await case.serving()
        running = case.start("a")
        await asyncio.sleep(0.01)
        case.loader.error = RuntimeError("wrong bytes")
        with pytest.raises(WeightLoadError, match="rollout-3: policy version 5 could not be loaded: RuntimeError"):
            await case.load(5)
        with pytest.raises(GroupsEndedError, match="policy version 5 could not be loaded"):
            await running
        with pytest.raises(NotServingError, match="policy version 5 could not be loaded"):
            await case.generate("b")
        status = await case.actor.status()
        assert (status.version, status.running_requests) == (None, 0)
        case.loader.error = None
        await case.load(4)  # the same as was held before: its weights may be half overwritten
        assert case.loader.loaded == [4, 4]
        case.engine.go.set()
        assert (await case.generate("b")).prompt_id == "p"

    run(test)


CALLS: dict[str, Callable[[Case], Awaitable[Any]]] = {
    "load policy version 4": lambda case: case.load(4),
    "answer": lambda case: case.actor.weight_member(),
    "join the weight group": lambda case: case.actor.join_weight_group(WeightGroup("host:1", 4, 2)),
    "fall asleep": lambda case: case.actor.sleep(),
    "wake": lambda case: case.actor.wake(),
    "end its load": lambda case: case.actor.forget_run(),
}


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_the_engine_does_not_answer_is_ended(run: Callable[..., None], what: str, dead: bool) -> None:
    """Before the driver's limit, or at once where the engine is dead; also one that waits for an earlier call."""

    async def test(case: Case) -> None:
        case.loader.hangs = case.engine.hangs = True
        case.engine.errored = dead
        earlier = asyncio.create_task(case.load(3))
        await asyncio.sleep(0)
        reason = "the engine process died" if dead else f"the engine did not {what} within 0.27 s .*seconds=0.3"
        start = asyncio.get_running_loop().time()
        with pytest.raises(EngineLostError, match=f"rollout-3: {reason}"):
            await CALLS[what](case)
        # A timer may fire a little early.
        assert dead or asyncio.get_running_loop().time() - start >= 0.26
        with pytest.raises(EngineLostError):
            await earlier
        status = await case.actor.status()
        assert status.version is None
        assert status.failure is not None
        if dead:
            with pytest.raises(EngineLostError, match="the engine process died"):
                await case.actor.ping()

    run(test, sync_timeout_seconds=200 if dead else 0.3)


def test_the_death_of_an_engine_is_said_whatever_its_call_raised(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        case.loader.error = RuntimeError("connection closed")
        with pytest.raises(WeightLoadError, match="connection closed"):
            await case.load(4)
        case.engine.errored = True
        with pytest.raises(EngineLostError, match="rollout-3: the engine process died"):
            await case.load(4)

    run(test)


def test_an_engine_process_with_other_code_serves_nothing(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        case.engine.code = [CODE, "other"]
        with pytest.raises(WeightLoadError, match=r"its engine process runs other code .*digest other"):
            await case.load(4)
        assert case.loader.loaded == []

    run(test)


def test_an_actor_with_other_code_does_not_start(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "code_digest", lambda: "other")

    async def test(case: Case) -> None:
        raise AssertionError("it has started")

    with pytest.raises(ValueError, match="rollout-3: the actor runs other code of medr1_ray"):
        run(test)


def test_another_run_may_begin_at_any_version(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        await case.load(9)
        running = case.start("a")
        await asyncio.sleep(0.01)
        await case.actor.forget_run()
        with pytest.raises(NotServingError, match="no weights have been loaded yet"):
            await running
        assert (await case.actor.status()).version is None
        await case.load(0)
        assert (await case.actor.status()).version == 0

    run(test)


def test_its_part_in_a_broadcast_has_a_rank_for_each_worker(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        member = await case.actor.weight_member()
        assert (member.actor, member.ranks) == ("rollout-3", 2)
        assert await case.actor.weight_member() == member
        assert member != WeightMember("rollout-3", Case(Path()).actor._incarnation, 2), "a restarted actor is another"
        await case.actor.join_weight_group(WeightGroup("host:1", 4, 2))
        assert case.loader.calls == ["join 2 within 190"]
        case.loader.error = TimeoutError("joining timed out")
        with pytest.raises(WeightLoadError, match="rollout-3 could not join the weight group: joining timed out"):
            await case.actor.join_weight_group(WeightGroup("host:1", 4, 2))

    run(test)


def test_a_shutdown_ends_what_runs(run: Callable[..., None]) -> None:
    async def test(case: Case) -> None:
        await case.serving()
        running = case.start("a")
        await asyncio.sleep(0.01)
        await case.actor.shutdown()
        assert case.engine.stopped
        with pytest.raises(NotServingError, match="the actor was shut down"):
            await running

    run(test)


def test_a_node_that_does_not_see_the_drivers_files_starts_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "code_digest", lambda: CODE)
    run = tmp_path / "run"
    mark = SharedFile.mark("run.dir", run, run / "logs" / ".driver")
    shutil.rmtree(run)
    settings = EngineSettings(ModelSettings(), RolloutSettings(), ClusterSettings(), 0, run / "logs", (mark,))
    with pytest.raises(ValueError, match=rf"^run\.dir='{run}' is not the same folder on all nodes: node "):
        RolloutActor(settings, 3, CODE)
    assert not run.exists(), "nor makes it a folder that would look like the driver's"
