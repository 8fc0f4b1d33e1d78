"""Putting a run together: settings, data, run directory, cluster, actors; the cheapest mistakes are found first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice

import ray

from medr1_ray.cluster.connect import connect
from medr1_ray.cluster.driver_files import driver_files
from medr1_ray.cluster.leaving_nodes import LeavingNodes, this_node
from medr1_ray.cluster.placement import release_nodes
from medr1_ray.cluster.ray_job import about_stopping
from medr1_ray.cluster.resources import demands
from medr1_ray.config import Config
from medr1_ray.config.loading import load_config
from medr1_ray.data.dataset import Dataset, open_dataset
from medr1_ray.data.stream import PromptStream
from medr1_ray.encoders.handle import EncoderActors, RemoteEncoder, data_files
from medr1_ray.evaluation.blinding import EvaluationPrompts
from medr1_ray.evaluation.in_training import EvaluationLog
from medr1_ray.learner.handle import Learner
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.scaling import Scaling
from medr1_ray.pool.shared_actors import SharedActors
from medr1_ray.records.alarms import Alarms
from medr1_ray.records.checkpoints import Checkpoints, RunState, read_state, whole_checkpoint
from medr1_ray.records.directory import open_run_directory
from medr1_ray.records.prometheus import LiveMetrics
from medr1_ray.records.summary import Totals
from medr1_ray.records.terminal import Progress
from medr1_ray.records.tracker import Tracker
from medr1_ray.run.parity.gate import ParityGate
from medr1_ray.run.phases import Phases
from medr1_ray.run.rehearsal import rehearse_checkpoint
from medr1_ray.run.replay import Replay
from medr1_ray.run.saving import CheckpointWriter, Saving
from medr1_ray.run.session import Session
from medr1_ray.run.skipped_steps import SkippedSteps
from medr1_ray.run.start_checks import about_resuming
from medr1_ray.run.storage.uploads import stored_checkpoints_of
from medr1_ray.run.weight_sync import make_weight_sync
from medr1_ray.types import Sampling, Span

# More than one, or the probe would not exercise the shared prompt's mask.
_PROBE_GROUP_SIZE = 2


@contextmanager
def started_session(
    config: Config, dataset: Dataset | None, *, resume: bool, engines: SharedActors | None = None
) -> Iterator[Session]:
    """A session with all actors up, at step 0 or at that of the latest checkpoint; everything is ended on leaving,
    except `engines` that are lent to it. Expects settings that `start_checks.check_start` has passed, and what it
    returned.

    Raises:
        ValueError: the run directory, the checkpoint or the engines are not usable.
        RuntimeError: an actor did not start within `cluster.start_timeout_seconds`.
    """
    started = time.time()

    def since_start() -> float:
        return time.time() - started

    progress = Progress(config.train.steps)
    progress.message(f"writing to {config.run.dir.absolute()}")
    if engines is not None:
        engines.require_fit(config)
    if dataset is None:
        progress.message(f"drawing {config.data.phantom_images} phantoms below {config.data.root}")
        dataset = open_dataset(config.data)
    encoders = EncoderActors(config, data_files(config, dataset)) if engines is None else engines.encoders
    # Evaluations have one of their own: both keep what comes next.
    encoder, evaluation_encoder = RemoteEncoder(encoders, config), RemoteEncoder(encoders, config)
    before = load_config([config.run.dir / "config.yaml"], as_recorded=True) if resume else config
    directory = open_run_directory(config, resume=resume)
    if directory.set_aside:
        progress.message(f"{directory.set_aside} has what a run left here that ended before its first checkpoint")
    # Absolute, because actors have other working directories.
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": directory.path})})
    checkpoints = Checkpoints(directory.checkpoints, config.run.keep_checkpoints)
    if resume:
        progress.message("comparing the checkpoint with its manifest")
    checkpoints.recover()
    rehearse_checkpoint(config, directory.checkpoints)
    checkpoint = whole_checkpoint(directory.checkpoints, progress.message) if resume else None
    state = read_state(checkpoint) if checkpoint else None
    # Refuses a state of other data or another seed, before any actor is started.
    stream = PromptStream(
        dataset.train,
        encoder,
        config.train.seed,
        state.stream if state else None,
        config.data.sampling_weights,
        config.data.shuffle_options,
        config.data.online_pass_rate_limits,
        ahead=2 * config.train.prompts_per_step,
    )
    progress.message(dataset.description)
    for line in about_resuming(before, config, state) if state else ():
        progress.message(line)
    evaluation_prompts = EvaluationPrompts(dataset.evaluation, evaluation_encoder, progress.message)
    live_metrics = LiveMetrics(directory.path.name)
    done = (state.step, state.metric_lines) if state else (0, 0)
    tracker = Tracker(config, directory.path, *done, live_metrics.set, progress.message)
    with ExitStack() as at_end:
        at_end.callback(directory.close)
        # Before actors start; on leaving after the cluster, so that nobody pays for it while the last uploads end.
        checkpoints = at_end.enter_context(
            stored_checkpoints_of(config, checkpoint, tracker.accuracies, progress.message)
        )
        lent = engines is not None
        if not lent:
            at_end.callback(_leave_cluster, config)
            progress.message(f"starting {_actors(config)}")
            connect(config)
            progress.message(f"Ray is up after {since_start():.0f} s; learner and engines load the model")
            if of_job := about_stopping():
                progress.message(of_job)
        # Callbacks run in reverse order, so the files are closed before the cluster is left.
        at_end.callback(tracker.close)
        at_end.callback(progress.close)
        # While everything else starts.
        if config.run.replay is None:
            stream.begin(config.train.prompts_per_step)
        # First, so that its ranks ask for their place before rollout actors can take the room.
        files = driver_files(config)
        learner = Learner(config, files)
        if engines is not None:
            at_end.callback(learner.close)
            engines.forget_run()
        elif config.cluster.colocated:
            learner.start(progress.message)  # first, because an engine takes all the memory that its GPU has left
            engines = SharedActors(config, files, progress.message, ask=learner.places_on_same_gpus())
        else:
            engines = SharedActors(config, files, progress.message)
        if not config.cluster.colocated:
            learner.start(progress.message, meanwhile=engines.rollout_actors.poll)  # the engines start at the same time
        nodes = LeavingNodes(this_node(), learner.nodes())
        at_end.enter_context(nodes.watched())
        if checkpoint:
            learner.load(checkpoint, meanwhile=engines.rollout_actors.poll)
        progress.message(f"the learner is up after {since_start():.0f} s; waiting for the engines")
        engines.wait_until_up()
        pool = RolloutPool(config, engines.rollout_actors, engines.reward_actors, stream, _ledger(state))
        encoder.meanwhile = evaluation_encoder.meanwhile = pool.poll
        probe = list(islice(evaluation_prompts, config.parity.probe_prompts))
        if state:
            # Before the stream is drawn from, so that older prompts are used first.
            pool.issue_again(stream.reissue(state.unused_prompts))
        totals = state.totals if state else Totals()
        startup_seconds = since_start()
        progress.message(f"up after {startup_seconds:.0f} s")
        phases = Phases(totals.seconds, [Span("driver", "startup", started, started + startup_seconds)])
        totals.seconds["startup"] = totals.seconds.get("startup", 0.0) + startup_seconds
        yield Session(
            config=config,
            step=state.step if state else 0,
            learner=learner,
            pool=pool,
            weights=make_weight_sync(config, learner, pool),
            encoder=encoder,
            stream=stream,
            gate=ParityGate(
                pool,
                learner,
                probe,
                Sampling(_PROBE_GROUP_SIZE, config.rollout.max_tokens, config.rollout.temperature),
                config.gap_mean_limit,
                progress.message,
            ),
            evaluation_prompts=evaluation_prompts,
            evaluations=EvaluationLog(directory.evaluations, progress.message, done[0]),
            tracker=tracker,
            progress=progress,
            saving=Saving(
                config.run,
                CheckpointWriter(config, learner, checkpoints, phases),
                pool.poll,
                progress.message,
                nodes.of_learner,
                (state.step, checkpoint) if state and checkpoint else None,
            ),
            totals=totals,
            phases=phases,
            scaling=Scaling.of(config),
            replay=Replay(config.run.replay, pool.ledger, encoder.keep) if config.run.replay else None,
            alarms=Alarms(config.alarms, config.gap_mean_limit),
            skipped_steps=SkippedSteps(config.learner, state.steps_skipped if state else 0),
        )
        # Not after an exception: the engines may still be busy, and their owner ends them.
        if lent:
            pool.finish()


def _actors(config: Config) -> str:
    return ", ".join(f"{demand.count} {demand.name}{'s' * (demand.count != 1)}" for demand in demands(config))


def _leave_cluster(config: Config) -> None:
    # Only elastic runs ask the autoscaler for nodes; an unconditional release would drop another run's request.
    if config.rollout.is_elastic and ray.is_initialized():
        release_nodes()
    ray.shutdown()


def _ledger(state: RunState | None) -> Ledger:
    if state is None:
        return Ledger(time.monotonic)
    return Ledger(
        time.monotonic,
        # Groups that were in flight are not counted here, because they are issued again.
        issued=state.groups_used + sum(state.groups_dropped.values()),
        used=state.groups_used,
        zero_variance=state.groups_zero_variance,
        dropped=state.groups_dropped,
        reissued=state.groups_reissued,
        late=state.answers_late,
    )
