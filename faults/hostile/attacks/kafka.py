"""Kafka: topics, fetch sessions, and requests for very many partitions."""

from __future__ import annotations

import random
import struct

from faults.hostile import wire
from faults.hostile.attacks.registry import attack, times
from faults.hostile.target import Target


@attack("storm of topics, made by CreateTopics and by Metadata", memory_mib=256, kept_mib=128)
def topics(target: Target, chance: random.Random, scale: float) -> str:
    kafka = wire.Kafka(target)
    count = times(2000, scale)
    names = [f"hostile.topic.{number}" for number in range(count)]
    for start in range(0, count // 2, 250):
        kafka.ask(19, 2, wire.create_topics(names[start : min(start + 250, count // 2)]))
    for start in range(count // 2, count, 250):
        part = names[start : min(start + 250, count)]
        kafka.ask(3, 4, struct.pack(">i", len(part)) + b"".join(map(wire.text, part)) + b"\1")
    for _ in range(5):
        kafka.ask(3, 1, struct.pack(">i", -1))
    for start in range(0, count, 250):
        kafka.ask(20, 1, wire.delete_topics(names[start : start + 250]))
    return f"{count:,} topics, made and deleted"


@attack("topics with the most partitions, in one request", memory_mib=384, kept_mib=192)
def partitions(target: Target, chance: random.Random, scale: float) -> str:
    kafka = wire.Kafka(target)
    count = times(10_000, scale)
    kafka.ask(19, 2, wire.create_topics(["hostile.wide"], count))
    for _ in range(3):
        kafka.ask(3, 1, struct.pack(">i", 1) + wire.text("hostile.wide"))
    kafka.ask(20, 1, wire.delete_topics(["hostile.wide"]))
    return f"{count:,} partitions, made and deleted"


@attack("storm of fetch sessions with very many partitions, all lost at once", memory_mib=256, kept_mib=96)
def sessions(target: Target, chance: random.Random, scale: float) -> str:
    kept = []
    count = times(20_000, scale)
    partitions = b"".join(struct.pack(">iiqqi", number, -1, 0, -1, 1) for number in range(count))
    body = struct.pack(">iiiibii", -1, 0, 1, 1 << 20, 0, 0, 0) + struct.pack(">i", 1) + wire.text("hostile.none")
    body += struct.pack(">i", count) + partitions + struct.pack(">i", 0)
    refused = 0
    for _ in range(times(14, scale)):
        kafka = wire.Kafka(target)
        answer = kafka.ask(1, 9, body)
        code, session = struct.unpack_from(">hi", answer, 4)
        assert code == 0, code
        refused += session == 0
        kept.append(kafka)
    # Incremental fetches, which look at all of them again.
    again = struct.pack(">iiiibiiii", -1, 0, 1, 1 << 20, 0, session or 1, 1, 0, 0)
    for kafka in kept:
        kafka.send(wire.kafka_request(1, 9, again))
    return f"{len(kept)} sessions of {count:,} partitions, {refused} without a session"


@attack("storm of fetches that wait, of one partition, all lost at once", memory_mib=192)
def waiting(target: Target, chance: random.Random, scale: float) -> str:
    kept = []
    count = times(2000, scale)
    body = wire.fetch("bystanders", 1 << 30, 60_000)
    wide = struct.pack(">iiiibi", -1, 60_000, 1 << 30, 1 << 20, 0, 1) + wire.text("bystanders")
    wide += struct.pack(">iiqi", 1, 0, 0, 1 << 20)
    for number in range(count):
        kafka = wire.Kafka(target)
        # Some ask for what is not there, and most wait for more than will ever come while others produce.
        kafka.send(wire.kafka_request(1, 4, wide if number % 8 else body))
        kept.append(kafka)
    return f"{count:,} fetches"
