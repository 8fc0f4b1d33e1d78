"""A wrong setting is refused before what takes seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
from medr1_ray.config.loading import load_config
from medr1_ray.run.opening import open_session
try:
    open_session(load_config([Path(sys.argv[1])], sys.argv[2:]), resume=False)
except ValueError as error:
    print(error)
print("loaded:", *{"ray", "torch", "transformers"} & set(sys.modules))
"""


@pytest.mark.parametrize(
    ("setting", "said", "loaded"),
    [
        ("model.path=nowhere", "model.path: 'nowhere' does not exist", set()),
        ("reward.functions={guess: 1}", "guess", set()),
        ("data.format=omnimedvqa", "is not a folder", set()),
        # The number of an image's tokens is asked of transformers' image processor.
        ("data.image_size=1024", "data.image_size=1024", {"torch", "transformers"}),
    ],
)
def test_a_wrong_setting_is_refused_without_ray(tmp_path: Path, setting: str, said: str, loaded: set[str]) -> None:
    file, run, data = (tmp_path / name for name in ("run.yaml", "run", "data"))
    file.write_text(f"run: {{dir: {run}}}\ndata: {{format: phantoms, root: {data}}}\ntrain: {{steps: 2}}\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file), setting], capture_output=True, text=True, check=True, timeout=300
    )
    error, last = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert said in error
    assert set(last.split()[1:]) == loaded
    assert not run.exists()
