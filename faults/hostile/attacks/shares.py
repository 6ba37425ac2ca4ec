"""Share groups: members, sessions and deliveries, very many, and lost at once."""

from __future__ import annotations

import random
import struct

from faults.hostile import wire
from faults.hostile.attacks.groups import pipeline
from faults.hostile.attacks.registry import attack, times
from faults.hostile.target import Target


def share_fetch(
    group: str, member: str, topic_id: bytes, partitions: range, epoch: int = 0, records: int = 500
) -> bytes:
    """ShareFetch 1, which does not wait."""
    numbers = b"".join(struct.pack(">i", number) + b"\1\0" for number in partitions)
    topics = wire.varint(2) + topic_id + wire.varint(len(partitions) + 1) + numbers + b"\0"
    return wire.kafka_request(
        78,
        1,
        wire.compact(group)
        + wire.compact(member)
        + struct.pack(">iiiiii", epoch, 0, 1, 1 << 20, records, records)
        + topics
        + b"\1\0",
        flexible=True,
    )


def _topic(kafka: wire.Kafka, name: str, partitions: int) -> bytes:
    kafka.ask(19, 2, wire.create_topics([name], partitions))
    return wire.topic_ids(kafka, [name])[0]


def _earliest(target: Target, group: str) -> None:
    """Let a share group begin with the first record: IncrementalAlterConfigs 1, of the resource type "group"."""
    kafka = wire.Kafka(target)
    config = wire.compact("share.auto.offset.reset") + b"\0" + wire.compact("earliest") + b"\0"
    kafka.ask(
        44, 1, wire.varint(2) + b"\x20" + wire.compact(group) + wire.varint(2) + config + b"\0" + b"\0\0", flexible=True
    )
    kafka.close()


@attack("very many share sessions of one connection, all lost at once", memory_mib=384, kept_mib=192)
def sessions(target: Target, chance: random.Random, scale: float) -> str:
    """Each wants every partition: what is done when they are lost must not be their product."""
    admin = wire.Kafka(target)
    partitions = times(90, scale)
    topic = _topic(admin, "hostile.shared", partitions)
    count = times(1900, scale)
    kafka = wire.Kafka(target)
    answers = pipeline(
        kafka,
        [share_fetch("hostile.shares", f"member-{n}", topic, range(partitions)) for n in range(count)],
    )
    for answer in answers:
        (code,) = struct.unpack_from(">h", answer, 5)
        assert code == 0, code
    return f"{count:,} sessions of {partitions} partitions"


@attack("share sessions of very many groups, all lost at once", memory_mib=384, kept_mib=192)
def groups(target: Target, chance: random.Random, scale: float) -> str:
    admin = wire.Kafka(target)
    topic = _topic(admin, "hostile.shared.groups", 20)
    count = times(1900, scale)
    kafka = wire.Kafka(target)
    pipeline(kafka, [share_fetch(f"hostile.shares.{n}", "member", topic, range(20)) for n in range(count)])
    beyond = pipeline(
        kafka, [share_fetch(f"hostile.beyond.{n}", "member", topic, range(1)) for n in range(times(500, scale))]
    )
    codes = {struct.unpack_from(">h", answer, 5)[0] for answer in beyond}
    assert codes <= {0, 133}, codes
    return f"{count:,} groups of 20 partitions, and {len(beyond)} more: {codes}"


@attack("very many records in the hands of share members, all lost at once", memory_mib=256, kept_mib=128)
def held(target: Target, chance: random.Random, scale: float) -> str:
    admin = wire.Kafka(target)
    partitions = 50
    topic = _topic(admin, "hostile.held", partitions)
    _earliest(target, "hostile.holders")
    # A batch each, so that each record may be somebody else's.
    one = wire.batch(wire.record(0, b"x"), 1)
    for number in range(partitions):
        requests = [wire.kafka_request(0, 7, wire.produce("hostile.held", one, number))] * times(200, scale)
        pipeline(admin, requests)
    kafka = wire.Kafka(target)
    count = times(500, scale)
    pipeline(
        kafka,
        [share_fetch("hostile.holders", f"member-{n}", topic, range(partitions), records=20) for n in range(count)],
    )
    return f"{partitions * times(200, scale):,} records, {count} members"


@attack("storm of share groups: heartbeats of members", memory_mib=192, kept_mib=128)
def heartbeats(target: Target, chance: random.Random, scale: float) -> str:
    kafka = wire.Kafka(target)
    count = times(3000, scale)
    pipeline(
        kafka,
        [
            wire.kafka_request(
                76,
                1,
                wire.compact(f"hostile.sharing.{n}")
                + wire.compact(f"member-{n}")
                + bytes(4)
                + b"\0"
                + wire.varint(2)
                + wire.compact("bystanders")
                + b"\0",
                flexible=True,
            )
            for n in range(count)
        ],
    )
    return f"{count:,} groups"
