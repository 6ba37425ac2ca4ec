"""Kafka's requests, and what its clients tell each other inside them."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from faults.fuzz.targets.target import target
from millpond.base.errors import PeerError
from millpond.broker.groups import subscription
from millpond.protocols.kafka import messages, registry
from tests.protocols.kafka import fuzzing

# Those that the broker reads itself: the targets of connections have them.
_RAW = (0, 1)
_HEAD_BYTES = 2


def _requests() -> list[bytes]:
    seeds: list[bytes] = []
    for number, api in enumerate(_apis()):
        for version in range(api.least, api.most + 1):
            body = fuzzing.sample_bodies(api.key, version)[-1]
            # A header with no tagged fields precedes what is flexible.
            tags = b"\0" if _schema(api.key, version).__flexible__ else b""
            seeds.append(bytes([number, version - api.least]) + tags + body)
    return seeds


@cache
def _apis() -> tuple[registry.Api, ...]:
    return tuple(api for api in fuzzing.apis() if api.key not in _RAW)


def _schema(api_key: int, version: int) -> Any:
    from kio.index import load_request_schema

    return load_request_schema(api_key, version)


@cache
def _codec(api_key: int, version: int) -> tuple[Any, Any]:
    from kio.serial import entity_reader, entity_writer

    schema = _schema(api_key, version)
    return entity_reader(schema), entity_writer(schema)


@target("kafka-request", _requests, PeerError)
def read_request(data: bytes) -> object:
    """A request of any API in any version, which the first two bytes choose."""
    if len(data) < _HEAD_BYTES:
        return None
    api = _apis()[data[0] % len(_apis())]
    version = api.least + data[1] % (api.most - api.least + 1)
    request = messages.decode_request(api.key, version, data, _HEAD_BYTES, len(data))
    read, write = _codec(api.key, version)
    written = io.BytesIO()
    write(written, request)
    again, _ = read(written.getvalue(), 0)
    assert repr(again) == repr(request), "what is encoded is not decoded to the same"
    return repr(request)


def _blobs() -> list[bytes]:
    return list(_written())


def _written() -> Iterator[bytes]:
    chance = random.Random(4)
    for version in range(4):
        topics = [f"topic-{number}" for number in range(chance.randrange(1, 4))]
        yield subscription.write_assignment(version, {topic: [0, 1, chance.randrange(100)] for topic in topics})
        names = b"".join(len(topic).to_bytes(2, "big") + topic.encode() for topic in topics)
        head = version.to_bytes(2, "big") + len(topics).to_bytes(4, "big") + names + b"\0\0\0\x02hi"
        owned = b"\0\0\0\x01\0\x01t\0\0\0\x02\0\0\0\0\0\0\0\x01"
        yield head + (owned if version >= 1 else b"") + (b"\0\0\0\x05" if version >= 2 else b"")


@target("kafka-subscription", _blobs)
def read_subscription(data: bytes) -> object:
    """What is in members' metadata and assignments, which the broker reads and does not complain about."""
    assigned = subscription.assigned_partitions(data)
    if assigned is not None:
        written = subscription.write_assignment(1, assigned)
        assert subscription.assigned_partitions(written) == assigned, "what is encoded is not decoded to the same"
    read = subscription.read_subscription(data)
    topics = subscription.subscribed_topics(data)
    assert read is None or topics == list(read.topics)
    return assigned, read, topics
