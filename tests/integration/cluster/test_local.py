"""A real cluster on this machine: where it listens, and what is left of its temporary files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.faults.processes import PATIENCE
from tests.repository import REPOSITORY

PROGRAM = """
import os, psutil, ray
from medr1_ray.cluster.local import start_local

start_local(1)

@ray.remote
class Worker:
    def write(self):
        import pathlib, tempfile
        pathlib.Path(tempfile.gettempdir(), "socket").touch()
        return tempfile.gettempdir()

worker = Worker.remote()
print(ray.get(worker.write.remote()))
this = psutil.Process()
for process in [this, *this.children(recursive=True)]:
    try:
        listening = [each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    except psutil.Error:
        continue  # it has just ended
    print(*listening, sep="\\n")
    # Whoever ends a command's process group must not end its cluster before the driver has saved.
    assert process == this or os.getsid(process.pid) != os.getsid(0), process
ray.shutdown()
"""


def test_it_listens_on_loopback_and_its_temporary_files_go_with_it() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    folder, *addresses = done.stdout.split()
    assert Path(folder).name.startswith("medr1-")
    assert not Path(folder).exists()
    assert len(addresses) > 5
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
