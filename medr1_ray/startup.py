"""Putting a run together: cluster, actors, data and run directory, in the order in which mistakes are cheapest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

from medr1_ray.checkpoint import Checkpoints, RunState, read_state
from medr1_ray.cluster import connect
from medr1_ray.code_digest import code_digest
from medr1_ray.config import Config
from medr1_ray.data.dataset import open_dataset
from medr1_ray.data.encoding import PromptEncoder, Refused
from medr1_ray.data.stream import PromptStream
from medr1_ray.demand import REWARD_ACTOR_CPUS
from medr1_ray.evaluation import EvaluationLog
from medr1_ray.learner import Learner
from medr1_ray.ledger import Ledger
from medr1_ray.parity import ParityGate
from medr1_ray.pool import PoolActors, RolloutPool
from medr1_ray.progress import Progress
from medr1_ray.reward_actor import RewardActor
from medr1_ray.rewards import resolve
from medr1_ray.rollout_actor import RolloutActor
from medr1_ray.run_directory import open_run_directory
from medr1_ray.session import Session
from medr1_ray.summary import Totals
from medr1_ray.tracking import Tracker
from medr1_ray.types import Prompt, Question, Sampling

_PROBE_GROUP_SIZE = 2


@contextmanager
def open_session(config: Config, *, resume: bool) -> Iterator[Session]:
    """A session with all actors up, at step 0 or at that of the latest checkpoint; everything is ended on leaving.

    Raises:
        ValueError: the run directory, the data or the checkpoint is not usable.
        RuntimeError: an actor did not start within `cluster.start_timeout_seconds`.
    """
    started = time.time()
    resolve(config.reward.functions, config.mode)  # a wrong name shows here, before anything has been started
    encoder = PromptEncoder.from_checkpoint(
        str(config.model.folder),
        config.mode,
        config.data.image_size,
        config.data.image_fit,
        config.rollout.max_prompt_tokens,
    )
    dataset = open_dataset(config.data)
    directory = open_run_directory(config, resume=resume)
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": directory.path})})
    checkpoints = Checkpoints(directory.checkpoints, config.run.keep_checkpoints)
    checkpoint = checkpoints.latest() if resume else None
    state = read_state(checkpoint) if checkpoint else None
    stream = PromptStream(
        dataset.train,
        encoder,
        config.train.seed,
        state.stream if state else None,
        config.data.sampling_weights,
        config.data.shuffle_options,
        config.data.online_pass_rate_limits,
    )
    progress = Progress(config.train.steps)
    progress.message(dataset.description)
    evaluation_prompts, refused = _encode_all(dataset.evaluation, encoder)
    for reason, count in refused.items():
        progress.message(f"evaluation: {count} questions left out: {reason}")
    tracker = Tracker(config, directory.path, state.step if state else 0)
    connect(config)
    try:
        learner = Learner(config)
        actors = _start_pool_actors(config)
        learner.start()
        if checkpoint:
            learner.load(checkpoint)
        _wait_until_up(actors, config)
        pool = RolloutPool(config, actors, stream, _ledger(state))
        if state:
            pool.issue_again([stream.reissue(prompt_id) for prompt_id in state.unused_prompts])
        totals = Totals(state.completions, dict(state.seconds)) if state else Totals()
        totals.seconds["startup"] = totals.seconds.get("startup", 0.0) + time.time() - started
        yield Session(
            config=config,
            step=state.step if state else 0,
            learner=learner,
            pool=pool,
            encoder=encoder,
            stream=stream,
            gate=ParityGate(
                pool,
                learner,
                evaluation_prompts[: config.parity.probe_prompts],
                Sampling(_PROBE_GROUP_SIZE, config.rollout.max_tokens, config.rollout.temperature),
                config.gap_mean_limit,
            ),
            evaluation_prompts=evaluation_prompts,
            evaluations=EvaluationLog(directory.evaluations),
            tracker=tracker,
            progress=progress,
            checkpoints=checkpoints,
            totals=totals,
        )
    finally:
        progress.close()
        tracker.close()
        ray.shutdown()


def _encode_all(questions: tuple[Question, ...], encoder: PromptEncoder) -> tuple[list[Prompt], Counter[str]]:
    encoded = [encoder.encode(question, f"evaluation:{question.id}") for question in questions]
    prompts = [prompt for prompt in encoded if isinstance(prompt, Prompt)]
    refused = Counter(prompt.reason for prompt in encoded if isinstance(prompt, Refused))
    if not prompts:
        raise ValueError(
            f"none of the {len(questions)} evaluation questions can be a prompt "
            f"({', '.join(f'{reason}: {count}' for reason, count in refused.items())}); see rollout.max_prompt_tokens"
        )
    return prompts, refused


def _start_pool_actors(config: Config) -> PoolActors:
    rollout = {
        f"rollout-{index}": ray.remote(RolloutActor)
        .options(
            name=f"rollout-{index}",
            num_cpus=config.rollout.cpus_per_actor,
            num_gpus=config.rollout.gpus_per_actor,
            max_concurrency=1000,
        )
        .remote(config, index, code_digest())
        for index in range(config.rollout.actors)
    }
    reward = {
        f"reward-{index}": ray.remote(RewardActor)
        .options(name=f"reward-{index}", num_cpus=REWARD_ACTOR_CPUS)
        .remote(config.reward.functions, config.mode, config.reward.timeout_seconds, f"reward-{index}")
        for index in range(config.reward.actors)
    }
    return PoolActors(rollout, reward)


def _wait_until_up(actors: PoolActors, config: Config) -> None:
    named = {**actors.rollout, **actors.reward}
    pings = {actor.ping.remote(): name for name, actor in named.items()}
    done, late = ray.wait(list(pings), num_returns=len(pings), timeout=config.cluster.start_timeout_seconds)
    for ping in done:
        try:
            ray.get(ping)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]  # of a traceback, the exception itself
            raise RuntimeError(
                f"{pings[ping]} did not start: {reason} (more in {config.run.dir}/logs/{pings[ping]}.log)"
            ) from error
    if late:
        names = ", ".join(pings[ping] for ping in late)
        raise RuntimeError(
            f"not up after cluster.start_timeout_seconds={config.cluster.start_timeout_seconds:g}: {names}. Free in "
            f"the cluster: {ray.available_resources()}. Look at {config.run.dir}/logs, add nodes or raise the limit"
        )


def _ledger(state: RunState | None) -> Ledger:
    if state is None:
        return Ledger(time.monotonic)
    return Ledger(
        time.monotonic,
        issued=state.groups_used + sum(state.groups_dropped.values()),
        used=state.groups_used,
        zero_variance=state.groups_zero_variance,
        dropped=state.groups_dropped,
    )
