"""The measuring programs are C, and are compiled anew for each run of the driver: it takes a second."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


class BuildError(Exception):
    """There is no compiler, or it refused the program."""


def compile_program(source: Path, folder: Path) -> Path:
    """Compile `source` into `folder`."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BuildError(f"no C compiler found for {source.name}; install gcc")
    program = folder / source.stem
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"{source.name} does not compile:\n{result.stderr}")
    return program
