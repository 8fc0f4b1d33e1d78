"""Nothing that comes from a file is unpickled: a pickle runs code when it is read."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from medr1_ray.config import ModelSettings
from medr1_ray.model.checkpoint_files import load_model
from tests.repository import REPOSITORY
from tests.unit.model.model_folders import tiny_in

# Messages of an update, between an actor and its own engine process.
_FROM_OUR_OWN_PROCESSES = {
    ("weights/engine/ipc.py", "pickle.loads"),
    ("weights/engine/nccl.py", "pickle.loads"),
    ("weights/engine/object_store.py", "pickle.loads"),
}
_WITHOUT_CODE = {"torch.load": "weights_only", "numpy.load": "allow_pickle", "np.load": "allow_pickle"}
_READERS = {"load", "loads", "Unpickler", "read_pickle"}
_MODULES = {"pickle", "cloudpickle", "joblib", "dill", "torch", "numpy", "np", "pd", "pandas", "shelve", "marshal"}


def unpickling(source: str) -> Iterator[str]:
    """Yield the names of calls that may unpickle."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name = ast.unparse(node.func)
        if node.func.attr not in _READERS or name.partition(".")[0] not in _MODULES:
            continue
        safe = _WITHOUT_CODE.get(name)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if safe is None or given.get(safe) != ("True" if safe == "weights_only" else "False"):
            yield name


def test_only_messages_of_our_own_processes_are_unpickled() -> None:
    package = REPOSITORY / "medr1_ray"
    found = {
        (path.relative_to(package).as_posix(), name)
        for path in package.rglob("*.py")
        for name in unpickling(path.read_text())
    }
    assert found == _FROM_OUR_OWN_PROCESSES


def test_the_search_finds_what_it_is_for() -> None:
    safe = "torch.load(x, weights_only=True); np.load(x, allow_pickle=False)"
    source = f"{safe}; torch.load(x); pickle.load(x); np.load(x)"
    assert sorted(unpickling(source)) == ["np.load", "pickle.load", "torch.load"]


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_pickled_weights_next_to_safetensors_are_not_read(tmp_path: Path) -> None:
    folder, mark = tiny_in(tmp_path / "model"), tmp_path / "it-ran"
    for name in ("pytorch_model.bin", "model.pt", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(_Evil(mark)))
    load_model(folder, torch.float32, ModelSettings(path=str(folder)))
    assert not mark.exists()
    pickle.loads((folder / "model.pt").read_bytes())
    assert mark.exists(), "it is a pickle that runs"
