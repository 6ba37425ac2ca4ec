"""Fanout to a hundred durable queues: a persistent body is written to the journal once, not once for each queue."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import pamqp.commands as commands

from bench.patterns.client import Client, message_frames
from bench.patterns.pattern import OURS, Effort, Outcome, Pattern
from bench.peers import RunningPeer

_QUEUES: Final = (1, 10, 100)
_BODY_BYTES: Final = 10_000
_OUTSTANDING_MAX: Final = 100
# So that one journal file holds it all, and the end of what is in the files tells what was written.
_MESSAGES: Final = 2_000
_EXCHANGE: Final = "fanout"
# Of what one queue takes, a hundred may take this much more: an entry for each queue, and no body.
_GROWTH_MAX: Final = 1.5


def journal_bytes(data: Path) -> int:
    """What the journal files of a node hold, without the zeros that they were preallocated with."""
    total = 0
    for path in (data / "journal").glob("*.journal"):
        content = path.read_bytes()
        total += len(content.rstrip(b"\x00"))
    return total


async def _publish(client: Client, exchange: str, count: int) -> float:
    """Messages per second, confirmed."""
    frames = message_frames(exchange, "", bytes(range(1, 251)) * (_BODY_BYTES // 250), persistent=True)
    room = asyncio.Event()
    client.on_confirm = lambda _: room.set()
    first, begin_s = client.published, time.perf_counter()
    while client.confirmed < first + count:
        if client.failure is not None:
            raise client.failure
        if client.published < first + count and client.published - client.confirmed < _OUTSTANDING_MAX:
            client.publish(frames)
        else:
            room.clear()
            await asyncio.wait_for(room.wait(), 60)
    return count / (time.perf_counter() - begin_s)


async def measure(peer: RunningPeer, _effort: Effort) -> Outcome:
    outcome = Outcome()
    client = await Client.connect(peer, confirms=True)
    each_bytes: dict[int, float] = {}
    for count in _QUEUES:
        exchange = f"{_EXCHANGE}-{count}"
        queues = [f"{exchange}-{number}" for number in range(count)]
        await client.call(commands.Exchange.Declare(0, exchange, "fanout", False, True, False, False, False, {}))
        for queue in queues:
            await client.declare(queue, durable=True)
            await client.call(commands.Queue.Bind(0, queue, exchange, "", False, {}))
        before = journal_bytes(peer.data) if peer.name == OURS else 0
        rate = await _publish(client, exchange, _MESSAGES)
        written = "not measured"
        if peer.name == OURS:
            each_bytes[count] = (journal_bytes(peer.data) - before) / _MESSAGES
            written = f"{each_bytes[count]:,.0f}"
        outcome.rows.append((str(count), f"{rate:,.0f}", f"{rate * count:,.0f}", written))
        for queue in queues:
            if await client.declare(queue, passive=True) != _MESSAGES:
                raise AssertionError(f"{queue} has not got every message")
            await client.delete(queue)
    if each_bytes:
        few, many = each_bytes[_QUEUES[0]], each_bytes[_QUEUES[-1]]
        outcome.expected.append(
            (
                f"100 queues take at most {_GROWTH_MAX:g} times the journal of one ({many / few:.2f})",
                many <= _GROWTH_MAX * few,
            )
        )
    await client.close()
    return outcome


PATTERN: Final = Pattern(
    "fanout",
    f"persistent messages of {_BODY_BYTES:,} bytes by a fanout exchange to N durable queues, "
    f"at most {_OUTSTANDING_MAX} unconfirmed",
    ("queues", "published/s, confirmed", "into queues/s", "journal bytes for each message"),
    measure,
)
