"""Consumer groups: very many of them, very many members, and offsets of everything."""

from __future__ import annotations

import random
import struct

from faults.hostile import wire
from faults.hostile.attacks.registry import attack, times
from faults.hostile.attacks.routing import heartbeat
from faults.hostile.target import Target

PIPELINED = 100


def pipeline(kafka: wire.Kafka, requests: list[bytes]) -> list[bytes]:
    """Ask many at a time, in the order of the answers."""
    answers: list[bytes] = []
    for start in range(0, len(requests), PIPELINED):
        part = requests[start : start + PIPELINED]
        kafka.send(b"".join(part))
        answers.extend(kafka.receive() for _ in part)
    return answers


def join(group: str, member: str = "", metadata: bytes = b"") -> bytes:
    """JoinGroup 2."""
    return wire.kafka_request(
        11,
        2,
        wire.text(group)
        + struct.pack(">ii", 10_000, 10_000)
        + wire.text(member)
        + wire.text("consumer")
        + struct.pack(">i", 1)
        + wire.text("range")
        + wire.long(metadata),
    )


@attack("storm of groups: joins of the classic and of the new protocol", memory_mib=192, kept_mib=128)
def groups(target: Target, chance: random.Random, scale: float) -> str:
    count = times(3000, scale)
    kafka = wire.Kafka(target)
    # What a join is answered by waits for the others: nobody reads it.
    for start in range(0, count, 50):
        kafka = wire.Kafka(target)
        kafka.send(b"".join(join(f"hostile.classic.{n}", metadata=bytes(100)) for n in range(start, start + 50)))
    fresh = wire.Kafka(target)
    pipeline(
        fresh,
        [
            wire.kafka_request(68, 1, heartbeat(f"hostile.modern.{n}", f"member-{n}", "bystanders"), flexible=True)
            for n in range(count)
        ],
    )
    return f"{count:,} groups of each"


@attack("very many members of one group, of the classic and of the new protocol", memory_mib=256, kept_mib=128)
def members(target: Target, chance: random.Random, scale: float) -> str:
    count = times(1500, scale)
    kept = []
    for _ in range(count):
        kafka = wire.Kafka(target)
        kafka.send(join("hostile.crowd", metadata=bytes(1000)))
        kept.append(kafka)
    modern = times(600, scale)
    fresh = wire.Kafka(target)
    pipeline(
        fresh,
        [
            wire.kafka_request(68, 1, heartbeat("hostile.modern", f"member-{n}", "bystanders|hostile.*"), flexible=True)
            for n in range(modern)
        ],
    )
    return f"{count:,} and {modern:,} members"


@attack("storm of committed offsets with metadata", memory_mib=256, kept_mib=160)
def offsets(target: Target, chance: random.Random, scale: float) -> str:
    kafka = wire.Kafka(target)
    count = times(200, scale)
    kafka.ask(19, 2, wire.create_topics(["hostile.offsets"], 100))
    parts = b"".join(struct.pack(">iq", n, 1) + wire.text("m" * 1000) for n in range(100))
    requests = [
        wire.kafka_request(
            8,
            2,
            wire.text(f"hostile.offsets.{n}")
            + struct.pack(">i", -1)
            + wire.text("")
            + struct.pack(">qi", -1, 1)
            + wire.text("hostile.offsets")
            + struct.pack(">i", 100)
            + parts,
        )
        for n in range(count)
    ]
    pipeline(kafka, requests)
    kafka.ask(20, 1, wire.delete_topics(["hostile.offsets"]))
    return f"{count:,} groups with 100 offsets of 1,000 characters each"
