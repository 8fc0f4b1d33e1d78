"""docs/gpu.md names only commands that exist, and every GPU check."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from tests.repository import REPOSITORY


class Names:
    """A test's name as seen by pytest's `-k`: an identifier is true if the name contains it."""

    def __init__(self, name: str) -> None:
        self._name = name.lower()

    def match(self, expression: str) -> bool:
        terms = re.sub(r"\b(?!(?:and|or|not)\b)(\w+)", lambda term: str(term[1] in self._name), expression)
        return bool(eval(terms))


class Collected:
    """A plugin that keeps the names of what pytest has collected."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = [item.nodeid for item in session.items]


@pytest.fixture(scope="module")
def collected() -> list[str]:
    """The GPU tests, collected inside of this process, which has imported torch and Ray already."""
    plugin, out = Collected(), io.StringIO()
    arguments = ["--collect-only", "-q", "-p", "no:cacheprovider", f"--rootdir={REPOSITORY}"]
    with contextlib.redirect_stdout(out):
        status = pytest.main([*arguments, str(REPOSITORY / "tests/gpu")], plugins=[plugin])
    assert status == pytest.ExitCode.OK, out.getvalue()
    return plugin.names


def test_every_command_of_the_gpu_page_selects_a_test_and_every_test_is_selected(collected: list[str]) -> None:
    page = (REPOSITORY / "docs" / "gpu.md").read_text()
    expressions = [quoted or bare for quoted, bare in re.findall(r'`T -k (?:"([^"]+)"|(\w+))`', page)]
    assert len(expressions) == page.count("`T -k ") >= 15
    selected = {
        expression: [name for name in collected if Names(name).match(expression)] for expression in expressions
    }
    assert [expression for expression, names in selected.items() if not names] == []
    assert sorted(set(collected) - {name for names in selected.values() for name in names}) == []
