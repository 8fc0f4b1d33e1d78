"""A training that is kept in an S3 bucket, on a stand-in for S3, and loses its driver's machine and disk.

`python -m tests.scripts.s3_storage` needs `moto[server]` and `s3fs`, best in an environment of their own. moto's server
speaks S3's protocol on loopback. A training is killed, all of its processes at once, while a checkpoint is on its way
to the bucket; run.dir is deleted, and the same command goes on. Printed: what the bucket had, and where it went on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.runs import Run

BUCKET = "checkpoints"
URL = f"s3://{BUCKET}/runs/a"
STEPS = 6
SETTINGS = [
    *("--config", "configs/phantom_cpu.yaml", "data.phantom_images=120", "data.eval_questions=40"),
    *("train.prompts_per_step=8", "train.group_size=4", "rollout.actors=1", f"train.steps={STEPS}"),
    *("learner.warmup_steps=1", "run.save_every=1", "run.resume=auto", f"run.storage={URL}"),
]


def main() -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # As a user gives them; the training inherits them.
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    folder = Path(tempfile.mkdtemp(prefix="s3-storage-"))
    try:
        lose_the_machine(folder)
    finally:
        server.stop()
        shutil.rmtree(folder)


def lose_the_machine(folder: Path) -> None:
    import s3fs

    bucket = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    run_dir = folder / "run"

    missing = Run(run_dir, SETTINGS)
    assert missing.process.wait() == 1
    print("without the bucket:", missing.said().strip().splitlines()[-1])
    bucket.mkdir(BUCKET)

    def objects() -> dict[str, int]:
        found = bucket.find(URL, detail=True)
        return {name.removeprefix(f"{BUCKET}/runs/a/"): each["size"] for name, each in found.items()}

    def on_its_way(step: int) -> Callable[[], bool]:
        def look() -> bool:
            there = [name for name in objects() if name.startswith(f"checkpoints/checkpoint-{step}/")]
            return bool(there) and not any(name.endswith("/manifest.json") for name in there)

        return look

    run = Run(run_dir, SETTINGS)
    if not run.until(on_its_way(3)):
        raise SystemExit(f"checkpoint-3 was not seen on its way:\n{run.said()}")
    run.kill()
    print(f"killed while checkpoint-3 was uploaded; run.dir had {names(run_dir / 'checkpoints')}, the bucket:")
    for name, size in sorted(objects().items()):
        print(f"  {size:>10,}  {name}")
    shutil.rmtree(run_dir)

    second = Run(folder / "elsewhere", SETTINGS)
    if not second.until(lambda: "bringing" in second.said() or "up after" in second.said()):
        raise SystemExit(second.said())
    started = time.monotonic()
    second.finish()
    print(f"the same command on an empty run.dir, {time.monotonic() - started:.0f} s:")
    for line in second.said().splitlines():
        if any(word in line for word in ("storage", "resuming", "damaged", "writing to", "evaluation after")):
            print(f"  {line}")
    lines = [json.loads(line) for line in (folder / "elsewhere" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "reward/total_mean" in line]
    assert steps == [*range(1, STEPS + 1)], steps
    assert sorted(name for name in objects() if name.endswith("manifest.json") and "checkpoints" in name) == [
        f"checkpoints/checkpoint-{step}/manifest.json" for step in (STEPS - 1, STEPS)
    ], objects()
    print(f"metrics of steps {steps}; the bucket has {len(objects())} objects, {sum(objects().values()):,} bytes")

    shutil.rmtree(folder / "elsewhere")
    third = Run(folder / "third", SETTINGS)
    third.finish()
    print("once more, on an empty run.dir:", third.said().strip().splitlines()[-1])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


if __name__ == "__main__":
    sys.exit(main())
