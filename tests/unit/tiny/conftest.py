"""The shipped model, its processor and its tokenizer, loaded once in a process."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from medr1_ray.config import tiny_model_path


@pytest.fixture(scope="session")
def processor() -> Any:
    return AutoProcessor.from_pretrained(tiny_model_path(), local_files_only=True)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_path(), local_files_only=True)


@pytest.fixture(scope="session")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(tiny_model_path(), local_files_only=True).eval()
