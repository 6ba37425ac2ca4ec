"""Simulated power loss: storage and core in one process, on a fake clock and a fake disk, with threads that take turns.

The disk forgets what was not synced, tears and reorders what was on its way, fills up, breaks, and has bits that
change. The model notes what there is after each turn; what a recovery finds must be what there was after one of them,
none before the last that was reported durable. `python -m faults.power.replay SEED` is the same run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from faults.report import Assignment, Failure, Report

WORKERS: Final = 2
LIVES_A_MINUTE: Final = 1000
# What a worker takes to begin, and to end the run that it is in.
MARGIN_S: Final = 3.0
ROOT: Final = Path(__file__).parents[2]
MEMORY: Final = Path("/dev/shm")


def run(assignment: Assignment) -> Report:
    """Seeds one after the other, in several processes."""
    report = Report()
    first = assignment.choose("power").randrange(1 << 31)
    seconds = max(1.0, assignment.seconds - MARGIN_S)
    # Catalogs are files of SQLite's, which sync often.
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else assignment.folder) as folder:
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "faults.power.worker", str(first + number), str(WORKERS), str(seconds),
                 str(Path(folder) / str(number))],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "0"},
            )
            for number in range(WORKERS)
        ]  # fmt: skip
        for worker in workers:
            output, errors = worker.communicate()
            if worker.returncode != 0:
                what = f"a worker ended with {worker.returncode}"
                report.failures.append(Failure(what, errors.decode(errors="replace").splitlines(), _replay(first)))
            for line in output.splitlines():
                _read(report, json.loads(line))
    wanted = int(assignment.seconds / 60 * LIVES_A_MINUTE)
    lives = report.done["lives"]
    report.figures["lives a minute"] = f"{lives * 60 / assignment.seconds:,.0f}"
    if lives < wanted and not report.failures:
        report.failures.append(Failure(f"there were {lives} lives, and not {wanted}", (), _replay(first)))
    return report


def _read(report: Report, told: dict[str, object]) -> None:
    if "done" in told:
        done = told["done"]
        assert isinstance(done, dict)
        report.done.update(done)
        return
    history, seed = told["history"], told["seed"]
    assert isinstance(history, list)
    assert isinstance(seed, int)
    report.failures.append(Failure(f"seed {seed}: {told['what']}", history, _replay(seed)))


def _replay(seed: int) -> str:
    return f"python -m faults.power.replay {seed}"
