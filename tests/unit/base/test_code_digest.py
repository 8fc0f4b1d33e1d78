"""The digest by which processes know that they run the same code."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from medr1_ray.base import code_digest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of two rooms, one of which holds a copy of the module that digests it."""
    package = tmp_path / "package"
    (package / "base").mkdir(parents=True)
    (package / "room").mkdir()
    (package / "base" / "code_digest.py").write_bytes(Path(code_digest.__file__).read_bytes())
    (package / "room" / "a.py").write_text("x = 1\n")
    (package / "room" / "b.py").write_text("y = 2\n")
    return package


def digest_of(package: Path) -> str:
    spec = importlib.util.spec_from_file_location("copy", package / "base" / "code_digest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.code_digest())


@pytest.mark.parametrize(
    "change",
    [
        lambda room: (room / "a.py").write_text("x = 2\n"),
        lambda room: (room / "c.py").touch(),
        lambda room: (room / "b.py").unlink(),
        lambda room: (room / "a.py").rename(room / "c.py"),
        # The same bytes in the same order, a line of them in the next file.
        lambda room: ((room / "a.py").write_text(""), (room / "b.py").write_text("x = 1\ny = 2\n")),
    ],
)
def test_changed_code_has_another_digest(package: Path, change: Callable[[Path], object]) -> None:
    before = digest_of(package)
    assert digest_of(package) == before
    change(package / "room")
    assert digest_of(package) != before


def test_what_is_no_code_of_the_package_does_not_count(package: Path) -> None:
    before = digest_of(package)
    (package.parent / "script.py").write_text("beside the package")
    (package / "room" / "model.bin").write_text("no code")
    assert digest_of(package) == before


def test_the_order_in_which_a_file_system_lists_files_does_not_count(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, listed = digest_of(package), Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(listed(self, pattern), reverse=True))
    assert digest_of(package) == before
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(listed(self, pattern)))
    assert digest_of(package) == before
