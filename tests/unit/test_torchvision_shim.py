"""Each case is an interpreter of its own: the entry point runs once, inside `import torch`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_core import _pydantic_core

LIBRARIES = {
    "torchvision": "_C.so",
    "torchaudio": "lib/_torchaudio.abi3.so",
    "torchcodec": "libtorchcodec_image.so",
}


def run(script: str, *paths: Path) -> str:
    lines = "".join(f"sys.path.insert(0, {str(path)!r}); " for path in paths)
    command = [sys.executable, "-c", f"import sys; {lines}{script}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


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


REPORT = (
    "import torch; from importlib.util import find_spec; "
    "print(hasattr(torch.ops.torchvision, 'nms'), hasattr(torch.ops.torchvision, 'qnms'), "
    "find_spec('torchaudio') is not None, find_spec('torchcodec') is not None, 'torchvision' in sys.modules)"
)


@pytest.fixture(scope="module", autouse=True)
def _cpu_build() -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda or torch.version.hip:
        pytest.skip("torch is built for an accelerator: the shim does nothing")


def test_torchvision_and_the_processor_import_whatever_build_is_installed() -> None:
    script = "import torch, torchvision; from transformers import Qwen2VLProcessor as P; print(P.__name__)"
    assert run(script) == "Qwen2VLProcessor"


def test_transformers_first_works_too() -> None:
    script = "import transformers; from transformers import AutoImageProcessor as P; print(P.__name__)"
    assert run(script) == "AutoImageProcessor"


def test_torchvision_first_works_too() -> None:
    assert run("import torchvision; print(torchvision.__name__)") == "torchvision"


def test_broken_libraries_are_repaired(tmp_path: Path) -> None:
    assert run(REPORT, environment(tmp_path, None)) == "True True False False False"


def test_libraries_that_load_are_left_alone(tmp_path: Path) -> None:
    assert run(REPORT, environment(tmp_path, Path(_pydantic_core.__file__))) == "False False True True False"


def test_nothing_is_declared_where_torchvision_is_absent() -> None:
    hidden = "sys.modules.update(torchvision=None, torchaudio=None, torchcodec=None); "
    assert run(hidden + REPORT) == "False False False False True"
