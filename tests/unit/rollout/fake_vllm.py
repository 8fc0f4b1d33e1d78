"""What this package takes from vLLM, which takes many seconds to import, in the smallest form that serves."""

from __future__ import annotations

from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FINAL_ONLY = Enum("RequestOutputKind", ["FINAL_ONLY"])


class EngineDeadError(Exception):
    """As vLLM's."""


class VLLMClientError(Exception):
    """As vLLM's."""


def install(patch: pytest.MonkeyPatch) -> None:
    """Let `from vllm... import ...` find the names below; sampling parameters become a namespace."""
    found: dict[str, dict[str, Any]] = {
        "vllm": {"SamplingParams": lambda **given: SimpleNamespace(**given)},
        "vllm.sampling_params": {"RequestOutputKind": FINAL_ONLY},
        "vllm.exceptions": {"VLLMClientError": VLLMClientError},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
        "medr1_ray.rollout.image_scheduler": {"scheduler_path": lambda asynchronous: f"asynchronous {asynchronous}"},
        "medr1_ray.weights.engine.extension": {"EXTENSION": "the extension"},
    }
    for name, content in found.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)  # who looks where vLLM is finds that it is nowhere
        vars(module).update(content)
        patch.setitem(__import__("sys").modules, name, module)


def answer(token_ids: list[int], versions: list[tuple[int, int, int]], reason: str = "stop") -> SimpleNamespace:
    """A completion in vLLM's form: `versions` are (start, end, version), log-probabilities -0.5 per token number."""
    return SimpleNamespace(
        token_ids=token_ids,
        logprobs=SimpleNamespace(logprobs=[-0.5 * token for token in token_ids]),
        finish_reason=reason,
        weight_versions=[SimpleNamespace(start=a, end=b, version=str(version)) for a, b, version in versions],
    )
