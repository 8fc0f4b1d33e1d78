"""The command that writes a run's trace: which steps, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medr1_ray.timeline import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of steps 1 to 4, with a span of each."""
    spans = [
        {"step": step, "actor": "driver", "phase": "update", "start_seconds": step, "end_seconds": step + 0.5}
        for step in range(1, 5)
    ]
    (tmp_path / "spans.jsonl").write_text("".join(json.dumps(span) + "\n" for span in spans))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [([], {1, 2, 3, 4}), (["--first", "2"], {2, 3, 4}), (["--last", "3"], {1, 2, 3}), (["--first=2", "--last=2"], {2})],
)
def test_the_trace_has_the_steps_asked_for(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], steps: set[int]
) -> None:
    assert main([str(run), *arguments]) == 0
    written = Path(capsys.readouterr().out.strip())
    events = json.loads(written.read_text())["traceEvents"]
    assert {event["args"]["step"] for event in events if event["ph"] == "X"} == steps


def test_some_steps_are_a_file_of_their_own_and_the_whole_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    whole = (run / "timeline.json").read_text()
    assert main([str(run), "--first", "2", "--last", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "timeline-2-3.json")
    assert (run / "timeline.json").read_text() == whole


def test_steps_that_are_not_there_are_named_with_those_that_are(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--first", "2000"]) == 1
    assert "error: --first 2000: " in (said := capsys.readouterr().err)
    assert said.endswith("has no spans of these steps; it has steps 1 to 4\n")


def test_a_folder_without_spans_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
