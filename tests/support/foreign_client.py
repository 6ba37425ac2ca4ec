"""Scenarios written in a client's own language: a program plays one, and asks for what only the tests can do.

The program is given the broker's URL and the scenario's name. A line `ask WHAT` on its standard output is a request,
answered by the line `WHAT` on its standard input once it has been done. It ends with 0 when the scenario has passed.

A `Player` is such a program that plays one scenario after another: each is a line on its standard input, and it says
`passed` or `failed` at its end.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.broker_process import BrokerProcess

# Above the deadlines that the scenarios have themselves, so that their own words are what is read.
SCENARIO_DEADLINE_S = 60.0

Actions = Mapping[str, Callable[[], object]]


def names_in(source: Path, function: str = "scenario") -> list[str]:
    """The names of the scenarios in `source`: what stands in quotation marks after `scenario(`."""
    found: list[str] = re.findall(rf'\b{function}\(\s*"([^"]+)"', source.read_text(encoding="utf-8"))
    assert found, f"{source} has no scenarios"
    return found


def actions_on(broker: BrokerProcess) -> Actions:
    """What a scenario may ask for when it has a broker to itself."""

    def kill_and_start() -> None:
        broker.kill()
        broker.start()

    return {
        "restart": broker.restart,
        "kill and start": kill_and_start,
        "pause": lambda: os.kill(broker.pid, signal.SIGSTOP),
        "resume": lambda: os.kill(broker.pid, signal.SIGCONT),
    }


def play(command: Sequence[str], environment: Mapping[str, str], actions: Actions | None = None) -> None:
    """Run `command` to its end; fails with what it said unless it ends with 0."""
    said: list[str] = []
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        overtime = threading.Timer(SCENARIO_DEADLINE_S, program.kill)
        overtime.start()
        try:
            for line in program.stdout:
                said.append(line)
                if line.startswith("ask "):
                    what = line.removeprefix("ask ").strip()
                    (actions or {})[what]()
                    program.stdin.write(f"{what}\n")
            code = program.wait()
        finally:
            overtime.cancel()
            program.kill()
    assert code == 0, f"ended with {code}:\n{''.join(said)[-8000:]}"


class Player:
    """Keeps one program for many scenarios: most of what a short one takes would be the start of a Java machine."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._program: subprocess.Popen[str] | None = None

    def play(self, *words: str, actions: Actions | None = None) -> None:
        """Have the scenario played that `words` tell the program of; fails with what it said unless it has passed."""
        if self._program is None or self._program.poll() is not None:
            self._program = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                bufsize=1,
            )
        program = self._program
        assert program.stdin is not None
        assert program.stdout is not None
        said: list[str] = []
        overtime = threading.Timer(SCENARIO_DEADLINE_S, program.kill)
        overtime.start()
        try:
            program.stdin.write("\t".join(words) + "\n")
            for line in program.stdout:
                if line == "passed\n":
                    return
                if line == "failed\n":
                    break
                said.append(line)
                if line.startswith("ask "):
                    what = line.removeprefix("ask ").strip()
                    (actions or {})[what]()
                    program.stdin.write(f"{what}\n")
        finally:
            overtime.cancel()
        raise AssertionError("".join(said)[-8000:] or f"it ended with {program.wait()}")

    def close(self) -> None:
        if self._program is not None:
            with self._program as program:
                program.kill()
