"""Which settings a resumed run may change, and how two configurations differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import Config
from medr1_ray.config.loading import Difference, changeable_settings, first_difference


def a_config(**sections: Any) -> Config:
    settings: dict[str, Any] = {
        "run": {"dir": Path("run")},
        "data": {"format": "phantoms", "root": Path("data")},
        "train": {"steps": 4},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values} if isinstance(values, dict) else values
    return Config.model_validate(settings)


def test_equal_settings_do_not_differ() -> None:
    assert first_difference(a_config(), a_config()) is None
    assert first_difference(*(a_config(rollout={"engine": {"max_num_seqs": 1}}) for _ in range(2))) is None


def test_a_difference_has_the_dotted_key_and_both_values() -> None:
    before, now = a_config(), a_config(train={"seed": 7})
    assert first_difference(before, now) == Difference("train.seed", 0, 7)
    assert first_difference(now, before) == Difference("train.seed", 7, 0)
    assert first_difference(before.train, now.train, key="train") == Difference("train.seed", 0, 7)
    assert first_difference(before.train, now.train) == Difference("seed", 0, 7)


def test_of_several_the_first_in_the_order_of_the_fields_is_told() -> None:
    now = a_config(mode="think", train={"seed": 7}, learner={"zero_stage": 3})
    assert first_difference(a_config(), now) == Difference("mode", "no_think", "think")
    assert first_difference(a_config(mode="think"), now) == Difference("train.seed", 0, 7)


def test_a_mapping_is_one_setting() -> None:
    before, now = a_config(reward={"functions": {"accuracy": 1.0}}), a_config(reward={"functions": {"format": 1.0}})
    assert first_difference(before, now) == Difference("reward.functions", {"accuracy": 1.0}, {"format": 1.0})


def test_a_section_that_is_there_or_not_is_one_setting() -> None:
    now = a_config(model={"lora": {"rank": 4}})
    found = first_difference(a_config(), now)
    assert found == Difference("model.lora", None, now.model.lora)
    other = first_difference(now, a_config(model={"lora": {"rank": 8}}))
    assert other == Difference("model.lora.rank", 4, 8)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("train", {"steps": 8}),
        ("run", {"save_every": 3}),
        ("run", {"save_minutes": 3}),
        ("rollout", {"actors": 2}),
        ("rollout", {"engine": {"max_num_seqs": 8}}),
        ("learner", {"cpus_per_rank": 2}),
        # A checkpoint fits any number of ranks and stage, and an error may advise a smaller rate.
        ("learner", {"world_size": 2}),
        ("learner", {"zero_stage": 3}),
        ("learner", {"learning_rate": 1e-3}),
        ("learner", {"max_grad_norm": 0.1}),
        ("reward", {"timeout_seconds": 60}),
        ("cluster", {"sync_timeout_seconds": 7}),
        ("parity", {"gap_mean_limit": 0.5}),
        ("hardware", {"sync_seconds": 1}),
    ],
)
def test_what_does_not_change_what_is_learned_may_change(section: str, values: dict[str, Any]) -> None:
    now = a_config(**{section: values})
    assert first_difference(a_config(), now) is not None
    assert first_difference(a_config(), now, changeable=False) is None


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("train", {"seed": 1}, "train.seed"),
        ("train", {"group_size": 16}, "train.group_size"),
        ("train", {"prompts_per_step": 16}, "train.prompts_per_step"),
        ("rollout", {"temperature": 0.5}, "rollout.temperature"),
        ("rollout", {"max_tokens": 9}, "rollout.max_tokens"),
        ("learner", {"betas": [0.9, 0.99]}, "learner.betas"),
        ("learner", {"weight_decay": 0.5}, "learner.weight_decay"),
        ("loss", {"kl_beta": 0.5}, "loss.kl_beta"),
        ("model", {"path": "other"}, "model.path"),
        ("data", {"seed": 1}, "data.seed"),
        ("prompt", {"system": "Be brief."}, "prompt.system"),
        ("prompt", {"no_think": "{question}"}, "prompt.no_think"),
    ],
)
def test_what_a_run_is_may_not_change(section: str, values: dict[str, Any], key: str) -> None:
    found = first_difference(a_config(), a_config(**{section: values}), changeable=False)
    assert found is not None
    assert found.key == key


def test_objective_and_mode_are_what_a_run_is() -> None:
    think = first_difference(a_config(), a_config(mode="think"), changeable=False)
    assert think == Difference("mode", "no_think", "think")
    supervised = a_config().model_copy(update={"objective": "sft"})
    assert first_difference(a_config(), supervised, changeable=False) == Difference("objective", "grpo", "sft")


def test_the_changeable_settings_are_whole_sections_and_single_keys() -> None:
    found = changeable_settings()
    assert {"run", "parity", "alarms", "cluster", "hardware", "sizing"} <= set(found)
    single = {"train.steps", "rollout.actors", "rollout.engine", "rollout.cpus_per_actor", "learner.cpus_per_rank"}
    assert single <= set(found)
    assert len(found) == len(set(found))
    assert "reward.on_error" in found, "the error of a reward names it"
    fixed = ("run.", "cluster.", "loss", "reward.functions", "model", "reference", "prompt")
    assert not any(key.startswith(fixed) for key in found)
    assert [key for key in found if key.startswith("data")] == [
        "data.root",
        "data.image_root",
        "data.image_timeout_seconds",
        "data.encoders",
    ], "its questions are known by digest"
    never = {"train", "rollout", "learner", "reward", "train.seed", "learner.betas", "mode", "objective"}
    assert not never & set(found)
