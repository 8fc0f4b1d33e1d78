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
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.helpers.matrix.evaluation import evaluate_all, everything
from benchmarks.helpers.matrix.heat_maps import draw
from benchmarks.helpers.matrix.lane import end_with_parent, train_row
from benchmarks.helpers.matrix.settings import MatrixSettings, Trained, load_matrix_settings, rows
from benchmarks.helpers.matrix.tables import collect, write_tables
from medr1_ray.base.append_log import AppendLog
from medr1_ray.base.atomic_files import write_text
from medr1_ray.base.code_digest import code_digest
from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status
from medr1_ray.base.json_files import read_mapping
from medr1_ray.base.writable_folder import require_writable
from medr1_ray.config import as_path, require_lasting
from medr1_ray.config.loading import Difference, changeable_settings, load_config
from medr1_ray.config.secrets import redacted
from medr1_ray.evaluation.folder import questions_digest

# What a resumed run may change says how and where runs are made, and `out` may go on with others; but for these.
_OF_THE_RESULT = ("train.steps", "learner.learning_rate", "learner.max_grad_norm")


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
    """Create the output folder, or check that what is done there is of this experiment: settings, those of the files
    that they name, and questions. Code may be mended on the way; that is told."""
    file, now = settings.out / "settings.json", _identity(settings)
    if not file.exists():
        settings.out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**now, "code": code_digest()}, indent=1))
        return
    before = read_mapping(file, "it is of an earlier version; choose another `out`", [*now, "code"])
    if found := next(_differences({name: before[name] for name in now}, now), None):
        raise ValueError(
            f"out={settings.out} holds a matrix with {found.key} {found.before!r}, and now it is {found.now!r} "
            f"({file}); set it back, or choose another `out`"
        )
    if before["code"] != code_digest():
        print(
            f"out={settings.out} was begun with other code of medr1_ray; what is done there is kept. Choose another "
            "`out` to do it again",
            file=sys.stderr,
        )


def _identity(settings: MatrixSettings) -> dict[str, Any]:
    data = everything(settings)
    runs = load_config(settings.configs)
    return {
        "matrix": settings.model_dump(mode="json", exclude={"out"}),
        "runs": redacted(runs.model_dump(mode="json", exclude=_not_of_the_result())),
        "questions": questions_digest((*data.train, *data.evaluation)),
    }


def _not_of_the_result() -> dict[str, Any]:
    """Return what pydantic is to leave out."""
    excluded: dict[str, Any] = {}
    for key in changeable_settings():
        if key not in _OF_THE_RESULT:
            section, _, name = key.partition(".")
            excluded |= {section: {**excluded.get(section, {}), name: True} if name else True}
    return excluded


def _differences(before: Any, now: Any, key: str = "") -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before | now:
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield Difference(key, before, now)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python -m benchmarks.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=as_path, required=True, help="YAML, see benchmarks/helpers/matrix/settings.py")
    parser.add_argument("--out", type=as_path, help="output folder, instead of the file's `out`")
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
