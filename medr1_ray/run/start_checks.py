"""What can be known of a start before anything is started. A run asks for it, and so does `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medr1_ray.cluster.address import require_reachable
from medr1_ray.config import Config, require_copied
from medr1_ray.data.dataset import Dataset, are_there, check_dataset, open_dataset
from medr1_ray.data.demonstrations import require_room_for_an_answer
from medr1_ray.data.encoding import PromptEncoder
from medr1_ray.data.stream import require_same_questions
from medr1_ray.learner.schedule import learning_rate
from medr1_ray.model.folder.check import check_model, check_model_files
from medr1_ray.records.checkpoints import RunState, read_state, whole_checkpoint
from medr1_ray.records.directory import RunDirectory, check_run_directory
from medr1_ray.records.recorded_groups import recorded_steps, steps_apart
from medr1_ray.records.tracker import check_files
from medr1_ray.rewards.functions import resolve
from medr1_ray.run.storage.fetch import check_storage


def check_start(config: Config, *, resume: bool) -> Dataset | None:
    """Check the settings, the data and the model, what is quick first; creates nothing.

    Returns the data, which are read for that; None where they are phantoms that have to be drawn.

    Raises:
        ValueError: a setting, the run directory, the data or the model is not usable.
    """
    for check in _of_settings(config, resume=resume):
        check()
    check_model_files(config)
    require_room_for_an_answer(config)
    check_dataset(config.data)
    # Before the rest of the model's check, which imports for seconds.
    dataset = open_dataset(config.data) if are_there(config.data) else None
    _check_model(config)
    return dataset


def problems_of_a_start(config: Config, *, resume: bool, brings: bool = False) -> list[str]:
    """Return why a start with these settings would fail, one line each: all checks that a start does, data included.

    Phantoms that are not there yet are not drawn. `brings` says that a start would go on from the run's storage, which
    is not brought here for that.
    """
    found = []
    checks: list[Callable[[], object]] = [*_of_settings(config, resume=resume, brings=brings)]
    # A dry run of a model that is not here yet needs its shape alone.
    if config.model.shape is None or config.model.folder.exists():
        checks.append(lambda: _check_model(config))
    checks.append(lambda: _check_data(config, resume=resume))
    for check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            found.append(str(error))
    # Without a checkpoint, both the directory's check and the data's say so.
    return list(dict.fromkeys(found))


def about_resuming(before: Config, now: Config, state: RunState) -> list[str]:
    """Return lines on where a resumed run goes on, and on what is not as it was."""
    lines = [f"resuming after step {state.step} of {now.train.steps}"]
    if before.data.root.resolve() != now.data.root.resolve():
        lines.append(f"data.root was {before.data.root}, is {now.data.root}: the questions are the same")
    was, is_now = (learning_rate(now.learner, state.step, each.train.steps) for each in (before, now))
    if was != is_now:
        last = learning_rate(now.learner, max(0, state.step - 1), before.train.steps)
        lines.append(
            f"WARNING: train.steps was {before.train.steps}, is {now.train.steps}, and learner.schedule="
            f"{now.learner.schedule} is stretched over all of them: the learning rate goes from {last:.2e} to "
            f"{is_now:.2e}. To go on at a low rate, start a new run from this checkpoint (model.path) with its own "
            "learner.learning_rate"
        )
    return lines


def _of_settings(config: Config, *, resume: bool, brings: bool = False) -> tuple[Callable[[], object], ...]:
    return (
        lambda: resolve(config.reward.functions, config.mode),
        lambda: _require_files_of_a_job(config),
        lambda: check_run_directory(config, resume=resume),
        lambda: check_storage(config, resume=resume or brings),
        lambda: _require_recorded(config),
        lambda: require_reachable(config),
        *((lambda: check_files(config.run.dir),) if resume else ()),
    )


def _require_recorded(config: Config) -> None:
    folder, per_batch = config.run.replay, config.train.steps_per_rollout
    if folder is None:
        return
    if folder.resolve().is_relative_to(config.run.dir.resolve()):
        raise ValueError(
            f"--replay {folder} lies in run.dir={str(config.run.dir)!r}, of which a start moves such files aside; give "
            "the replay a run.dir of its own"
        )
    there, batches = recorded_steps(folder), config.train.steps // per_batch
    apart = steps_apart(there)
    missing = [batch for batch in range(1, batches + 1) if batch * apart not in there]
    if missing:
        has = f"it has those of steps {', '.join(map(str, there[-3:]))} at last" if there else "it has none"
        raise ValueError(
            f"--replay {folder}: there are no recorded groups of batch {missing[0]} of {batches} ({has}; train.steps="
            f"{config.train.steps}, {per_batch} optimizer steps a batch); give the folder that --rollout-only or "
            "run.record_groups wrote, or lower train.steps"
        )


def _check_model(config: Config) -> None:
    check_model_files(config)
    require_room_for_an_answer(config)
    check_model(config)
    encoder = PromptEncoder.of(config)
    if encoder.visual_tokens >= config.rollout.max_prompt_tokens:
        raise ValueError(
            f"rollout.max_prompt_tokens={config.rollout.max_prompt_tokens} has no room for an image, which is "
            f"{encoder.visual_tokens} tokens at data.image_size={config.data.image_size}; raise the one or lower the "
            "other"
        )


def _require_files_of_a_job(config: Config) -> None:
    if config.model.path != "tiny":
        require_copied("model.path", config.model.folder)
    # Phantoms are drawn where they are missing.
    if config.data.format != "phantoms":
        require_copied("data.root", config.data.root)
    if isinstance(config.data.pass_rates, Path):
        require_copied("data.pass_rates", config.data.pass_rates)


def _check_data(config: Config, *, resume: bool) -> None:
    settings = config.data
    check_dataset(settings)
    if not are_there(settings):
        return
    questions = open_dataset(settings).train
    if resume:
        checkpoint = whole_checkpoint(RunDirectory(config.run.dir.absolute()).checkpoints, print)
        state = read_state(checkpoint).stream
        require_same_questions(
            state, questions, config.train.seed, settings.sampling_weights, settings.shuffle_options
        )
