"""What is found out before anything starts, and what a resumed run says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from medr1_ray.config import Config
from medr1_ray.config.loading import load_config, write_config
from medr1_ray.data.stream import StreamState, _digest
from medr1_ray.records.checkpoints import Checkpoints, RunState
from medr1_ray.records.recorded_groups import write_groups
from medr1_ray.records.summary import Totals
from medr1_ray.run.start_checks import about_resuming, check_start, problems_of_a_start
from tests.faults.storage import publish
from tests.repository import REPOSITORY
from tests.unit.records.recorded import a_group


def config(tmp_path: Path, *overrides: str) -> Config:
    places = (f"run.dir={tmp_path / 'run'}", f"data.root={tmp_path / 'data'}")
    return load_config([REPOSITORY / "configs/phantom_cpu.yaml"], [*places, *overrides])


def state(step: int) -> RunState:
    return RunState(step, StreamState(0, "d"), (), 0, 0, {}, 0, 0, Totals(), "c", 0, 0)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("reward.functions={acuracy: 1}", "acuracy"),
        ("data.modalities=[Xray]", "data.modalities=['Xray']: 'Xray' is not a modality of the data"),
        ("data.sampling_weights={Xray: 2}", "'Xray' is not a modality or question type of the data"),
        ("mode=think", "rollout.max_tokens=8 has no room for an answer of mode=think"),
        ("rollout.max_tokens=3", "rollout.max_tokens=3 has no room for an answer of mode=no_think"),
        ("rollout.max_prompt_tokens=9", "rollout.max_prompt_tokens=9 has no room for an image, which is 9 tokens"),
        ("model.path=nowhere", "model.path: 'nowhere' does not exist"),
        ("data.image_size=1024", "data.image_size=1024: the image processor of"),
        ("data.format=omnimedvqa", "is not a folder"),
        ("run.dir=/dev/null/x", "run.dir='/dev/null/x' cannot be made"),
    ],
)
def test_each_wrong_setting_is_one_line_and_leaves_nothing(tmp_path: Path, override: str, says: str) -> None:
    (problem,) = problems_of_a_start(config(tmp_path, override), resume=False)
    assert says in problem
    assert "\n" not in problem
    assert list(tmp_path.iterdir()) == []


def test_right_settings_have_no_problem_and_draw_no_phantoms(tmp_path: Path) -> None:
    assert problems_of_a_start(config(tmp_path), resume=False) == []
    check_start(config(tmp_path), resume=False)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_leave_no_question_are_found_in_the_data(tmp_path: Path) -> None:
    few = config(tmp_path, "data.phantom_images=40", "data.eval_questions=4")
    from medr1_ray.data.dataset import open_dataset

    modalities = {question.modality for question in open_dataset(few.data).train}
    weights = "{" + ", ".join(f"'{modality}': 0" for modality in modalities) + "}"
    (problem,) = problems_of_a_start(
        config(tmp_path, "data.phantom_images=40", f"data.sampling_weights={weights}", "data.eval_questions=4"),
        resume=False,
    )
    assert "all training questions have weight 0" in problem


def test_a_resumed_run_says_where_it_goes_on(tmp_path: Path) -> None:
    before = config(tmp_path, "train.steps=450")
    assert about_resuming(before, before, state(120)) == ["resuming after step 120 of 450"]
    moved = config(tmp_path, "train.steps=450", "data.root=elsewhere")
    assert about_resuming(before, moved, state(120))[1:] == [
        f"data.root was {tmp_path / 'data'}, is elsewhere: the questions are the same"
    ]


def test_a_learning_rate_that_jumps_is_said_loudly(tmp_path: Path) -> None:
    given = ["learner.learning_rate=4e-4", "learner.warmup_steps=0.044"]
    before, longer = config(tmp_path, *given, "train.steps=450"), config(tmp_path, *given, "train.steps=900")
    _, warning = about_resuming(before, longer, state(450))
    assert warning.startswith("WARNING: train.steps was 450, is 900, and learner.schedule=linear is stretched")
    # After 20 steps of warm-up (of 900: 40) the rate falls linearly to 0: 1/430 of it, then 450/860.
    assert f"from {4e-4 / 430:.2e} to {4e-4 * 450 / 860:.2e}" in warning
    constant = ["learner.schedule=constant", "learner.warmup_steps=0"]
    before, longer = config(tmp_path, *constant), config(tmp_path, *constant, "train.steps=900")
    assert len(about_resuming(before, longer, state(9))) == 1


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a Ray job, which runs in a copy of `--working-dir`."""
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}')


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["run.dir=runs/a"], "run.dir='runs/a' lies in this Ray job's temporary copy"),
        (["model.path=models/b"], "model.path='models/b' is not in this Ray job's temporary copy"),
        (["data.format=omnimedvqa", "data.root=x"], "data.root='x' is not in this Ray job's temporary copy"),
        (
            ["data.pass_rates=rates.jsonl", "data.min_pass_rate=0.1"],
            "data.pass_rates='rates.jsonl' is not in this Ray job's temporary copy",
        ),
    ],
)
def test_paths_that_a_job_would_not_have_are_refused(
    job: None, tmp_path: Path, overrides: list[str], says: str, resume: bool
) -> None:
    given = config(tmp_path, *overrides)
    assert any(problem.startswith(says) for problem in problems_of_a_start(given, resume=resume))
    if not resume:
        with pytest.raises(ValueError, match=f"^{says}"):
            check_start(given, resume=False)


def test_a_run_in_the_copy_is_not_looked_for(job: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^run\.dir='runs/a' lies in"):
        check_start(config(tmp_path, "run.dir=runs/a"), resume=True)


def test_a_job_may_draw_phantoms_in_its_copy(job: None, tmp_path: Path) -> None:
    check_start(config(tmp_path, "data.root=runs/data"), resume=False)


@pytest.mark.parametrize("file", ["metrics.jsonl", "spans.jsonl"])
def test_a_damaged_line_of_the_run_to_resume_is_found_before_anything_starts(tmp_path: Path, file: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / file).write_text('garbage\n{"step": 1')
    problems = problems_of_a_start(config(tmp_path), resume=True)
    assert any(f"{file}, line 1: 'garbage' is not a mapping in JSON with step" in problem for problem in problems)
    assert problems_of_a_start(config(tmp_path), resume=False) == [], "a new run sets it aside"


def test_a_dry_run_of_a_resume_compares_the_questions(tmp_path: Path) -> None:
    from medr1_ray.data.dataset import open_dataset

    few = config(tmp_path, "data.phantom_images=40", "data.eval_questions=4")
    questions = open_dataset(few.data).train
    stream = StreamState(0, _digest(questions, few.data.sampling_weights, few.data.shuffle_options))
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    write_config(few, tmp_path / "run" / "config.yaml")

    def said(digest: str) -> str:
        left = replace(state(2), stream=replace(stream, digest=digest))
        publish(Checkpoints(checkpoints, keep=1), left, lambda folder: [])
        return " ".join(problems_of_a_start(few, resume=True))

    assert "other training questions" not in said(stream.digest)
    assert "the run to resume was started with other training questions, data.sampling_weights" in said("other")
    (checkpoints / "checkpoint-2" / "state.json").write_text("{}")
    assert "none of the checkpoints" in " ".join(problems_of_a_start(few, resume=True))
    shutil.rmtree(checkpoints)
    assert sum("no checkpoint to resume from" in problem for problem in problems_of_a_start(few, resume=True)) == 1


def test_a_replay_needs_the_groups_of_every_step(tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    given = ("train.steps=4", "train.updates_per_rollout=2", "learner.warmup_steps=0", f"run.replay={recorded}")
    replay = config(tmp_path, *given)
    with pytest.raises(ValueError, match=r"no recorded groups of batch 1 of 2 \(it has none; train\.steps=4"):
        check_start(replay, resume=False)
    for step in (2, 4):
        write_groups(recorded, step, [a_group()])
    check_start(replay, resume=False)
    (tmp_path / ".lock").touch()  # where --rollout-only wrote them
    with pytest.raises(ValueError, match=r"lies in run\.dir=.*give the replay a run\.dir of its own"):
        check_start(config(tmp_path, *given, f"run.dir={tmp_path}"), resume=False)
    with pytest.raises(ValueError, match=r"of batch 3 of 3 \(it has those of steps 2, 4 at last; .* lower train\.st"):
        check_start(config(tmp_path, *given, "train.steps=6"), resume=False)
    # Batch by batch, whatever the optimizer steps that either run takes on one.
    check_start(config(tmp_path, *given, "train.steps=8", "train.minibatches=2"), resume=False)
    with pytest.raises(ValueError, match=r"of batch 3 of 3 \(it has those of steps 2, 4 at last"):
        check_start(config(tmp_path, *given, "train.steps=12", "train.minibatches=2"), resume=False)
    check_start(config(tmp_path, *given, "train.steps=2", "train.updates_per_rollout=1"), resume=False)
