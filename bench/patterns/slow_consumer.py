"""A slow consumer beside fast ones on the same queue: what the fast ones reach with it and without it.

The fast ones have 2 ms of work for each message, so that any time in which they are kept waiting shows.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Final

from bench.patterns.client import Client, fill
from bench.patterns.competing import Worker
from bench.patterns.pattern import Effort, Outcome, Pattern, milliseconds, percentile
from bench.peers import RunningPeer

_FAST: Final = 10
_FAST_WORK_S: Final = 0.002
_SLOW_WORK_S: Final = 1.0
_ROUNDS: Final = 3
_WARM_UP_S: Final = 0.3
# Below this share of what the fast ones reach alone, they are slowed.
_SHARE_MIN: Final = 0.95
_QUEUE: Final = "slow-consumer"
# Large enough for 50 of them to fill more than a socket's buffers take.
_BODY_BYTES: Final = 20_000

ALONE: Final = "nobody else"
SLOW: Final = "one with 1 s of work for each message, prefetch 1"
DEAF: Final = "one that stops reading its socket, prefetch 50"
GREEDY: Final = "one that stops reading its socket, no prefetch limit"


async def _beside(peer: RunningPeer, company: str) -> Client | None:
    if company == ALONE:
        return None
    slow = await Client.connect(peer, prefetch={SLOW: 1, DEAF: 50, GREEDY: 0}[company])
    await slow.consume(_QUEUE, Worker(slow, _SLOW_WORK_S).receive)
    if company != SLOW:
        slow.stop_reading()
    return slow


async def _fast_ones(peer: RunningPeer, publisher: Client, company: str, seconds: float) -> tuple[float, float]:
    """Messages per second of the fast ones, and the 99th percentile of their idle seconds."""
    await publisher.declare(_QUEUE)
    count = int(_FAST * (seconds + 3 * _WARM_UP_S) / _FAST_WORK_S)
    await fill(publisher, _QUEUE, bytes(_BODY_BYTES), count)
    # The slow one comes first, and takes what it is given.
    slow = await _beside(peer, company)
    clients = [await Client.connect(peer, prefetch=1) for _ in range(_FAST)]
    workers = [Worker(client, _FAST_WORK_S) for client in clients]
    for client, worker in zip(clients, workers, strict=True):
        await client.consume(_QUEUE, worker.receive)
    await asyncio.sleep(_WARM_UP_S)
    for worker in workers:
        worker.begin()
    begin_s = time.perf_counter()
    await asyncio.sleep(seconds)
    rate = sum(worker.done for worker in workers) / (time.perf_counter() - begin_s)
    if slow is not None:
        slow.kill()
    for client in clients:
        await client.close()
    await publisher.delete(_QUEUE)
    return rate, percentile([each for worker in workers for each in worker.idle_s], 0.99)


async def measure(peer: RunningPeer, effort: Effort) -> Outcome:
    outcome = Outcome()
    publisher = await Client.connect(peer)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(_ROUNDS):
        for company in (ALONE, SLOW, DEAF, GREEDY):
            found.setdefault(company, []).append(await _fast_ones(peer, publisher, company, effort.seconds / 2))
    alone = statistics.median(rate for rate, _ in found[ALONE])
    for company, figures in found.items():
        rate = statistics.median(rate for rate, _ in figures)
        idle_s = statistics.median(idle_s for _, idle_s in figures)
        outcome.rows.append((company, f"{rate:,.0f}", f"{rate / alone:.1%}", milliseconds(idle_s)))
        if company != ALONE:
            outcome.expected.append((f"not slowed by {company} ({rate / alone:.1%})", rate >= _SHARE_MIN * alone))
    await publisher.close()
    return outcome


PATTERN: Final = Pattern(
    "slow-consumer",
    f"{_FAST} fast consumers (2 ms of work, prefetch 1, bodies of 20 kB) with a slow one beside them, medians of "
    f"{_ROUNDS} rounds in turn",
    ("beside them", "fast ones, messages/s", "of what they reach alone", "idle between messages, p99 ms"),
    measure,
)
