"""Quick measures during training."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from medr1_ray.data.phantoms import QUESTION_TYPES
from medr1_ray.tiny import monitor
from medr1_ray.tiny.network import FastForward
from medr1_ray.tiny.packing import Packer


def test_the_shipped_model_is_measured(tokenizer, model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "CASES", 8)
    exams = monitor.fixed_cases(seed=0)
    kinds = Counter(exam.name for exam in exams)
    assert kinds["named"] == kinds["report"] == kinds["shape/colour"] == 8
    assert kinds["describe"] == kinds[f"phantom/{QUESTION_TYPES[0]}"] == 16
    line = monitor.report(FastForward(model), Packer(tokenizer, 192), exams)
    found = {name.strip(): float(share) for name, share in re.findall(r"([\w/ ]+) (\d\.\d+)", line)}
    # The last report of the build log: named 1.00, report 0.98, describe/modality 1.00, shape/colour 1.00, and half of
    # the questions about phantoms.
    assert min(found[name] for name in ("named", "report", "describe/modality", "shape/colour")) > 0.8
    assert 0.3 < found["phantom all"] < 0.8
    assert 0.3 < found["sampled"] < 0.8
