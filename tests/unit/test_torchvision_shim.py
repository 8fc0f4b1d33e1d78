"""Broken companions of a CPU build of torch are repaired or hidden, working ones left alone.

Where the entry point itself is at stake, a case is an interpreter of its own: it runs once, inside `import torch`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic_core import _pydantic_core

from medr1_ray import torchvision_shim
from medr1_ray.torchvision_shim import repair_imports

LIBRARIES = {
    "torchvision": "_C.so",
    "torchaudio": "lib/_torchaudio.abi3.so",
    "torchcodec": "libtorchcodec_image.so",
}
A_LIBRARY = Path(_pydantic_core.__file__)


def environment(folder: Path, library: Path | None) -> Path:
    """A folder with the three packages, each with `library` (or with a file that is none)."""
    for package, name in LIBRARIES.items():
        path = folder / package / name
        path.parent.mkdir(parents=True)
        (folder / package / "__init__.py").write_text("import torch\n")
        if library:
            shutil.copy(library, path)
        else:
            path.write_bytes(b"not a library")
    return folder


def start(script: str, *paths: Path) -> subprocess.Popen[str]:
    lines = "".join(f"sys.path.insert(0, {str(path)!r}); " for path in paths)
    command = [sys.executable, "-c", f"import sys; {lines}{script}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All interpreters, started at once: each takes seconds, most of them for the import of torch."""
    if torch.version.cuda or torch.version.hip:
        pytest.skip("torch is built for an accelerator: the shim does nothing")
    report = (
        "import torch; from importlib.util import find_spec; "
        "print(hasattr(torch.ops.torchvision, 'nms'), hasattr(torch.ops.torchvision, 'qnms'), "
        "find_spec('torchaudio') is not None, find_spec('torchcodec') is not None, 'torchvision' in sys.modules)"
    )
    started = {
        "torchvision": start("import torchvision; from transformers import Qwen2VLProcessor as P; print(P.__name__)"),
        "transformers": start("from transformers import AutoImageProcessor as P; print(P.__name__)"),
        "broken": start(report, environment(tmp_path_factory.mktemp("broken") / "packages", None)),
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return out.strip()


@pytest.mark.parametrize(
    ("first", "name"), [("torchvision", "Qwen2VLProcessor"), ("transformers", "AutoImageProcessor")]
)
def test_the_processor_imports_whatever_build_is_installed_and_whatever_comes_first(
    interpreters: dict[str, subprocess.Popen[str]], first: str, name: str
) -> None:
    assert told(interpreters[first]) == name


def test_importing_torch_repairs_what_is_broken_and_imports_nothing(
    interpreters: dict[str, subprocess.Popen[str]],
) -> None:
    # Both operators are there; torchaudio and torchcodec cannot be found; torchvision is not imported.
    assert told(interpreters["broken"]) == "True True False False False"


class Torch:
    """What the shim does to this interpreter, as if it had not run yet: operators declared, caches cleared."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.declared: list[str] = []
        self.forgotten: list[str] = []
        patch.setattr(torchvision_shim, "_declared", [])
        patch.setattr(torch.version, "cuda", None)
        patch.setattr(torch.library, "Library", self.library)
        for package in LIBRARIES:
            patch.delitem(sys.modules, package, raising=False)
            patch.setitem(sys.modules, package, None)  # so that it is put back as it was
            del sys.modules[package]
        names = ("torchaudio", "torchcodec")
        caches = {f"is_{name}_available": SimpleNamespace(cache_clear=self.forget(name)) for name in names}
        patch.setitem(sys.modules, "transformers.utils.import_utils", SimpleNamespace(**caches))  # type: ignore[arg-type]

    def library(self, namespace: str, kind: str) -> Any:
        assert (namespace, kind) == ("torchvision", "FRAGMENT")
        return SimpleNamespace(define=lambda schema: self.declared.append(schema.partition("(")[0]))

    def forget(self, name: str) -> Any:
        return lambda: self.forgotten.append(name)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Torch:
    return Torch(monkeypatch)


def test_libraries_that_load_are_left_alone(fresh: Torch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(environment(tmp_path / "packages", A_LIBRARY))
    repair_imports()
    assert (fresh.declared, fresh.forgotten) == ([], [])
    assert not set(LIBRARIES) & set(sys.modules)


def test_what_is_broken_is_declared_or_hidden_once(
    fresh: Torch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(environment(tmp_path / "packages", None))
    repair_imports()
    assert fresh.declared == ["nms", "qnms"]
    # transformers may have looked before, and would go on to believe that they are there.
    assert fresh.forgotten == ["torchaudio", "torchcodec"]
    assert sys.modules["torchaudio"] is None
    assert sys.modules["torchcodec"] is None
    assert "torchvision" not in sys.modules
    repair_imports()
    assert fresh.declared == ["nms", "qnms"], "an operator can be declared only once"


def test_each_package_is_judged_by_its_own_library(
    fresh: Torch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = environment(tmp_path / "packages", A_LIBRARY)
    (packages / "torchaudio" / LIBRARIES["torchaudio"]).write_bytes(b"not a library")
    monkeypatch.syspath_prepend(packages)
    repair_imports()
    assert (fresh.declared, fresh.forgotten) == ([], ["torchaudio"])
    assert "torchcodec" not in sys.modules


def test_nothing_is_done_where_nothing_is_installed(fresh: Torch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_shim, "find_spec", lambda package: None)
    repair_imports()
    assert (fresh.declared, fresh.forgotten) == ([], [])


def test_a_build_for_an_accelerator_is_left_alone(
    fresh: Torch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(environment(tmp_path / "packages", None))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    repair_imports()
    assert (fresh.declared, fresh.forgotten) == ([], [])
