"""Clients of other languages, other people's tests, and tests that wait long: `make interop` is what runs them.

Packages are kept beside the virtual environment's own, in its folder `interop`. Where a tool is missing, its part is
skipped; the last lines of the run say which parts there were, and what each was short of.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

INTEROP_VARIABLE = "MILLPOND_TEST_INTEROP"
FOREIGN_PARTS = ("amqplib", "jvm", "kafka_clients", "kafka_streams", "kafka_tools", "kafkajs", "kcat", "suites")
HERE = Path(__file__).parent


def part_of(node_id: str) -> str:
    """The folder of a test, by the name under which pytest reports it."""
    path = Path(node_id.partition("::")[0])
    return path.parent.name if path.parent.parent.name == HERE.name else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if INTEROP_VARIABLE in os.environ:
        return
    for item in items:
        if part_of(item.nodeid) in FOREIGN_PARTS:
            item.add_marker(pytest.mark.skip(reason="needs more than this project's packages: `make interop` runs it"))
        elif item.get_closest_marker("on_request") is not None:
            item.add_marker(pytest.mark.skip(reason="waits for its client's own timers: `make interop` runs it"))


@pytest.fixture(scope="session")
def packages() -> Path:
    """Where packages of other languages are kept from one run to the next."""
    folder = Path(sys.prefix) / "interop"
    folder.mkdir(exist_ok=True)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if INTEROP_VARIABLE not in os.environ:
        return
    counts: dict[str, dict[str, int]] = {}
    reasons: dict[str, str] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            if part := part_of(report.nodeid):
                of_part = counts.setdefault(part, {})
                of_part[outcome] = of_part.get(outcome, 0) + 1
                if outcome == "skipped" and isinstance(report.longrepr, tuple):
                    reasons[part] = report.longrepr[2].removeprefix("Skipped: ")
    terminalreporter.section("interop")
    for part, of_part in sorted(counts.items()):
        line = ", ".join(f"{count} {outcome}" for outcome, count in of_part.items())
        terminalreporter.line(f"{part}: {line}{f' ({reasons[part]})' if part in reasons else ''}")
