"""Which partition a key belongs to, as Kafka's clients choose it: Java's producers, and librdkafka's `murmur2` ones.

The hash is murmur2 of 32 bits with Kafka's seed; its sign is dropped, and the rest is taken modulo the partitions.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

_SEED: Final[i64] = 0x9747B28C
_MULTIPLIER: Final[i64] = 0x5BD1E995
_MASK: Final[i64] = 0xFFFFFFFF


def murmur2(key: bytes) -> i64:
    """The hash, from 0 to 2^32 - 1."""
    size: i64 = len(key)
    value: i64 = _SEED ^ size
    at: i64 = 0
    while at + 4 <= size:
        word: i64 = i64(key[at]) | i64(key[at + 1]) << 8 | i64(key[at + 2]) << 16 | i64(key[at + 3]) << 24
        word = _times(word)
        word = _times(word ^ (word >> 24))
        value = _times(value) ^ word
        at += 4
    left = size - at
    if left > 0:
        if left > 2:
            value ^= i64(key[at + 2]) << 16
        if left > 1:
            value ^= i64(key[at + 1]) << 8
        value = _times(value ^ i64(key[at]))
    value = _times(value ^ (value >> 13))
    return value ^ (value >> 15)


def _times(value: i64) -> i64:
    """The low 32 bits of the product. Multiplied in halves: as a whole it has more bits than there are."""
    low = (value & 0xFFFF) * _MULTIPLIER
    high = ((value >> 16) * _MULTIPLIER & 0xFFFF) << 16
    return (low + high) & _MASK


def partition_of(key: bytes, partitions: i64) -> i64:
    """The number of the partition that records with this key are in."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
