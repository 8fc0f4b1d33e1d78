"""Seeded requests on a CPU, which vLLM 0.32 answers with its death where their prompt is scheduled in two pieces.

It then takes back the random numbers of the token that it discards (`generator.set_offset`), which a CPU's generator
cannot: "CPU Generator does not use offset". Not taken back, they make such a request draw other tokens than one whose
prompt came whole, which the parity gate, who asks for seeds, can do with (`run/parity/known_tokens.py`).
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu_input_batch import InputBatch


class Generators(dict[int, Any]):
    """vLLM's generators by the number of a request, which asks for single ones only to take back what they drew."""

    def get(self, key: int, default: Any = None) -> Any:
        """None: there is nothing to take back."""
        return None


def keep_alive_on_a_cpu() -> None:
    """Let the batches of this process have such generators; safe to call again."""
    make = InputBatch.__init__
    if getattr(make, "keeps_alive", False):
        return

    def made(batch: Any, *arguments: Any, **named: Any) -> None:
        make(batch, *arguments, **named)
        if batch.device.type == "cpu":
            batch.generators = Generators()

    made.keeps_alive = True  # type: ignore[attr-defined]
    InputBatch.__init__ = made
