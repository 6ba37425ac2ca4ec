"""Load levelling: much more comes in than goes out, and the difference waits on the disk, not in memory."""

from __future__ import annotations

import asyncio
from typing import Final

from bench import process
from bench.patterns.client import Client, message_frames
from bench.patterns.pattern import OURS, Effort, Outcome, Pattern
from bench.peers import RunningPeer

_IN: Final = 10_000
_OUT: Final = 500
_PREFETCH: Final = 20
_BODY_BYTES: Final = 1_000
_TICK_S: Final = 0.002
_QUEUE: Final = "levelling"
_BUDGET: Final = "64MiB"
_SAMPLES: Final = 6
# From when the budget is full, a third into the run, resident memory may grow by this much.
_GROWTH_MAX_MIB: Final = 16.0


async def _publish(client: Client, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    frames = message_frames("", _QUEUE, bytes(_BODY_BYTES), persistent=True)
    begin_s = loop.time()
    while (elapsed_s := loop.time() - begin_s) < seconds:
        if client.failure is not None:
            raise client.failure
        if (count := int(elapsed_s * _IN) - client.published) > 0:
            client.publish(frames * count, count)
        await asyncio.sleep(_TICK_S)
    async with asyncio.timeout(60):
        while client.confirmed < client.published:
            await asyncio.sleep(0.02)


class _Consumer:
    """Acknowledges at a steady rate, however fast messages come."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._due_s = 0.0
        self.done = 0

    def receive(self, tag: int, _redelivered: bool, _body: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._due_s = max(self._due_s + 1 / _OUT, loop.time())
        loop.call_at(self._due_s, self._finish, tag)

    def _finish(self, tag: int) -> None:
        if self._client.failure is None:
            self._client.ack(tag)
            self.done += 1


async def measure(peer: RunningPeer, effort: Effort) -> Outcome:
    loop = asyncio.get_running_loop()
    producer = await Client.connect(peer, confirms=True)
    await producer.declare(_QUEUE, durable=True)
    client = await Client.connect(peer, prefetch=_PREFETCH)
    consumer = _Consumer(client)
    await client.consume(_QUEUE, consumer.receive)
    empty_mib = process.resident_bytes(peer.pid) / 2**20
    publishing = asyncio.create_task(_publish(producer, effort.levelling_seconds))
    begin_s = loop.time()
    outcome = Outcome()
    outcome.rows.append(("0", "0", "0", f"{empty_mib:.0f}"))
    resident_mib: list[float] = []
    for sample in range(1, _SAMPLES + 1):
        await asyncio.sleep(begin_s + effort.levelling_seconds * sample / _SAMPLES - loop.time())
        resident_mib.append(process.resident_bytes(peer.pid) / 2**20)
        outcome.rows.append(
            (f"{loop.time() - begin_s:.0f}", f"{producer.published:,}", f"{consumer.done:,}", f"{resident_mib[-1]:.0f}")
        )
    await publishing
    client.kill()
    await producer.delete(_QUEUE)
    await producer.close()
    if peer.name == OURS:
        growth_mib = resident_mib[-1] - resident_mib[_SAMPLES // 3 - 1]
        outcome.expected.append(
            (f"memory is flat from a third of the time on ({growth_mib:+.0f} MiB)", growth_mib <= _GROWTH_MAX_MIB)
        )
    return outcome


PATTERN: Final = Pattern(
    "levelling",
    f"{_IN:,}/s in, {_OUT}/s out, persistent messages of 1,000 bytes; Millpond with a memory budget of {_BUDGET}",
    ("after s", "published", "consumed", "RSS MiB"),
    measure,
    options=("--memory-budget", _BUDGET),
)
