"""What the journal's frames and checkpoints say: changes of queues, and the records of those that keep their state so.

Their checksums are right here: what is looked for is a decoder that trusts them too far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crc32c import crc32c

from faults.fuzz.targets.target import target
from millpond.base.errors import CorruptData, UnsupportedFormat
from millpond.broker.groups import modern_records
from millpond.broker.groups import records as groups
from millpond.broker.keepers import RecordKeeper
from millpond.broker.message import Address, Message
from millpond.broker.queues.lanes import Lanes
from millpond.broker.record_properties import parse_record_properties, record_properties
from millpond.broker.records import (
    CHANGE_BATCH,
    CHANGE_GROUP,
    CHANGE_ROUTED,
    CHANGE_SETTLED,
    CHANGE_SHARE,
    CHANGE_TRANSACTION,
    CHANGE_TRIMMED,
    record_header,
)
from millpond.broker.replay import replay_turn
from millpond.broker.shares import records as shares
from millpond.broker.snapshot import MAGIC, SnapshotReader, encode_snapshot
from millpond.broker.streams.record_router import decode_cursor, encode_cursor
from millpond.broker.transactions import records as transactions
from millpond.catalog.field_values import decode, encode
from millpond.protocols.amqp.properties import encode_properties, parse_properties
from millpond.storage.record_batch import BatchBuilder, encode_headers

_TOPIC_ID = bytes(range(16))
_PLACE = (_TOPIC_ID, 3)
_NOW_MS = 1_700_000_000_000


# --- Records of keepers -----------------------------------------------------------------------------------------------


def _group_records() -> list[bytes]:
    offset = groups.CommittedOffset(5, 1, "metadata", _NOW_MS, -1)
    member = groups.MemberState("m", "i", "c", "/127.0.0.1", 10_000, 60_000, (("range", b"\0\0"),), b"\0\1")
    modern = modern_records.ModernMemberState("m", None, "rack", "c", "h", 60_000, ("t",), "t.*", "uniform")
    classic = modern_records.ModernMemberState(
        "m", topics=("t",), classic=modern_records.ClassicPart(10_000, (("range", b"x"),))
    )
    given = {_TOPIC_ID: frozenset({0, 1})}
    found: list[groups.Record] = [
        groups.HeadChanged("g", groups.GroupHead(groups.STABLE, 3, "consumer", "range", "m", _NOW_MS)),
        groups.MemberChanged("g", member),
        groups.MemberRemoved("g", "m"),
        groups.Assigned("g", _NOW_MS, (("m", b"\0\1"), ("n", b""))),
        groups.OffsetsCommitted("g", (("t", 0, offset), ("u", 1, offset))),
        groups.OffsetsDeleted("g", (("t", 0),)),
        groups.GroupDeleted("g"),
        groups.TopicDeleted("t"),
        groups.Cleared(),
        modern_records.ModernHeadChanged("g", modern_records.ModernHead(modern_records.CONSUMER, 2, 1, 77, _NOW_MS)),
        modern_records.ModernMemberChanged("g", modern),
        modern_records.ModernMemberChanged("g", classic),
        modern_records.CurrentChanged("g", "m", modern_records.CurrentAssignment(2, 1, 1, given, given)),
        modern_records.TargetChanged("g", "m", given),
        modern_records.PatternResolved("g", "t.*", ("t", "tt")),
    ]
    return [groups.encode_record("/", record) for record in found]


def _share_records() -> list[bytes]:
    found: list[shares.ShareRecord] = [
        shares.Started("g", _PLACE, 5),
        shares.Ranges("g", _PLACE, ((0, 5, 0, 1), (5, 9, 2, 3))),
        shares.Rewound("g", _PLACE, 2),
        shares.GroupGone("g"),
        shares.TopicGone("g", _TOPIC_ID),
        shares.Configured("g", (("share.isolation.level", "read_committed"),)),
        shares.Cleared(),
    ]
    return [shares.encode_record("/", record) for record in found]


def _transaction_records() -> list[bytes]:
    head = transactions.TransactionHead(7, 1, 60_000, transactions.ONGOING, 6, 0, True, _NOW_MS, _NOW_MS)
    found: list[groups.Record] = [
        transactions.HeadChanged("t", head),
        transactions.PartitionsAdded("t", (("a", 0), ("b", 1))),
        transactions.GroupAdded("t", "g"),
        transactions.OffsetsAdded("t", "g", (("a", 0, groups.CommittedOffset(5)),)),
        transactions.Forgotten("t"),
        transactions.Cleared(),
    ]
    return [groups.encode_record("/", record) for record in found]


def _read_again(data: bytes, read: Callable[[bytes], tuple[str, Any]], write: Callable[[str, Any], bytes]) -> object:
    vhost, record = read(data)
    written = write(vhost, record)
    assert read(written) == (vhost, record), "what is encoded is not decoded to the same"
    # Without sets, whose order is nobody's.
    return written


@target("group-record", _group_records, CorruptData)
def read_group_record(data: bytes) -> object:
    return _read_again(data, groups.decode_record, groups.encode_record)


@target("share-record", _share_records, CorruptData)
def read_share_record(data: bytes) -> object:
    return _read_again(data, shares.decode_record, shares.encode_record)


@target("transaction-record", _transaction_records, CorruptData)
def read_transaction_record(data: bytes) -> object:
    return _read_again(data, transactions.decode_record, groups.encode_record)


# --- A turn, and a checkpoint -----------------------------------------------------------------------------------------


class _Reading(RecordKeeper):
    """Reads its records, and keeps nothing."""

    def __init__(self, read: Callable[[bytes], object]) -> None:
        self._read = read

    def restore(self, payload: bytes) -> None:
        self._read(payload)


_KEEPERS: dict[int, RecordKeeper] = {
    CHANGE_GROUP: _Reading(groups.decode_record),
    CHANGE_SHARE: _Reading(shares.decode_record),
    CHANGE_TRANSACTION: _Reading(transactions.decode_record),
    CHANGE_ROUTED: _Reading(decode_cursor),
}


def _change(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(4, "big") + body


def _batch_of_a_queue() -> bytes:
    builder = BatchBuilder()
    raw = encode_properties(headers={"a": 1}, delivery_mode=2)
    plain = Message(Address("e", "k"), parse_properties(raw), b"body", _NOW_MS)
    timed = Message(Address("e", "k"), parse_properties(raw), b"body", _NOW_MS, _NOW_MS + 5, 2)
    kafkas = record_properties(_NOW_MS, b"key", True, encode_headers([(b"priority", b"3"), (b"h", None)]))
    foreign = Message(Address("", "key"), kafkas, b"", _NOW_MS)
    for delta, message in enumerate((plain, timed, foreign)):
        builder.append(delta, _NOW_MS, message.address.routing_key.encode(), message.body, record_header(message))
    return builder.finish(0, 2)


def _turns() -> list[bytes]:
    numbers = b"".join(number.to_bytes(8, "big") for number in range(1, 5))
    batch = _change(CHANGE_BATCH, b"\0\1" + numbers[:16] + _batch_of_a_queue())
    settled = _change(CHANGE_SETTLED, numbers[:24] + b"\0\0\0\1" + numbers[:8])
    trimmed = _change(CHANGE_TRIMMED, numbers[:16])
    kept = _change(CHANGE_GROUP, _group_records()[4]) + _change(CHANGE_SHARE, _share_records()[1])
    kept += _change(CHANGE_TRANSACTION, _transaction_records()[0])
    kept += _change(CHANGE_ROUTED, encode_cursor(1, 5, "cursor"))
    return [batch, settled + trimmed, kept, batch + settled + kept]


@target("journal-turn", _turns, CorruptData)
def read_turn(data: bytes) -> object:
    """The payload of a frame, of a broker whose queues are all gone."""
    return replay_turn(data, Lanes([], []), _KEEPERS)


def _snapshots() -> list[bytes]:
    records = [(CHANGE_GROUP, record) for record in _group_records()]
    empty = encode_snapshot(3, True, [], [], records)
    # A queue with a page, and a stream with a producer, as `snapshot.py` draws them.
    number = (5).to_bytes(8, "big")
    one = b"\0\0\0\1"
    queue = number * 4 + b"\1" + one + one + number * 2 + number * 8 + one + number * 2
    producer = number + one + number * 2 + one + one + one * 2 + number * 2
    stream = number * 5 + one + producer + one + number * 4
    body = number + b"\0" + one + queue + one + stream + one + b"\6" + len(number).to_bytes(4, "big") + number
    return [empty[16:], body]


@target("checkpoint", _snapshots, CorruptData, UnsupportedFormat)
def read_snapshot(data: bytes) -> object:
    """A checkpoint's content, behind a header of which the checksum is right."""
    version = b"\0\0\0\4"
    reader = SnapshotReader(MAGIC + version + crc32c(data, crc32c(version)).to_bytes(4, "big") + data)
    lanes = Lanes([], [])
    while reader.restore_next(lanes):
        pass
    while reader.restore_next_stream(lanes):
        pass
    found = []
    while reader.next_record():
        found.append((reader.record_change, reader.record))
    return reader.first_file, reader.clean, reader.log_id_max, found


# --- Properties and field values as they are kept ---------------------------------------------------------------------


def _kept_properties() -> list[bytes]:
    headers = encode_headers([(b"priority", b"7"), (b"content-type", b"text/plain"), (b"h", None), (b"h", b"\xff")])
    made = record_properties(_NOW_MS, b"key", False, headers)
    changed = made.replaced({"x-death": [{"count": 1, "time": 1.5}], "h": None}, False)
    return [made.raw, changed.raw, record_properties(-1, None, True, b"\0").raw]


@target("record-properties", _kept_properties, CorruptData)
def read_record_properties(data: bytes) -> object:
    """What a queue has of a record of Kafka's besides its value."""
    properties = parse_record_properties(data)
    shown = properties.described()
    again = parse_record_properties(properties.replaced({"x": "y"}, False).raw)
    assert again.headers()["x"] == "y"
    return shown, again.raw


def _field_values() -> list[bytes]:
    values: list[object] = [
        {"a": [1, 2.5, None, True, "é"], "b": {"$c": b"\xff"}}, {"$float": 1}, float("nan"), b"bytes",
        bytearray(b"more"),
    ]  # fmt: skip
    return [encode(value).encode() for value in values] + [
        b'{"$time":"2020-01-01T00:00:00+00:00"}',
        b'{"$decimal":"1.10"}',
    ]


@target("field-value", _field_values, CorruptData)
def read_field_value(data: bytes) -> object:
    """An argument as the catalog has it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    value = decode(text)
    return repr(value)
