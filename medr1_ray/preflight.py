"""Check a machine's prerequisites before anything is installed; the Makefile runs it with any Python from 3.9 on.

Prints every missing prerequisite with its remedy to stderr and exits with status 1.

Run it as a module (`-m`): started by its path, it would put this folder first on Python's path, where `types.py`
shadows the standard library's (an import error with Debian's Python).
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator


def missing() -> Iterator[str]:
    """Yield one sentence for each missing prerequisite."""
    major, minor = sys.version_info[:2]
    if not (3, 11) <= (major, minor) < (3, 13):
        yield (
            f"Python 3.11 or 3.12 is needed, not {major}.{minor} ({sys.executable}); "
            "choose another: make PYTHON=/path/to/python3.11"
        )
    if importlib.util.find_spec("ensurepip") is None:
        yield "Python's ensurepip is needed to create the virtual environment (Debian: apt install python3-venv)"
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        yield "Python.h is needed: DeepSpeed builds an extension with it (Debian: apt install python3-dev)"
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        yield (
            f"a C++ compiler is needed: DeepSpeed builds an extension, and {compiler!r} is not on PATH "
            "(Debian: apt install g++; another compiler: make CXX=/path/to/it)"
        )


if __name__ == "__main__":
    problems = list(missing())
    for problem in problems:
        print("error:", problem, file=sys.stderr)
    sys.exit(1 if problems else 0)
