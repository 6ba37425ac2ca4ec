"""Transactions of Kafka's: very many ids, and very many partitions that stay open."""

from __future__ import annotations

import random
import struct

from faults.hostile import wire
from faults.hostile.attacks.groups import pipeline
from faults.hostile.attacks.registry import attack, times
from faults.hostile.target import Target

TIMEOUT_MS = 3_000


def begin(transactional_id: str | None, timeout_ms: int = TIMEOUT_MS) -> bytes:
    """InitProducerId 0."""
    return wire.kafka_request(22, 0, wire.text(transactional_id) + struct.pack(">i", timeout_ms))


@attack("storm of transactional ids and producers", memory_mib=192, kept_mib=128)
def ids(target: Target, chance: random.Random, scale: float) -> str:
    kafka = wire.Kafka(target)
    count = times(8000, scale)
    pipeline(kafka, [begin(f"hostile.{number}") for number in range(count)])
    pipeline(kafka, [begin(None) for _ in range(count)])
    return f"{count:,} transactional ids, {count:,} producers without"


@attack("very many transactions with very many partitions each, left open", memory_mib=256, kept_mib=192)
def partitions(target: Target, chance: random.Random, scale: float) -> str:
    kafka = wire.Kafka(target)
    width = times(2000, scale)
    kafka.ask(19, 2, wire.create_topics(["hostile.transactions"], width))
    count = times(100, scale)
    refused = added = 0
    numbers = struct.pack(f">{width}i", *range(width))
    for number in range(count):
        (answer,) = pipeline(kafka, [begin(f"hostile.open.{number}", 1_000)])
        code, producer, epoch = struct.unpack_from(">hqh", answer, 4)
        assert code == 0, code
        request = wire.text(f"hostile.open.{number}") + struct.pack(">qhi", producer, epoch, 1)
        request += wire.text("hostile.transactions") + struct.pack(">i", width) + numbers
        answer = kafka.ask(24, 0, request)
        code = struct.unpack_from(">h", answer, 4 + 4 + 2 + len("hostile.transactions") + 4 + 4)[0]
        refused += code != 0
        added += width if code == 0 else 0
    return f"{count} transactions, {added:,} partitions, {refused} refused"
