"""Tagged fields that are not known: a newer client may send them, and they are passed over."""

from __future__ import annotations

import pytest
from kio.index import load_request_schema
from kio.serial import entity_reader

from millpond.base.errors import SyntaxFault
from millpond.base.limits import KAFKA_UNKNOWN_TAGS_BYTES_MAX
from millpond.protocols.kafka.tags import without_unknown_tags
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


@pytest.mark.parametrize("api", fuzzing.apis(), ids=lambda api: api.name)
def test_a_request_without_unknown_fields_stays_as_it_is(api: fuzzing.Api) -> None:
    for version in range(api.least, api.most + 1):
        if not is_flexible(api.key, version):
            continue
        schema = load_request_schema(api.key, version)
        for body in fuzzing.sample_bodies(api.key, version):
            assert without_unknown_tags(schema, body) == body
            changed = without_unknown_tags(schema, body[:-1] + UNKNOWN) if body[-1] == 0 else body
            assert changed == body
            assert entity_reader(schema)(changed, 0)[1] == len(body)
            with pytest.raises(SyntaxFault):
                without_unknown_tags(schema, body[:-1])


def test_a_large_request_is_not_looked_through() -> None:
    with pytest.raises(SyntaxFault):
        without_unknown_tags(load_request_schema(METADATA, 12), bytes(KAFKA_UNKNOWN_TAGS_BYTES_MAX + 1))
