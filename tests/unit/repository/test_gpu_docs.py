"""docs/gpu.md names commands that exist, and leaves out no GPU check that does."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.repository import REPOSITORY


class Names:
    """A test's name as pytest's `-k` sees it: an identifier is true when the name has it."""

    def __init__(self, name: str) -> None:
        self._name = name.lower()

    def match(self, expression: str) -> bool:
        terms = re.sub(r"\b(?!(?:and|or|not)\b)(\w+)", lambda term: str(term[1] in self._name), expression)
        return bool(eval(terms))


@pytest.fixture(scope="module")
def collected() -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/gpu"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_every_command_of_the_gpu_page_selects_a_test_and_every_test_is_selected(collected: list[str]) -> None:
    page = (REPOSITORY / "docs" / "gpu.md").read_text()
    expressions = [quoted or bare for quoted, bare in re.findall(r'`T -k (?:"([^"]+)"|(\w+))`', page)]
    assert len(expressions) == page.count("`T -k ") >= 15
    selected = {
        expression: [name for name in collected if Names(name).match(expression)] for expression in expressions
    }
    assert [expression for expression, names in selected.items() if not names] == []
    assert sorted(set(collected) - {name for names in selected.values() for name in names}) == []
