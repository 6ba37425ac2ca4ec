"""Hostile conversations from a seed: requests of all APIs with random fields, whole or damaged.

What comes of any of them: answers in their order or a closed connection, bounded memory, no bug, and a broker that
serves the next client.
"""

from __future__ import annotations

import dataclasses
import logging
import types
import typing
from random import Random
from typing import Any

from kio.index import load_request_schema
from kio.serial.errors import OutOfBoundValue

from millpond.base.limits import KAFKA_FETCH_WAIT_MS_MAX
from millpond.protocols.kafka import registry
from millpond.protocols.kafka.registry import Api
from tests.protocols.kafka.harness import (
    PRODUCE,
    Client,
    Pond,
    batch_of,
    decoded_response,
    encoded_request,
    records_of,
    request_bytes,
    with_fields,
)

DESCRIBE_TRANSACTIONS = 65

# Few names, so that what one request makes the next one meets.
NAMES = ["t", "t", "u", "compacted", "stamped", "none", "", "g", "g", "h", "é", "a b", ".", "x" * 249, "x" * 250, "__x"]
TEXTS = ["range", "roundrobin", "consumer", "compact", "delete", "snappy", "1", "-1", "127.0.0.1", "cleanup.policy"]
NUMBERS = [0, 0, 0, 0, 1, 1, 2, 3, -1, -1, -2, 10, 100, 1000, 10_000, 60_000, (1 << 31) - 1, -(1 << 31), 1 << 40]
NUMBERS += [(1 << 63) - 1, -(1 << 63)]
BITS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64, "timedelta_i32": 32, "timedelta_i64": 40}
FIELDS = ["base_offset", "leader_epoch", "magic", "attributes", "last_offset_delta", "base_timestamp", "max_timestamp"]
FIELDS += ["producer_id", "producer_epoch", "base_sequence", "record_count"]
ITEMS_MAX = 3
DEPTH_MAX = 4
# Requests in one conversation.
REQUESTS_MAX = 30


class Bugs(logging.Handler):
    """What the broker admits to be a bug."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None or "bug" in record.getMessage():
            self.found.append(logging.Formatter().format(record))


# --- Requests ---------------------------------------------------------------------------------------------------------


def random_batch(random: Random) -> bytes | None:
    choice = random.random()
    if choice < 0.05:
        return None
    if choice < 0.1:
        return random.randbytes(random.randrange(200))
    records = [
        (random.choice([None, b"", b"k", b"l"]), random.choice([None, b"", random.randbytes(random.randrange(300))]))
        for _ in range(random.randrange(1, 5))
    ]
    producer = random.choice([(-1, -1, -1), (random.randrange(3), random.randrange(2), random.randrange(6))])
    codec = random.choice([0, 0, 1, 2, 3, 4])
    batch = batch_of(*records, codec=codec, producer=producer)
    if random.random() < 0.3:
        name = random.choice(FIELDS)
        value = random.choice([0, 1, -1, 2, 8, 16, 32, 64, 127])
        batch = with_fields(batch, **{name: value})
    elif random.random() < 0.2:
        batch = with_fields(damaged(batch, random))
    return batch


def random_value(random: Random, hint: Any, kafka_type: str | None, depth: int) -> object:
    if typing.get_origin(hint) in {types.UnionType, typing.Union}:
        if random.random() < 0.15:
            return None
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        count = random.randrange(ITEMS_MAX + 1) if depth < DEPTH_MAX else 0
        return [random_value(random, item, kafka_type, depth + 1) for _ in range(count)]
    if dataclasses.is_dataclass(hint):
        return random_tree(random, hint, depth + 1)
    if kafka_type in BITS:
        half = 1 << BITS[kafka_type] - 1
        return (random.choice(NUMBERS) + half) % (2 * half) - half
    if kafka_type == "string":
        return random.choice(NAMES if random.random() < 0.7 else TEXTS)
    if kafka_type == "records":
        return random_batch(random)
    if kafka_type == "bytes":
        return random.randbytes(random.choice([0, 1, 20, 200]))
    if kafka_type == "uuid":
        return random.choice([bytes(16), random.randbytes(16)])
    if kafka_type == "float64":
        return random.choice([0.0, -1.5, 1e300, float("inf"), random.random()])
    assert kafka_type == "bool", kafka_type
    return random.random() < 0.5


def random_tree(random: Random, schema: Any, depth: int = 0) -> dict[str, object]:
    hints = typing.get_type_hints(schema)
    return {
        field.name: random_value(random, hints[field.name], field.metadata.get("kafka_type"), depth)
        for field in dataclasses.fields(schema)
    }


def random_request(random: Random, correlation_id: int) -> tuple[int, int, bytes]:
    """API key, version, and the request."""
    choice = random.random()
    keys = list(registry.APIS)
    api_key = random.choice(keys) if choice < 0.7 else random.choice([0, 0, 1, 1, 3, 11, 12, 14, 8])
    found = registry.APIS[api_key]
    version = random.randint(found.least, found.most)
    schema = load_request_schema(api_key, version)
    tree = random_tree(random, schema)
    if api_key == PRODUCE and random.random() < 0.8:
        # Those that must be so to come any further.
        tree |= {"transactional_id": None, "acks": random.choice([-1, -1, 1, 0])}
    body = encoded_request(api_key, version, tree)
    return api_key, version, request_bytes(api_key, version, correlation_id, body)


def damaged(data: bytes, random: Random) -> bytes:
    """Some bits flipped, some bytes lost or doubled, some length changed."""
    changed = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(len(changed)) if changed else 0
        choice = random.randrange(5)
        if choice == 0:
            del changed[at : at + random.randrange(1, 9)]
        elif choice == 1:
            changed[at:at] = changed[at : at + random.randrange(1, 9)]
        elif choice == 2:
            changed[at : at + 4] = random.choice(
                [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\x0f\xff\xff"]
            )
        elif choice == 3:
            changed[at : at + 1] = bytes([random.choice([0, 1, 2, 0x7F, 0x80, 0xFF])])
        elif changed:
            changed[min(at, len(changed) - 1)] ^= 1 << random.randrange(8)
    return bytes(changed)


def in_pieces(data: bytes, random: Random) -> list[bytes]:
    if random.random() < 0.5 or len(data) < 2:
        return [data]
    cuts = sorted(random.sample(range(1, len(data)), min(len(data) - 1, random.randrange(1, 6))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# --- Attacks ----------------------------------------------------------------------------------------------------------


def prepared() -> Pond:
    pond = Pond(memory_budget=64 << 20)
    pond.topic("t", 2)
    pond.topic("u")
    pond.topic("compacted", cleanup_policy="compact", compression_type="lz4")
    pond.topic("stamped", message_timestamp_type="LogAppendTime")
    return pond


def attack(pond: Pond, client: Client, random: Random, damage: float) -> None:
    """One conversation. As long as nothing is damaged, every answer must be one to its request."""
    is_sound = True
    asked: list[tuple[int, int, int]] = []
    for number in range(random.randrange(1, REQUESTS_MAX)):
        api_key, version, data = random_request(random, number)
        asked.append((number, api_key, version))
        if random.random() < damage:
            data = data[:4] + damaged(data[4:], random)
            if random.random() < 0.8:
                data = (len(data) - 4).to_bytes(4, "big") + data[4:]
            is_sound = False
        for piece in in_pieces(data, random):
            client.feed(piece)
            if random.random() < 0.3:
                check_answers(client, asked, is_sound)
        if random.random() < 0.1:
            pond.clock.advance(random.choice([1, 100, 5_000]))
        if random.random() < 0.03:
            client.connection.pause_writing()
        if random.random() < 0.1:
            client.connection.resume_writing()
        if random.random() < 0.03:
            pond.broker.alarms.raise_alarm("disk")
        if random.random() < 0.2:
            pond.broker.alarms.clear_alarm("disk")
    client.connection.resume_writing()
    pond.broker.alarms.clear_alarm("disk")
    check_answers(client, asked, is_sound)


def check_answers(client: Client, asked: list[tuple[int, int, int]], is_sound: bool) -> None:
    for answer in client.answers():
        if not is_sound:
            continue
        while asked[0][0] != answer.correlation_id:
            # It wanted no answer.
            assert asked.pop(0)[1] == PRODUCE, "an answer is not in its turn"
        _, api_key, version = asked.pop(0)
        try:
            decoded_response(api_key, version, answer.payload)
        except OutOfBoundValue:
            # As Kafka does, -1 is told for when a transaction began that has not begun; kio reads no such time.
            assert api_key == DESCRIBE_TRANSACTIONS


def check_serves(pond: Pond) -> None:
    """Another client produces and fetches as if nothing had happened, and all memory comes back."""
    other = pond.client()
    assert other.is_alive()
    name = "served"
    if name not in pond.topics.by_name:
        pond.topic(name)
    base_offset = other.produce(name, batch_of(b"a" * 1000)).base_offset
    assert records_of(other.fetch(name, base_offset).records) == [(base_offset, b"a" * 1000)]
    for connection in list(pond.broker.connections):
        connection.close_by_operator("the end")
    pond.clock.advance(KAFKA_FETCH_WAIT_MS_MAX)
    pond.rest()
    assert pond.broker.connections == {}
    for topic in list(pond.topics.by_name.values()):
        for partition in topic.partitions:
            assert not partition.is_listened_to, f"somebody waits for {partition.name} who is gone"
        pond.topics.delete(topic)
    pond.rest()
    assert pond.broker.memory.used == 0


def run_seed(seed: int) -> None:
    """One whole attack."""
    random = Random(seed)
    bugs = Bugs()
    pond = prepared()
    logger = logging.getLogger("millpond")
    logger.addHandler(bugs)
    try:
        damage = random.choice([0.0, 0.0, 0.1, 0.5])
        for _ in range(random.randrange(1, 4)):
            attack(pond, pond.client(), random, damage)
            assert not bugs.found, bugs.found[0]
        check_serves(pond)
        assert not bugs.found, bugs.found[0]
    finally:
        logger.removeHandler(bugs)
        pond.close()


def apis() -> list[Api]:
    """All that there are."""
    registry.load(1)
    return sorted(registry.APIS.values(), key=lambda found: found.key)


def sample_bodies(api_key: int, version: int) -> list[bytes]:
    """Some requests of one API without their headers, none of them empty in all its arrays."""
    random = Random(api_key * 100 + version)
    schema = load_request_schema(api_key, version)
    bodies = [encoded_request(api_key, version, random_tree(random, schema)) for _ in range(12)]
    return sorted(bodies, key=len)[-2:]


def is_closed_by(pond: Pond, api_key: int, version: int, body: bytes) -> bool:
    """Whether a connection is closed for a request with this body."""
    client = pond.client()
    client.feed(request_bytes(api_key, version, 1, body))
    is_closed = client.transport.is_closed
    if is_closed:
        assert client.answers() == []
    client.drop()
    return is_closed
