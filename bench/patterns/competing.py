"""Competing consumers: N workers on one queue, each with a prefetch of 1 and 10 ms of work for every message.

Nothing is ideal but N x 100/s; what is missing from it is the time between an acknowledgement and the next delivery, on
the broker's side and on the client's.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Final

from bench.patterns.client import Client, fill
from bench.patterns.pattern import Effort, Outcome, Pattern, milliseconds, percentile
from bench.peers import RunningPeer

_CONSUMERS: Final = (1, 2, 5, 10, 20, 50)
_WORK_S: Final = 0.010
_WARM_UP_S: Final = 0.5
_ROUNDS: Final = 3
_EFFICIENCY_MIN: Final = 0.95
_QUEUE: Final = "competing"


class Worker:
    """One consumer. Its times are of the last interval that was begun."""

    def __init__(self, client: Client, work_s: float) -> None:
        self._client = client
        self._work_s = work_s
        self._loop = asyncio.get_running_loop()
        self._acknowledged_at = self._loop.time()
        self.done = 0
        self.idle_s: list[float] = []
        self.late_s = 0.0

    def begin(self) -> None:
        self.done = 0
        self.idle_s = []
        self.late_s = 0.0

    def receive(self, tag: int, _redelivered: bool, _body: bytes) -> None:
        now = self._loop.time()
        self.idle_s.append(now - self._acknowledged_at)
        self._loop.call_at(now + self._work_s, self._finish, tag, now + self._work_s)

    def _finish(self, tag: int, due_s: float) -> None:
        self._client.ack(tag)
        self._acknowledged_at = self._loop.time()
        self.late_s += self._acknowledged_at - due_s
        self.done += 1


async def _with_consumers(peer: RunningPeer, publisher: Client, count: int, seconds: float) -> tuple[float, ...]:
    """Messages per second, how long the work took, the 99th percentile of idle seconds, and the client's CPU."""
    await publisher.declare(_QUEUE)
    await fill(publisher, _QUEUE, bytes(100), int(count * (seconds + 2 * _WARM_UP_S) / _WORK_S) + 1_000)
    clients = [await Client.connect(peer, prefetch=1) for _ in range(count)]
    workers = [Worker(client, _WORK_S) for client in clients]
    for client, worker in zip(clients, workers, strict=True):
        await client.consume(_QUEUE, worker.receive)
    await asyncio.sleep(_WARM_UP_S)
    for worker in workers:
        worker.begin()
    begin_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    elapsed_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
    rate = sum(worker.done for worker in workers) / elapsed_s
    idle_s = [each for worker in workers for each in worker.idle_s]
    for client in clients:
        await client.close()
    await publisher.delete(_QUEUE)
    work_s = _WORK_S + sum(worker.late_s for worker in workers) / max(1, sum(worker.done for worker in workers))
    return rate, work_s, percentile(idle_s, 0.99), cpu_s / elapsed_s


async def measure(peer: RunningPeer, effort: Effort) -> Outcome:
    outcome = Outcome()
    publisher = await Client.connect(peer)
    for count in _CONSUMERS:
        rounds = [await _with_consumers(peer, publisher, count, effort.seconds / 2) for _ in range(_ROUNDS)]
        rate, work_s, idle_s, busy = (statistics.median(figures) for figures in zip(*rounds, strict=True))
        efficiency = rate * _WORK_S / count
        outcome.rows.append(
            (
                str(count),
                f"{rate:,.0f}",
                f"{efficiency:.1%}",
                milliseconds(work_s),
                milliseconds(idle_s),
                f"{busy:.0%}",
            )
        )
        outcome.expected.append(
            (f"{count} consumers reach {_EFFICIENCY_MIN:.0%} ({efficiency:.1%})", efficiency >= _EFFICIENCY_MIN)
        )
    await publisher.close()
    return outcome


PATTERN: Final = Pattern(
    "competing",
    f"N competing consumers, 10 ms of work for each message, prefetch 1: how much of N x 100/s they reach, medians of "
    f"{_ROUNDS} rounds",
    ("consumers", "messages/s", "of N x 100/s", "work took ms", "idle between messages, p99 ms", "the client's CPU"),
    measure,
)
