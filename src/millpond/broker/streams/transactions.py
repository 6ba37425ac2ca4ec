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

from mypy_extensions import i64, mypyc_attr

from millpond.storage.aborted_transactions import AbortedTransaction, AbortedTransactions


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
        self.aborted: Final = AbortedTransactions()
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
            self.aborted.add(AbortedTransaction(producer_id, first_offset, marker_offset, stable_end))
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

    # --- Checkpoints ------------------------------------------------------------------------------------------------

    def restore(self, open_offsets: list[int], aborted: list[AbortedTransaction]) -> None:
        """What a checkpoint knew."""
        for one in aborted:
            self.aborted.add(one)
        for offset in sorted(open_offsets):
            self.began(offset)
