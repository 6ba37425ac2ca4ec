"""The aborted transactions of a log: whose batches, from where to where, count for nothing."""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter, write_i32_be, write_i64_be
from mypy_extensions import i32, i64, mypyc_attr

# What one takes in memory; measured.
ABORTED_BYTES: Final = 72


@final
@mypyc_attr(acyclic=True)
class AbortedTransaction:
    """The batches of a producer from `first_offset` to its marker at `last_offset` count for nothing. `stable_end` is
    what was stable when it ended: whatever else ended later and was aborted does not begin before it."""

    def __init__(self, producer_id: i64, first_offset: i64, last_offset: i64, stable_end: i64) -> None:
        self.producer_id: Final[i64] = producer_id
        self.first_offset: Final[i64] = first_offset
        self.last_offset: Final[i64] = last_offset
        self.stable_end: Final[i64] = stable_end


@final
class AbortedTransactions:
    """Those of one log, in the order of their markers."""

    def __init__(self) -> None:
        self._all: list[AbortedTransaction] = []

    @property
    def count(self) -> int:
        return len(self._all)

    def add(self, one: AbortedTransaction) -> None:
        """Its marker comes after those of all others."""
        self._all.append(one)

    def copy(self) -> AbortedTransactions:
        """For another thread."""
        copied = AbortedTransactions()
        copied._all = list(self._all)
        return copied

    def between(self, start: i64, end: i64) -> list[AbortedTransaction]:
        """Those that have something in [start, end)."""
        found: list[AbortedTransaction] = []
        all_of_them = self._all
        for index in range(self._first_ending_at(start), len(all_of_them)):
            one = all_of_them[index]
            if one.first_offset < end:
                found.append(one)
            if one.stable_end >= end:
                break
        return found

    def covers(self, producer_id: i64, offset: i64) -> bool:
        """Whether what the producer has at `offset`, in a transaction that has ended, was aborted."""
        all_of_them = self._all
        for index in range(self._first_ending_at(offset), len(all_of_them)):
            one = all_of_them[index]
            if one.producer_id == producer_id and one.first_offset <= offset:
                return True
            if one.stable_end > offset:
                break
        return False

    def _first_ending_at(self, offset: i64) -> i64:
        """Index of the first one that ends at `offset` or later."""
        all_of_them = self._all
        low: i64 = 0
        high: i64 = len(all_of_them)
        while low < high:
            middle = (low + high) >> 1
            if all_of_them[middle].last_offset < offset:
                low = middle + 1
            else:
                high = middle
        return low

    def forget_before(self, offset: i64) -> i64:
        """Nothing is left of those that end before `offset`. How many there were."""
        count = self._first_ending_at(offset)
        if count > 0:
            del self._all[:count]
        return count

    def encoded(self) -> bytes:
        """All of them, as a checkpoint keeps them; `broker/snapshot.py` has the layout."""
        writer = BytesWriter()
        write_i32_be(writer, i32(len(self._all)))
        for one in self._all:
            write_i64_be(writer, one.producer_id)
            write_i64_be(writer, one.first_offset)
            write_i64_be(writer, one.last_offset)
            write_i64_be(writer, one.stable_end)
        return writer.getvalue()
