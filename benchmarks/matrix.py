"""Cross-modality and cross-task matrices as in Med-R1: `python -m benchmarks.matrix --config configs/matrix/FILE`.

Trains the model of every row that does not have one yet, keeping engines from one training to the next; evaluates each
model once on all columns, on one set of engines; writes tables and heat maps. After an interruption, the same command
continues where it stopped.

    <out>/ settings.json  runs/<row>/  logs/<row>.log  engines/  trained.jsonl  evaluations/<row>/
           results.json  results.csv  results.md  <axis>-<mode>-<method>.png .svg
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.helpers.heat_maps import draw
from benchmarks.helpers.matrix_evaluation import evaluate_all
from benchmarks.helpers.matrix_lane import end_with_parent, train_row
from benchmarks.helpers.matrix_settings import MatrixSettings, Trained, load_matrix_settings, rows
from benchmarks.helpers.matrix_tables import collect, write_tables
from medr1_ray.base.append_log import AppendLog
from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status
from medr1_ray.base.json_files import read_mapping
from medr1_ray.base.writable_folder import require_writable
from medr1_ray.config import require_lasting


def run(settings: MatrixSettings) -> None:
    """Run the whole experiment.

    Raises:
        ValueError: a setting is invalid, or the folder holds another experiment.
        RuntimeError: a training or an engine failed; completed work is kept.
    """
    _claim(settings)
    # Spawned rather than forked: a fork would copy locks that other threads of this process hold at that moment.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.trainings_at_a_time, spawn, initializer=end_with_parent) as lanes:
        _train_missing(settings, lanes)
    evaluate_all(settings)
    matrices = collect(settings)
    write_tables(settings.out, matrices)
    for matrix in matrices:
        draw(matrix, settings.out)


def _train_missing(settings: MatrixSettings, lanes: Executor) -> None:
    """Train each row that `trained.jsonl` does not list; after a failure start no more, but let running ones finish."""
    log = AppendLog(settings.out / "trained.jsonl", ("run",))
    done = {row["run"] for row in log.rows}
    todo = [row for row in rows(settings) if row.slug not in done]
    following, running = iter(todo), dict[Future[float], Trained]()
    failures: list[BaseException] = []
    with tqdm(total=len(todo), desc="training", unit="model", disable=not todo) as bar:
        while True:
            free = settings.trainings_at_a_time - len(running)
            for row in [] if failures else islice(following, free):
                running[lanes.submit(train_row, settings, row)] = row
            if not running:
                break
            for training in wait(running, return_when=FIRST_COMPLETED).done:
                row = running.pop(training)
                if error := training.exception():
                    failures.append(error)
                    continue
                log.append([{"run": row.slug, "seconds": training.result()}])
                bar.update()
    if failures:
        raise failures[0]


def _claim(settings: MatrixSettings) -> None:
    """Create the output folder, or check that it belongs to this experiment."""
    file = settings.out / "settings.json"
    now = settings.model_dump(mode="json", exclude={"out"})
    if file.exists() and read_mapping(file, "choose another `out`") != now:
        raise ValueError(f"out={settings.out} holds a matrix with other settings ({file}); choose another `out`")
    settings.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(now, indent=1))


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python -m benchmarks.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML, see benchmarks/helpers/matrix_settings.py")
    parser.add_argument("--out", type=Path, help="output folder, instead of the file's `out`")
    options = parser.parse_args(arguments)

    def work(ending: Ending) -> int:
        ending.how_to_go_on = lambda: "what is done is kept; the same command continues"
        settings = load_matrix_settings(options.config)
        out = options.out or settings.out
        require_lasting("out", out)
        require_writable(f"out={out}", out)
        run(settings.model_copy(update={"out": out.absolute()}))
        print(f"{out}/results.md")
        return 0

    return run_to_status(work)


if __name__ == "__main__":
    sys.exit(main())
