"""AMQP's clients at work while the broker and they themselves are killed: what they do, and how it is judged.

What goes where is in `amqp_queues`. While it lasts, a thread kills, pauses and replaces clients. When it is over, all
of them end, and what is left in the queues is held against the history and against what the broker says of itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from faults.kills.amqp_check import (
    Found,
    Published,
    check_answers,
    check_books,
    check_moves,
    check_queue,
    check_stream,
)
from faults.kills.amqp_queues import (
    NEWS,
    NEWS_LOG,
    NEWS_STUCK,
    NEWS_UNREAD,
    QUEUES,
    RANKED,
    RECEIPTS,
    WORK,
    name_of,
)
from faults.kills.history import TOLD_MAX, Broken, History
from faults.kills.processes import Processes
from faults.report import Assignment, Failure
from tests.support.management import request

MESSAGES_A_SECOND: Final = 120
# Time between two things that happen to clients, on average.
CLIENT_PAUSE_S: Final = 3.0
# How long the broker may take to take back what clients that are gone had in hands.
REST_S: Final = 30.0
LOOK_S: Final = 0.1
# What is taken at once when the queues are emptied in the end.
PREFETCH: Final = 500
WORKER: Final[dict[str, Any]] = {
    "prefetch": 20, "holds_s": 0.05, "vanishes": 0.01, "rejects": False, "requeues": 0.1, "receipts": 0.5,
}  # fmt: skip


class Broker(Protocol):
    """What the work has to know of the broker. Clients go another way than who looks at what is left in the end."""

    @property
    def amqp_address(self) -> str: ...
    @property
    def amqp_url(self) -> str: ...
    @property
    def management(self) -> tuple[str, int]: ...


class AmqpWork:
    """See the module. `check` is called once, when the broker is up to stay."""

    def __init__(self, assignment: Assignment, broker: Broker) -> None:
        self.done: Counter[str] = Counter()
        self._assignment = assignment
        self._broker = broker
        self._processes = Processes("amqp", assignment, self.done)
        self._stuck: list[str] = []

    def start(self) -> None:
        with BlockingConnection(pika.URLParameters(self._broker.amqp_url)) as connection:
            channel = connection.channel()
            channel.exchange_declare(NEWS, "fanout", durable=True)
            for name, arguments in QUEUES.items():
                channel.queue_declare(name, durable=True, arguments=arguments)
            for name in (NEWS_UNREAD, NEWS_STUCK, NEWS_LOG):
                channel.queue_bind(name, NEWS)
        for number in range(2):
            self._add(f"publish.{number}", "publish", rate=MESSAGES_A_SECOND)
            self._add(f"move.{number}", "move", rollbacks=0.15)
        for number in range(3):
            self._add(f"work.{number}", "work", queue=WORK, **WORKER | {"rejects": True})
        self._add("slow.0", "work", queue=RANKED, **WORKER | {"holds_s": 0.5})
        self._add("stuck.0", "work", queue=NEWS_STUCK, **WORKER | {"holds_s": 8.0, "vanishes": 0.2, "receipts": 0.9})
        self._add("book.0", "book", rollbacks=0.15)
        self._add("read.0", "read", queue=NEWS_LOG, from_the_first=0.1)
        self._processes.disturb(CLIENT_PAUSE_S)

    def _add(self, name: str, role: str, **told: Any) -> None:
        url = f"amqp://guest:guest@{self._broker.amqp_address}/%2F?connection_attempts=1&socket_timeout=10"
        self._processes.add(name, role, url=url, **told)

    def stop(self) -> None:
        """No client is disturbed any more, and all end as they should."""
        self._processes.calm()
        self._stuck = self._processes.end("publish")
        self._stuck += self._processes.end("work", "move", "book", "read")

    def end(self) -> None:
        """No process of a client is left, whatever has happened."""
        self._processes.calm()
        self._processes.kill()

    def check(self) -> list[Failure]:
        history = History.read(self._processes.folder)
        failures = [self._failure(broken) for broken in self._check_ends(history)]
        with BlockingConnection(pika.URLParameters(self._broker.amqp_url)) as connection:
            told = {name: self._told_of(name) for name in QUEUES}
            left = {name: _drain(connection.channel(), name) for name in QUEUES if name != NEWS_LOG}
            log = _read(connection.channel())
            failures += [self._failure(broken) for broken in _check_figures(told, left, log)]
        published = Published(history)
        self._count(history)
        checks: list[Iterable[Broken]] = [
            check_answers(history),
            *(check_queue(history, published, left, name) for name in (WORK, RANKED, NEWS_UNREAD, NEWS_STUCK)),
            check_moves(history, published, left),
            check_books(history, left),
            check_stream(history, published, log),
        ]
        for check in checks:
            failures += [self._failure(broken) for broken in islice(check, TOLD_MAX)]
        return failures

    def _failure(self, broken: Broken) -> Failure:
        return Failure(broken.what, broken.history, f"python -m faults kills --seed {self._assignment.seed}")

    def _check_ends(self, history: History) -> Iterator[Broken]:
        for name in self._stuck:
            yield Broken(f"{name} did not end within its time", history.about(client=name))
        yield from self._processes.errors()

    def _told_of(self, queue: str) -> dict[str, Any]:
        """What the management API says, once nobody has anything of the queue in hands."""
        give_up_at = time.monotonic() + REST_S
        while True:
            answer = request(self._broker.management, "GET", f"/api/queues/%2F/{queue}")
            assert answer.status == 200, f"{queue}: {answer.status} {answer.content!r}"
            told: dict[str, Any] = answer.json
            is_quiet = told["consumers"] == 0 and told["messages_unacknowledged"] == 0
            if is_quiet or time.monotonic() > give_up_at:
                return told
            time.sleep(LOOK_S)

    def _count(self, history: History) -> None:
        for event in history.events:
            if event.what == "confirmed":
                self.done["AMQP messages confirmed"] += len(event.facts["numbers"])
            elif event.what == "taken":
                self.done["AMQP messages delivered"] += len(event.facts["messages"])
                self.done["AMQP messages delivered again"] += sum(again for _, again in event.facts["messages"])
            elif event.what == "settled":
                self.done["AMQP settlements known to be durable"] += len(event.facts["ack"] + event.facts["reject"])
            elif event.what in {"committed", "rolled back"}:
                self.done[f"AMQP transactions {event.what}"] += 1
            elif event.what == "vanishes":
                self.done["AMQP clients that vanished with what they had"] += 1
            elif event.what == "read":
                self.done["AMQP messages read from a stream"] += len(event.facts["messages"])


def _check_figures(told: dict[str, Any], left: dict[str, list[Found]], log: list[tuple[int, str]]) -> Iterator[Broken]:
    """What the management API has said is what there was."""
    counts = {name: len(found) for name, found in left.items()} | {NEWS_LOG: len(log)}
    for name, figures in told.items():
        said = (figures["messages_ready"], figures["messages_unacknowledged"], figures["consumers"])
        if said != (counts[name], 0, 0):
            what = f"{name}: {said[0]} ready, {said[1]} unacknowledged, {said[2]} consumers were told"
            yield Broken(f"{what}; {counts[name]} messages are there and nobody has any", [])


def _drain(channel: BlockingChannel, queue: str) -> list[Found]:
    """Take all that there is, which the broker counts."""
    count = channel.queue_declare(queue, passive=True).method.message_count
    channel.basic_qos(prefetch_count=PREFETCH)
    found: list[Found] = []
    if count:
        for method, properties, body in channel.consume(queue, inactivity_timeout=REST_S):
            if method is None:
                break
            death = (properties.headers or {}).get("x-death")
            name = body.decode() if queue == RECEIPTS else name_of(body)
            found.append(Found(name, (death[0]["queue"], death[0]["reason"]) if death else None))
            if len(found) == count or len(found) % PREFETCH == 0:
                channel.basic_ack(method.delivery_tag, multiple=True)
            if len(found) == count:
                break
    channel.cancel()
    more = channel.queue_declare(queue, passive=True).method.message_count
    channel.close()
    # Whatever is there beyond the count is a failure of the figures.
    return found + [Found("")] * more


def _read(channel: BlockingChannel) -> list[tuple[int, str]]:
    """All that the stream has."""
    count = channel.queue_declare(NEWS_LOG, passive=True).method.message_count
    channel.basic_qos(prefetch_count=PREFETCH)
    log: list[tuple[int, str]] = []
    if not count:
        return log
    arguments = {"x-stream-offset": "first"}
    for method, properties, body in channel.consume(NEWS_LOG, inactivity_timeout=REST_S, arguments=arguments):
        if method is None:
            break
        log.append((properties.headers["x-stream-offset"], name_of(body)))
        channel.basic_ack(method.delivery_tag)
        if len(log) == count:
            break
    channel.close()
    return log
