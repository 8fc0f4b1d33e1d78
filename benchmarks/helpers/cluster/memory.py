"""What an actor took of memory, asked in its own process, which imports this module: it needs the standard library."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

_ANSWER_SECONDS = 30.0


def peak_of_rank(actor: Any) -> int:
    """Return the bytes that this rank's tensors took on its GPU, or this process in main memory, at most."""
    import torch

    return torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else _peak(Path("/proc/self"))


def peak_of_engine(actor: Any) -> int | None:
    """Return the bytes in use on this engine's fullest GPU, all processes together, or those that this process and its
    engine process took in main memory at most; None where nvidia-smi does not tell."""
    import psutil
    import ray

    gpus = ray.get_gpu_ids()
    if not gpus:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return _peak(*(Path("/proc", str(process.pid)) for process in processes))
    query = [f"--id={','.join(map(str, gpus))}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(
            ["nvidia-smi", *query], check=True, capture_output=True, text=True, timeout=_ANSWER_SECONDS
        )
        return max(int(line) for line in told.stdout.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _peak(*processes: Path) -> int:
    """Return the largest resident sets that these processes have had, together, as the kernel counts them.

    Pages of files, which are libraries, are shared, and counted once. Ray's object store and staged weights are not
    those of a process, and left out.
    """
    told = [_status(process) for process in processes]
    of_files = max(each["RssFile"] for each in told)
    return of_files + sum(each["VmHWM"] - each["RssFile"] - each["RssShmem"] for each in told)


def _status(process: Path) -> dict[str, int]:
    """Return what `/proc/<pid>/status` has in bytes, by name."""
    lines = (line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {name: int(value.split()[0]) * 1024 for name, value in lines if value.endswith(" kB")}
