"""Secrets are never printed and never written, and what was not written is missed where it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config.loading import config_digest, config_yaml, load_config, without_secrets, write_config
from medr1_ray.config.secrets import REDACTED, redacted, shown, shown_text

MINIMAL = ["run.dir=runs/a", "data.format=phantoms", "data.root=x", "train.steps=2"]
SECRET = "hf_aBcD1234"
TOKEN = f"rollout.engine.hf_token={SECRET}"


@pytest.mark.parametrize(
    "key",
    [
        *("hf_token", "token", "api_key", "apiKey", "WANDB_API_KEY", "access-key", "password", "db_password"),
        *("secret_id", "aws_secret_access_key", "credentials", "auth", "rollout.engine.hf_token"),
    ],
)
def test_a_text_whose_key_says_so_is_a_secret(key: str) -> None:
    assert shown(key, SECRET) == repr(REDACTED)
    assert redacted({key: SECRET, "more": [{key: [SECRET, SECRET]}]}) == {
        key: REDACTED,
        "more": [{key: [REDACTED, REDACTED]}],
    }
    assert shown_text(f"{key}={SECRET}") == f"{key}={REDACTED}"
    assert shown_text(f"x={{{key}: '{SECRET}', seed: 1}}") == f"x={{{key}: {REDACTED}, seed: 1}}"


@pytest.mark.parametrize(
    "plain",
    [
        {"max_tokens": 256, "micro_batch_tokens": 8192, "hf_token": True, "token": None},
        {"tokenizer": "qwen", "tokenizer_mode": "auto", "keyword": "x", "key_metrics": "x", "author": "me"},
        {"where": {"answer key": "A", "token": "x"}, "labels": {"team-key": "radiology"}},
        {"text": "mail me@example.org, see https://example.org/a@b"},
    ],
)
def test_nothing_else_is(plain: dict[str, Any]) -> None:
    assert redacted(plain) == plain


@pytest.mark.parametrize(
    ("url", "left"),
    [
        (f"https://me:{SECRET}@example.org/x", f"https://{REDACTED}@example.org/x"),
        (f"s3://{SECRET}@bucket and ray://u:p@h:1", f"s3://{REDACTED}@bucket and ray://{REDACTED}@h:1"),
    ],
)
def test_user_and_password_of_a_url_are_secrets(url: str, left: str) -> None:
    assert redacted({"address": url}) == {"address": left}
    assert shown_text(f"cluster.address={url}") == f"cluster.address={left}"


def test_a_secret_is_not_in_what_is_printed_or_written(tmp_path: Path) -> None:
    config = load_config([], [*MINIMAL, TOKEN, "run.wandb_project=https://u:hf_aBcD1234@h/p"])
    assert config.rollout.engine["hf_token"] == SECRET, "engines get it"
    assert SECRET not in config_yaml(config)
    write_config(config, tmp_path / "config.yaml")
    assert SECRET not in (tmp_path / "config.yaml").read_text()
    other = load_config([], [*MINIMAL, TOKEN + "5", "run.wandb_project=https://u:other@h/p"])
    assert config_digest(config) == config_digest(other)
    recorded = load_config([tmp_path / "config.yaml"], as_recorded=True)
    assert without_secrets(config) == without_secrets(other) == recorded


@pytest.mark.parametrize("override", [TOKEN, "rollout.engine.hf_token=null"])
def test_a_secret_that_was_not_written_must_be_given_again(tmp_path: Path, override: str) -> None:
    write_config(load_config([], [*MINIMAL, TOKEN]), tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"rollout\.engine\.hf_token was a secret, .* give it again with"):
        load_config([tmp_path / "config.yaml"])
    assert load_config([tmp_path / "config.yaml"], [override])


@pytest.mark.parametrize(
    "override",
    [
        f"rollout.engine.hf_tokn_key={SECRET}",
        f"learner.deepspeed.token={SECRET}",
        f"run.api_key={SECRET}",
        f"run.dir.token={SECRET}",
        f"model.lora.secret.rank={SECRET}",
        f"hf_token:{SECRET}",
        f"rollout.engine.hf_token='{SECRET}",
        f"rollout.engine={{hf_token: {SECRET}",
        f"rollout.engine.hf_token=[{SECRET}]",
        f"cluster.address=[https://me:{SECRET}@example.org]",
    ],
)
def test_errors_do_not_show_secrets(override: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        load_config([], [*MINIMAL, override])
    assert SECRET not in str(error.value)
