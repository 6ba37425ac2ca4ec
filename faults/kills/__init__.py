"""A real broker with real clients of AMQP and of Kafka's protocol, killed again and again.

The broker is killed at random moments, also while it starts and recovers, paused, and stopped cleanly; connections are
cut in the middle of frames and stand still; clients are killed, paused, replaced, slow, stuck, and vanish. In the end
the recorded history is held against what is there: `amqp_check` and `kafka_check` say what is promised.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Final

from faults.kills.amqp_work import AmqpWork
from faults.kills.kafka_work import KafkaWork
from faults.kills.killed_broker import BrokerFailed, KilledBroker
from faults.report import Assignment, Failure, Report

# What is promised for each minute that this part is given.
KILLS_A_MINUTE: Final = 20
# So much of the time is for kills, the rest for what clients have left to do and for the checks.
KILLING: Final = 0.8
REST_S_MAX: Final = 120.0
# The first lives end before there is anything.
KILLED_AT_FIRST: Final = 3
# A machine that others use as well gets so much more of that time, if it needs it for the kills that are promised.
OVERTIME: Final = 0.5
# A broker that is up works for so long at least before it is killed, on average.
LIFE_S_MIN: Final = 0.3
# What one that starts takes, until it is known.
START_S: Final = 1.0


Work = AmqpWork | KafkaWork


def run(assignment: Assignment) -> Report:
    """Clients of both protocols at once."""
    return campaign(assignment, (AmqpWork, KafkaWork))


def campaign(assignment: Assignment, kinds: Sequence[type[Work]]) -> Report:
    """Kill for most of the time that there is, and then check."""
    report = Report()
    broker = KilledBroker(assignment.folder / "broker", assignment.choose("broker"), report.done)
    works: list[Work] = []
    try:
        for _ in range(KILLED_AT_FIRST):
            broker.kill_at_start()
        broker.start()
        works += [kind(assignment, broker) for kind in kinds]
        for work in works:
            work.start()
        _kill(assignment, broker)
        broker.proxy.heal()
        for work in works:
            work.stop()
        # What clients were told last has to outlive this one.
        broker.kill()
        broker.start()
        for work in works:
            began = time.monotonic()
            report.failures += work.check()
            assignment.say(f"{type(work).__name__}: checked in {time.monotonic() - began:.0f} s")
    except BrokerFailed as failure:
        report.failures.append(Failure("the broker failed", str(failure).splitlines(), _replay(assignment)))
    finally:
        for work in works:
            work.end()
            report.done.update(work.done)
        broker.close()
    report.failures += _complaints(assignment, broker.process.log)
    _tell_starts(report, broker)
    if report.done["broker killed"] < _promised(assignment):
        what = f"the broker was killed {report.done['broker killed']} times, and not {_promised(assignment)}"
        report.failures.append(Failure(what, (), _replay(assignment)))
    return report


def _promised(assignment: Assignment) -> int:
    """How many kills there have to be."""
    return int(assignment.seconds / 60 * KILLS_A_MINUTE)


def _replay(assignment: Assignment) -> str:
    return f"python -m faults kills --seed {assignment.seed}"


def _kill(assignment: Assignment, broker: KilledBroker) -> None:
    """Lives are as long as they can be for the kills that there have to be."""
    choose = assignment.choose("lives")
    seconds = max(assignment.seconds * KILLING, assignment.seconds - REST_S_MAX)
    promised = _promised(assignment)
    began = time.monotonic()
    said = began
    while (left_s := began + seconds - time.monotonic()) > 0 or (
        broker.done["broker killed"] < promised and left_s > -seconds * OVERTIME
    ):
        kills_left = max(1.0, promised * 1.1 - broker.done["broker killed"])
        start_s = sum(broker.starts_s[-10:]) / len(broker.starts_s[-10:]) if broker.starts_s else START_S
        life_s = max(LIFE_S_MIN, left_s / kills_left * 1.4 - start_s)
        broker.live(choose.uniform(0, 2 * life_s))
        broker.end_somehow()
        broker.start()
        if time.monotonic() - said > 60:
            said = time.monotonic()
            assignment.say(f"{broker.done['broker killed']} kills, {left_s:.0f} s left")


def _complaints(assignment: Assignment, log: str) -> Iterator[Failure]:
    """What the broker's log calls an error is one: kills and clients that break off are none."""
    lines = log.splitlines()
    for place, line in enumerate(lines):
        try:
            level = json.loads(line)["level"]
        except (ValueError, KeyError, TypeError):
            continue
        if level in {"error", "critical"}:
            yield Failure(f"the broker's log: {line[:300]}", lines[max(0, place - 5) : place + 2], _replay(assignment))


def _tell_starts(report: Report, broker: KilledBroker) -> None:
    starts = sorted(broker.starts_s)
    if starts:
        report.figures["from launch to ready, median"] = f"{starts[len(starts) // 2]:.2f} s"
        report.figures["from launch to ready, longest"] = f"{starts[-1]:.2f} s"
