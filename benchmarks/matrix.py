"""Cross-modality and cross-task matrices as in Med-R1: `python -m benchmarks.matrix --config configs/matrix/FILE`.

Trains each row's model where it is missing, asks each model once about all columns on one set of engines, and writes
tables and heat maps. Interrupted, the same command goes on where it was.

    <out>/ settings.json  runs/<row>/  logs/<row>.log  trained.jsonl  evaluations/<row>/
           results.json  results.csv  results.md  <axis>-<mode>-<method>.png .svg
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.heat_maps import draw
from benchmarks.matrix_evaluation import evaluate_all
from benchmarks.matrix_settings import (
    MatrixSettings,
    Trained,
    load_matrix_settings,
    overrides,
    rows,
    run_directory,
)
from benchmarks.matrix_tables import collect, write_tables
from medr1_ray.append_log import AppendLog

LOG_LINES = 15


def run(settings: MatrixSettings) -> None:
    """The whole experiment.

    Raises:
        ValueError: a setting is not valid, or the folder holds another experiment.
        RuntimeError: a training or an engine failed; what is done stays done.
    """
    _claim(settings)
    _train_missing(settings)
    evaluate_all(settings)
    matrices = collect(settings)
    write_tables(settings.out, matrices)
    for matrix in matrices:
        draw(matrix, settings.out)


def _train_missing(settings: MatrixSettings) -> None:
    log = AppendLog(settings.out / "trained.jsonl")
    done = {row["run"] for row in log.rows}
    todo = [row for row in rows(settings) if row.slug not in done]
    failures: list[BaseException] = []
    with (
        ThreadPoolExecutor(settings.trainings_at_a_time) as threads,
        tqdm(total=len(todo), desc="training", unit="model", disable=not todo) as bar,
    ):
        trainings = {threads.submit(_train, settings, row): row for row in todo}
        try:
            for training in as_completed(trainings):
                if training.cancelled():
                    continue
                if error := training.exception():
                    failures.append(error)
                    for other in trainings:  # those that run already come to their end
                        other.cancel()
                    continue
                log.append([{"run": trainings[training].slug, "seconds": training.result()}])
                bar.update()
        finally:
            for training in trainings:  # when interrupted too: begin no more
                training.cancel()
    if failures:
        raise failures[0]


def _train(settings: MatrixSettings, row: Trained) -> float:
    """Train a row's model; returns seconds."""
    start = time.monotonic()
    directory = run_directory(settings, row)
    begun = (directory / "checkpoints" / "latest").exists()
    if directory.exists() and not begun:
        shutil.rmtree(directory)  # cut off before its first checkpoint: there is nothing to go on from
    command = [sys.executable, "-m", f"medr1_ray.{settings.methods[row.method].command}"]
    command += [part for path in settings.configs for part in ("--config", str(path))]
    command += [*overrides(settings, row), *(["--resume"] if begun else [])]
    log = settings.out / "logs" / f"{row.slug}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        last = "\n".join(log.read_text().splitlines()[-LOG_LINES:])
        raise RuntimeError(f"the training of {row.slug} ended with status {status} ({log}):\n{last}")
    return round(time.monotonic() - start, 1)


def _claim(settings: MatrixSettings) -> None:
    """Make the folder, or check that it is of this experiment."""
    file = settings.out / "settings.json"
    now = settings.model_dump(mode="json", exclude={"out"})
    if file.exists() and json.loads(file.read_text()) != now:
        raise ValueError(f"out={settings.out} holds a matrix with other settings ({file}); give another out")
    settings.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(now, indent=1))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML, see benchmarks/matrix_settings.py")
    parser.add_argument("--out", type=Path, help="instead of the file's `out`")
    options = parser.parse_args(arguments)
    try:
        settings = load_matrix_settings(options.config)
        run(settings.model_copy(update={"out": (options.out or settings.out).absolute()}))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out or settings.out}/results.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
