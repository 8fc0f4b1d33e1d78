"""What stands above the actors stays light, and what is imported where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import medr1_ray

PACKAGE = Path(medr1_ray.__file__).parent
NEEDS_RAY = {
    "cluster.connect",
    "cluster.pending_calls",
    "cluster.placement",
    "evaluation.inference",
    "learner.handle",
    "pool.actors",
    "pool.groups",
    "pool.shared_actors",
    "records.prometheus",
    "run.session",
    "run.startup",
}
NEEDS_VLLM = {f"weights.engine.{name}" for name in ("checked_loading", "extension", "ipc", "nccl", "object_store")} | {
    "rollout.image_scheduler"
}
NEEDS_DEEPSPEED = {"learner.deepspeed_engine"}

# Each module is imported by a child of its own, forked after the libraries that light modules may use.
IMPORT_EACH = """
import importlib, os, sys
import datasets, numpy, PIL.Image, pydantic, torch, yaml
from transformers import AutoImageProcessor, AutoModelForImageTextToText
heavy = ("ray", "vllm", "deepspeed")
assert not set(heavy) & set(sys.modules)
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
            found = [library for library in heavy if library in sys.modules]
        except BaseException as error:
            found = [repr(error)]
        print(name, *found, flush=True) if found else None
        os._exit(0)
    os.waitpid(child, 0)
"""


def modules() -> list[str]:
    relative = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in relative)


def output_of(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=300, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_modules_above_the_actors_import_neither_ray_nor_vllm_nor_deepspeed() -> None:
    exempt = {f"medr1_ray.{name}" for name in NEEDS_RAY | NEEDS_VLLM | NEEDS_DEEPSPEED}
    assert exempt <= set(modules())
    light = [name for name in modules() if name not in exempt]
    assert {f"medr1_ray.{name}" for name in ("learner.grpo", "rewards.functions", "data.stream", "sizing.report")} <= {
        *light
    }
    assert output_of("-c", IMPORT_EACH, *light) == ""


def test_the_package_itself_imports_nothing() -> None:
    script = "import sys; before = set(sys.modules); import medr1_ray; print(*(set(sys.modules) - before))"
    assert set(output_of("-c", script).split()) == {"medr1_ray"}


def test_the_command_answers_a_dry_run_without_an_engine(tmp_path: Path) -> None:
    settings = f"""
run: {{dir: {tmp_path / "run"}}}
data: {{format: phantoms, root: {tmp_path / "data"}}}
train: {{steps: 2}}
"""
    (tmp_path / "run.yaml").write_text(settings)
    script = (
        "import sys; from medr1_ray.train import main; status = main(sys.argv[1:]); "
        "assert not {'ray', 'vllm', 'deepspeed'} & set(sys.modules); sys.exit(status)"
    )
    text = output_of("-c", script, "--config", str(tmp_path / "run.yaml"), "train.steps=7", "--dry-run")
    assert "steps: 7" in text
    assert "Memory of each learner rank" in text
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "data").exists()
