"""What the build needs of the machine, said in one line when it is not there.

Run as a program, it ends with that line and exit code 1. It uses nothing outside the standard library.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def missing() -> str | None:
    """One line saying what is missing to compile Millpond and what to do, or None where nothing is."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    headers = Path(sysconfig.get_path("include"))
    wanted = []
    if shutil.which(compiler) is None:
        wanted.append(f"a C compiler (`{compiler}`)")
    if not (headers / "Python.h").exists():
        wanted.append(f"Python's headers (`Python.h` in {headers})")
    if not wanted:
        return None
    return (
        f"millpond: cannot compile: {' and '.join(wanted)} missing. "
        "Install them (Debian: apt install gcc python3-dev), or set MILLPOND_PURE=1 to build without compiling."
    )


if __name__ == "__main__":
    sys.exit(missing())
