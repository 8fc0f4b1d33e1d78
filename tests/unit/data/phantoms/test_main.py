"""The command that writes phantoms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_command_writes_a_dataset_and_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medr1_ray.data.phantoms", "--out", str(tmp_path / "p"), "--seed", "0"]
    done = subprocess.run([*command, "--images", "2", "--size", "56"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p" / "phantoms.json").is_file()
    refused = subprocess.run([*command, "--images", "3", "--size", "56"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "asked for: 3" in refused.stderr
