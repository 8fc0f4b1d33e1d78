"""Files and overrides become one validated configuration, which is written back and compared."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from medr1_ray.config import Config, LoraSettings
from medr1_ray.config.loading import (
    Difference,
    changeable_settings,
    config_digest,
    config_yaml,
    first_difference,
    load_config,
    write_config,
)

MINIMAL = "run: {dir: runs/a}\ndata: {format: phantoms, root: runs/data}\ntrain: {steps: 4}\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return yaml_file(tmp_path / "minimal.yaml", MINIMAL)


def yaml_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_fill_what_is_not_given(minimal: Path) -> None:
    config = load_config([minimal])
    assert (config.train.steps, config.train.group_size, config.mode) == (4, 8, "no_think")
    assert config.run.dir == Path("runs/a")
    assert config.reward.functions == {"accuracy": 1.0, "format": 1.0}


def test_later_files_and_then_overrides_win(minimal: Path, tmp_path: Path) -> None:
    later = yaml_file(tmp_path / "later.yaml", "train: {steps: 6, seed: 3}\nmode: think\n")
    config = load_config([minimal, later], ["train.steps=8", "rollout.engine.max_num_seqs=64"])
    assert (config.train.steps, config.train.seed, config.mode) == (8, 3, "think")
    assert config.rollout.engine == {"max_num_seqs": 64}
    assert load_config([minimal, later], ["train.steps=8", "train.steps=2"]).train.steps == 2


def test_a_base_is_read_relative_to_its_file_and_can_have_bases(minimal: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    middle = "base: ../minimal.yaml\nrollout: {engine: {max_num_seqs: 8, max_model_len: 512}}\n"
    yaml_file(tmp_path / "sub/middle.yaml", middle)
    other = yaml_file(tmp_path / "other.yaml", "train: {seed: 9}\nrollout: {engine: {max_model_len: 256}}\n")
    top = "base: [sub/middle.yaml, other.yaml]\nrollout: {engine: {max_num_seqs: 16}}\n"
    config = load_config([yaml_file(tmp_path / "top.yaml", top)])
    assert other.exists()
    assert (config.train.steps, config.train.seed) == (4, 9)
    # The second base wins over the first, and the file over both.
    assert config.rollout.engine == {"max_num_seqs": 16, "max_model_len": 256}


def test_a_base_that_leads_back_is_refused(tmp_path: Path) -> None:
    yaml_file(tmp_path / "a.yaml", "base: b.yaml\n")
    with pytest.raises(ValueError, match="is its own base"):
        load_config([yaml_file(tmp_path / "b.yaml", "base: a.yaml\n")])


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-6", "0.000001", ".1e-5"])
def test_every_spelling_of_a_float_is_a_number(minimal: Path, tmp_path: Path, text: str) -> None:
    later = yaml_file(tmp_path / "later.yaml", f"learner: {{learning_rate: {text}}}\n")
    assert load_config([minimal, later]).learner.learning_rate == pytest.approx(1e-6, rel=1e-12)
    overridden = load_config([minimal], [f"learner.learning_rate={text}"])
    assert overridden.learner.learning_rate == pytest.approx(1e-6, rel=1e-12)


def test_a_file_may_say_nothing(minimal: Path, tmp_path: Path) -> None:
    assert load_config([minimal, yaml_file(tmp_path / "empty.yaml", "# later\n")]) == load_config([minimal])


def test_defaults_change_only_on_purpose(minimal: Path) -> None:
    """A run that does not name a setting depends on its default: who changes one changes this record with it."""
    recorded = (Path(__file__).parent / "defaults.yaml").read_text()
    assert config_yaml(load_config([minimal])) == recorded.partition("\n\n")[2]


def test_off_is_a_text_and_null_is_none(minimal: Path) -> None:
    config = load_config([minimal], ["run.wandb=off", "loss.importance_cap=null", "run.tensorboard=true"])
    assert (config.run.wandb, config.loss.importance_cap, config.run.tensorboard) == ("off", None, True)


def test_files_replace_reward_functions_and_overrides_edit_them(minimal: Path, tmp_path: Path) -> None:
    later = yaml_file(tmp_path / "later.yaml", "reward: {functions: {medr1_accuracy: 1}}\n")
    assert load_config([minimal, later]).reward.functions == {"medr1_accuracy": 1.0}
    edited = load_config([minimal], ["reward.functions.format=0.5"])
    assert edited.reward.functions == {"accuracy": 1.0, "format": 0.5}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.step=3", ["train.step is not a setting", "did you mean train.steps?", "prompts_per_step"]),
        ("train.zero_stage=3", ["did you mean learner.zero_stage?"]),
        ("steps=3", ["did you mean train.steps?", "the top level has: objective, mode, run, model"]),
        ("train.steps=0", ["train.steps=0", "greater than or equal to 1"]),
        ("train.steps=many", ["train.steps='many'", "valid integer"]),
        ("train.steps.x=1", ["train.steps={'x': 1}", "valid integer"]),
        ("mode=thinking", ["mode='thinking'", "'think', 'no_think' or 'think_after'"]),
        ("rollout.top_p=0.9", ["rollout.top_p=0.9", "loss.importance_cap"]),
        ("learner.warmup_steps=2.5", ["learner.warmup_steps=2.5", "a fraction of train.steps below 1"]),
        ("model.lora.ranks=4", ["did you mean model.lora.rank?", "model.lora has: rank, alpha"]),
        ("reward.overlong_buffer_tokens=9999", ["reward.overlong_buffer_tokens=9999", "rollout.max_tokens=256"]),
        ("rollout.engine.seed=1", ["rollout.engine.seed=1", "remove it"]),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(minimal: Path, override: str, told: list[str]) -> None:
    with pytest.raises(ValueError, match="not valid") as caught:
        load_config([minimal], [override])
    for text in told:
        assert text in str(caught.value)
    assert type(caught.value) is ValueError
    pickle.loads(pickle.dumps(caught.value))


def test_what_a_section_has_is_told_once(minimal: Path) -> None:
    with pytest.raises(ValueError, match="not valid") as caught:
        load_config([minimal], ["train.stepz=3", "train.xyz=1", "loss.abc=1"])
    said = str(caught.value)
    assert [said.count(f"{name} is not a setting") for name in ("train.stepz", "train.xyz", "loss.abc")] == [1, 1, 1]
    assert [said.count(f"({section} has: ") for section in ("train", "loss")] == [1, 1]


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    path = yaml_file(tmp_path / "bad.yaml", "data: {format: phantom, root: a}\ntrain: {steps: -1, sed: 2}\n")
    with pytest.raises(ValueError, match="not valid") as caught:
        load_config([path])
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 4
    assert any("run is required" in line for line in lines)
    assert any("data.format='phantom'" in line for line in lines)
    assert any("train.steps=-1" in line for line in lines)
    assert any("train.sed is not a setting; did you mean train.seed?" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: {steps: 1, steps: 2}", "the key 'steps' is given twice"),
        ("train: [", "is not valid YAML"),
        ("- 1", "must hold a mapping of settings, not list"),
    ],
)
def test_files_that_are_no_settings_are_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_config([yaml_file(tmp_path / "bad.yaml", text)])


def test_a_missing_file_and_a_shapeless_override_are_refused(minimal: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml does not exist$"):
        load_config([tmp_path / "absent.yaml"])
    based = yaml_file(tmp_path / "based.yaml", "base: absent.yaml\n")
    with pytest.raises(ValueError, match=rf"absent\.yaml does not exist \(named as a base by {based}\)"):
        load_config([based])
    for override in ("train.steps", "=3", "train..steps=3"):
        with pytest.raises(ValueError, match=r"not of the form key\.sub=value"):
            load_config([minimal], [override])


def test_what_is_written_reads_back_equal(minimal: Path, tmp_path: Path) -> None:
    texts = ["model.path='1e-6'", "cluster.address='null'", "run.wandb=off", "data.modalities=[CT, MRI]"]
    config = load_config([minimal], [*texts, "learner.learning_rate=3e-7", "loss.importance_cap=null"])
    assert (config.model.path, config.cluster.address) == ("1e-6", "null")
    write_config(config, tmp_path / "written.yaml")
    again = load_config([tmp_path / "written.yaml"])
    assert again == config
    assert isinstance(again, Config)


def test_digest_tells_configurations_apart(minimal: Path) -> None:
    assert config_digest(load_config([minimal])) == config_digest(load_config([minimal], ["train.seed=0"]))
    assert config_digest(load_config([minimal])) != config_digest(load_config([minimal], ["train.seed=1"]))


def test_the_first_difference_is_told_by_its_key(minimal: Path) -> None:
    def difference(*overrides: str, changeable: bool = True) -> Difference | None:
        return first_difference(load_config([minimal]), load_config([minimal], overrides), changeable=changeable)

    assert difference() is None
    # In the order of the settings: `run` comes before `train`, and `train` before `learner`.
    assert difference("learner.betas=[0.5, 0.9]", "train.seed=3") == Difference("train.seed", 0, 3)
    assert difference("learner.betas=[0.5, 0.9]") == Difference("learner.betas", (0.9, 0.999), (0.5, 0.9))
    assert difference("train.seed=3", "run.dir=b") == Difference("run.dir", Path("runs/a"), Path("b"))
    assert difference("train.seed=3", "run.dir=b", changeable=False) == Difference("train.seed", 0, 3)
    may_change = ("run.dir=b", "train.steps=8", "rollout.actors=3", "cluster.colocated=false", "data.root=b")
    assert difference(*may_change, "rollout.engine.max_num_seqs=8", changeable=False) is None
    # A section that is left out on one side is different as a whole, and inside where both have it.
    lora = difference("model.lora.rank=8")
    assert lora == Difference("model.lora", None, LoraSettings(rank=8))
    ranks = [load_config([minimal], [f"model.lora.rank={rank}"]) for rank in (4, 8)]
    assert first_difference(*ranks) == Difference("model.lora.rank", 4, 8)


def test_what_a_resumed_run_may_change_is_known_by_key() -> None:
    keys = changeable_settings()
    assert {"run", "train.steps", "rollout.actors", "rollout.engine", "cluster", "hardware", "sizing"} <= set(keys)
    # What the learned weights depend on must stay.
    fixed = ("model", "loss", "reward.functions", "train.seed", "train.group_size", "learner.betas", "rollout.top_p")
    assert not any(key == other or key.startswith(f"{other}.") for key in keys for other in fixed)


def test_an_empty_mapping_clears_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "run: {dir: r}\ndata: {format: phantoms, root: d, sampling_weights: {Lesion Grading: 3}}\n"
        "train: {steps: 1}\ncluster: {labels: {learner: {zone: a}}}\nrollout: {engine: {enforce_eager: true}}\n"
    )
    (tmp_path / "later.yaml").write_text("data: {sampling_weights: {}}\n")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    base = tmp_path / "base.yaml"
    assert load_config([base, tmp_path / "empty.yaml"]).data.sampling_weights == {"Lesion Grading": 3}
    assert load_config([base, tmp_path / "later.yaml"]).data.sampling_weights == {}
    assert load_config([base, tmp_path / "later.yaml"]).data.format == "phantoms"
    given = ["data.sampling_weights={}", "cluster.labels={}", "rollout.engine={}"]
    config = load_config([base], given)
    assert (config.data.sampling_weights, config.cluster.labels.learner, config.rollout.engine) == ({}, {}, {})
    # Cleared, then filled anew.
    assert load_config([base], [*given, "data.sampling_weights.MRI=2"]).data.sampling_weights == {"MRI": 2}


def test_an_error_names_the_file_that_gave_the_value(minimal: Path, tmp_path: Path) -> None:
    first = yaml_file(tmp_path / "first.yaml", "train: {stpes: 3, seed: x}\nloss: 3\n")
    later = yaml_file(tmp_path / "later.yaml", "train: {seed: y}\nlearner: {betas: [0.9, [1]]}\n")
    with pytest.raises(ValueError, match="is not valid") as error:
        load_config([minimal, first, later], ["train.group_size=z", "rollout={actors: 0}"])
    lines = {line.split("=")[0].split()[0]: line for line in str(error.value).splitlines()[1:]}
    assert lines["train.stpes"].endswith(f"(in {first})")
    assert lines["loss"].endswith(f"(in {first})")
    assert lines["train.seed"].endswith(f"(in {later})")
    assert lines["learner.betas.1"].endswith(f"(in {later})")
    assert "(in" not in lines["train.group_size"] + lines["rollout.actors"], "overrides are in front of the user"


def test_a_leading_tilde_is_the_home_folder_in_every_path(
    minimal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yaml_file(tmp_path / "based.yaml", "base: ~/own.yaml\n")
    (tmp_path / "home").mkdir()
    yaml_file(tmp_path / "home/own.yaml", "train: {seed: 7}\n")
    paths = {"run.dir": "~/a", "run.replay": "~/b", "run.storage": "file://~/s", "model.path": "~/c"}
    paths |= {"model.shape": "~", "data.root": "~/d", "data.image_root": "~/e", "data.pass_rates": "~/f"}
    paths |= {"data.table.file": "~/t.csv"}
    others = ["data.format=table", "data.min_pass_rate=0.5"]
    given = [*others, *(f'{key}="{path}"' for key, path in paths.items())]
    config = load_config([minimal, tmp_path / "based.yaml"], given)
    assert config.train.seed == 7
    assert "~" not in config_yaml(config)
    assert config.run.dir == tmp_path / "home/a"
    assert (config.run.storage, config.model.path) == (f"file://{tmp_path}/home/s", f"{tmp_path}/home/c")
    assert config.data.pass_rates == tmp_path / "home/f"
    assert config.data.table is not None
    assert config.data.table.file == f"{tmp_path}/home/t.csv"
    several = load_config([minimal], ["data.format=table", "data.table.file=[~/a.csv,b.csv]"]).data.table
    assert several is not None
    assert several.file == (f"{tmp_path}/home/a.csv", "b.csv")
    assert load_config([minimal], ["run.dir=a~b/~c"]).run.dir == Path("a~b/~c")
    online = load_config([minimal], ["data.pass_rates=online", "data.min_pass_rate=0.1"]).data
    assert online.pass_rates == "online"
