"""`python -m faults`: run the parts of the campaign in turn, and print what was done and what went wrong."""

from __future__ import annotations

import importlib
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from faults.report import Assignment, Failure, Report

# The parts, each a module with `run(assignment) -> Report`, and their shares of the time.
PARTS: Final = {
    "kills": 10.0,
    "power": 3.0,
    "fuzz": 2.0,
    "hostile": 2.0,
    "overload": 5.0,
}
MINUTES: Final = sum(PARTS.values())
HISTORY_LINES_MAX: Final = 200


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(PARTS)}; all of them unless told")] = None,
    seed: Annotated[int, typer.Option(help="what all chance comes from; a random one unless told")] = -1,
    minutes: Annotated[float, typer.Option(help="how long all the parts take together")] = MINUTES,
    keep: Annotated[bool, typer.Option(help="keep the folders of parts that failed")] = False,
) -> None:
    """Do to the broker what goes wrong in the world, and check that what it promised is kept."""
    console = Console(soft_wrap=True)
    names = parts or list(PARTS)
    for name in names:
        if name not in PARTS:
            raise typer.BadParameter(f"there is no part {name!r}; there are {', '.join(PARTS)}")
    if seed < 0:
        seed = secrets.randbelow(1 << 31)
    console.print(f"seed {seed}, {minutes:g} minutes: {', '.join(names)}")
    scale = minutes * 60 / sum(PARTS[name] for name in names)
    reports: dict[str, Report] = {}
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix=f"millpond-{name}-"))
        began = time.monotonic()
        part = importlib.import_module(f"faults.{name}")
        console.print(f"{name}: {PARTS[name] * scale:.0f} s")
        report = part.run(Assignment(seed, PARTS[name] * scale, folder, lambda line: console.print(f"  {line}")))
        reports[name] = report
        console.print(f"{name} took {time.monotonic() - began:.0f} s, {len(report.failures)} failures")
        if report.failures and keep:
            console.print(f"  its files are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    console.print(_table(reports))
    failures = [(name, failure) for name, report in reports.items() for failure in report.failures]
    for name, failure in failures:
        _tell(console, name, failure)
    console.print(f"seed {seed}: {len(failures)} failures")
    sys.exit(1 if failures else 0)


def _table(reports: dict[str, Report]) -> Table:
    table = Table("part", "what", "how many or how much")
    for name, report in reports.items():
        for what, count in report.done.items():
            table.add_row(name, what, f"{count:,}")
        for what, figure in report.figures.items():
            table.add_row(name, what, figure)
        table.add_row(name, "failures", str(len(report.failures)), end_section=True)
    return table


def _tell(console: Console, name: str, failure: Failure) -> None:
    console.rule(f"{name}: {failure.what}")
    for line in list(failure.history)[-HISTORY_LINES_MAX:]:
        console.print(f"  {line}", markup=False, highlight=False)
    console.print(f"to see it again: {failure.replay}", markup=False)


if __name__ == "__main__":
    typer.run(main)
