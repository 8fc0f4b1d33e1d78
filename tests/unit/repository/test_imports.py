"""Which modules import Ray, vLLM or DeepSpeed; all others must stay cheap to import, and so must the settings."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import medr1_ray

PACKAGE = Path(medr1_ray.__file__).parent
NEEDS_RAY = {
    "cluster.connect",
    "cluster.leaving_nodes",
    "cluster.local",
    "cluster.pending_calls",
    "cluster.placement",
    "encoders.handle",
    "evaluation.inference",
    "learner.handle",
    "learner.rank_calls",
    "pool.actors",
    "pool.calls.engine_calls",
    "pool.calls.failures",
    "pool.calls.generation",
    "pool.groups",
    "pool.calls.measurements",
    "pool.places",
    "pool.reward_actors",
    "pool.shared_actors",
    "records.prometheus",
    "run.session",
    "run.startup",
}
NEEDS_VLLM = {
    f"weights.engine.{name}"
    for name in ("adapters", "checked_loading", "extension", "ipc", "nccl", "object_store", "seeded_requests")
} | {"rollout.image_scheduler"}
NEEDS_DEEPSPEED = {"learner.deepspeed_engine", "learner.optimizer_state"}

# All in one interpreter, since starting torch and transformers takes seconds. In this order: what must not even load
# those, then every module that must not load an engine, then a dry run, which must not load one either.
SCRIPT = """
import importlib, sys
before = set(sys.modules)
import medr1_ray
print("package:", *(set(sys.modules) - before))
import medr1_ray.config.loading, medr1_ray.tiny
print("settings:", *{"torch", "transformers", "datasets"} & set(sys.modules))
import medr1_ray.run.command, medr1_ray.train
print("command:", *{"torch", "transformers", "datasets"} & set(sys.modules))
settings, *names = sys.argv[1:]
import medr1_ray.answer, medr1_ray.evaluate, medr1_ray.tiny.__main__
about = ["--image", settings, "--question", "Which?", "--options", "CT;MRI"]
refused = [
    medr1_ray.tiny.__main__.main(["--out", "absent", "--seed", "-1"]),
    medr1_ray.answer.main(["--model", "tiny", *about, "rollout.max_tokens=1"]),
    medr1_ray.evaluate.main(["--model", "tiny", "--data", settings, "--split", "test", "rollout.max_tokens=1"]),
    *(
        medr1_ray.train.main(["--config", settings, wrong])
        for wrong in ("rollout.max_tokens=1", "cluster.address=localhost:1", "model.path=absent")
    ),
]
print("refused:", *refused, *{"torch", "transformers", "ray"} & set(sys.modules))
engines = {"ray", "vllm", "deepspeed"}
for name in names:
    importlib.import_module(name)
    found = engines & set(sys.modules)
    if found:
        sys.exit(f"{name} imports {found}")
from medr1_ray.train import main
status = main(["--config", settings, "train.steps=7", "--dry-run"])
print("dry run:", status, *engines & set(sys.modules))
"""


def modules() -> list[str]:
    relative = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in relative)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the script prints; it fails if a module that should be light is not."""
    folder = tmp_path_factory.mktemp("light")
    settings = f"""
run: {{dir: {folder / "run"}}}
data: {{format: phantoms, root: {folder / "data"}}}
train: {{steps: 2}}
"""
    (folder / "run.yaml").write_text(settings)
    exempt = {f"medr1_ray.{name}" for name in NEEDS_RAY | NEEDS_VLLM | NEEDS_DEEPSPEED}
    assert exempt <= set(modules())
    light = [name for name in modules() if name not in exempt]
    assert {f"medr1_ray.{name}" for name in ("learner.grpo", "rewards.functions", "data.stream", "sizing.report")} <= {
        *light
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder / "run.yaml"), *light],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["run.yaml"], "a dry run leaves nothing"
    return done.stdout


def test_modules_above_the_actors_import_neither_ray_nor_vllm_nor_deepspeed(told: str) -> None:
    assert told


def test_the_package_itself_imports_nothing(told: str) -> None:
    assert "package: medr1_ray\n" in told


def test_what_is_refused_quickly_loads_no_library_that_takes_seconds(told: str) -> None:
    assert "refused: 1 1 1 1 1 1\n" in told


def test_the_settings_load_neither_torch_nor_transformers(told: str) -> None:
    assert "settings:\n" in told


def test_a_command_is_refused_before_torch_or_transformers_are_loaded(told: str) -> None:
    """They take a second and more each; a wrong setting needs neither."""
    assert "command:\n" in told


def test_the_command_answers_a_dry_run_without_an_engine(told: str) -> None:
    assert "steps: 7" in told
    assert "Memory of each learner rank" in told
    assert "dry run: 0\n" in told


def test_no_modules_import_each_other_in_a_circle() -> None:
    """So each can be imported first: in a circle it depends on who is, whether a name is there already."""
    known = set(modules())
    needs = {name: set(needed_by(name, known)) & known for name in known}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(needs[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(known):
        visit(name, ())
    assert "medr1_ray.config" in needs["medr1_ray.data.dataset"]
    assert "medr1_ray.config.schema" in needs["medr1_ray.config.loading"]


def needed_by(name: str, known: set[str]) -> Iterator[str]:
    """Yield the modules that a module imports when it is imported, not later or for type checkers alone."""
    path = PACKAGE.parent / Path(*name.split("."))
    source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)
