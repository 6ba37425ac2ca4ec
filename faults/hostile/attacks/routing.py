"""Routing that takes long: very many bindings, words and headers; and patterns that are hard to match."""

from __future__ import annotations

import random

from faults.hostile import wire
from faults.hostile.attacks.registry import attack, times
from faults.hostile.target import Target


@attack("headers exchange with thousands of bindings", memory_mib=160)
def headers(target: Target, chance: random.Random, scale: float) -> str:
    connection = wire.Amqp(target)
    connection.open()
    connection.call(wire.exchange_declare(1, "hostile.headers", "headers", 4), 40, 11)
    connection.call(wire.queue_declare(1, "hostile.headers", 4), 50, 11)
    bindings = times(5000, scale)

    def table(number: int) -> bytes:
        match = wire.short("x-match") + b"S" + wire.long(b"any" if number % 2 else b"all")
        return match + b"".join(wire.short(f"h{k}") + b"I" + (number * 10 + k).to_bytes(4, "big") for k in range(10))

    for start in range(0, bindings, 500):
        part = range(start, min(start + 500, bindings))
        connection.call(
            b"".join(wire.queue_bind(1, "hostile.headers", "hostile.headers", "", table(n)) for n in part),
            50,
            21,
            len(part),
        )
    messages = times(2000, scale)
    missing = b"".join(wire.short(f"h{k}") + b"I" + bytes(4) for k in range(1, 10))
    connection.send(wire.publish(1, "hostile.headers", "", b"x", headers=missing) * messages)
    connection.call(wire.queue_delete(1, "hostile.headers"), 50, 41)
    return f"{bindings:,} bindings, {messages:,} messages"


@attack("topic exchange: words without end, and bindings of # and *", memory_mib=160)
def wildcards(target: Target, chance: random.Random, scale: float) -> str:
    connection = wire.Amqp(target)
    connection.open()
    connection.call(wire.exchange_declare(1, "hostile.topic", "topic", 4), 40, 11)
    connection.call(wire.queue_declare(1, "hostile.topic", 4), 50, 11)
    keys = [".".join(chance.choice("#*ab") for _ in range(60)) for _ in range(times(1000, scale))]
    keys += ["#." * 60 + "z", "#.a." * 30 + "z", "*.#." * 30 + "z"]
    connection.call(
        b"".join(wire.queue_bind(1, "hostile.topic", "hostile.topic", key) for key in keys), 50, 21, len(keys)
    )
    messages = times(1000, scale)
    for number in range(messages):
        key = ".".join(chance.choice("abc") for _ in range(120)) if number % 2 else "a." * 120 + str(number)
        connection.send(wire.publish(1, "hostile.topic", key, b"x"))
    connection.call(wire.queue_delete(1, "hostile.topic"), 50, 41)
    return f"{len(keys):,} bindings, {messages:,} messages with 120 words"


@attack("patterns of policies, permissions and subscriptions that would never end", memory_mib=96)
def patterns(target: Target, chance: random.Random, scale: float) -> str:
    evil = ["(a+)+$", "(a|a)*$", "(.*a){30}", "(a?){200}a{200}", "^(([a-z])+.)+[A-Z]([a-z])+$", "x{1000}{1000}"]
    connection = wire.Amqp(target)
    connection.open()
    names = ["a" * 200 + str(number) for number in range(times(300, scale))]
    connection.call(b"".join(wire.queue_declare(1, name, 4) for name in names), 50, 11, len(names))
    statuses: dict[int, int] = {}
    for number, pattern in enumerate(evil):
        body = {"pattern": pattern, "definition": {"max-length": 10}, "apply-to": "queues", "priority": number}
        status, said = wire.manage(target, "PUT", f"/api/policies/%2F/hostile{number}", body)
        statuses[status] = statuses.get(status, 0) + 1
        assert status in {201, 204, 400}, f"{pattern}: {status} {said!r}"
    kafka = wire.Kafka(target)
    for number, pattern in enumerate(evil * times(5, scale)):
        # ConsumerGroupHeartbeat 1, with a regular expression to subscribe by.
        kafka.ask(68, 1, heartbeat(f"hostile.pattern.{number}", f"member-{number}", pattern), flexible=True)
    for number in range(len(evil)):
        wire.manage(target, "DELETE", f"/api/policies/%2F/hostile{number}")
    return f"{len(evil)} policies over {len(names)} queues: {statuses}; {len(evil) * times(5, scale)} subscriptions"


def heartbeat(group: str, member: str, pattern: str) -> bytes:
    """The first ConsumerGroupHeartbeat of a member, version 1."""
    return (
        wire.compact(group)
        + wire.compact(member)
        + bytes(4)
        + b"\0\0"
        + (60_000).to_bytes(4, "big")
        + b"\0"
        + wire.compact(pattern)
        + b"\0\1\0"
    )
