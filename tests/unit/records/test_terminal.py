"""What a person sees of a run in the terminal or in a log."""

from __future__ import annotations

import io

from medr1_ray.records.terminal import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SUMMARY = {
    "steps": 100,
    "eval": {
        "before": {"accuracy": 0.41, "format": 0.95, "n": 400},
        "after": {"accuracy": 0.93, "format": 0.99, "n": 400},
        "blank_image": 0.28,
        "shuffled_image": 0.27,
    },
    "completions_per_second": 61.25,
    "seconds": {
        "total": 480,
        "rollout": 200,
        "update": 150,
        "weight_sync": 20,
        "evaluation": 60,
        "startup": 50,
    },
    "logprob_gap_mean": 2e-6,
    "logprob_gap_max": 3e-4,
}


def test_progress_without_a_terminal_prints_a_line_now_and_then() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(100, stream, every_seconds=10, clock=lambda: now[0])
    progress.message("6000 questions")
    metrics = {
        "reward/total_mean": 1.234,
        "reward/accuracy_mean": 0.5,
        "perf/rollout_tokens_per_second": 1234.5,
    }
    for step in range(1, 5):
        now[0] = 6.0 * step
        progress.update(step, metrics)
    now[0] = 25.0
    progress.update(100, metrics)
    progress.close(SUMMARY)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "6000 questions",
        "step 1/100  reward 1.23  accuracy 0.50  1234 tokens/s  ETA ?",
        "step 3/100  reward 1.23  accuracy 0.50  1234 tokens/s  ETA 9:42",  # 97 steps of 6 s
        "step 100/100  reward 1.23  accuracy 0.50  1234 tokens/s  ETA 0:00",
        "accuracy 0.410 before, 0.930 after 100 steps (400 held-out questions; format 0.950, 0.990)",
        "image ablation: blank image 0.280, another question's image 0.270",
        "61.2 completions/s; 480 s (rollout 200, update 150, weight sync 20, evaluation 60); "
        "log-probability gap of engine and learner 2.0e-06 nats, at most 3.0e-04",
    ]


def test_progress_in_a_terminal_keeps_one_line() -> None:
    now = [0.0]
    stream = Terminal()
    progress = Progress(1000, stream, clock=lambda: now[0])
    progress.update(1, {"reward/total_mean": 1.0})
    now[0] = 10.0
    progress.update(3, {"reward/total_mean": 2.0, "perf/rollout_tokens_per_second": None})
    progress.message("evaluation")
    progress.close()
    shown = stream.getvalue()
    last_state = shown.rstrip("\n").split("\r")[-1]
    assert last_state.startswith("step 3/1000 |")
    assert last_state.rstrip().endswith("reward 2.00  ETA 1:23:05")  # 997 steps of 5 s
    assert "evaluation\n" in shown


def test_progress_counts_the_steps_of_the_last_window_only() -> None:
    """A slow first step (an engine that warms up) is forgotten after 20 steps."""
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(121, stream, every_seconds=0, clock=lambda: now[0])
    for step in range(1, 22):
        now[0] = 1000.0 + step if step > 1 else 0.0
        progress.update(step, {})
    assert stream.getvalue().splitlines()[-1] == "step 21/121  ETA 1:40"
