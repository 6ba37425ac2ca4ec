"""The part as a whole: the engine's process, the conversations beside it, the comparison, and what to tell of them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from faults.fuzz.conversations import CONVERSATIONS_PER_MINUTE_MIN, converse
from faults.fuzz.engine import CORPUS, EXECUTED, FOUND, LOG, has_coverage
from faults.fuzz.targets import TARGETS
from faults.report import Assignment, Failure, Report

# At full size, and what of it goes to other things than fuzzing: the start of the engine, the comparison at the end.
SECONDS: Final = 120.0
_ENGINE_START_S: Final = 12.0
_COMPARED_SHARE: Final = 0.12
# A target cannot do less: libFuzzer knows whole seconds only.
_TARGET_S_MIN: Final = 2
# Of every target in a full run.
_EXECUTED_MIN: Final = 100
# What the engine may take beyond its time, and the comparison at all, on a busy machine.
_PATIENCE_S: Final = 120.0
_ROOT: Final = Path(__file__).parents[2]


def run(assignment: Assignment) -> Report:
    """All decoders, or as many of them as there is time for, and conversations as long."""
    report = Report()
    folder = assignment.folder / "decoders"
    folder.mkdir(parents=True)
    names, seconds_each = _plan(assignment)
    end_at = assignment.began + assignment.seconds * (1 - _COMPARED_SHARE)
    if not has_coverage():
        report.figures["coverage"] = "none: there is no atheris for this Python, the inputs are mutations from the seed"
        assignment.say(f"coverage: {report.figures['coverage']}")
    command = ["faults.fuzz.engine", *names, "--folder", str(folder), "--seconds", str(seconds_each)]
    with _start([*command, "--seed", str(assignment.seed)], is_compiled=False) as engine:
        try:
            converse(assignment, report, end_at)
            told, _ = engine.communicate(timeout=max(0.0, end_at - time.monotonic()) + _PATIENCE_S)
        except BaseException:
            engine.kill()
            raise
    if engine.returncode != 0:
        report.failures.append(Failure("the engine ended with an error", told.splitlines()[-40:], " ".join(command)))
    _gather(assignment, report, folder, names)
    _compare(assignment, report, folder)
    if assignment.seconds >= SECONDS:
        _check_promises(assignment, report, names)
    return report


def _plan(assignment: Assignment) -> tuple[list[str], int]:
    """Which targets, and for how many seconds each."""
    names = list(TARGETS)
    left = max(0.0, assignment.seconds * (1 - _COMPARED_SHARE) - _ENGINE_START_S)
    count = min(len(names), max(1, int(left / (_TARGET_S_MIN + 1))))
    if count < len(names):
        names = assignment.choose("targets").sample(names, count)
    # Ending and beginning take most of a second.
    return names, max(_TARGET_S_MIN, int(left / count - 0.6))


def _start(arguments: list[str], *, is_compiled: bool) -> subprocess.Popen[str]:
    """A module as a process of its own: with the uncompiled source, or with the broker that is installed."""
    path = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    if not is_compiled:
        path.insert(0, str(_ROOT / "src"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in path if part)}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if not is_compiled else subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=_ROOT,
    )


def _gather(assignment: Assignment, report: Report, folder: Path, names: list[str]) -> None:
    """What the engine has left in its files."""
    for name in names:
        log = _text(folder / name / LOG)
        executed = [line.removeprefix(EXECUTED) for line in log.splitlines() if line.startswith(EXECUTED)]
        count = int(executed[-1]) if executed else 0
        report.done["inputs to decoders"] += count
        coverage = [word for line in log.splitlines() if "\tDONE" in line for word in line.split("cov: ")[1:]]
        covered = f", {coverage[-1].split()[0]} places covered" if coverage else ""
        kept = len(list((folder / name / CORPUS).glob("*")))
        report.figures[name] = f"{count:,} inputs{covered}, {kept} worth keeping"
        assignment.say(f"{name}: {report.figures[name]}")
        for line in _text(folder / name / FOUND).splitlines():
            found = json.loads(line)
            _fail(report, name, found["what"], [*found["history"], found["where"]], found["input"])
        for crash in sorted(folder.joinpath(name).glob("*-*")):
            encoded = base64.b64encode(crash.read_bytes()).decode()
            _fail(report, name, f"the process ended: {crash.name.partition('-')[0]}", log.splitlines()[-60:], encoded)
        if not executed:
            what = f"{name}: the engine has not come to its end"
            report.failures.append(
                Failure(what, log.splitlines()[-60:], f"python -m faults fuzz --seed {assignment.seed}")
            )


def _compare(assignment: Assignment, report: Report, folder: Path) -> None:
    """Whether the installed broker makes of the inputs what the uncompiled source does."""
    arguments = ["faults.fuzz.outcomes", str(folder), "--seed", str(assignment.seed)]
    outcomes: list[dict[str, dict[str, str]]] = []
    with _start(arguments, is_compiled=False) as ours, _start(arguments, is_compiled=True) as theirs:
        for process in (ours, theirs):
            try:
                told, _ = process.communicate(timeout=_PATIENCE_S)
            except subprocess.TimeoutExpired:
                ours.kill()
                theirs.kill()
                report.failures.append(Failure("the comparison hangs", (), " ".join(arguments)))
                return
            outcomes.append(_last_object(told))
            if process.returncode != 0:
                report.failures.append(Failure("the comparison failed", told.splitlines()[-40:], " ".join(arguments)))
                return
    told_already = Counter[str]()
    for name, found in outcomes[0].items():
        for encoded, outcome in found.items():
            other = outcomes[1][name].get(encoded, "nothing")
            report.done["inputs to both the compiled and the uncompiled broker"] += 1
            wrong = outcome if outcome.startswith("broken") else ""
            if other != outcome:
                wrong = f"the uncompiled broker comes to {outcome}, the installed one to {other}"
            if wrong and told_already[name] < 3:
                told_already[name] += 1
                _fail(report, name, wrong, [], encoded)


def _last_object(told: str) -> dict[str, Any]:
    lines = told.splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return found


def _check_promises(assignment: Assignment, report: Report, names: list[str]) -> None:
    again = f"python -m faults fuzz --seed {assignment.seed} --minutes {SECONDS / 60:g}"
    if len(names) < len(TARGETS):
        report.failures.append(Failure(f"{len(names)} of {len(TARGETS)} decoders had their turn", (), again))
    for name in names:
        count = int(report.figures[name].split()[0].replace(",", ""))
        if count < _EXECUTED_MIN:
            report.failures.append(Failure(f"{name} had {count} inputs only", (), again))
    needed = CONVERSATIONS_PER_MINUTE_MIN * assignment.seconds / 60 / 2
    if report.done["conversations"] < needed and not report.failures:
        report.failures.append(
            Failure(f"{report.done['conversations']} conversations, {needed:.0f} are due", (), again)
        )


def _fail(report: Report, name: str, what: str, history: list[str], encoded: str) -> None:
    report.failures.append(Failure(f"{name}: {what}", history, f"python -m faults.fuzz.replay {name} {encoded}"))


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
