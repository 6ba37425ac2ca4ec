"""Record batches against kafka-python's own: each reads what the other writes."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.storage.record_batch import check_batch
from tests.storage.test_record_batch import Record, build, fields, read_all, records

with warnings.catch_warnings():
    # It imports its whole client, which uses what Python 3.11 calls deprecated.
    warnings.simplefilter("ignore")
    kafka_records = pytest.importorskip("kafka.record.default_records", reason="kafka-python is not installed")


@given(records())
def test_another_implementation_reads_the_batches(batch: list[Record]) -> None:
    # Its writer takes header keys as text, and so does its reader.
    batch = [(*record[:4], [(b"k", value) for _, value in record[4]]) for record in batch]
    theirs = kafka_records.DefaultRecordBatch(build(batch, 5))
    assert theirs.validate_crc()
    found = [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in theirs]
    assert found == [(5 + r[0], r[1], r[2], r[3], [("k", value) for _, value in r[4]]) for r in batch]
    assert (theirs.producer_id, theirs.producer_epoch, theirs.base_sequence) == (-1, -1, -1)


@given(st.lists(st.tuples(st.integers(0, 1 << 50), fields, fields), min_size=1, max_size=8))
def test_batches_of_another_implementation_are_read(batch: list[tuple[int, bytes | None, bytes | None]]) -> None:
    theirs = kafka_records.DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    for offset, (timestamp_ms, key, value) in enumerate(batch):
        theirs.append(offset, timestamp_ms, key, value, [("name", b"x")])
    data = bytes(theirs.build())
    # Its producer leaves the leader epoch to the broker.
    data = data[:12] + bytes(4) + data[16:]
    check_batch(data)
    expected = [(offset, *record, [(b"name", b"x")]) for offset, record in enumerate(batch)]
    assert read_all(data) == expected
