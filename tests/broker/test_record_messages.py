"""What crosses between AMQP and Kafka comes out as it went in, both ways."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.base.errors import CorruptData
from millpond.broker.dead_letter import dead_lettered
from millpond.broker.message import PROPERTIES_FORMATS, Address, Message
from millpond.broker.record_properties import RecordProperties
from millpond.broker.records import record_header
from millpond.broker.streams.message_records import MessageRecord, record_headers
from millpond.broker.streams.record_messages import RecordMessages
from millpond.protocols.amqp.properties import (
    BasicProperties,
    basic_properties,
    encode_properties,
    fitting_properties,
    parse_properties,
)
from millpond.storage.batch_rewrite import recompressed
from millpond.storage.compression import CODECS
from millpond.storage.record_batch import CONTROL, RESERVED_HEADER, BatchBuilder, RecordReader
from tests.broker.life import PlainProperties

Header = tuple[bytes, bytes | None]
# Timestamp, key, value, headers.
Record = tuple[int, bytes | None, bytes | None, list[Header]]

NOW_MS = 1_700_000_000_123
HOUR_MS = 3_600_000


LOGS = Address("logs", "a.b")


def amqp(address: Address = LOGS, body: bytes = b"body", now_ms: int = NOW_MS, **named: Any) -> Message:
    return Message(address, parse_properties(encode_properties(**named)), body, now_ms)


def appended(*messages: Message) -> bytes:
    """What a stream has when these have been published to it."""
    builder, record = BatchBuilder(), MessageRecord()
    for message in messages:
        record.of(message)
        builder.append_encoded(builder.count, record.timestamp_ms, record.key, record.value, record.headers)
    return builder.finish(0, builder.count - 1)


def produced(*records: Record) -> bytes:
    """What a topic has when Kafka's producer has sent these."""
    builder = BatchBuilder()
    for timestamp_ms, key, value, headers in records:
        builder.append_with_headers(builder.count, timestamp_ms, key, value, headers)
    return builder.finish(0, builder.count - 1)


def consumed(batch: bytes) -> list[Record]:
    """What Kafka's consumer is given."""
    reader = RecordReader(batch)
    records: list[Record] = []
    while reader.next():
        records.append((int(reader.timestamp_ms), reader.key, reader.value, reader.headers()))
    return records


def delivered(batch: bytes) -> list[Message]:
    """What AMQP's consumer is given."""
    records = RecordMessages("stream 's'")
    assert records.open(batch)
    messages: list[Message] = []
    while records.next():
        assert records.offset == len(messages)
        messages.append(records.message)
    return messages


def shown(message: Message) -> list[Header]:
    """The headers that Kafka's consumer is given, without the reserved one."""
    *others, (name, _) = consumed(appended(message))[0][3]
    assert name == RESERVED_HEADER
    return others


def from_kafka(record: Record) -> Message:
    (message,) = delivered(produced(record))
    return message


def forwarded(message: Message, headers: list[Header], **changes: Any) -> Message:
    """The message after a program of Kafka's has read it and produced it again with other headers."""
    ((timestamp_ms, key, value, _),) = consumed(appended(message))
    return from_kafka((timestamp_ms, changes.get("key", key), changes.get("value", value), headers))


def through_a_queue(message: Message) -> Message:
    """As it is when a queue's journal has been read back."""
    header = record_header(message)
    raw = header[2 + header[1] :]
    assert raw == message.properties.raw
    return Message(message.address, PROPERTIES_FORMATS[header[0]](raw), message.body, message.timestamp_ms)


# --- From AMQP to AMQP ------------------------------------------------------------------------------------------------

names = st.text(max_size=20)
times = st.integers(0, 1 << 32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.decimals(-1000, 1000, places=2)
    | times
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=5
)
headers_of_amqp = st.dictionaries(
    st.sampled_from(["content-type", "millpond", "x-kafka-key", "x-kafka-tombstone", "timestamp_in_ms", "CC"]) | names,
    values,
    max_size=4,
)
texts = st.none() | st.text(max_size=20)
properties_of_amqp = st.fixed_dictionaries(
    {},
    optional={
        "content_type": texts,
        "headers": headers_of_amqp,
        "delivery_mode": st.integers(0, 255),
        "priority": st.integers(0, 255),
        "correlation_id": texts,
        "expiration": st.integers(0, 100_000).map(str),
        "message_id": texts,
        "timestamp": st.integers(0, (1 << 63) - 1),
        "type": texts,
        "user_id": texts,
        "cluster_id": texts,
    },
)
# Also what is not UTF-8.
short_texts = st.binary(max_size=255).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
messages_of_amqp = st.builds(
    lambda exchange, key, body, now_ms, named: amqp(Address(exchange, key), body, now_ms, **named),
    short_texts,
    short_texts,
    st.binary(max_size=20),
    st.integers(0, 1 << 45),
    properties_of_amqp,
)


@given(st.lists(messages_of_amqp, min_size=1, max_size=4))
@settings(deadline=None)
def test_amqp_gets_back_what_it_put_in_to_the_byte(messages: list[Message]) -> None:
    back = delivered(appended(*messages))
    assert [message.properties.raw for message in back] == [message.properties.raw for message in messages]
    assert [message.address.exchange for message in back] == [message.address.exchange for message in messages]
    assert [message.address.routing_key for message in back] == [message.address.routing_key for message in messages]
    assert [message.body for message in back] == [message.body for message in messages]


def test_neighbours_share_what_they_have_in_common() -> None:
    same = amqp(headers={"a": 1})
    first, second, third = delivered(appended(same, same, amqp(headers={"a": 2})))
    assert first.properties is second.properties
    assert first.address is second.address
    assert third.properties is not second.properties


def test_records_that_an_older_version_wrote_are_read() -> None:
    message = amqp(headers={"a": 1}, content_type="text/plain")
    builder = BatchBuilder()
    builder.append(0, NOW_MS, b"a.b", b"body", record_header(message))
    (back,) = delivered(builder.finish(0, 0))
    assert (back.properties.raw, back.address.exchange) == (message.properties.raw, "logs")
    assert (back.address.routing_key, back.body) == ("a.b", b"body")


# --- From AMQP to Kafka -----------------------------------------------------------------------------------------------


def test_a_message_without_headers_has_the_reserved_one_only() -> None:
    ((timestamp_ms, key, value, headers),) = consumed(appended(amqp(delivery_mode=2)))
    assert (timestamp_ms, key, value) == (NOW_MS, b"a.b", b"body")
    assert [name for name, _ in headers] == [RESERVED_HEADER]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("grüß", "grüß".encode()),
        (b"\xff\x00", b"\xff\x00"),
        (True, b"true"),
        (-7, b"-7"),
        (1.5, b"1.5"),
        (Decimal("1.10"), b"1.10"),
        (None, None),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), b"2026-01-02T03:04:05Z"),
        ([1, "é", {"t": datetime(2026, 1, 2, tzinfo=UTC)}], '[1,"é",{"t":"2026-01-02T00:00:00Z"}]'.encode()),
        ({"a": None, "b": b"x", "c": b"\xff", "d": float("nan")}, b'{"a":null,"b":"x","c":"/w==","d":"nan"}'),
        ({}, b"{}"),
    ],
)
def test_kafka_sees_a_header_as_text(value: object, text: bytes | None) -> None:
    assert shown(amqp(headers={"h": value})) == [(b"h", text)]


def test_kafka_sees_properties_as_headers() -> None:
    message = amqp(
        content_type="application/json",
        content_encoding="gzip",
        headers={"own": "1"},
        priority=3,
        correlation_id="c",
        reply_to="r",
        expiration="100",
        message_id="m",
        type="t",
        user_id="u",
        app_id="a",
    )
    assert shown(message) == [
        (b"own", b"1"),
        (b"content-type", b"application/json"),
        (b"content-encoding", b"gzip"),
        (b"priority", b"3"),
        (b"correlation-id", b"c"),
        (b"reply-to", b"r"),
        (b"expiration", b"100"),
        (b"message-id", b"m"),
        (b"type", b"t"),
        (b"user-id", b"u"),
        (b"app-id", b"a"),
    ]


@given(messages_of_amqp)
@settings(deadline=None)
def test_the_fast_way_to_a_record_s_headers_gives_the_same(message: Message) -> None:
    properties = message.properties
    general = PlainProperties(True, -1, {})
    general.described = properties.described  # type: ignore[method-assign]
    assert sorted(record_headers(properties)) == sorted(record_headers(general))


def test_an_application_s_own_header_is_not_hidden_by_a_property() -> None:
    assert shown(amqp(headers={"type": "own"}, type="property")) == [(b"type", b"own")]


def test_no_routing_key_is_no_key() -> None:
    ((_, key, _, _),) = consumed(appended(amqp(Address("fanout", ""))))
    assert key is None


@pytest.mark.parametrize(("stated", "key"), [("text", b"text"), (b"\xff", b"\xff"), (None, None), (7, b"a.b")])
def test_a_publisher_may_name_another_key(stated: object, key: bytes | None) -> None:
    message = amqp(headers={"x-kafka-key": stated, "other": "1"})
    ((_, found, _, headers),) = consumed(appended(message))
    assert found == key
    assert headers[0] == (b"other", b"1")
    (back,) = delivered(appended(message))
    assert back.address.routing_key == "a.b"
    assert back.properties.raw == message.properties.raw


def test_a_publisher_may_delete() -> None:
    assert consumed(appended(amqp(body=b"", headers={"x-kafka-tombstone": True})))[0][2] is None
    assert consumed(appended(amqp(body=b"x", headers={"x-kafka-tombstone": True})))[0][2] == b"x"
    assert consumed(appended(amqp(body=b"")))[0][2] == b""


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ({}, NOW_MS),
        ({"timestamp": 0}, NOW_MS),
        ({"timestamp": 1_600_000_000}, 1_600_000_000_000),
        ({"timestamp": NOW_MS // 1000}, NOW_MS),
        ({"timestamp": NOW_MS // 1000 + 3600}, NOW_MS // 1000 * 1000 + HOUR_MS),
        ({"timestamp": NOW_MS // 1000 + 3601}, NOW_MS),
        # A program that writes milliseconds.
        ({"timestamp": NOW_MS}, NOW_MS),
        ({"timestamp": (1 << 63) - 1}, NOW_MS),
        ({"timestamp": 1_600_000_000, "headers": {"timestamp_in_ms": 1_600_000_000_777}}, 1_600_000_000_777),
        ({"timestamp": 1_600_000_000, "headers": {"timestamp_in_ms": 1_500_000_000_777}}, 1_600_000_000_000),
        ({"headers": {"timestamp_in_ms": 1_600_000_000_777}}, NOW_MS),
    ],
)
def test_the_time_is_the_publisher_s_where_it_states_one(stated: dict[str, Any], found: int) -> None:
    assert consumed(appended(amqp(**stated)))[0][0] == found


# --- From AMQP to Kafka and back --------------------------------------------------------------------------------------


def test_what_a_program_of_kafka_s_passes_on_unchanged_is_what_it_was() -> None:
    message = amqp(headers={"n": 7, "table": {"a": [1]}}, priority=4, content_type="x/y")
    headers = consumed(appended(message))[0][3]
    assert forwarded(message, headers).properties.raw == message.properties.raw
    rekeyed = forwarded(message, headers, key=b"other", value=b"else")
    assert (rekeyed.address.routing_key, rekeyed.body) == ("other", b"else")
    assert rekeyed.properties.raw == message.properties.raw


def test_headers_that_a_program_of_kafka_s_has_changed_are_the_changed_ones() -> None:
    message = amqp(headers={"n": 7, "gone": "x", "changed": 1}, priority=4, content_type="x/y")
    headers = [
        (name, b"2" if name == b"changed" else value)
        for name, value in consumed(appended(message))[0][3]
        if name != b"gone"
    ]
    for placed in ([(b"trace", b"1"), *headers], [*headers, (b"trace", b"1")]):
        back = forwarded(message, placed)
        assert back.properties.headers() == {"n": 7, "changed": "2", "trace": "1"}
        assert (back.properties.priority, back.address.exchange) == (4, "logs")
        assert back.properties.described()["content_type"] == "x/y"


def test_a_message_without_headers_gets_those_that_a_program_of_kafka_s_adds() -> None:
    message = amqp(priority=None, delivery_mode=2)
    ((_, _, _, headers),) = consumed(appended(message))
    back = forwarded(message, [*headers, (b"a", b"1"), (b"a", b"\xff"), (b"b", None)])
    assert back.properties.headers() == {"a": ["1", b"\xff"], "b": ""}


def test_another_key_and_no_value_are_seen_in_a_message_that_amqp_made() -> None:
    message = amqp(headers={"x-kafka-key": b"\xff"})
    headers = consumed(appended(message))[0][3]
    assert forwarded(message, headers).address.routing_key == "a.b"
    assert forwarded(message, headers, key=b"new").address.routing_key == "new"
    long = forwarded(message, headers, key=b"x" * 300)
    assert (long.address.routing_key, consumed(appended(long))[0][1]) == ("", b"x" * 300)
    gone = forwarded(message, headers, value=None)
    assert gone.properties.headers()["x-kafka-tombstone"] is True
    assert consumed(appended(gone))[0][2] is None


@given(
    st.binary(max_size=40), st.lists(st.tuples(st.binary(max_size=5), st.none() | st.binary(max_size=5)), max_size=2)
)
@settings(deadline=None)
def test_a_reserved_header_that_makes_no_sense_is_a_header_like_others(junk: bytes, others: list[Header]) -> None:
    message = from_kafka((NOW_MS, b"k", b"v", [(RESERVED_HEADER, junk), *others]))
    assert (message.body, message.timestamp_ms) == (b"v", NOW_MS)
    message.properties.headers()


# --- From Kafka to AMQP -----------------------------------------------------------------------------------------------


def test_a_record_is_a_message_with_its_headers_as_text() -> None:
    message = from_kafka((NOW_MS, b"k", b"v", [(b"t", "é".encode()), (b"b", b"\xff"), (b"n", None), (b"t", b"2")]))
    assert (message.address.exchange, message.address.routing_key, message.body) == ("", "k", b"v")
    assert message.timestamp_ms == NOW_MS
    properties = message.properties
    assert (properties.persistent, properties.priority, properties.expiration_ms) == (True, 0, -1)
    assert properties.described() == {
        "headers": {"t": ["é", "2"], "b": b"\xff", "n": None, "timestamp_in_ms": NOW_MS},
        "delivery_mode": 2,
        "timestamp": NOW_MS // 1000,
    }


def test_a_record_without_a_time_has_none() -> None:
    properties = from_kafka((-1, b"k", b"v", [])).properties
    assert properties.described() == {"delivery_mode": 2}
    assert properties.named("timestamp") == ""


def test_well_known_headers_are_properties() -> None:
    named = {
        "content-type": "a/b",
        "content-encoding": "gzip",
        "correlation-id": "c",
        "reply-to": "r",
        "message-id": "m",
        "type": "t",
        "app-id": "a",
        "priority": "7",
    }
    properties = from_kafka(
        (-1, None, b"", [(name.encode(), text.encode()) for name, text in named.items()])
    ).properties
    described = properties.described()
    assert described.pop("headers") == named
    assert described == {
        **{name.replace("-", "_"): text for name, text in named.items()},
        "priority": 7,
        "delivery_mode": 2,
    }
    assert (properties.named("message_id"), properties.named("correlation_id")) == ("m", "c")
    assert properties.priority == 7


@pytest.mark.parametrize("header", [(b"user-id", b"root"), (b"expiration", b"1")])
def test_a_record_s_header_neither_names_a_user_nor_lets_the_message_expire(header: Header) -> None:
    properties = from_kafka((-1, None, b"", [header])).properties
    assert properties.described().keys() == {"headers", "delivery_mode"}
    assert properties.expiration_ms == -1


@pytest.mark.parametrize("text", [b"high", b"-1", b"1000", b"", None, "५".encode()])
def test_a_priority_that_is_no_small_number_is_none(text: bytes | None) -> None:
    assert from_kafka((-1, None, b"", [(b"priority", text)])).properties.priority == 0


@pytest.mark.parametrize("key", [b"", b"\xff", b"x" * 256])
def test_a_key_that_cannot_be_a_routing_key_is_a_header(key: bytes) -> None:
    message = from_kafka((-1, key, b"", []))
    assert message.address.routing_key == ""
    assert message.properties.headers() == {"x-kafka-key": key}
    assert from_kafka((-1, None, b"", [])).properties.headers() == {}


def test_a_record_without_a_value_is_an_empty_message_that_says_so() -> None:
    message = from_kafka((-1, b"k", None, []))
    assert (message.body, message.properties.headers()) == (b"", {"x-kafka-tombstone": True})


def test_amqp_s_consumers_get_them_in_amqp_s_encoding() -> None:
    headers: list[Header] = [(b"content-type", b"a/b"), (b"n", None), (b"t", b"1"), (b"t", b"\xff"), (b"x" * 256, b"")]
    message = from_kafka((NOW_MS, b"\xff", None, headers))
    basic = parse_properties(basic_properties(message.properties).raw)
    assert basic.described() == {
        "content_type": "a/b",
        "headers": {
            "content-type": "a/b",
            "n": None,
            "t": ["1", b"\xff"],
            "timestamp_in_ms": NOW_MS,
            "x-kafka-key": b"\xff",
            "x-kafka-tombstone": True,
        },
        "delivery_mode": 2,
        "timestamp": NOW_MS // 1000,
    }


def test_headers_that_do_not_fit_into_a_frame_are_left_out_the_largest_first() -> None:
    headers: list[Header] = [(b"small", b"1"), (b"large", b"x" * 5000), (b"middle", b"y" * 2000)]
    properties = from_kafka((-1, b"k", b"", headers)).properties
    fitting = fitting_properties(properties, 4096)
    assert len(fitting.raw) <= 4096
    assert fitting.headers() == {"small": "1", "middle": "y" * 2000, "x-headers-left-out": 1}
    assert fitting_properties(properties, 8192).headers().keys() == {"small", "large", "middle"}


def test_what_amqp_has_no_encoding_for_is_left_out_of_it() -> None:
    properties = from_kafka((-1, b"k", b"", [(b"a", b"1")])).properties.replaced({"n": 1 << 70, "b": 2}, True)
    assert basic_properties(properties).headers() == {"a": "1", "b": 2}


def test_so_many_headers_that_none_is_meant_cost_little() -> None:
    message = from_kafka((-1, b"k", b"", [(b"%d" % number, None) for number in range(5000)]))
    assert len(message.properties.headers()) == 1024
    assert len(consumed(appended(message))[0][3]) == 5000


# --- From Kafka to Kafka by way of AMQP -------------------------------------------------------------------------------

headers_of_kafka = st.lists(
    st.tuples(
        st.sampled_from(
            [b"a", b"a", b"content-type", b"priority", b"CC", b"x-death", b"timestamp_in_ms", b"x-kafka-key"]
        )
        | st.binary(max_size=10),
        st.none() | st.binary(max_size=10),
    ),
    max_size=5,
).filter(lambda headers: all(name != RESERVED_HEADER for name, _ in headers))
records = st.tuples(
    st.integers(-1, NOW_MS), st.none() | st.binary(max_size=300), st.none() | st.binary(max_size=20), headers_of_kafka
)


@given(st.lists(records, min_size=1, max_size=4))
@settings(deadline=None)
def test_a_record_that_was_a_message_is_the_same_record_again(written: list[Record]) -> None:
    messages = [through_a_queue(message) for message in delivered(produced(*written))]
    assert consumed(appended(*messages)) == written


@given(records)
@settings(deadline=None)
def test_a_dead_letter_keeps_its_record_and_what_amqp_added(record: Record) -> None:
    timestamp_ms, key, value, headers = record
    letter = dead_lettered(from_kafka(record), "work", "rejected", "dlx", "dead", NOW_MS).message
    ((found_ms, found_key, found_value, found),) = consumed(appended(through_a_queue(letter)))
    assert (found_key, found_value) == (key, value)
    assert found_ms == (timestamp_ms if timestamp_ms >= 0 else NOW_MS)
    own = [(name, text) for name, text in headers if name not in (b"x-death", b"CC")]
    assert found[: len(own)] == own
    added = dict(found[len(own) :])
    assert added.keys() >= {b"x-death", b"x-first-death-reason", b"x-last-death-queue", RESERVED_HEADER}
    (back,) = delivered(appended(letter))
    assert (back.address.exchange, back.address.routing_key) == ("dlx", "dead")
    deaths = back.properties.headers()["x-death"]
    assert isinstance(deaths, list)
    assert deaths[0]["queue"] == "work"
    assert isinstance(deaths[0]["time"], datetime)
    twice = dead_lettered(back, "work", "rejected", "dlx", None, NOW_MS).message
    deaths = twice.properties.headers()["x-death"]
    assert isinstance(deaths, list)
    assert deaths[0]["count"] == 2
    assert consumed(appended(twice))[0][:3] == (found_ms, key, value)


@given(records)
@settings(deadline=None)
def test_a_consumer_of_amqp_s_that_publishes_what_it_got_makes_the_same_key_value_and_time(record: Record) -> None:
    timestamp_ms, key, value, headers = record
    if any(name in (b"timestamp_in_ms", b"x-kafka-key") for name, _ in headers):
        # The record has such a header itself, and AMQP has one of each name.
        return
    message = from_kafka(record)
    copy = parse_properties(basic_properties(message.properties).raw)
    found = consumed(appended(Message(message.address, copy, message.body, NOW_MS)))[0]
    expected_ms = timestamp_ms if timestamp_ms >= 1000 else NOW_MS
    assert found[:3] == (expected_ms, key, value)


def test_properties_of_a_record_survive_the_journal() -> None:
    made = from_kafka((NOW_MS, b"\xff", None, [(b"a", b"1"), (b"a", None)])).properties.replaced({"n": [1, b"x"]}, True)
    back = PROPERTIES_FORMATS[made.format](made.raw)
    assert isinstance(back, RecordProperties)
    assert back.described() == made.described()
    assert (back.key, back.is_tombstone, back.headers_raw) == (b"\xff", True, b"\x04\x02a\x021\x02a\x01")


@given(st.binary(max_size=60))
def test_bytes_that_are_no_properties_of_a_record_are_refused(junk: bytes) -> None:
    made = from_kafka((NOW_MS, b"key", None, [(b"a", b"1")])).properties.replaced({"n": 1}, True)
    for raw in (junk, made.raw[: len(junk)], made.raw + junk):
        try:
            properties = PROPERTIES_FORMATS[made.format](raw)
        except CorruptData:
            continue
        properties.described()


# --- Batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", sorted(CODECS.values()))
def test_compressed_batches_are_opened(codec: int) -> None:
    batch = recompressed(produced(*[(NOW_MS, b"k", b"%d" % number, []) for number in range(100)]), codec)
    assert [message.body for message in delivered(batch)] == [b"%d" % number for number in range(100)]


def test_what_decompresses_to_too_much_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    batch = recompressed(produced((NOW_MS, b"k", bytes(40 << 20), [])), CODECS["zstd"])
    records = RecordMessages("topic 't'")
    assert not records.open(batch)
    assert not records.next()
    assert "topic 't'" in caplog.text


def test_control_batches_have_no_messages() -> None:
    batch = bytearray(produced((NOW_MS, b"\0\0\0\0", b"", [])))
    batch[21:23] = int(CONTROL | 0x10).to_bytes(2, "big")
    assert not RecordMessages("topic 't'").open(bytes(batch))


def test_a_batch_that_makes_no_sense_further_on_gives_what_comes_before(caplog: pytest.LogCaptureFixture) -> None:
    batch = bytearray(produced((NOW_MS, b"k", b"first", []), (NOW_MS, b"k", b"second", [])))
    batch[-1] = 0x7F
    assert [message.body for message in delivered(bytes(batch))] == [b"first"]
    assert "makes no sense" in caplog.text


def test_amqp_s_own_properties_need_no_translation() -> None:
    properties = amqp(headers={"a": 1}).properties
    assert isinstance(properties, BasicProperties)
    assert basic_properties(properties) is properties
