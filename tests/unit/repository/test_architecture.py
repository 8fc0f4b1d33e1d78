"""The rooms of the package, and which way imports may point. docs/architecture.md has them for readers."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.repository import REPOSITORY

PACKAGE = REPOSITORY / "medr1_ray"
COMMANDS = {"__main__", "train", "sft", "evaluate", "answer", "timeline"}
# One runs before anything is installed, the other inside every `import torch`: they must not import our modules.
ALONE = {"preflight", "torchvision_shim"}

MAY_IMPORT = {
    "types": set(),
    "base": set(),
    "alone": set(),
    "config": {"types"},
    "rewards": {"types"},
    "model": {"types", "base", "config"},
    "weights": {"base", "config"},
    "cluster": {"base", "config"},
    "data": {"types", "base", "config", "model"},
    "encoders": {"types", "base", "config", "model", "cluster", "data"},
    "rollout": {"types", "base", "config", "model", "weights"},
    "learner": {"types", "base", "config", "model", "weights", "cluster"},
    "pool": {"types", "base", "config", "cluster", "data", "encoders", "rewards", "rollout", "weights"},
    "sizing": {"config", "cluster", "model", "rollout", "data"},
    "tiny": {"types", "base", "config", "data", "rewards"},
    "evaluation": {"types", "base", "config", "data", "model", "rewards", "weights", "pool"},
    "records": {"types", "base", "config", "data", "learner", "pool", "evaluation"},
    "run": {"types", "base", "config", "rewards", "model", "weights", "cluster", "data", "learner", "pool"}
    | {"encoders", "sizing", "evaluation", "records"},
    "commands": {"types", "base", "config", "data", "model", "pool", "evaluation", "records", "run"},
}
# What may be imported from outside a room; a room that is not listed has no inner modules.
DOORS = {
    "config": {"config", "loading"},
    "weights": {"messages", "protocol", "buckets", "digests", "transports", "engine.extension"},
    "data": {"dataset", "stream", "encoding", "demonstrations", "questions", "blind_prior", "prompt_templates"}
    | {"image_digest", "phantoms", "readers.rows", "readers.manifest"},
    "encoders": {"handle"},
    "rollout": {"actor", "defaults", "fake_actor"},
    "learner": {"handle", "messages", "schedule"},
    "pool": {"groups", "group_ledger", "actor_states", "scaling", "shared_actors"},
    "sizing": {"report", "memory"},
    "run": {"opening", "command"},
}
# Modules without `tests/<unit or integration>/<room>/test_<module>.py`, and what tests them instead.
TESTED_ELSEWHERE = {
    "__main__.py": "test_main.py",
    "data/phantoms/__main__.py": "test_main.py",
    "data/phantoms/canvas.py": "test_drawing.py, by what is drawn on it",
    "data/phantoms/echo.py": "test_drawing.py draws all modalities",
    "data/phantoms/lesion.py": "test_drawing.py, by the lesions that are seen",
    "data/phantoms/optical.py": "test_drawing.py draws all modalities",
    "data/phantoms/projection.py": "test_drawing.py draws all modalities",
    "data/phantoms/tomography.py": "test_drawing.py draws all modalities",
    "data/prepare/__main__.py": "test_main.py",
    "learner/optimizer_state.py": "real DeepSpeed, in tests/integration/learner/test_actor.py",
    "learner/rank_calls.py": "test_handle.py, by the calls of a learner",
    "model/folder/contents.py": "test_check.py, by the whole check",
    "model/folder/files.py": "test_check.py, by the whole check",
    "model/folder/limits.py": "test_check.py, by the whole check",
    "pool/workload.py": "test_groups.py, whose pool keeps them",
    "rollout/image_scheduler.py": "a real engine, in tests/integration/weights/test_object_store.py",
    "tiny/__main__.py": "half an hour of building; its parts are tested",
    "weights/engine/adapters.py": "tests/integration/weights/test_adapters.py",
    "weights/engine/checked_loading.py": "tests/integration/weights/test_checked_loading.py",
    "weights/engine/extension.py": "every real engine loads it",
    "weights/engine/ipc.py": "tests/integration/weights/test_ipc.py, with the other end",
    "weights/engine/nccl.py": "tests/integration/weights/test_nccl.py, with the other end",
    "weights/engine/seeded_requests.py": "a real engine, in tests/integration/rollout/test_actor.py",
    "weights/engine/object_store.py": "tests/integration/weights/test_object_store.py, with the other end",
    "weights/protocol.py": "protocols without code",
}
MOST_FILES = 14
MOST_LINES = 370


@dataclass(frozen=True)
class Import:
    """`module` imports `target` (both without `medr1_ray.`) at `line` of `path`."""

    path: Path
    line: int
    module: str
    target: str

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{self.line}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def room_of(module: str) -> str:
    first = module.split(".")[0]
    if (PACKAGE / first).is_dir():
        return first
    return "commands" if first in COMMANDS else "alone" if first in ALONE else first


def files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def modules() -> set[str]:
    return {module_name(path) for path in files()}


def imports_of(path: Path, source: str | None = None) -> Iterator[Import]:
    """Yield all imports of our own modules, including those inside functions and under TYPE_CHECKING."""
    known = modules()
    for node in ast.walk(ast.parse(source if source is not None else path.read_text())):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: use absolute imports"
            base = node.module or ""
            found = [f"{base}.{alias.name}" for alias in node.names]
        for name in found:
            if not name.startswith("medr1_ray."):
                continue
            inner = name.removeprefix("medr1_ray.")
            target = inner if inner in known else inner.rpartition(".")[0]
            yield Import(path, node.lineno, module_name(path), target)


def wrong_arrow(found: Import) -> str | None:
    """Return what is wrong with an import, or None."""
    ours, theirs = room_of(found.module), room_of(found.target)
    if ours == theirs:
        return None
    if theirs not in MAY_IMPORT[ours]:
        allowed = ", ".join(sorted(MAY_IMPORT[ours])) or "no room"
        return f"{found.place}: {ours} must not import {theirs} ({found.target}); it may import {allowed}"
    doors = DOORS.get(theirs)
    door = found.target.removeprefix(f"{theirs}.")
    if doors is not None and door not in doors:
        return (
            f"{found.place}: {ours} imports {found.target}, which is inside {theirs}; its doors are "
            f"{', '.join(sorted(doors))}"
        )
    return None


def test_arrows_point_the_allowed_way_and_end_at_doors() -> None:
    wrong = [problem for path in files() for found in imports_of(path) if (problem := wrong_arrow(found))]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("learner/grpo.py", "from medr1_ray.rollout.actor import RolloutActor", "learner must not import rollout"),
        ("model/lora.py", "def f():\n    import medr1_ray.learner.grpo", "2: model must not import learner"),
        (
            "base/deadline.py",
            "if TYPE_CHECKING:\n    from medr1_ray.types import Span",
            "base must not import types (types); it may import no room",
        ),
        ("run/session.py", "from medr1_ray.learner import grpo", "inside learner; its doors are handle, messages"),
        ("run/session.py", "from medr1_ray.config.sections import RunSettings", "inside config; its doors are"),
        ("train.py", "from medr1_ray.learner.handle import Learner", "commands must not import learner"),
        ("run/session.py", "from medr1_ray.learner.handle import Learner", None),
        ("learner/actor.py", "from medr1_ray.learner import grpo", None),
        ("run/startup.py", "from medr1_ray.config import Config", None),
    ],
)
def test_a_wrong_arrow_is_named_with_file_line_and_both_rooms(module: str, source: str, problem: str | None) -> None:
    (found,) = imports_of(PACKAGE / module, source)
    said = wrong_arrow(found)
    if problem is None:
        assert said is None
    else:
        assert said is not None
        assert said.startswith(f"medr1_ray/{module}:")
        assert problem in said


def test_every_room_is_in_the_table_and_every_door_exists() -> None:
    homeless = [str(path) for path in files() if room_of(module_name(path)) not in MAY_IMPORT]
    assert not homeless, f"in no room: {', '.join(homeless)}; move them into one, or add a room to MAY_IMPORT"
    assert {room_of(module) for module in modules()} == set(MAY_IMPORT), "a room of MAY_IMPORT is gone"
    assert {room for rooms in MAY_IMPORT.values() for room in rooms} <= set(MAY_IMPORT)
    for room, doors in DOORS.items():
        for door in doors - {room}:
            assert f"{room}.{door}" in modules(), f"{room}'s door {door} is not a module"


def test_rooms_say_what_they_are_and_import_nothing() -> None:
    """Exceptions with code: `config` and `data.phantoms` re-export, `weights.transports` has a table of transports."""
    with_content = {"config", "weights.transports", "data.phantoms"}
    for path in sorted(PACKAGE.glob("*/**/__init__.py")):
        tree = ast.parse(path.read_text())
        text = ast.get_docstring(tree) or ""
        room = module_name(path)
        assert len(text) > 80, f"{path}: say what the room is for, in which process it runs, and its doors"
        if path.parent.parent == PACKAGE:
            for part in ("Runs in", "Door", "To add"):
                assert part in text, f"{path}: the docstring has no part {part!r}"
        assert len(tree.body) == 1 or room in with_content, f"{path}: a room's __init__ is its docstring alone"


def test_no_folder_holds_too_many_files_and_no_file_too_many_lines() -> None:
    every = [*files(), *(REPOSITORY / "benchmarks").rglob("*.py")]
    for folder in {path.parent for path in every} | {PACKAGE}:
        held = sorted(path.name for path in folder.glob("*.py"))
        assert len(held) <= MOST_FILES, f"{folder.relative_to(REPOSITORY)} holds {len(held)} files: split it"
    for path in every:
        lines = len(path.read_text().splitlines())
        assert lines <= MOST_LINES, f"{path.relative_to(REPOSITORY)} has {lines} lines: split it"


def test_every_module_has_a_test_file_or_a_reason() -> None:
    without = set()
    for path in files():
        inner = path.relative_to(PACKAGE)
        places = [REPOSITORY / "tests" / kind / inner.parent / f"test_{inner.name}" for kind in ("unit", "integration")]
        if path.name != "__init__.py" and not any(place.exists() for place in places):
            without.add(inner.as_posix())
    missing = sorted(without - TESTED_ELSEWHERE.keys())
    assert not missing, f"without a test file tests/unit/<room>/test_<module>.py: {', '.join(missing)}"
    assert TESTED_ELSEWHERE.keys() == without, "these have a test file by now, or are gone"
    for reason in TESTED_ELSEWHERE.values():
        for word in reason.split():
            if word.strip(",").endswith(".py"):
                name = Path(word.strip(",")).name
                assert list((REPOSITORY / "tests").rglob(name)), f"{name} is no test"


def test_what_vllm_loads_by_its_path_is_there() -> None:
    """vLLM imports these by name in its own process, so a wrong name shows only when an engine starts."""
    from medr1_ray.weights.transports import TRANSPORTS

    extension = source_of("medr1_ray.weights.engine.extension")
    (path,) = [
        node.value.value
        for node in ast.parse(extension).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXTENSION"  # type: ignore[attr-defined]
    ]
    named = [path, *(transport.engine_class.replace(":", ".") for transport in TRANSPORTS.values())]
    named += [f"medr1_ray.rollout.image_scheduler.{name}" for name in ("WholeScheduler", "WholeAsyncScheduler")]
    for name in named:
        module, _, class_name = name.rpartition(".")
        classes = {node.name for node in ast.parse(source_of(module)).body if isinstance(node, ast.ClassDef)}
        assert class_name in classes, f"{name} is not a class"


def source_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is not a module"
    assert spec.origin is not None
    return Path(spec.origin).read_text()
