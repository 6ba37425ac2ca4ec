"""The bytes of a group's records: what was written is read, and nothing else is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.base.errors import CorruptData
from millpond.broker.groups.records import (
    STATES,
    Assigned,
    Cleared,
    CommittedOffset,
    GroupDeleted,
    GroupHead,
    HeadChanged,
    MemberChanged,
    MemberRemoved,
    MemberState,
    OffsetsCommitted,
    OffsetsDeleted,
    Record,
    TopicDeleted,
    decode_record,
    encode_record,
)
from millpond.broker.groups.subscription import assigned_partitions, subscribed_topics
from tests.broker.group_members import assignment, subscription

texts = st.text(max_size=20)
maybe = st.none() | texts
payloads = st.binary(max_size=40)
i32 = st.integers(-(1 << 31), (1 << 31) - 1)
i64 = st.integers(-(1 << 63), (1 << 63) - 1)

heads = st.builds(GroupHead, st.sampled_from(STATES), i32, maybe, maybe, maybe, i64)
protocols = st.lists(st.tuples(texts, payloads), max_size=3).map(tuple)
members = st.builds(MemberState, texts, maybe, texts, texts, i32, i32, protocols, payloads)
offsets = st.tuples(texts, i32, st.builds(CommittedOffset, i64, i32, texts, i64, i64))
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(HeadChanged, texts, heads),
    st.builds(MemberChanged, texts, members),
    st.builds(MemberRemoved, texts, texts),
    st.builds(Assigned, texts, i64, st.lists(st.tuples(texts, payloads), max_size=4).map(tuple)),
    st.builds(OffsetsCommitted, texts, st.lists(offsets, max_size=4).map(tuple)),
    st.builds(OffsetsDeleted, texts, st.lists(st.tuples(texts, i32), max_size=4).map(tuple)),
    st.builds(GroupDeleted, texts),
    st.builds(TopicDeleted, texts),
    st.just(Cleared()),
)


@given(texts, records)
def test_what_is_written_is_read(vhost: str, record: Record) -> None:
    assert decode_record(encode_record(vhost, record)) == (vhost, record)


@given(records)
def test_no_part_of_a_record_is_one(record: Record) -> None:
    data = encode_record("/", record)
    for size in range(len(data)):
        with pytest.raises(CorruptData):
            decode_record(data[:size])
    with pytest.raises(CorruptData):
        decode_record(data + b"\x00")


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_read_and_never_more(data: bytes) -> None:
    try:
        vhost, record = decode_record(data)
    except CorruptData:
        return
    assert decode_record(encode_record(vhost, record)) == (vhost, record)


def test_a_count_that_the_record_cannot_have_takes_no_memory() -> None:
    data = bytearray(encode_record("/", OffsetsDeleted("g", ())))
    data[-4:] = b"\x7f\xff\xff\xff"
    with pytest.raises(CorruptData):
        decode_record(bytes(data))


@given(st.lists(st.text("abc", min_size=1, max_size=5), max_size=5))
def test_a_subscription_is_read(topics: list[str]) -> None:
    data = subscription(*topics)
    assert subscribed_topics(data) == topics
    for size in range(len(data) - 4):
        assert subscribed_topics(data[:size]) is None


def test_an_assignment_is_read() -> None:
    data = assignment("log", 3, 1)
    assert assigned_partitions(data) == {"log": [3, 1]}
    assert assigned_partitions(b"") == {}
    for size in range(1, len(data) - 4):
        assert assigned_partitions(data[:size]) is None


@given(st.binary(max_size=60))
def test_senseless_metadata_is_harmless(data: bytes) -> None:
    subscribed_topics(data)
    assigned_partitions(data)
