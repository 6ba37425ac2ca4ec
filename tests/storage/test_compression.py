"""Codecs: what other implementations compress is read, what is compressed here they read, and bombs do not go off."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
import warnings
import zlib
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.base.errors import CorruptData
from millpond.base.limits import RECORDS_DECOMPRESSED_BYTES_MAX
from millpond.storage.batch_rewrite import emptied, first_record_at, newest_record, plain_batch, recompressed
from millpond.storage.batch_rewrite import with_append_time as stamped
from millpond.storage.compression import GZIP, LZ4, NONE, SNAPPY, ZSTD, compress, decompress
from millpond.storage.record_batch import LOG_APPEND_TIME, BatchHeader, check_batch
from tests.storage.batches import produced_by
from tests.storage.test_record_batch import Record, build, read_all, records

with warnings.catch_warnings():
    # It imports its whole client, which uses what Python 3.11 calls deprecated.
    warnings.simplefilter("ignore")
    kafka_codec: Any = pytest.importorskip("kafka.codec", reason="kafka-python is not installed")

CODECS = [NONE, GZIP, SNAPPY, LZ4, ZSTD]
MIB = 1 << 20
BLOCKS = [b"", b"x", b"hello " * 20_000, bytes(100_000), os.urandom(70_000)]

# Batches as librdkafka 2.16 has sent them: 20 records of three keys, one of them with a header.
LIBRDKAFKA = {
    GZIP: """
        AAAAAAAAAAAAAAD5AAAAAAIWV23bAAEAAAATAAABi8/laAAAAAGLz+VoEwAAAAAAAAABAAAAAAAAAAAAFB+LCAAAAAAAAAOt080KgkAYheFxEBERERER
        ERlE3AX+/1xOCyGobVHRhUhXGzicG2jO5ls+8ML5dksI4V2316l5P863+6b+u42UF/ncLSHlobVGWgvNtg+tM9I6aI5DKO2huS6hdIDmeYTSEZrvE0on
        aEFAKJ2hhSGhdIEWRYTS9dC+lohjXfoxWm8DLkl0qhnXgktT3WrGdeCyjBHbg8tzRuwArigYsSM4pRixE7iyZMTO4KqKEbuAq2tGrP6KH63kOA8iBgAA
        """,
    SNAPPY: """
        AAAAAAAAAAAAAAFUAAAAAAKH7IK0AAIAAAATAAABi8/laAAAAAGLz+VoEwAAAAAAAAACAAAAAAAAAAAAFKIMRJgBAAAACmtleS0wenZhbHVlINYGACgw
        AgJoAniYAQACAgVOADHyTgAAMRFOBAQEBU4AMvJOAAAyEU4EBgYFTvbqAAAzEU4ECAgFTvbqAAA0EU4ECgoFTvbqAAA1EU4EDAwFTvbqAAA2EU4EDg4F
        TvbqAAA3EU4EEBAFTvbqAAA4EU4EEhIFTvbqAAA5BU4QmgEAFBQFTgQxfNYGAwk2ADFpDRCaAQAWFgVPADL2TwBpDhCaAQAYGAVPADD2TwBpDxCaAQAa
        GgVP+u0AaRAQmgEAHBwFT/rtAGkREJoBAB4eBU/67QBpEhCaAQAgIAVP+u0AaRMQmgEAIiIFT/rtAGkUEJoBACQkBU/67QBpFRCaAQAmJgVP+u0AFDkC
        AmgCeA==
        """,
    ZSTD: """
        AAAAAAAAAAAAAAECAAAAAAIHMwqsAAQAAAATAAABi8/laAAAAAGLz+VoEwAAAAAAAAAEAAAAAAAAAAAAFCi1L/0AWEUGAELHGh5wZzr8v/iJMgCowlVV
        WQPwv8Qe4E/55su3a7Kf3DLcbrvZJQnjKLoagqzPWfHzUO0405ummWHe9bIo/N5dURR+GScJ1ghy/TgsNoyqpaReFBMTRHeM/65Cj9ttl6dGGAQKBwYY
        NIFUVegFOSDglWUNE9HwZRPR8GUToeHLJqLhyyaioZdNRMOXTUTDl02Ebyi9TNJ6exAxEcFNBSYiGr5MIhq+TCIafplENHyZRDR8mYho+DKJaPgyiWjo
        ZRIiItl6y7nD
        """,
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("data", BLOCKS, ids=len)
def test_what_was_compressed_comes_out_as_it_went_in(codec: int, data: bytes) -> None:
    assert decompress(codec, compress(codec, data), len(data)) == data


@given(st.binary(max_size=300), st.sampled_from(CODECS))
def test_any_bytes_do(data: bytes, codec: int) -> None:
    assert decompress(codec, compress(codec, data), 300) == data


@pytest.mark.parametrize(
    ("codec", "level"), [(GZIP, 1), (GZIP, 9), (LZ4, 1), (LZ4, 9), (LZ4, 17), (ZSTD, -5), (ZSTD, 19)]
)
def test_levels_are_those_of_the_topic_settings(codec: int, level: int) -> None:
    data = b"hello " * 1000
    assert decompress(codec, compress(codec, data, level), MIB) == data


# --- Other implementations ------------------------------------------------------------------------------------------


ENCODERS: list[tuple[int, str, Callable[[bytes], bytes]]] = [
    (GZIP, "gzip", kafka_codec.gzip_encode),
    (SNAPPY, "snappy", kafka_codec.snappy_encode),
    (SNAPPY, "snappy", lambda data: kafka_codec.snappy_encode(data, xerial_compatible=False)),
    (LZ4, "lz4", kafka_codec.lz4_encode),
    (ZSTD, "zstd", kafka_codec.zstd_encode),
]


@pytest.mark.parametrize(("codec", "name", "encode"), ENCODERS)
@pytest.mark.parametrize("data", BLOCKS, ids=len)
def test_what_kafka_python_compresses_is_read(
    codec: int, name: str, encode: Callable[[bytes], bytes], data: bytes
) -> None:
    if not getattr(kafka_codec, f"has_{name}")():
        pytest.skip(f"kafka-python has nothing for {name} here")
    assert decompress(codec, bytes(encode(data)), MIB) == data


@pytest.mark.parametrize(("codec", "name"), [(GZIP, "gzip"), (SNAPPY, "snappy"), (LZ4, "lz4"), (ZSTD, "zstd")])
@pytest.mark.parametrize("data", BLOCKS[1:], ids=len)
def test_kafka_python_reads_what_is_compressed_here(codec: int, name: str, data: bytes) -> None:
    if not getattr(kafka_codec, f"has_{name}")():
        pytest.skip(f"kafka-python has nothing for {name} here")
    assert getattr(kafka_codec, f"{name}_decode")(compress(codec, data)) == data


@pytest.mark.parametrize("codec", LIBRDKAFKA)
def test_batches_of_librdkafka_are_read(codec: int) -> None:
    batch = b64decode(LIBRDKAFKA[codec])
    check_batch(batch)
    assert BatchHeader(batch).attributes == codec
    found = read_all(plain_batch(batch))
    assert [record[:3] for record in found] == [
        (number, 1_700_000_000_000 + number, b"key-%d" % (number % 3)) for number in range(20)
    ]
    assert [record[3] for record in found] == [b"value " * 10 + b"%d" % number for number in range(20)]
    assert all(record[4] == [(b"h", b"x")] for record in found)


def test_lz4_has_independent_blocks_as_the_clients_of_kafka_demand() -> None:
    frame = compress(LZ4, b"hello " * 50_000)
    assert frame[:4] == b"\x04\x22\x4d\x18"
    assert frame[4] & 0x20


def test_several_members_and_frames_are_read_as_one() -> None:
    for codec in (GZIP, LZ4, ZSTD):
        assert decompress(codec, compress(codec, b"one") + compress(codec, b"two"), 6) == b"onetwo"


# --- Hostile bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_one_byte_too_many_is_refused(codec: int) -> None:
    data = bytes(100_000)
    assert decompress(codec, compress(codec, data), 100_000) == data
    with pytest.raises(CorruptData):
        decompress(codec, compress(codec, data), 99_999)


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_a_bomb_takes_no_more_memory_than_is_accepted(codec: int) -> None:
    bomb = compress(codec, bytes(64 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptData):
            decompress(codec, bomb, MIB)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x20"])
def test_snappy_that_says_it_is_huge_is_not_believed(size: bytes) -> None:
    for data in (size + b"x" * 10, compress(SNAPPY, b"")[:16] + b"\x00\x00\x00\x0a" + (size + b"x" * 10)[:10]):
        with pytest.raises(CorruptData):
            decompress(SNAPPY, data, 64 * MIB)


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_what_is_cut_short_is_refused(codec: int) -> None:
    data = b"some records " * 10
    whole = compress(codec, data)
    for end in range(len(whole)):
        try:
            found = decompress(codec, whole[:end], MIB)
        except CorruptData:
            continue
        # Frames have ends that hold nothing, and xerial's framing has none at all.
        assert found in (data, b"")


@given(st.sampled_from([GZIP, SNAPPY, LZ4, ZSTD]), st.binary(max_size=200), st.booleans())
def test_garbage_is_refused_or_decompressed(codec: int, garbage: bytes, has_beginning: bool) -> None:
    data = compress(codec, b"some records " * 10)[:20] + garbage if has_beginning else garbage
    with contextlib.suppress(CorruptData):
        assert len(decompress(codec, data, 10_000)) <= 10_000


def test_there_are_no_other_codecs() -> None:
    with pytest.raises(CorruptData, match="unknown codec 5"):
        decompress(5, b"", 1)
    with pytest.raises(ValueError, match="codec 5"):
        compress(5, b"")


# --- Batches --------------------------------------------------------------------------------------------------------


@given(records().filter(bool), st.sampled_from(CODECS), st.sampled_from(CODECS))
def test_a_batch_is_compressed_and_compressed_otherwise(batch: list[Record], codec: int, other: int) -> None:
    original = produced_by(build(batch, 5, min(batch[-1][0] + 3, (1 << 31) - 1)), 9, 2, 77)
    compressed = recompressed(recompressed(original, codec), other)
    check_batch(compressed)
    header, expected = BatchHeader(compressed), BatchHeader(original)
    assert header.attributes == other
    for name in ("base_offset", "last_offset", "record_count", "base_timestamp_ms", "max_timestamp_ms"):
        assert getattr(header, name) == getattr(expected, name)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (9, 2, 77)
    assert plain_batch(compressed) == original


def test_a_batch_that_has_the_codec_stays_as_it_is() -> None:
    batch = b64decode(LIBRDKAFKA[GZIP])
    assert recompressed(batch, GZIP) is batch
    assert plain_batch(plain_batch(batch)) == plain_batch(batch)


@pytest.mark.parametrize("codec", CODECS)
def test_the_time_of_appending_is_that_of_all_records(codec: int) -> None:
    batch = recompressed(build([(0, 10, b"a", b"b", []), (1, 20, None, None, [])], 5), codec)
    changed = stamped(batch, 99)
    check_batch(changed)
    assert BatchHeader(changed).attributes == codec | LOG_APPEND_TIME
    assert BatchHeader(changed).max_timestamp_ms == 99
    assert [record[:2] for record in read_all(plain_batch(changed))] == [(5, 99), (6, 99)]
    assert changed[61:] == batch[61:]


@pytest.mark.parametrize("codec", CODECS)
def test_records_are_found_by_their_time_within_a_batch(codec: int) -> None:
    times = [50, 10, 70, 20, 70]
    batch = recompressed(build([(delta, time_ms, None, b"x", []) for delta, time_ms in enumerate(times)], 100), codec)
    assert first_record_at(batch, 0, 0) == (100, 50)
    assert first_record_at(batch, 51, 0) == (102, 70)
    assert first_record_at(batch, 15, 101) == (102, 70)
    assert first_record_at(batch, 71, 0) == (-1, -1)
    assert newest_record(batch, 0) == (102, 70)
    assert newest_record(batch, 103) == (104, 70)
    assert newest_record(batch, 105) == (-1, -1)


def test_an_emptied_batch_says_only_what_its_producer_has_numbered() -> None:
    batch = emptied(produced_by(b64decode(LIBRDKAFKA[ZSTD]), 9, 2, 77))
    check_batch(batch)
    header = BatchHeader(batch)
    assert (header.record_count, header.size, header.attributes) == (0, 61, 0)
    assert (header.last_offset_delta, header.max_timestamp_ms) == (19, 1_700_000_000_019)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (9, 2, 77)


def test_a_batch_that_decompresses_to_too_much_makes_no_sense() -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(bytes(RECORDS_DECOMPRESSED_BYTES_MAX + 1)) + packer.flush()
    batch = produced_by(b64decode(LIBRDKAFKA[GZIP]), 9, 2, 77, records=bomb)
    check_batch(batch)
    with pytest.raises(CorruptData):
        plain_batch(batch)
