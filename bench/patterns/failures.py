"""Failure isolation: what a producer sees while its consumers are killed, are all gone, and come back."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from typing import Final

from bench.patterns.client import Client, message_frames
from bench.patterns.pattern import Effort, Outcome, Pattern, milliseconds, percentile
from bench.peers import RunningPeer

_RATE: Final = 1_000
_CONSUMERS: Final = 5
_PREFETCH: Final = 20
_WORK_S: Final = 0.002
_QUEUE: Final = "failures"
_ROUNDS: Final = 3
_DRAIN_SECONDS_MAX: Final = 60.0
# The confirm's p99 without consumers may be at most this much of that with them; below a few ms it is noise.
_GROWTH_MAX: Final = 2.0
_NOISE_S: Final = 0.010

PHASES: Final = ("five consumers", "one of them is killed", "all of them are killed", "five new ones")


class Publisher:
    """Publishes numbered messages at a steady rate and knows how long each confirm took, by phase."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._due_s: list[float] = []
        self._confirmed = 0
        self._phases: list[str] = []
        self.phase = PHASES[0]
        self.latencies: dict[str, list[float]] = {phase: [] for phase in PHASES}
        client.on_confirm = self._confirm

    @property
    def published(self) -> int:
        return len(self._due_s)

    def _confirm(self, number: int) -> None:
        now = asyncio.get_running_loop().time()
        for index in range(self._confirmed, number):
            self.latencies[self._phases[index]].append(now - self._due_s[index])
        self._confirmed = max(self._confirmed, number)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        while True:
            due_s = begin_s + self.published / _RATE
            if (wait_s := due_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            self._due_s.append(due_s)
            self._phases.append(self.phase)
            body = self.published.to_bytes(8, "big") + bytes(92)
            self._client.publish(message_frames("", _QUEUE, body, persistent=True))

    async def settled(self) -> None:
        async with asyncio.timeout(_DRAIN_SECONDS_MAX):
            while self._confirmed < self.published:
                await asyncio.sleep(0.01)


class Ledger:
    """What all consumers together have acknowledged, and what came twice without being marked."""

    def __init__(self) -> None:
        self.acknowledged: set[bytes] = set()
        self.delivered: set[bytes] = set()
        self.redelivered = 0
        self.unmarked = 0

    async def consumer(self, peer: RunningPeer) -> Client:
        loop = asyncio.get_running_loop()
        client = await Client.connect(peer, prefetch=_PREFETCH)
        alive = True

        def finish(tag: int, number: bytes) -> None:
            if client.failure is None and alive:
                client.ack(tag)
                self.acknowledged.add(number)

        def receive(tag: int, redelivered: bool, body: bytes) -> None:
            number = body[:8]
            if redelivered:
                self.redelivered += 1
            elif number in self.delivered:
                self.unmarked += 1
            self.delivered.add(number)
            loop.call_later(_WORK_S, finish, tag, number)

        await client.consume(_QUEUE, receive)
        return client


@dataclass(frozen=True, slots=True)
class _Round:
    """What the producer saw, and what became of its messages."""

    latencies: dict[str, list[float]]
    lost: int
    redelivered: int
    unmarked: int


async def _round(peer: RunningPeer, seconds: float) -> _Round:
    setup = await Client.connect(peer)
    await setup.declare(_QUEUE, durable=True)
    ledger = Ledger()
    consumers = [await ledger.consumer(peer) for _ in range(_CONSUMERS)]
    producer = await Client.connect(peer, confirms=True)
    publisher = Publisher(producer)
    publishing = asyncio.create_task(publisher.run())
    for phase in PHASES:
        publisher.phase = phase
        if phase == PHASES[1]:
            consumers.pop().kill()
        elif phase == PHASES[2]:
            while consumers:
                consumers.pop().kill()
        elif phase == PHASES[3]:
            consumers = [await ledger.consumer(peer) for _ in range(_CONSUMERS)]
        await asyncio.sleep(seconds)
    publishing.cancel()
    await publisher.settled()
    async with asyncio.timeout(_DRAIN_SECONDS_MAX):
        while len(ledger.acknowledged) < publisher.published:
            await asyncio.sleep(0.05)
    for client in (*consumers, producer):
        await client.close()
    lost = publisher.published - len(ledger.acknowledged) + await setup.declare(_QUEUE, durable=True, passive=True)
    await setup.delete(_QUEUE)
    await setup.close()
    return _Round(publisher.latencies, lost, ledger.redelivered, ledger.unmarked)


async def measure(peer: RunningPeer, effort: Effort) -> Outcome:
    outcome = Outcome()
    rounds = [await _round(peer, effort.seconds) for _ in range(_ROUNDS)]
    p99_s: dict[str, float] = {}
    for phase in PHASES:
        p50_s = statistics.median(percentile(each.latencies[phase], 0.5) for each in rounds)
        p99_s[phase] = statistics.median(percentile(each.latencies[phase], 0.99) for each in rounds)
        messages = sum(len(each.latencies[phase]) for each in rounds)
        outcome.rows.append((phase, f"{messages:,}", milliseconds(p50_s), milliseconds(p99_s[phase])))
    lost, unmarked = sum(each.lost for each in rounds), sum(each.unmarked for each in rounds)
    redelivered = sum(each.redelivered for each in rounds)
    outcome.rows.append((f"all: {lost} lost, {redelivered} redelivered, {unmarked} twice without the mark", "", "", ""))
    outcome.expected.append(("nothing lost, nothing twice without the mark", lost == 0 and unmarked == 0))
    limit_s = max(_NOISE_S, _GROWTH_MAX * p99_s[PHASES[0]])
    for phase in PHASES[1:]:
        outcome.expected.append((f"the producer does not notice: {phase}", p99_s[phase] <= limit_s))
    return outcome


PATTERN: Final = Pattern(
    "failures",
    f"a producer at {_RATE:,}/s, persistent and confirmed; consumers with a prefetch of {_PREFETCH} and 2 ms of work, "
    f"medians of {_ROUNDS} rounds",
    ("phase", "messages", "confirm p50 ms", "confirm p99 ms"),
    measure,
)
