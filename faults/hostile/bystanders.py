"""Those who use the broker as it is meant to be used, while others attack it: how long do they wait, what do they lose?

    AMQP         a publisher with confirms of persistent messages to a durable queue, and a consumer that acknowledges
    Kafka        a producer with acks=all, and a consumer that fetches what is new
    management   what monitoring asks for

They live in a process of their own, so that an attacker's work is not taken for the broker's. With each wait goes for
how long the broker's main thread, and the bystander's own, were ready to run and had no core. On a machine that
others use as well that is not the broker's doing, and `excess_ms` is without it.
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import multiprocessing
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from faults.hostile import wire
from faults.hostile.target import Target, run_delay_ms

KINDS: Final = ("AMQP publish", "AMQP deliver", "Kafka produce", "Kafka fetch", "management")
QUEUE: Final = "bystanders.queue"
TOPIC: Final = "bystanders"
INTERVAL_S: Final = 0.02
MONITORING_INTERVAL_S: Final = 0.1
# What is published last must have been received within this time of it.
DRAIN_S: Final = 10.0
# A message's number, when it was published, and how long the broker had been without a core by then.
_BODY: Final = struct.Struct(">Qdd")
_OWN: Final = Path("/proc/thread-self/schedstat")


@dataclasses.dataclass(frozen=True, slots=True)
class Wait:
    """How long one bystander waited once, in all and without what the machine is to blame for."""

    kind: str
    ms: float
    excess_ms: float


@dataclasses.dataclass(slots=True)
class Account:
    """What was promised to the bystanders, what they have got, and what went wrong."""

    confirmed: int = 0
    delivered: int = 0
    acknowledged: int = 0
    fetched: int = 0
    wrongs: list[str] = dataclasses.field(default_factory=list)


class Bystanders:
    """The bystanders' process, as the campaign knows it."""

    def __init__(self, target: Target) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(target, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.poll(30), "the bystanders did not begin"
        assert self._pipe.recv() == "ready"

    def waits(self) -> list[Wait]:
        """How long they have waited since they were asked last, those included that wait now."""
        self._pipe.send("waits")
        found: list[Wait] = self._pipe.recv()
        return found

    def stop(self) -> Account:
        """Let them come to an end, and say what they have got."""
        self._pipe.send("stop")
        account: Account = self._pipe.recv()
        self._process.join()
        return account


class _Crowd:
    """All bystanders, each a thread."""

    def __init__(self, target: Target) -> None:
        self.target: Final = target
        self.account: Final = Account()
        self.stopping: Final = threading.Event()
        # How many messages there are of each protocol: consumers end when they have got them.
        self.published: int | None = None
        self.produced: int | None = None
        self._schedule: Final = Path(f"/proc/{target.pid}/schedstat")
        self._lock: Final = threading.Lock()
        self._waits: list[Wait] = []
        # Who waits for an answer now, and since when.
        self._since: Final[dict[str, tuple[float, float]]] = {}
        self.threads: Final = [
            threading.Thread(target=self._guard, args=(work,), daemon=True)
            for work in (self._publish, self._consume, self._produce, self._fetch, self._monitor)
        ]

    def take(self) -> list[Wait]:
        now, delayed = time.monotonic(), self._broker_delay_ms
        with self._lock:
            waits, self._waits = self._waits, []
            for kind, (since, delayed_then) in self._since.items():
                waits.append(_wait(kind, (now - since) * 1e3, delayed - delayed_then))
        return waits

    @property
    def _broker_delay_ms(self) -> float:
        return run_delay_ms(self._schedule) if self.target.is_alive else 0.0

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 Whatever it is: the campaign tells it.
            self.account.wrongs.append(f"{work.__name__.strip('_')}: {error!r}")

    def _measure(self, kind: str, work: Callable[[], bytes]) -> bytes:
        broker_delayed, own_delayed, began = self._broker_delay_ms, run_delay_ms(_OWN), time.monotonic()
        with self._lock:
            self._since[kind] = began, broker_delayed
        answer = work()
        took_ms = (time.monotonic() - began) * 1e3
        delayed = self._broker_delay_ms - broker_delayed + run_delay_ms(_OWN) - own_delayed
        with self._lock:
            self._since.pop(kind)
            self._waits.append(_wait(kind, took_ms, delayed))
        return answer

    def _publish(self) -> None:
        connection = wire.Amqp(self.target)
        connection.open()
        connection.call(wire.queue_declare(1, QUEUE, 2), 50, 11)
        connection.call(wire.method(1, 85, 10, b"\0"), 85, 11)
        number = 0
        while not self.stopping.wait(INTERVAL_S):
            data = wire.publish(1, "", QUEUE, _BODY.pack(number, time.monotonic(), self._broker_delay_ms), durable=True)
            self._measure(KINDS[0], lambda data=data: connection.call(data, 60, 80))  # type: ignore[misc]
            number += 1
            self.account.confirmed = number
        # The consumer ends with one more, which it waits for if it has all others.
        self.published = number + 1
        body = _BODY.pack(number, time.monotonic(), self._broker_delay_ms)
        connection.call(wire.publish(1, "", QUEUE, body, durable=True), 60, 80)
        self.account.confirmed = number + 1

    def _consume(self) -> None:
        connection = wire.Amqp(self.target)
        connection.open()
        connection.call(wire.queue_declare(1, QUEUE, 2), 50, 11)
        connection.send(wire.consume(1, QUEUE))
        expected = 0
        own_delayed = run_delay_ms(_OWN)
        connection.wait_for(60, 21)
        while self.published is None or expected < self.published:
            kind, _, payload = connection.read()
            if kind == 1 and payload[:4] == b"\0\x3c\0\x3c":
                tag = payload[5 + payload[4] : 13 + payload[4]]
            elif kind == 3:
                number, sent, broker_delayed = _BODY.unpack(payload)
                took_ms = (time.monotonic() - sent) * 1e3
                delayed = self._broker_delay_ms - broker_delayed + run_delay_ms(_OWN) - own_delayed
                own_delayed = run_delay_ms(_OWN)
                if number != expected:
                    self.account.wrongs.append(f"message {number} was delivered instead of {expected}")
                expected = number + 1
                self.account.delivered += 1
                connection.send(wire.method(1, 60, 80, tag + b"\0"))
                with self._lock:
                    self._waits.append(_wait(KINDS[1], took_ms, delayed))

    def _produce(self) -> None:
        connection = wire.Kafka(self.target)
        number = 0
        while not self.stopping.wait(INTERVAL_S):
            value = struct.pack(">Qd", number, time.monotonic())
            data = wire.kafka_request(0, 7, wire.produce(TOPIC, wire.batch(wire.record(0, value), 1)))

            def ask(data: bytes = data) -> bytes:
                connection.send(data)
                return connection.receive()

            answer = self._measure(KINDS[2], ask)
            code, offset = struct.unpack_from(">hq", answer, 4 + 2 + len(TOPIC) + 4 + 4)
            if (code, offset) != (0, number):
                raise wire.Refused(f"record {number} was answered by error {code}, offset {offset}")
            number += 1
            self.account.acknowledged = number
        self.produced = number

    def _fetch(self) -> None:
        connection = wire.Kafka(self.target)
        offset = 0
        while self.produced is None or offset < self.produced:
            # It answers as soon as there is a record, and every quarter of a second else: more is a stall.
            answer = self._measure(KINDS[3], partial(connection.ask, 1, 4, wire.fetch(TOPIC, offset, 250)))
            place = 4 + 4 + 2 + len(TOPIC) + 4 + 4
            code, _, _, aborted = struct.unpack_from(">hqqi", answer, place)
            if code != 0:
                raise wire.Refused(f"a fetch from {offset} was answered by error {code}")
            place += 22 + 16 * max(aborted, 0)
            (size,) = struct.unpack_from(">i", answer, place)
            place, end = place + 4, place + 4 + size
            while end - place > 61:
                base, length = struct.unpack_from(">qi", answer, place)
                if place + 12 + length > end:
                    break
                # One record, which ends with its value of 16 bytes, and that it has no headers.
                number, _ = struct.unpack_from(">Qd", answer, place + 12 + length - 17)
                if (base, number) != (offset, offset):
                    raise wire.Refused(f"record {number} at {base} was fetched instead of {offset}")
                offset += 1
                self.account.fetched += 1
                place += 12 + length

    def _monitor(self) -> None:
        headers = {"Authorization": "Basic " + base64.b64encode(b"guest:guest").decode()}
        connection = http.client.HTTPConnection(self.target.host, self.target.admin, timeout=wire.TIMEOUT_S)

        def ask() -> bytes:
            connection.request("GET", "/api/nodes", headers=headers)
            answer = connection.getresponse()
            content = answer.read()
            # Too many requests at once are refused, which is an answer too.
            if answer.status not in {200, 503}:
                raise wire.Refused(f"management answers {answer.status}: {content[:200]!r}")
            return content

        while not self.stopping.wait(MONITORING_INTERVAL_S):
            self._measure(KINDS[4], ask)


def _wait(kind: str, took_ms: float, delayed_ms: float) -> Wait:
    return Wait(kind, took_ms, max(0.0, took_ms - delayed_ms))


def _live(target: Target, pipe: Connection) -> None:
    """The process of the bystanders."""
    kafka = wire.Kafka(target)
    kafka.ask(19, 2, wire.create_topics([TOPIC]))
    kafka.close()
    crowd = _Crowd(target)
    for thread in crowd.threads:
        thread.start()
    pipe.send("ready")
    while pipe.recv() == "waits":
        pipe.send(crowd.take())
    crowd.stopping.set()
    give_up_at = time.monotonic() + DRAIN_S
    for thread in crowd.threads:
        thread.join(max(0.0, give_up_at - time.monotonic()))
        if thread.is_alive():
            crowd.account.wrongs.append(f"{thread.name} did not get what it waits for")
    pipe.send(crowd.account)
