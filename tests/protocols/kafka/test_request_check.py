"""Requests are looked through before kio reads them: arrays that cannot be, null where it must not be, tagged fields
that are not known: a newer client may send them, and they are passed over."""

from __future__ import annotations

import pytest
from kio.index import load_request_schema
from kio.serial import entity_reader

from millpond.base.errors import SyntaxFault
from millpond.base.limits import KAFKA_REQUEST_ITEMS_MAX
from millpond.protocols.kafka.request_check import checked_request
from tests.protocols.kafka import fuzzing
from tests.protocols.kafka.harness import (
    API_VERSIONS,
    CLIENT_ID,
    METADATA,
    Client,
    encoded_request,
    is_flexible,
    request_bytes,
)

DELETE_GROUPS = 42
UNKNOWN = b"\x02\x50\x03abc\x51\x00"


def test_unknown_fields_of_the_header_are_passed_over(client: Client) -> None:
    body = encoded_request(API_VERSIONS, 3, {"client_software_name": "x", "client_software_version": "1"})
    data = request_bytes(API_VERSIONS, 3, 1, body)[4:]
    at = 10 + len(CLIENT_ID)
    data = data[:at] + UNKNOWN + data[at + 1 :]
    client.feed(len(data).to_bytes(4, "big") + data)
    assert len(client.answers()) == 1


def test_unknown_fields_of_a_body_are_passed_over(client: Client) -> None:
    body = encoded_request(
        METADATA, 12, {"topics": [{"topic_id": None, "name": "t"}], "allow_auto_topic_creation": True}
    )
    assert body[-1] == 0
    # Behind the topic, and at the end.
    at = body.index(b"\x02t\0") + 2
    client.feed(request_bytes(METADATA, 12, 1, body[:at] + UNKNOWN + body[at + 1 : -1] + UNKNOWN))
    assert len(client.answers()) == 1
    assert "t" in client.pond.topics.by_name


# Produce and Fetch read their own bytes.
CHECKED = [api for api in fuzzing.apis() if api.raw_handler is None]


@pytest.mark.parametrize("api", CHECKED, ids=lambda api: api.name)
def test_a_request_without_unknown_fields_stays_as_it_is(api: fuzzing.Api) -> None:
    for version in range(api.least, api.most + 1):
        if not is_flexible(api.key, version):
            continue
        schema = load_request_schema(api.key, version)
        for body in fuzzing.sample_bodies(api.key, version):
            assert checked_request(schema, body) == body
            changed = checked_request(schema, body[:-1] + UNKNOWN) if body[-1] == 0 else body
            assert changed == body
            assert entity_reader(schema)(changed, 0)[1] == len(body)
            with pytest.raises(SyntaxFault):
                checked_request(schema, body[:-1])


@pytest.mark.parametrize(
    ("version", "count"),
    [
        (8, b"\x7f\xff\xff\xff"),
        (8, b"\x10\0\0\0"),
        (8, b"\xff\xff\xff\xfe"),
        (8, b"\x80\0\0\0"),
        (12, b"\xff\xff\xff\xff\x07"),
        (12, b"\xff\xff\xff\xff\x0f"),
        (12, b"\xff\xff\xff\x07"),
    ],
)
def test_an_array_that_says_to_be_huge_takes_no_memory(client: Client, version: int, count: bytes) -> None:
    client.feed(request_bytes(METADATA, version, 1, count + bytes(100)))
    assert client.transport.is_closed
    assert client.pond.client().is_alive()


def test_a_request_has_no_more_items_than_the_limit(client: Client) -> None:
    body = (KAFKA_REQUEST_ITEMS_MAX + 1).to_bytes(4, "big") + b"\0\1t" * (KAFKA_REQUEST_ITEMS_MAX + 1) + b"\0"
    client.feed(request_bytes(METADATA, 4, 1, body))
    assert client.transport.is_closed


def test_null_where_an_array_is_needed_closes_the_connection(client: Client) -> None:
    client.feed(request_bytes(DELETE_GROUPS, 2, 1, b"\0\0"))
    assert client.transport.is_closed
    assert client.pond.client().is_alive()


def test_a_topic_is_told_of_once_however_often_it_is_asked_for(client: Client) -> None:
    client.pond.topic("t", 3)
    asked = [{"topic_id": None, "name": name} for name in ("t", "t", "u", "t", "u")]
    response = client.call(METADATA, 12, topics=asked, allow_auto_topic_creation=True)
    assert sorted(topic.name for topic in response.topics) == ["t", "u"]


@pytest.mark.parametrize("version", [10, 11])
def test_topics_are_not_asked_for_by_id_before_they_can_be(client: Client, version: int) -> None:
    response = client.call(METADATA, version, topics=[{"topic_id": None, "name": None}])
    assert [(topic.error_code.value, topic.name) for topic in response.topics] == [(42, "")]
