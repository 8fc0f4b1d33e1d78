"""A checkpoint loads wherever its source did: with transformers 4.49 and 4.57, in environments of their own.

    python tests/compat/checkpoint_in_old_transformers.py --out /tmp/compat

For each release: makes an environment (pip, from the package registry; torch is that of the environment that runs
this), lets the release save the tiny model as its own checkpoints look, trains on that folder for two steps, and
compares the logits of the trained checkpoint, as the release computes them, with those of the transformers in use. Not
part of CI: it installs packages. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("in_old_transformers.py")
RELEASES = {
    "4.49.0": ["transformers==4.49.0", "tokenizers==0.21.4", "huggingface_hub==0.36.0"],
    "4.57.6": ["transformers==4.57.6", "tokenizers==0.22.1", "huggingface_hub==0.36.0"],
}
TRAINING = ["train.steps=2", "train.prompts_per_step=4", "data.phantom_images=96", "data.eval_questions=16"]
TRAINING += ["rollout.actors=1", "learner.learning_rate=1e-3"]
TOLERANCE = 1e-4


def environment(folder: Path, packages: list[str]) -> Path:
    """Return the interpreter of an environment with these packages, and below them all that is installed here."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder)
        ours = sysconfig.get_paths()["purelib"]
        (site,) = folder.glob("lib/python3*/site-packages")
        (site / "shared.pth").write_text(ours + "\n")
        subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", *packages])
    return python


def run(*command: object, **variables: str) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=REPOSITORY, env=os.environ | variables)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="for environments, checkpoints and logits")
    out: Path = parser.parse_args().out.absolute()
    # Our extension of torch repairs imports of the transformers in use, and is not for older ones.
    old_only = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "HF_HUB_OFFLINE": "1"}
    failed = False
    for release, packages in RELEASES.items():
        python, folder = environment(out / "environments" / release, packages), out / release
        source = folder / "source"
        run(python, WORKER, "source", REPOSITORY / "medr1_ray/tiny/model", source, **old_only)
        settings = [f"model.path={source}", f"data.root={out / 'phantoms'}", f"run.dir={folder / 'run'}", *TRAINING]
        if not (folder / "run" / "summary.json").exists():
            run(sys.executable, "-m", "medr1_ray.train", "--config", "configs/phantom_cpu.yaml", *settings)
        checkpoint = folder / "run" / "checkpoints" / "checkpoint-2"
        run(python, WORKER, "logits", source, folder / "source.pt", **old_only)
        run(python, WORKER, "logits", checkpoint, folder / "theirs.pt", **old_only)
        run(sys.executable, WORKER, "logits", checkpoint, folder / "ours.pt")
        before, theirs, ours = (torch.load(folder / f"{name}.pt") for name in ("source", "theirs", "ours"))
        changed = [
            path.name
            for path in source.iterdir()
            if path.suffix != ".safetensors" and path.read_bytes() != (checkpoint / path.name).read_bytes()
        ]
        gap = float((theirs["logits"] - ours["logits"]).abs().max())
        moved = float((theirs["logits"] - before["logits"]).abs().max())
        wrong = gap > TOLERANCE or moved < 10 * TOLERANCE or changed or not torch.equal(theirs["ids"], ours["ids"])
        failed |= bool(wrong)
        print(
            f"transformers {release}: logits differ by at most {gap:.1e} from ours, by {moved:.1e} from before "
            f"training; files that are not the source's: {', '.join(changed) or 'none'}; "
            f"{'WRONG' if wrong else 'right'}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
