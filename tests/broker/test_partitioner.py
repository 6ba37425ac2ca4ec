"""A key has the partition that Kafka's own producers give it."""

from __future__ import annotations

import aiokafka.partitioner
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.broker.streams.partitioner import murmur2, partition_of


@pytest.mark.parametrize(
    ("key", "expected"),
    # The vectors of Apache Kafka's own tests.
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
        (b"\xc8\x00\xff", None),
        (b"", 275646681),
    ],
)
def test_the_hash_is_kafkas(key: bytes, expected: int | None) -> None:
    if expected is None:
        expected = aiokafka.partitioner.murmur2(key)
    assert int(murmur2(key)) == expected & 0xFFFFFFFF


@given(st.binary(max_size=300), st.integers(1, 10_000))
def test_a_key_has_the_partition_that_a_client_chooses(key: bytes, partitions: int) -> None:
    expected = (aiokafka.partitioner.murmur2(key) & 0x7FFFFFFF) % partitions
    assert int(partition_of(key, partitions)) == expected
