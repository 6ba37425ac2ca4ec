"""Where compaction remembers the last offset of each key: tables of bounded size, 24 bytes a slot.

    slot      hash, upper half i64 | hash, lower half i64 | offset + 1 i64; 0 says that it is free

Keys are known by 128 bits of a keyed hash, so that nobody can make two that are taken for one. A table doubles as
it fills, up to a limit; beyond it a key that is not in it yet is refused, and compaction goes over the log once more
for the rest. There are several tables, each for a share of the keys, because doubling a large one would hold up the
broker for a tenth of a second.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import Final, final

from librt.strings import read_i64_be
from librt.vecs import vec
from mypy_extensions import i64

_HASH_BYTES: Final = 16
_SLOTS_MIN: Final[i64] = 64
# Doubling takes about a millisecond.
_TABLE_SLOTS_MAX: Final[i64] = 1 << 15


@final
class KeyOffsets:
    """Offsets by key. `count` is how many keys there are."""

    def __init__(self, slots_max: i64) -> None:
        """`slots_max` is a power of two. Three quarters of the slots are used at the most."""
        if slots_max < 4 or slots_max & (slots_max - 1) != 0:
            raise ValueError("a table of keys has a power of two of slots")
        self.count: i64 = 0
        self._salt: Final = os.urandom(_HASH_BYTES)
        tables = max(1, slots_max // _TABLE_SLOTS_MAX)
        self._mask: Final[i64] = tables - 1
        self._tables: Final = [_Table(slots_max // tables) for _ in range(tables)]

    def put(self, key: bytes, offset: i64) -> bool:
        """Remember the offset of a key, which is larger than those before. False where there is no room for it."""
        digest = blake2b(key, digest_size=_HASH_BYTES, key=self._salt).digest()
        upper = read_i64_be(digest, 0)
        table = self._tables[upper & self._mask]
        count = table.count
        if not table.put(upper, read_i64_be(digest, 8), offset):
            return False
        self.count += table.count - count
        return True

    def get(self, key: bytes) -> i64:
        """The offset of a key; -1 where it is not known."""
        digest = blake2b(key, digest_size=_HASH_BYTES, key=self._salt).digest()
        upper = read_i64_be(digest, 0)
        return self._tables[upper & self._mask].get(upper, read_i64_be(digest, 8))


@final
class _Table:
    """A share of the keys, by their hash."""

    def __init__(self, slots_max: i64) -> None:
        self.count: i64 = 0
        self._slots_max: Final[i64] = slots_max
        self._slots: i64 = min(_SLOTS_MIN, slots_max)
        self._upper = vec[i64](bytes(self._slots))
        self._lower = vec[i64](bytes(self._slots))
        self._offsets = vec[i64](bytes(self._slots))

    def put(self, upper: i64, lower: i64, offset: i64) -> bool:
        slot = self._find(upper, lower)
        if self._offsets[slot] == 0:
            if self.count * 4 >= self._slots * 3:
                if self._slots == self._slots_max:
                    return False
                self._grow()
                slot = self._find(upper, lower)
            self._upper[slot] = upper
            self._lower[slot] = lower
            self.count += 1
        self._offsets[slot] = offset + 1
        return True

    def get(self, upper: i64, lower: i64) -> i64:
        return self._offsets[self._find(upper, lower)] - 1

    def _find(self, upper: i64, lower: i64) -> i64:
        """The slot that has the key, or the free one that would."""
        uppers, lowers, offsets = self._upper, self._lower, self._offsets
        mask = self._slots - 1
        slot = lower & mask
        while offsets[slot] != 0 and (lowers[slot] != lower or uppers[slot] != upper):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        uppers, lowers, offsets = self._upper, self._lower, self._offsets
        count = self._slots
        self._slots = count * 2
        self._upper = vec[i64](bytes(self._slots))
        self._lower = vec[i64](bytes(self._slots))
        self._offsets = vec[i64](bytes(self._slots))
        for old in range(count):
            if offsets[old] != 0:
                slot = self._find(uppers[old], lowers[old])
                self._upper[slot] = uppers[old]
                self._lower[slot] = lowers[old]
                self._offsets[slot] = offsets[old]
