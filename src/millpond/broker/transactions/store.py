"""The transactions of a virtual host, and the one way in which they change durably.

    decide (coordinator.py) -> record -> apply

`record` tells the journal and applies; recovery applies what the journal tells. Offsets that wait for a transaction's
end are with the groups that they belong to, as `PendingOffsets`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from millpond.broker.groups.alarm import Alarm
from millpond.broker.groups.pending import GroupOffsets, PendingOffsets
from millpond.broker.groups.records import Record, encode_record
from millpond.broker.keepers import KeeperState
from millpond.broker.records import CHANGE_TRANSACTION
from millpond.broker.transactions.records import (
    COMPLETE_ABORT,
    COMPLETE_COMMIT,
    ONGOING,
    Cleared,
    Forgotten,
    GroupAdded,
    HeadChanged,
    OffsetsAdded,
    PartitionsAdded,
    Place,
    TransactionHead,
)

if TYPE_CHECKING:
    from millpond.broker.ledger import Ledger
    from millpond.broker.turn import Turn


class TransactionTotals:
    """What the transactions of all virtual hosts have together."""

    def __init__(self) -> None:
        self.transactional_ids = 0
        self.ongoing = 0
        # Since the start.
        self.committed_total = 0
        self.aborted_total = 0
        self.timed_out_total = 0


class Transaction:
    """A transactional id with its transaction, the open one or the latest."""

    def __init__(self, transactional_id: str, head: TransactionHead) -> None:
        self.id: Final = transactional_id
        self.head = head
        # Those of the open transaction, in the order in which they were added.
        self.partitions: dict[Place, None] = {}
        self.groups: dict[str, None] = {}
        # Of this process: when the open transaction has taken too long.
        self.timeout: Alarm | None = None

    @property
    def is_ongoing(self) -> bool:
        return self.head.state == ONGOING

    def stop(self) -> None:
        """It is gone, or its broker stops: nothing happens by itself any more."""
        if self.timeout is not None:
            self.timeout.stop()
            self.timeout = None


class TransactionState(KeeperState):
    """A transactional id as it was at the moment of a checkpoint."""

    def __init__(self, vhost: str, transaction: Transaction, offsets: GroupOffsets) -> None:
        self._vhost: Final = vhost
        self._id: Final = transaction.id
        self._head: Final = transaction.head
        self._partitions: Final = tuple(transaction.partitions)
        self._groups: Final = tuple(transaction.groups)
        self._offsets: Final = offsets

    def records(self) -> list[bytes]:
        records: list[Record] = [HeadChanged(self._id, self._head)]
        if self._partitions:
            records.append(PartitionsAdded(self._id, self._partitions))
        records += [GroupAdded(self._id, group) for group in self._groups]
        for group, offsets in self._offsets.items():
            values = tuple([(topic, partition, value) for (topic, partition), value in offsets.items()])
            records.append(OffsetsAdded(self._id, group, values))
        return [encode_record(self._vhost, record) for record in records]


class TransactionStore:
    """The transactions of one virtual host."""

    def __init__(
        self, vhost: str, totals: TransactionTotals, pending: PendingOffsets, turn: Turn, ledger: Ledger
    ) -> None:
        self.vhost: Final = vhost
        self.totals: Final = totals
        # Offsets of the virtual host's groups that wait for a transaction's end.
        self.pending: Final = pending
        self._turn: Final = turn
        self._ledger: Final = ledger
        self.transactions: Final[dict[str, Transaction]] = {}
        # The commit that covers everything that producers have been told so far.
        self.sequence = 0

    def record(self, *records: Record) -> None:
        """Make a change: whoever is told of it has to wait for the commit `sequence`."""
        ledger = self._ledger
        # A broker that keeps nothing has none.
        is_kept = ledger.journal is not None
        for record in records:
            if is_kept:
                ledger.recorded(CHANGE_TRANSACTION, encode_record(self.vhost, record))
            self.apply(record)
        if is_kept:
            self.sequence = int(ledger.sequence())
            ledger.sync_wanted = True
        self._turn.touch()

    def capture(self) -> list[TransactionState]:
        """What a checkpoint has to say."""
        return [
            TransactionState(self.vhost, transaction, self.pending.of(transaction.id))
            for transaction in self.transactions.values()
        ]

    # --- Applying ---------------------------------------------------------------------------------------------------

    def apply(self, record: Record) -> None:
        """Change what is durable. What a record speaks of need not be there: part of the journal may be gone."""
        if isinstance(record, HeadChanged):
            self._apply_head(record.transactional_id, record.head)
        elif isinstance(record, (PartitionsAdded, GroupAdded, OffsetsAdded)):
            transaction = self.transactions.get(record.transactional_id)
            if transaction is not None and transaction.is_ongoing:
                self._apply_within(transaction, record)
        elif isinstance(record, Forgotten):
            self._forget(record.transactional_id)
        elif isinstance(record, Cleared):
            for transactional_id in list(self.transactions):
                self._forget(transactional_id)

    def _apply_head(self, transactional_id: str, head: TransactionHead) -> None:
        transaction = self.transactions.get(transactional_id)
        if transaction is None:
            transaction = self.transactions[transactional_id] = Transaction(transactional_id, head)
            self.totals.transactional_ids += 1
        elif transaction.is_ongoing:
            self.totals.ongoing -= 1
            if head.state == COMPLETE_COMMIT:
                self.totals.committed_total += 1
            elif head.state == COMPLETE_ABORT:
                self.totals.aborted_total += 1
        transaction.head = head
        if head.state == ONGOING:
            self.totals.ongoing += 1
        else:
            transaction.partitions = {}
            transaction.groups = {}
            self.pending.forget(transactional_id)

    def _apply_within(self, transaction: Transaction, record: PartitionsAdded | GroupAdded | OffsetsAdded) -> None:
        if isinstance(record, PartitionsAdded):
            transaction.partitions.update(dict.fromkeys(record.places))
        elif isinstance(record, GroupAdded):
            transaction.groups[record.group] = None
        else:
            self.pending.add(transaction.id, record.group, record.offsets)

    def _forget(self, transactional_id: str) -> None:
        transaction = self.transactions.pop(transactional_id, None)
        if transaction is not None:
            self.totals.transactional_ids -= 1
            if transaction.is_ongoing:
                self.totals.ongoing -= 1
            self.pending.forget(transactional_id)
            transaction.stop()
