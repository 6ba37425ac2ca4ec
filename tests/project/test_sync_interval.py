"""What is made durable from time to time, although nobody waits for it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from millpond.base.limits import WRITE_BYTES_APART
from millpond.broker.broker import DEFAULT_VHOST
from millpond.config import Settings
from millpond.server.node import Node
from millpond.storage.record_batch import BatchBuilder

DEADLINE_S = 20.0


def batch_of_size(size: int) -> bytes:
    builder = BatchBuilder()
    builder.append_with_headers(0, 1_000, None, bytes(size), [])
    return builder.finish(0, 0)


async def test_a_sync_in_the_middle_of_a_turn_does_not_cut_it_in_two(tmp_path: Path) -> None:
    """What is appended is reported durable with its turn's number, so all of the turn must have that one."""
    node = Node(Settings.of(amqp="127.0.0.1:0", admin="off", data=tmp_path))
    await node.start()
    try:
        broker = node.broker
        topic = broker.vhost(DEFAULT_VHOST).topics.create("t", 2, {})
        first, second = topic.partitions
        first.append(batch_of_size(WRITE_BYTES_APART))
        broker.ledger.flush_large()
        promised = int(broker.ledger.sequence())
        second.append(batch_of_size(1))
        node._sync_due()
        broker.turn.end()
        assert broker.ledger.sequence() == promised + 1
        give_up_at = time.monotonic() + DEADLINE_S
        while first.durable_end == 0 or second.durable_end == 0:
            assert time.monotonic() < give_up_at, "nobody has made it durable"
            await asyncio.sleep(0.01)
    finally:
        await node.stop()
