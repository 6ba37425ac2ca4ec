"""`python -m faults.power.replay SEED`: a run again, with all that happens in it."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from faults.power.lives import Trace, simulate


def main(seed: int, quiet: Annotated[bool, typer.Option(help="only tell the end and the digest")] = False) -> None:
    """Run one seed as the campaign does, and tell its history and the digest of it."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets is part of what comes again.
        os.execve(sys.executable, [sys.executable, "-m", "faults.power.replay", *sys.argv[1:]],
                  os.environ | {"PYTHONHASHSEED": "0"})  # fmt: skip
    trace = Trace(None if quiet else print)
    code = 0
    with tempfile.TemporaryDirectory(prefix="millpond-power-") as folder:
        try:
            simulate(seed, Path(folder) / "run", trace, Counter())
        except Exception:  # noqa: BLE001
            traceback.print_exc()
            code = 1
    print(f"seed {seed}: {'failed' if code else 'passed'}, digest {trace.digest}")
    sys.exit(code)


if __name__ == "__main__":
    typer.run(main)
