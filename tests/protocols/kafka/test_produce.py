"""Produce: what is appended, what is refused and why, and what the answer says."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from millpond.base.limits import (
    KAFKA_PARTITIONS_PER_REQUEST_MAX,
    PRODUCER_BATCHES_REMEMBERED,
    PRODUCER_IDLE_MS,
    STREAM_CHECK_INTERVAL_MS,
)
from millpond.protocols.kafka import errors
from millpond.storage import compression
from tests.protocols.kafka.harness import (
    CLIENT_ID,
    PRODUCE,
    Client,
    Pond,
    batch_of,
    encoded_request,
    plain,
    produce_tree,
    records_of,
    request_bytes,
    split_batches,
    with_fields,
)

VERSIONS = range(3, 14)
every_version = pytest.mark.parametrize("version", VERSIONS)
every_codec = pytest.mark.parametrize("codec", range(1, 5), ids=["gzip", "snappy", "lz4", "zstd"])
NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000


def values(client: Client, topic: str = "t", partition: int = 0) -> list[bytes | None]:
    return [value for _, value in records_of(client.fetch(topic, 0, partition=partition).records)]


def refused(client: Client, batch: bytes | None, *, version: int = 9, topic: str = "t") -> Any:
    """A batch is refused: nothing is appended, and the answer is that of no place in the log."""
    end = client.pond.partition(topic).end_offset
    answer = client.produce(topic, batch, version=version)
    assert client.pond.partition(topic).end_offset == end
    assert answer.error_code.value != 0
    assert answer.base_offset == -1
    assert answer.log_append_time is None
    return answer


def test_a_topic_is_found_by_its_id(pond: Pond, client: Client) -> None:
    pond.topic("t")
    assert client.produce("t", batch_of(b"1"), version=13).error_code.value == 0
    assert client.produce("none", batch_of(b"1"), version=13).error_code.value == errors.UNKNOWN_TOPIC_ID
    assert values(client) == [b"1"]


# --- The answer, in every version -------------------------------------------------------------------------------------


@every_version
def test_every_field_of_an_answer(pond: Pond, client: Client, version: int) -> None:
    pond.topic("a", 2)
    pond.topic("b")
    client.produce("a", batch_of(b"0"))
    tree = produce_tree(
        {"a": {1: batch_of(b"1"), 0: batch_of(b"2", b"3"), 7: batch_of(b"4")}, "b": {0: batch_of(b"5")}}
    )
    response = client.call(PRODUCE, version, **tree)
    assert response.throttle_time.total_seconds() == 0
    names = {topic.id: topic.name for topic in pond.topics.by_name.values()}
    found = [
        (
            names[topic.topic_id.bytes] if version >= 13 else topic.name,
            part.index,
            part.error_code.value,
            part.base_offset,
            part.log_append_time,
        )
        for topic in response.responses
        for part in topic.partition_responses
    ]
    assert found == [("a", 1, 0, 0, None), ("a", 0, 0, 1, None), ("a", 7, 3, -1, None), ("b", 0, 0, 0, None)]
    if version >= 5:
        assert [part.log_start_offset for part in response.responses[0].partition_responses] == [0, 0, -1]
    if version >= 8:
        for part in response.responses[0].partition_responses[:2]:
            assert (part.record_errors, part.error_message) == ((), None)
    assert values(client, "a") == [b"0", b"2", b"3"]


@every_version
def test_the_time_of_appending_is_told_where_it_counts(pond: Pond, client: Client, version: int) -> None:
    pond.topic("t", message_timestamp_type="LogAppendTime")
    answer = client.produce("t", batch_of(b"a", timestamp_ms=5), version=version)
    assert answer.log_append_time.timestamp() * 1000 == pond.clock.wall_ms()
    [batch] = split_batches(client.fetch("t", 0).records)
    assert struct.unpack_from(">hiqq", batch, 21)[::3] == (8, pond.clock.wall_ms())


@every_version
@pytest.mark.parametrize("acks", [-1, 1])
def test_a_request_of_no_topics_is_answered_with_none(client: Client, version: int, acks: int) -> None:
    assert client.call(PRODUCE, version, **produce_tree({}, acks=acks)).responses == ()


def test_a_topic_without_partitions_is_answered_as_such(pond: Pond, client: Client) -> None:
    pond.topic("t")
    response = client.call(PRODUCE, 9, **produce_tree({"t": {}}))
    assert [(topic.name, topic.partition_responses) for topic in response.responses] == [("t", ())]


@pytest.mark.parametrize("acks", [-2, 2, 100])
def test_acknowledgements_that_there_are_not(pond: Pond, client: Client, acks: int) -> None:
    pond.topic("t")
    assert client.produce("t", batch_of(b"a"), acks=acks).error_code.value == errors.INVALID_REQUIRED_ACKS
    assert pond.partition("t").end_offset == 0


def test_a_partition_named_twice_is_appended_to_twice(pond: Pond, client: Client) -> None:
    pond.topic("t")
    tree = produce_tree({"t": {0: batch_of(b"a")}})
    tree["topic_data"] = [*tree["topic_data"], *tree["topic_data"]]  # type: ignore[misc]
    response = client.call(PRODUCE, 9, **tree)
    assert [topic.partition_responses[0].base_offset for topic in response.responses] == [0, 1]


# --- Without answers --------------------------------------------------------------------------------------------------


def test_nothing_is_answered_where_no_answer_is_wanted(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.send(PRODUCE, 9, **produce_tree({"t": {0: batch_of(b"a")}}, acks=0))
    assert client.answers() == []
    assert values(client) == [b"a"]


def test_an_error_where_no_answer_is_wanted_closes_the_connection(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.send(PRODUCE, 9, **produce_tree({"none": {0: batch_of(b"a")}, "t": {0: batch_of(b"b")}}, acks=0))
    assert client.answers() == []
    assert client.transport.is_closed
    assert not client.transport.is_aborted
    assert values(pond.client()) == [b"b"]


# --- Permissions ------------------------------------------------------------------------------------------------------


def test_a_topic_that_may_not_be_written_to(pond: Pond, client: Client) -> None:
    pond.topic("t")
    pond.topic("mine")
    pond.broker.access.set_permission("guest", "/", "", "mine", ".*")
    response = client.call(PRODUCE, 9, **produce_tree({"t": {0: batch_of(b"a")}, "mine": {0: batch_of(b"a")}}))
    codes = [topic.partition_responses[0].error_code.value for topic in response.responses]
    assert codes == [errors.TOPIC_AUTHORIZATION_FAILED, 0]
    # It is not told either which topics there are.
    assert client.produce("none", batch_of(b"a")).error_code.value == errors.TOPIC_AUTHORIZATION_FAILED


# --- Batches that make no sense ---------------------------------------------------------------------------------------

ONE = batch_of(b"a")


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (None, errors.INVALID_RECORD),
        (b"", errors.INVALID_RECORD),
        (ONE[:-1], errors.INVALID_RECORD),
        (ONE[:60], errors.INVALID_RECORD),
        (ONE + b"\0", errors.INVALID_RECORD),
        (ONE + ONE, errors.INVALID_RECORD),
        (with_fields(ONE, magic=0), errors.INVALID_RECORD),
        (with_fields(ONE, magic=1), errors.INVALID_RECORD),
        (with_fields(ONE, magic=3), errors.INVALID_RECORD),
        (with_fields(ONE, length=0), errors.INVALID_RECORD),
        (with_fields(ONE, length=-1), errors.INVALID_RECORD),
        (with_fields(ONE, length=(1 << 31) - 1), errors.INVALID_RECORD),
        (with_fields(ONE, crc=0), errors.CORRUPT_MESSAGE),
        (ONE[:-1] + b"x", errors.CORRUPT_MESSAGE),
        (with_fields(ONE, base_offset=1), errors.INVALID_RECORD),
        (with_fields(ONE, base_offset=-1), errors.INVALID_RECORD),
        (with_fields(ONE, record_count=0), errors.INVALID_RECORD),
        (with_fields(ONE, record_count=2), errors.INVALID_RECORD),
        (with_fields(ONE, record_count=-1), errors.INVALID_RECORD),
        (with_fields(ONE, last_offset_delta=1), errors.INVALID_RECORD),
        (with_fields(ONE, last_offset_delta=-1), errors.INVALID_RECORD),
        (with_fields(ONE, last_offset_delta=(1 << 31) - 2, record_count=(1 << 31) - 1), errors.INVALID_RECORD),
        (with_fields(ONE, attributes=0x20), errors.INVALID_RECORD),
        (with_fields(ONE, attributes=0x10), errors.TRANSACTIONAL_ID_AUTHORIZATION_FAILED),
        (with_fields(ONE, attributes=0x08), errors.INVALID_TIMESTAMP),
        (with_fields(ONE, attributes=5), errors.INVALID_RECORD),
        (with_fields(ONE, attributes=7), errors.INVALID_RECORD),
        (with_fields(ONE, producer_id=1, producer_epoch=-1, base_sequence=0), errors.INVALID_RECORD),
        (with_fields(ONE, producer_id=1, producer_epoch=0, base_sequence=-1), errors.INVALID_RECORD),
        (with_fields(ONE, max_timestamp=NOW_MS + 2 * DAY_MS), errors.INVALID_TIMESTAMP),
        (with_fields(ONE, max_timestamp=(1 << 63) - 1), errors.INVALID_TIMESTAMP),
        (with_fields(ONE, max_timestamp=-(1 << 63)), errors.INVALID_TIMESTAMP),
        (with_fields(ONE, base_timestamp=-2), errors.INVALID_TIMESTAMP),
    ],
)  # fmt: skip
def test_a_batch_that_makes_no_sense_is_refused(pond: Pond, client: Client, batch: bytes | None, code: int) -> None:
    pond.topic("t")
    assert refused(client, batch).error_code.value == code
    assert client.produce("t", ONE).base_offset == 0


def test_what_a_batch_says_of_leader_epoch_is_overwritten(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.produce("t", with_fields(ONE, leader_epoch=77))
    client.produce("t", with_fields(ONE, leader_epoch=-1))
    found = split_batches(client.fetch("t", 0).records)
    assert [struct.unpack_from(">qii", batch) for batch in found] == [(0, len(ONE) - 12, 0), (1, len(ONE) - 12, 0)]


def test_a_batch_is_as_large_as_its_topic_allows(pond: Pond, client: Client) -> None:
    pond.topic("t", max_message_bytes=str(len(ONE)))
    assert client.produce("t", ONE).error_code.value == 0
    assert refused(client, batch_of(b"ab")).error_code.value == errors.MESSAGE_TOO_LARGE


@every_codec
def test_a_batch_that_grows_by_another_compression_is_still_bounded(pond: Pond, client: Client, codec: int) -> None:
    pond.topic("t", max_message_bytes="1000", compression_type="uncompressed")
    assert refused(client, batch_of(bytes(5000), codec=codec)).error_code.value == errors.MESSAGE_TOO_LARGE
    assert client.produce("t", batch_of(bytes(500), codec=codec)).base_offset == 0


def test_a_timestamp_may_lie_as_far_away_as_the_topic_allows(pond: Pond, client: Client) -> None:
    pond.topic("t", message_timestamp_before_max_ms="1000", message_timestamp_after_max_ms="2000")
    for timestamp_ms in (NOW_MS - 1000, NOW_MS + 2000):
        assert client.produce("t", batch_of(b"a", timestamp_ms=timestamp_ms)).error_code.value == 0
    for timestamp_ms in (NOW_MS - 1001, NOW_MS + 2001):
        answer = refused(client, batch_of(b"a", timestamp_ms=timestamp_ms))
        assert answer.error_code.value == errors.INVALID_TIMESTAMP
    # None at all.
    assert client.produce("t", batch_of(b"a", timestamp_ms=-1)).error_code.value == 0


def test_a_transactional_batch_needs_a_transactional_id(pond: Pond, client: Client) -> None:
    pond.topic("t")
    batch = batch_of(b"one", producer=(1, 0, 0), attributes=16)
    response = client.call(PRODUCE, 9, **produce_tree({"t": {0: batch}}))
    code = response.responses[0].partition_responses[0].error_code.value
    assert code == errors.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    assert pond.partition("t").end_offset == 0


# --- Compression ------------------------------------------------------------------------------------------------------


@every_codec
def test_a_compressed_batch_stays_as_it_is(pond: Pond, client: Client, codec: int) -> None:
    pond.topic("t")
    batch = batch_of(b"a" * 1000, b"b", codec=codec)
    assert client.produce("t", batch).base_offset == 0
    [found] = split_batches(client.fetch("t", 0).records)
    assert found[17:] == batch[17:]


@every_codec
@pytest.mark.parametrize("source", range(5))
def test_a_batch_is_compressed_as_its_topic_wants_it(pond: Pond, client: Client, codec: int, source: int) -> None:
    name = next(name for name, number in compression.CODECS.items() if number == codec)
    pond.topic("t", compression_type=name)
    client.produce("t", batch_of(b"a" * 1000, (b"k", None), codec=source, producer=(3, 0, 0)))
    [found] = split_batches(client.fetch("t", 0).records)
    assert struct.unpack_from(">h", found, 21)[0] == codec
    assert struct.unpack_from(">qhi", found, 43) == (3, 0, 0)
    assert records_of(found) == [(0, b"a" * 1000), (1, None)]
    assert plain(found)[61:] == batch_of(b"a" * 1000, (b"k", None))[61:]


@pytest.mark.parametrize(("version", "code"), [(6, errors.UNSUPPORTED_COMPRESSION_TYPE), (7, 0)])
def test_zstd_needs_a_client_that_knows_it(pond: Pond, client: Client, version: int, code: int) -> None:
    pond.topic("t")
    assert client.produce("t", batch_of(b"a", codec=4), version=version).error_code.value == code


@every_codec
def test_what_cannot_be_decompressed_is_refused_where_it_must_be(pond: Pond, client: Client, codec: int) -> None:
    pond.topic("t", compression_type="uncompressed")
    whole = batch_of(b"a" * 1000, codec=codec)
    for broken in (whole[:-5], whole[:61] + b"\xff" * 20, whole[:61]):
        assert refused(client, with_fields(broken)).error_code.value == errors.INVALID_RECORD


@every_codec
def test_a_bomb_takes_no_more_memory_than_a_batch_may(pond: Pond, client: Client, codec: int) -> None:
    pond.topic("t", compression_type="uncompressed")
    bomb = batch_of(b"")[:61] + compression.compress(codec, bytes(70 * 1024 * 1024))
    if len(bomb) > 1_000_000:
        pond.topics.configure(pond.topics.by_name["t"], {"max.message.bytes": "10000000", "compression.type": "gzip"})
    answer = refused(client, with_fields(bomb, attributes=codec))
    assert answer.error_code.value in {errors.INVALID_RECORD, errors.MESSAGE_TOO_LARGE}
    assert client.is_alive()


# --- Compacted topics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", range(5))
def test_a_compacted_topic_wants_keys_and_says_where_they_are_missing(pond: Pond, client: Client, codec: int) -> None:
    pond.topic("t", cleanup_policy="compact")
    answer = refused(client, batch_of((b"k", b"a"), b"b", (b"k", None), b"c", codec=codec))
    assert answer.error_code.value == errors.INVALID_RECORD
    assert [error.batch_index for error in answer.record_errors] == [1, 3]
    assert all("without key" in error.batch_index_error_message for error in answer.record_errors)
    assert answer.error_message
    assert client.produce("t", batch_of((b"k", b"a"), (b"", None), codec=codec)).base_offset == 0


def test_records_that_cannot_be_read_are_refused_by_a_compacted_topic(pond: Pond, client: Client) -> None:
    pond.topic("t", cleanup_policy="compact")
    whole = batch_of((b"k", b"a"))
    for broken in (with_fields(whole[:-1]), with_fields(whole + b"\0"), with_fields(whole[:61] + b"\xff" * 12)):
        assert refused(client, broken).error_code.value == errors.INVALID_RECORD


# --- Idempotence ------------------------------------------------------------------------------------------------------


def numbered(first: int, count: int = 1, *, epoch: int = 0) -> bytes:
    return batch_of(*[b"%d" % (first + at) for at in range(count)], producer=(9, epoch, first))


def test_what_is_sent_again_is_answered_as_it_was(pond: Pond, client: Client) -> None:
    pond.topic("t")
    assert client.produce("t", numbered(0, 3)).base_offset == 0
    assert client.produce("t", numbered(3, 2)).base_offset == 3
    for first, count in ((3, 2), (0, 3)):
        answer = client.produce("t", numbered(first, count))
        assert (answer.error_code.value, answer.base_offset) == (0, first)
    assert pond.partition("t").end_offset == 5


def test_what_is_sent_again_on_another_connection_is_answered_as_it_was(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.produce("t", numbered(0))
    client.drop()
    assert pond.client().produce("t", numbered(0)).base_offset == 0
    assert pond.partition("t").end_offset == 1


def test_twice_the_same_in_one_request_is_appended_once(pond: Pond, client: Client) -> None:
    pond.topic("t")
    tree = produce_tree({"t": {0: numbered(0)}})
    tree["topic_data"] = [*tree["topic_data"], *tree["topic_data"]]  # type: ignore[misc]
    response = client.call(PRODUCE, 9, **tree)
    assert [topic.partition_responses[0].base_offset for topic in response.responses] == [0, 0]
    assert pond.partition("t").end_offset == 1


def test_a_gap_and_what_is_older_than_what_is_remembered_are_refused(pond: Pond, client: Client) -> None:
    pond.topic("t")
    for number in range(PRODUCER_BATCHES_REMEMBERED + 1):
        client.produce("t", numbered(number))
    for first, count in ((0, 1), (PRODUCER_BATCHES_REMEMBERED + 2, 1), (4, 2)):
        answer = refused(client, numbered(first, count))
        assert answer.error_code.value == errors.OUT_OF_ORDER_SEQUENCE_NUMBER


def test_an_older_epoch_is_shut_out(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.produce("t", numbered(0))
    assert refused(client, numbered(1, epoch=1)).error_code.value == errors.OUT_OF_ORDER_SEQUENCE_NUMBER
    client.produce("t", numbered(0, epoch=1))
    assert refused(client, numbered(1)).error_code.value == errors.INVALID_PRODUCER_EPOCH


def test_a_batch_that_was_refused_is_not_remembered(pond: Pond, client: Client) -> None:
    pond.topic("t", max_message_bytes="100")
    assert refused(client, batch_of(bytes(200), producer=(9, 0, 0))).error_code.value == errors.MESSAGE_TOO_LARGE
    assert client.produce("t", numbered(0)).base_offset == 0


# --- Requests that make no sense --------------------------------------------------------------------------------------


@every_version
def test_a_request_that_ends_too_early_closes_its_connection_only(pond: Pond, version: int) -> None:
    pond.topic("t")
    tree = produce_tree({"t": {0: ONE}, "u": {0: ONE, 1: ONE}}, transactional_id=None)
    body = encoded_request(PRODUCE, version, tree)
    for size in range(len(body)):
        client = pond.client()
        client.feed(request_bytes(PRODUCE, version, 1, body[:size]))
        assert client.answers() == [], f"{size} of {len(body)} bytes were enough"
        assert client.transport.is_closed
    assert pond.partition("t").end_offset == 0
    assert pond.broker.memory.used == 0
    assert pond.client().produce("t", ONE).base_offset == 0


@every_version
def test_a_count_of_partitions_that_cannot_be_is_refused(pond: Pond, version: int) -> None:
    flexible = version >= 9

    def count(number: int) -> bytes:
        if not flexible:
            return struct.pack(">i", number)
        number, parts = number + 1, []
        while number > 0x7F:
            parts.append(number & 0x7F | 0x80)
            number >>= 7
        return bytes([*parts, number])

    head = (b"\0" if flexible else b"\xff\xff") + struct.pack(">hi", -1, 1000)
    for number in (1, 1000, (1 << 31) - 2):
        client = pond.client()
        client.feed(request_bytes(PRODUCE, version, 1, head + count(number)))
        assert client.transport.is_closed
    client = pond.client()
    client.feed(request_bytes(PRODUCE, version, 1, head + count(KAFKA_PARTITIONS_PER_REQUEST_MAX + 1) + bytes(1 << 20)))
    assert client.transport.is_closed


def test_a_client_without_a_name_produces(pond: Pond, client: Client) -> None:
    pond.topic("t")
    body = encoded_request(PRODUCE, 9, produce_tree({"t": {0: ONE}}))
    for client_id in (None, "", CLIENT_ID, "é" * 100):
        client.feed(request_bytes(PRODUCE, 9, 1, body, client_id=client_id))
    assert len(client.answers()) == 4


# --- A broker that keeps nothing --------------------------------------------------------------------------------------


def test_without_a_disk_too_records_are_deleted_and_producers_forgotten_in_time(pond: Pond, client: Client) -> None:
    pond.topic("t", retention_ms="1000")
    for number in range(2):
        client.produce("t", batch_of(b"v", producer=(7, 0, number)))
    partition = pond.partition("t")
    pond.clock.advance(STREAM_CHECK_INTERVAL_MS)
    pond.broker.streams.keep_house()
    assert (partition.start_offset, partition.end_offset) == (1, 2)
    assert partition.producers.known
    pond.clock.advance(PRODUCER_IDLE_MS)
    pond.broker.streams.keep_house()
    assert not partition.producers.known


def test_without_a_disk_a_topic_that_is_deleted_is_not_looked_after(pond: Pond, client: Client) -> None:
    topic = pond.topic("t", retention_ms="1000")
    client.produce("t", batch_of(b"v"))
    pond.topics.delete(topic)
    assert pond.broker.memory.used == 0
    pond.clock.advance(STREAM_CHECK_INTERVAL_MS)
    pond.broker.streams.keep_house()
    assert pond.broker.memory.used == 0
