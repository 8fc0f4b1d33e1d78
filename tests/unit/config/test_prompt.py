"""Wordings that cannot be a prompt are refused with the key and the remedy."""

from __future__ import annotations

import pytest

from medr1_ray.config import PromptSettings
from medr1_ray.config.loading import config_yaml, load_config

REQUIRED = ["run.dir=a", "data.format=phantoms", "data.root=x", "train.steps=4"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ('prompt.no_think="Answer."', r"prompt\.no_think='Answer\.' holds \{question\} 0 times; write it once"),
        ('prompt.think="{question} {question}"', r"prompt\.think=.* holds \{question\} 2 times"),
        ('prompt.think_after="{Question}"', r"prompt\.think_after=.* holds \{question\} 0 times"),
        ('prompt.think=""', r"prompt\.think='' holds \{question\} 0 times"),
        ('prompt.think="{question} {options}"', r"holds \{options\}; the one placeholder is \{question\}"),
        ('prompt.think="{question}<|im_end|>"', r"prompt\.think=.* contains '<\|'"),
        ('prompt.system="<|vision_start|>"', r"prompt\.system=.* contains '<\|'"),
        # As a shell leaves it of `prompt.think="{question} Think."`.
        ("prompt.think={question} Think.", r"is not valid YAML: .*; put a text with braces or colons in quotes"),
        ("prompt.think={question}", r"prompt\.think=\{'question': None\}: input should be a valid string"),
        ("prompt.think=5", r"prompt\.think=5: input should be a valid string"),
        ("prompt.template=x", r"prompt has: system, think, no_think, think_after"),
    ],
)
def test_a_wording_that_cannot_be_is_refused(override: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_config([], [*REQUIRED, override])


def test_a_wording_is_written_and_read_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    text = "You are a radiologist.\nBe brief: {JSON} or \\boxed{C} is not wanted."
    config = load_config([], [*REQUIRED, f'prompt.system="{text!r}"', 'prompt.no_think="Q: {question}\\nA:"'])
    (tmp_path / "config.yaml").write_text(config_yaml(config))
    assert load_config([tmp_path / "config.yaml"]) == config
    assert config.prompt.templates["no_think"] == "Q: {question}\nA:"
    assert config.prompt.templates["think"] == PromptSettings().think
