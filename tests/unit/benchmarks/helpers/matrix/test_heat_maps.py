"""The matrix as a drawing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.helpers.matrix.heat_maps import draw
from benchmarks.helpers.matrix.tables import collect
from tests.unit.benchmarks.helpers.matrix.experiments import answered, in_domain


def test_heat_maps_hold_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = answered(tmp_path, monkeypatch, in_domain)
    grpo, _ = collect(settings)
    draw(grpo, settings.out)
    assert (settings.out / "question_type-no_think-grpo.png").read_bytes().startswith(b"\x89PNG")
    drawing = (settings.out / "question_type-no_think-grpo.svg").read_text()
    # Matplotlib writes each text as a comment next to its outlines.
    assert drawing.count("<!-- 69-100 -->") == 5
    assert drawing.count("<!-- 100° -->") == 5
