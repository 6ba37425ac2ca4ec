"""Produce: append record batches to partitions.

Behaviour: a batch is checked and appended as it came, with its offsets and the leader epoch filled in. For each
partition a request has one batch. acks=all (-1) is answered when the commit that covers it is durable, acks=1 at the
end of the turn, acks=0 not at all. A batch that an idempotent producer sends again is answered as it was then. A
transactional batch needs a partition that has been added to its producer's open transaction.
Versions: 3 to 13, in the last of which topics are named by their ids. It is advertised from 0, as librdkafka otherwise
does not compress with lz4; like Kafka 4, older ones are refused. zstd needs version 7. From 11 on a partition that was
not added is a reason to abort, and from 12 on a batch adds its partition (KIP-890).

    request     [transactional id string] | acks i16 | timeout i32
                | topics (name or id | partitions (index i32 | records))
    response    topics (name or id | partitions (index i32 | error i16 | base offset i64 | append time i64
                | start offset i64 | record errors (index i32 | message string) | message string)) | throttle time i32
"""

from __future__ import annotations

from typing import Final, final

from crc32c import crc32c
from librt.strings import BytesWriter, write_i16_be, write_i32_be, write_i64_be
from mypy_extensions import i16, i32, i64

from millpond.base.errors import CorruptData, SyntaxFault
from millpond.base.limits import KAFKA_BATCH_BYTES_MAX, KAFKA_PARTITIONS_PER_REQUEST_MAX
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.producers import APPEND, DUPLICATE, FENCED, OUTSIDE_TRANSACTION
from millpond.broker.streams.topic import Topic
from millpond.protocols.kafka.connection import Call, Connection
from millpond.protocols.kafka.errors import (
    CORRUPT_MESSAGE,
    INVALID_PRODUCER_EPOCH,
    INVALID_RECORD,
    INVALID_REQUIRED_ACKS,
    INVALID_TIMESTAMP,
    INVALID_TOPIC_EXCEPTION,
    INVALID_TXN_STATE,
    KAFKA_STORAGE_ERROR,
    MESSAGE_TOO_LARGE,
    NONE,
    OUT_OF_ORDER_SEQUENCE_NUMBER,
    TOPIC_AUTHORIZATION_FAILED,
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_ID,
    UNKNOWN_TOPIC_OR_PARTITION,
    UNSUPPORTED_COMPRESSION_TYPE,
)
from millpond.protocols.kafka.wire import WireReader, write_count, write_no_tags, write_text
from millpond.storage.compression import ZSTD
from millpond.storage.record_batch import (
    COMPRESSION_MASK,
    CONTROL,
    HEADER_BYTES,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    BatchHeader,
)

_FLEXIBLE_FROM: Final = 9
_ZSTD_FROM: Final = 7
_IDS_FROM: Final = 13
# From here on a producer knows errors for which it is to abort its transaction, and then a batch adds its partition.
PRODUCE_ABORTABLE_FROM: Final = 11
PRODUCE_ADDS_FROM: Final = 12
# Of a record without key, value and headers.
_RECORD_BYTES_MIN: Final[i64] = 7
# Where the attributes begin in a batch.
_ATTRIBUTES_AT: Final[i64] = 21


# Of what is not to be appended, but for numbers out of order.
_JUDGED: Final = {FENCED: INVALID_PRODUCER_EPOCH, OUTSIDE_TRANSACTION: INVALID_TXN_STATE}


@final
class Item:
    """What a request has for one partition, and what became of it."""

    def __init__(self, topic: str, topic_id: bytes, index: i64, start: i64, size: i64) -> None:
        # Found by the id where the request has ids.
        self.topic = topic
        self.topic_id: Final = topic_id
        self.index: Final[i64] = index
        self.start: Final[i64] = start
        self.size: Final[i64] = size
        self.error: i64 = NONE
        self.message: str | None = None
        self.base_offset: i64 = -1
        self.append_time_ms: i64 = -1
        self.start_offset: i64 = -1
        # Records that are why, by their numbers in the batch.
        self.bad_records: list[tuple[int, str]] = []


@final
class ProduceRequest:
    """A request, read to its end before anything is done."""

    def __init__(self, call: Call) -> None:
        flexible = call.version >= _FLEXIBLE_FROM
        reader = WireReader(call.data, call.position, call.end, flexible)
        reader.skip_tags()
        self.transactional_id: Final = reader.text()
        self.acks: Final[i64] = reader.int16()
        self.timeout_ms: Final[i64] = reader.int32()
        # The topics, by name or by id, with the number of their items, in the order of the request.
        self.topics: Final[list[tuple[str, bytes, int]]] = []
        self.items: Final[list[Item]] = []
        topics = reader.count()
        while topics > 0:
            topics -= 1
            name = "" if call.version >= _IDS_FROM else reader.name()
            topic_id = reader.id() if call.version >= _IDS_FROM else b""
            partitions = reader.count()
            self.topics.append((name, topic_id, max(0, int(partitions))))
            if len(self.topics) + len(self.items) + partitions > KAFKA_PARTITIONS_PER_REQUEST_MAX:
                raise SyntaxFault("a request of too many partitions")
            while partitions > 0:
                partitions -= 1
                index = reader.int32()
                size = reader.size_of_bytes()
                self.items.append(Item(name, topic_id, index, reader.position, size))
                reader.skip(max(0, size))
                reader.skip_tags()
            reader.skip_tags()
        reader.skip_tags()

    def has_transactional_batches(self, data: bytes) -> bool:
        for item in self.items:
            if item.size >= HEADER_BYTES and data[item.start + _ATTRIBUTES_AT + 1] & TRANSACTIONAL != 0:
                return True
        return False


def produce(call: Call) -> None:
    """Append what a request brings, and answer it."""
    request = ProduceRequest(call)
    connection = call.connection
    error = _refusal(connection, request, call.data)
    vhost = connection.vhost
    sequence: i64 = 0
    allowed_topic = ""
    for item in request.items:
        if error != NONE:
            item.error = error
            continue
        topic: Topic | None = None
        if vhost is not None and item.topic_id:
            topic = vhost.topics.by_id.get(item.topic_id)
            if topic is None:
                item.error = UNKNOWN_TOPIC_ID
                continue
            item.topic = topic.name
        elif vhost is not None:
            topic = vhost.topics.by_name.get(item.topic)
        if item.topic != allowed_topic:
            if not connection.apis.may_write(connection, item.topic):
                item.error = TOPIC_AUTHORIZATION_FAILED
                continue
            allowed_topic = item.topic
        if topic is None or item.index < 0 or item.index >= len(topic.partitions):
            item.error = UNKNOWN_TOPIC_OR_PARTITION
            continue
        sequence = max(sequence, _append(call, request, topic, topic.partitions[item.index], item))
    throttle_ms: i64 = 0
    if connection.broker.quotas.is_set and error == NONE:
        size: i64 = 0
        for item in request.items:
            size += max(0, item.size)
        throttle_ms = connection.apis.produced(connection, int(size))
    if request.acks == 0:
        for item in request.items:
            if item.error != NONE:
                # Closing is the only way to tell a client that wants no answers.
                connection.close_for(f"error {item.error} in a produce request that wants no answer")
                return
        call.stay_silent()
        return
    call.answer(
        [_encode(call, request, throttle_ms)], call.version >= _FLEXIBLE_FROM, sequence if request.acks == -1 else 0
    )


def _refusal(connection: Connection, request: ProduceRequest, data: bytes) -> i64:
    """Why nothing of the request can be done."""
    transactional_id = request.transactional_id
    if request.has_transactional_batches(data):
        if transactional_id is None or not connection.apis.may_be_transactional(connection, transactional_id):
            return TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    if request.acks < -1 or request.acks > 1:
        return INVALID_REQUIRED_ACKS
    if connection.commits.has_failed:
        return KAFKA_STORAGE_ERROR
    return NONE


def _append(call: Call, request: ProduceRequest, topic: Topic, partition: Partition, item: Item) -> i64:
    """Append one batch; the commit that makes it durable."""
    settings = topic.settings
    if topic.is_history:
        item.error = INVALID_TOPIC_EXCEPTION
        return 0
    item.start_offset = partition.start_offset
    header = _checked(call, topic, item)
    if header is None:
        return 0
    now_ms = call.connection.turn.now_ms
    # Whether the batch is what makes the partition part of its producer's transaction.
    joins = header.is_transactional and not partition.producers.is_in_transaction(
        header.producer_id, header.producer_epoch
    )
    if joins:
        adds, knows_abortable = call.version >= PRODUCE_ADDS_FROM, call.version >= PRODUCE_ABORTABLE_FROM
        item.error = call.connection.apis.why_not_in_transaction(
            call, request.transactional_id or "", header, topic.name, int(item.index), adds, knows_abortable
        )
        if item.error != NONE:
            return 0
    if header.producer_id >= 0:
        outcome = partition.producers.judge(header)
        if outcome == DUPLICATE:
            duplicate = partition.producers.duplicate(header)
            if duplicate is not None:
                item.base_offset = duplicate.base_offset
                item.append_time_ms = duplicate.timestamp_ms if settings.stamps_append_time else -1
                return partition.sequence_of(duplicate.base_offset)
        if outcome != APPEND:
            item.error = _JUDGED.get(int(outcome), OUT_OF_ORDER_SEQUENCE_NUMBER)
            return 0
    if topic.rewrites(header.attributes & COMPRESSION_MASK):
        batch = _rewritten(topic, call.data[item.start : item.start + item.size], item, now_ms)
        if item.error != NONE:
            return 0
        if joins:
            _join(call, request, header, topic, item)
        item.base_offset = partition.append(batch)
    else:
        if joins:
            _join(call, request, header, topic, item)
        item.base_offset = partition.append_from(call.data, item.start, header)
    if partition.is_listened_to:
        # They are shown what is durable only, and are waiting for it.
        call.connection.ledger.sync_wanted = True
    return call.connection.ledger.sequence()


def _join(call: Call, request: ProduceRequest, header: BatchHeader, topic: Topic, item: Item) -> None:
    """Make the partition part of its producer's transaction, if that has not been done."""
    if call.version >= PRODUCE_ADDS_FROM:
        call.connection.apis.join_transaction(call, request.transactional_id or "", header, topic.name, int(item.index))


def _rewritten(topic: Topic, batch: bytes, item: Item, now_ms: i64) -> bytes:
    """The batch as the topic's configuration wants it."""
    try:
        batch = topic.rewritten(batch, int(now_ms))
    except CorruptData as error:
        item.error = INVALID_RECORD
        item.message = str(error)
        return b""
    limit = min(topic.settings.batch_bytes_max, KAFKA_BATCH_BYTES_MAX)
    if len(batch) > limit:
        # Compressed otherwise it may be larger.
        _refused(item, MESSAGE_TOO_LARGE, f"a batch of {len(batch)} bytes exceeds the limit of {limit}")
        return b""
    if topic.settings.stamps_append_time:
        item.append_time_ms = now_ms
    return batch


def _checked(call: Call, topic: Topic, item: Item) -> BatchHeader | None:
    """The batch's header; None where it must not be appended, for which `item` then has the reason."""
    settings = topic.settings
    if item.size < HEADER_BYTES:
        return _refused(item, INVALID_RECORD, "no record batch, or one that is cut short")
    try:
        header = BatchHeader(call.data, item.start)
    except CorruptData as error:
        return _refused(item, INVALID_RECORD, str(error))
    if header.size != item.size:
        return _refused(item, INVALID_RECORD, "records for a partition must be exactly one batch")
    if header.base_offset != 0:
        return _refused(item, INVALID_RECORD, f"the base offset of a batch must be 0, not {header.base_offset}")
    if header.size > settings.batch_bytes_max:
        limit = settings.batch_bytes_max
        return _refused(item, MESSAGE_TOO_LARGE, f"a batch of {header.size} bytes exceeds the limit of {limit}")
    if i64(crc32c(memoryview(call.data)[item.start + 21 : item.start + item.size])) != header.crc:
        return _refused(item, CORRUPT_MESSAGE, "the checksum of the batch is wrong")
    attributes = header.attributes
    if attributes & CONTROL != 0 or attributes & COMPRESSION_MASK > ZSTD:
        return _refused(item, INVALID_RECORD, "a control batch, or one of an unknown codec")
    if attributes & LOG_APPEND_TIME != 0:
        return _refused(item, INVALID_TIMESTAMP, "a producer must not set the timestamp type to LogAppendTime")
    if attributes & COMPRESSION_MASK == ZSTD and call.version < _ZSTD_FROM:
        return _refused(item, UNSUPPORTED_COMPRESSION_TYPE, "zstd needs version 7 of the produce request")
    if header.record_count < 1 or header.record_count != header.last_offset_delta + 1:
        return _refused(item, INVALID_RECORD, "the batch's offsets are not those of its records")
    if attributes & COMPRESSION_MASK == 0 and header.record_count > (item.size - HEADER_BYTES) // _RECORD_BYTES_MIN:
        return _refused(item, INVALID_RECORD, f"{header.record_count} records do not fit into the batch")
    if header.producer_id >= 0 and (header.producer_epoch < 0 or header.base_sequence < 0):
        return _refused(item, INVALID_RECORD, "a producer's batch without an epoch or a sequence number")
    if attributes & TRANSACTIONAL != 0 and header.producer_id < 0:
        return _refused(item, INVALID_RECORD, "a transactional batch without a producer's id")
    if not settings.stamps_append_time:
        now_ms = call.connection.turn.now_ms
        newest, oldest = header.max_timestamp_ms, header.base_timestamp_ms
        if newest < -1 or newest - now_ms > settings.after_max_ms:
            return _refused(item, INVALID_TIMESTAMP, f"timestamp {newest} lies too far in the future")
        if oldest < -1 or (oldest >= 0 and now_ms - oldest > settings.before_max_ms):
            return _refused(item, INVALID_TIMESTAMP, f"timestamp {oldest} lies too far in the past")
    if settings.compacts:
        _check_keys(call, item)
        if item.error != NONE:
            return None
    return header


def _check_keys(call: Call, item: Item) -> None:
    """In a compacted topic every record has a key."""
    missing = call.connection.apis.records_without_key(call.data[item.start : item.start + item.size])
    if missing is None:
        _refused(item, INVALID_RECORD, "the records of the batch cannot be read")
    elif missing:
        _refused(item, INVALID_RECORD, "One or more records have been rejected")
        text = f"Compacted topic cannot accept message without key in topic partition {item.topic}-{item.index}."
        item.bad_records = [(number, text) for number in missing]


def _refused(item: Item, error: i64, message: str) -> BatchHeader | None:
    """Say why a batch is not appended. None, for who is looking at its header."""
    item.error = error
    item.message = message
    return None


def _encode(call: Call, request: ProduceRequest, throttle_ms: i64) -> bytes:
    """The response's body."""
    version = call.version
    flexible = version >= _FLEXIBLE_FROM
    writer = BytesWriter()
    write_count(writer, len(request.topics), flexible)
    position: i64 = 0
    for name, topic_id, count in request.topics:
        if topic_id:
            writer.write(topic_id)
        else:
            write_text(writer, name, flexible)
        write_count(writer, count, flexible)
        for _ in range(count):
            item = request.items[position]
            if item.error != NONE:
                call.connection.apis.count_error(call, item.error)
            _write_item(writer, item, version, flexible)
            position += 1
        write_no_tags(writer, flexible)
    write_i32_be(writer, i32(throttle_ms))
    write_no_tags(writer, flexible)
    return writer.getvalue()


def _write_item(writer: BytesWriter, item: Item, version: i64, flexible: bool) -> None:
    write_i32_be(writer, i32(item.index))
    write_i16_be(writer, i16(item.error))
    write_i64_be(writer, item.base_offset)
    write_i64_be(writer, item.append_time_ms)
    if version >= 5:
        write_i64_be(writer, item.start_offset)
    if version >= 8:
        write_count(writer, len(item.bad_records), flexible)
        for number, text in item.bad_records:
            write_i32_be(writer, i32(number))
            write_text(writer, text, flexible)
            write_no_tags(writer, flexible)
        write_text(writer, item.message, flexible)
    write_no_tags(writer, flexible)
