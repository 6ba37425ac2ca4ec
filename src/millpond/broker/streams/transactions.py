"""What a partition knows of transactions: up to where its readers may go who want committed records only, and what of
that they must leave out.

    offsets    ... | A1 | B1 | A2 | commit A | B2 | abort B | C1 | A3 | ...
                                                              ^
                                                              stable: C's transaction is the first that is open

A producer has one transaction at a time in a partition. It begins with the first transactional batch after the last
one's end, and ends with a marker. What it has written is *unstable* until that marker is durable: not before is it
known for sure what became of it. Everything before the first unstable offset is stable.

Of an aborted transaction is remembered where it began and ended, as long as the partition has any of it.

Source: Apache Kafka, KIP-98.
"""

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
@mypyc_attr(acyclic=True)
class _Ended:
    """A transaction whose marker has been appended."""

    def __init__(self, first_offset: i64, end_offset: i64) -> None:
        self.first_offset: Final[i64] = first_offset
        self.end_offset: Final[i64] = end_offset


@final
class PartitionTransactions:
    """The transactions of one partition. Which producer has one open is known to `Producers`."""

    def __init__(self) -> None:
        # In the order of their markers.
        self.aborted: list[AbortedTransaction] = []
        # First offsets of those that are open (True), or whose marker is not durable (False), in their order.
        self._unstable: Final[dict[int, bool]] = {}
        self._ended: list[_Ended] = []
        # The first of them; -1 where everything is stable.
        self.first_unstable: i64 = -1

    @property
    def unstable_count(self) -> int:
        return len(self._unstable)

    def began(self, first_offset: i64) -> None:
        """A producer has begun a transaction."""
        self._unstable[int(first_offset)] = True
        if self.first_unstable < 0:
            self.first_unstable = first_offset

    def ended(self, producer_id: i64, first_offset: i64, marker_offset: i64, is_commit: bool) -> None:
        """A producer's transaction has its marker, which is yet to become durable."""
        unstable = self._unstable
        unstable[int(first_offset)] = False
        if not is_commit:
            stable_end = marker_offset + 1
            for offset, is_open in unstable.items():
                if is_open:
                    stable_end = min(stable_end, i64(offset))
                    break
            self.aborted.append(AbortedTransaction(producer_id, first_offset, marker_offset, stable_end))
        self._ended.append(_Ended(first_offset, marker_offset + 1))

    def durable_to(self, durable_end: i64) -> None:
        """All before `durable_end` is durable, markers too."""
        ended = self._ended
        if not ended:
            return
        count: i64 = 0
        while count < len(ended) and ended[count].end_offset <= durable_end:
            self._unstable.pop(int(ended[count].first_offset), None)
            count += 1
        if count > 0:
            del ended[:count]
            self.first_unstable = -1
            for offset in self._unstable:
                self.first_unstable = offset
                break

    # --- What was aborted -------------------------------------------------------------------------------------------

    def aborted_between(self, start: i64, end: i64) -> list[AbortedTransaction]:
        """The aborted transactions that have something in [start, end)."""
        found: list[AbortedTransaction] = []
        aborted = self.aborted
        for index in range(self._first_ending_at(start), len(aborted)):
            one = aborted[index]
            if one.first_offset < end:
                found.append(one)
            if one.stable_end >= end:
                break
        return found

    def is_aborted(self, producer_id: i64, offset: i64) -> bool:
        """Whether what the producer has at `offset`, in a transaction that has ended, was aborted."""
        aborted = self.aborted
        for index in range(self._first_ending_at(offset), len(aborted)):
            one = aborted[index]
            if one.producer_id == producer_id and one.first_offset <= offset:
                return True
            if one.stable_end > offset:
                break
        return False

    def _first_ending_at(self, offset: i64) -> i64:
        """Index of the first one that ends at `offset` or later."""
        aborted = self.aborted
        low: i64 = 0
        high: i64 = len(aborted)
        while low < high:
            middle = (low + high) >> 1
            if aborted[middle].last_offset < offset:
                low = middle + 1
            else:
                high = middle
        return low

    def forget_before(self, offset: i64) -> i64:
        """Nothing is left before `offset`. How many aborted transactions were forgotten."""
        count = self._first_ending_at(offset)
        if count > 0:
            del self.aborted[:count]
        return count

    # --- Checkpoints ------------------------------------------------------------------------------------------------

    def restore(self, open_offsets: list[int], aborted: list[AbortedTransaction]) -> None:
        """What a checkpoint knew."""
        self.aborted = aborted
        for offset in sorted(open_offsets):
            self.began(offset)

    def encoded(self) -> bytes:
        """The aborted ones, as a checkpoint keeps them; `broker/snapshot.py` has the layout."""
        writer = BytesWriter()
        write_i32_be(writer, i32(len(self.aborted)))
        for one in self.aborted:
            write_i64_be(writer, one.producer_id)
            write_i64_be(writer, one.first_offset)
            write_i64_be(writer, one.last_offset)
            write_i64_be(writer, one.stable_end)
        return writer.getvalue()
