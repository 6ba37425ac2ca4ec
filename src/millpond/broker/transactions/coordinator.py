"""The coordinator of a virtual host's transactions, and that of all virtual hosts together.

    InitProducerId --> Empty --> Ongoing --> CompleteCommit or CompleteAbort --> Ongoing --> ...
                                    |
                                    +-- timeout, another producer, an operator: aborted, and the epoch raised

Apache Kafka has two more states, in which it is decided how a transaction ends and its partitions are being told, one
after the other. Here all of that is one turn: the markers in all partitions, the groups' offsets and the new state are
one change in the journal, so nobody ever finds half of it, after a crash neither.

Protocols call `vhost.transactions`. Whoever answers a client waits until the commit `sequence` is durable.

Source: Apache Kafka, KIP-98, KIP-360 and KIP-890, and the behaviour of its coordinator.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from millpond.base.clock import Timer
from millpond.base.errors import PeerError
from millpond.base.limits import (
    GROUP_NAME_BYTES_MAX,
    TRANSACTION_MAX_TIMEOUT_MS,
    TRANSACTION_PARTITIONS_MAX,
    TRANSACTIONAL_ID_BYTES_MAX,
    TRANSACTIONAL_ID_EXPIRY_CHECK_MS,
    TRANSACTIONAL_ID_EXPIRY_MS,
    TRANSACTIONAL_IDS_MAX,
)
from millpond.broker.groups.alarm import Alarm
from millpond.broker.groups.errors import InvalidGroupName
from millpond.broker.groups.records import OffsetsCommitted
from millpond.broker.keepers import RecordKeeper
from millpond.broker.records import CHANGE_TRANSACTION
from millpond.broker.transactions.errors import (
    InvalidProducerMapping,
    InvalidTransactionalId,
    InvalidTransactionState,
    InvalidTransactionTimeout,
    NotInTransaction,
    ProducerFenced,
    TooManyTransactions,
    TransactionNotFound,
)
from millpond.broker.transactions.records import (
    COMPLETE_ABORT,
    COMPLETE_COMMIT,
    EMPTY,
    ONGOING,
    Cleared,
    Forgotten,
    GroupAdded,
    HeadChanged,
    OffsetsAdded,
    PartitionsAdded,
    Place,
    TransactionHead,
    decode_record,
)
from millpond.broker.transactions.store import Transaction, TransactionState, TransactionStore, TransactionTotals
from millpond.storage.transaction_marker import end_marker

if TYPE_CHECKING:
    from millpond.base.clock import Clock
    from millpond.broker.groups.coordinator import GroupCoordinator
    from millpond.broker.groups.offsets import CommitRequest
    from millpond.broker.ledger import Ledger
    from millpond.broker.producer_ids import ProducerIds
    from millpond.broker.streams.partition import Partition
    from millpond.broker.streams.topics import Topics
    from millpond.broker.turn import Turn

logger = logging.getLogger(__name__)

# Epochs have 16 bits. The last one is left for shutting out a producer that has the one before it.
EPOCH_MAX: Final = (1 << 15) - 1
# One node, one coordinator: it never moves.
COORDINATOR_EPOCH: Final = 0


@dataclass(frozen=True, slots=True)
class TransactionSettings:
    """What an operator may set."""

    timeout_ms_max: int = TRANSACTION_MAX_TIMEOUT_MS
    id_expiry_ms: int = TRANSACTIONAL_ID_EXPIRY_MS
    ids_max: int = TRANSACTIONAL_IDS_MAX


@dataclass(frozen=True, slots=True)
class ProducerIdentity:
    """A producer's id and its epoch."""

    producer_id: int
    epoch: int


def _is_exhausted(epoch: int) -> bool:
    return epoch >= EPOCH_MAX - 1


class TransactionCoordinator:
    """The transactions of one virtual host."""

    def __init__(
        self,
        store: TransactionStore,
        settings: TransactionSettings,
        topics: Topics,
        groups: GroupCoordinator,
        producer_ids: ProducerIds,
        clock: Clock,
        turn: Turn,
    ) -> None:
        self.store: Final = store
        self._settings: Final = settings
        self._topics: Final = topics
        self._groups: Final = groups
        self._producer_ids: Final = producer_ids
        self._clock: Final = clock
        self._turn: Final = turn

    @property
    def sequence(self) -> int:
        """The commit that makes durable what a client may be told now."""
        return max(self.store.sequence, self._groups.sequence)

    def all(self) -> Iterable[Transaction]:
        """All transactional ids, to be looked at."""
        return self.store.transactions.values()

    def find(self, transactional_id: str) -> Transaction:
        """One of them, to be looked at. TransactionNotFound where there is none."""
        transaction = self.store.transactions.get(transactional_id)
        if transaction is None:
            raise TransactionNotFound(f"there is no transactional id '{transactional_id}'")
        return transaction

    # --- Producers --------------------------------------------------------------------------------------------------

    def begin_producer(
        self, transactional_id: str, timeout_ms: int, expected: ProducerIdentity | None = None
    ) -> ProducerIdentity:
        """A producer takes over the transactional id: what another one has open under it is aborted, and that one is
        shut out. `expected` is what the producer has been until now, where it goes on after an error (KIP-360).

        InvalidTransactionalId, InvalidTransactionTimeout, TooManyTransactions; ProducerFenced where another one has
        come since.
        """
        if not 0 < len(transactional_id.encode("utf-8", "surrogateescape")) <= TRANSACTIONAL_ID_BYTES_MAX:
            raise InvalidTransactionalId(f"a transactional id has 1 to {TRANSACTIONAL_ID_BYTES_MAX} bytes")
        if not 0 < timeout_ms <= self._settings.timeout_ms_max:
            raise InvalidTransactionTimeout(f"a transaction takes at most {self._settings.timeout_ms_max} ms")
        transaction = self.store.transactions.get(transactional_id)
        now_ms = self._clock.wall_ms()
        if transaction is None:
            if self.store.totals.transactional_ids >= self._settings.ids_max:
                raise TooManyTransactions(f"there are {self._settings.ids_max} transactional ids already")
            head = TransactionHead(self._producer_ids.next(), 0, timeout_ms, updated_ms=now_ms)
        else:
            head = self._next_head(transaction, expected)
            if head is transaction.head:
                # It has been answered so before.
                return ProducerIdentity(head.producer_id, head.epoch)
            head = replace(head, state=EMPTY, timeout_ms=timeout_ms, started_ms=-1, updated_ms=now_ms)
            if transaction.is_ongoing:
                self._write_markers(transaction, _fencing_epoch(transaction.head), False)
        self.store.record(HeadChanged(transactional_id, head))
        return ProducerIdentity(head.producer_id, head.epoch)

    def _next_head(self, transaction: Transaction, expected: ProducerIdentity | None) -> TransactionHead:
        """The identity that a producer gets; the present one where it has been given that already."""
        head = transaction.head
        if expected is not None:
            is_successor = expected.producer_id == head.previous_producer_id and _is_exhausted(expected.epoch)
            if expected.producer_id != head.producer_id and not is_successor:
                raise _fenced(transaction)
            if is_successor or expected.epoch != head.epoch:
                if expected.epoch != head.last_epoch or transaction.is_ongoing:
                    raise _fenced(transaction)
                return head
        last_epoch = head.epoch if expected is not None else -1
        # Where a transaction is to be aborted first, its marker has the epoch that follows.
        if _is_exhausted(head.epoch) or (transaction.is_ongoing and _is_exhausted(head.epoch + 1)):
            return replace(
                head,
                producer_id=self._producer_ids.next(),
                epoch=0,
                previous_producer_id=head.producer_id,
                last_epoch=last_epoch,
            )
        return replace(head, epoch=head.epoch + 1, last_epoch=last_epoch)

    def _owned(self, transactional_id: str, producer: ProducerIdentity) -> Transaction:
        """The transaction, which must be this producer's."""
        if not transactional_id:
            raise InvalidTransactionalId("a transactional id is missing")
        transaction = self.store.transactions.get(transactional_id)
        if transaction is None or transaction.head.producer_id != producer.producer_id:
            raise InvalidProducerMapping(f"transactional id '{transactional_id}' is not this producer's")
        if transaction.head.epoch != producer.epoch:
            raise _fenced(transaction)
        return transaction

    # --- Within a transaction ---------------------------------------------------------------------------------------

    def add_partitions(self, transactional_id: str, producer: ProducerIdentity, places: Iterable[Place]) -> None:
        """Make partitions, which must exist, part of the transaction, which begins if none is open.

        InvalidTransactionalId, InvalidProducerMapping, ProducerFenced, TooManyTransactions.
        """
        transaction = self._owned(transactional_id, producer)
        known = transaction.partitions if transaction.is_ongoing else {}
        new = tuple([place for place in dict.fromkeys(places) if place not in known])
        if len(known) + len(new) > TRANSACTION_PARTITIONS_MAX:
            raise TooManyTransactions(f"a transaction has at most {TRANSACTION_PARTITIONS_MAX} partitions")
        if new:
            self._begin(transaction)
            self.store.record(PartitionsAdded(transactional_id, new))

    def check_partition(self, transactional_id: str, producer: ProducerIdentity, place: Place) -> None:
        """NotInTransaction unless the partition has been added to the open transaction; errors as above."""
        transaction = self._owned(transactional_id, producer)
        if not transaction.is_ongoing or place not in transaction.partitions:
            raise NotInTransaction(f"{place[0]}-{place[1]} has not been added to '{transactional_id}'")

    def may_join(self, transactional_id: str, producer: ProducerIdentity, place: Place) -> None:
        """Whether `add_partitions` would add this one; errors as above."""
        transaction = self._owned(transactional_id, producer)
        if transaction.is_ongoing and len(transaction.partitions) >= TRANSACTION_PARTITIONS_MAX:
            if place not in transaction.partitions:
                raise TooManyTransactions(f"a transaction has at most {TRANSACTION_PARTITIONS_MAX} partitions")

    def add_group(self, transactional_id: str, producer: ProducerIdentity, group: str) -> None:
        """Make a group part of the transaction, which begins if none is open; errors as above."""
        transaction = self._owned(transactional_id, producer)
        if not transaction.is_ongoing or group not in transaction.groups:
            if len(group.encode("utf-8", "surrogateescape")) > GROUP_NAME_BYTES_MAX:
                # There is no such group, and its name would be kept for nothing.
                raise InvalidGroupName(f"a group's name has at most {GROUP_NAME_BYTES_MAX} bytes")
            if transaction.is_ongoing and len(transaction.groups) >= TRANSACTION_PARTITIONS_MAX:
                raise TooManyTransactions(f"a transaction has at most {TRANSACTION_PARTITIONS_MAX} groups")
            self._begin(transaction)
            self.store.record(GroupAdded(transactional_id, group))

    def commit_offsets(
        self, transactional_id: str, producer: ProducerIdentity, request: CommitRequest, adds_group: bool
    ) -> Mapping[Place, PeerError]:
        """Have a group's offsets committed together with the transaction. Those that are refused, each with the reason.
        The group must be part of the transaction, or becomes it where `adds_group` says so.

        Errors as above, and those of a group's own commit; NotInTransaction.
        """
        transaction = self._owned(transactional_id, producer)
        if not adds_group and (not transaction.is_ongoing or request.group not in transaction.groups):
            raise NotInTransaction(f"group '{request.group}' has not been added to '{transactional_id}'")
        offsets = self._groups.offsets
        refused, committed = offsets.check_transactional(request)
        if adds_group:
            self.add_group(transactional_id, producer, request.group)
        if committed:
            offsets.ensure_group(request.group)
            self.store.record(OffsetsAdded(transactional_id, request.group, committed))
        return refused

    def _begin(self, transaction: Transaction) -> None:
        if transaction.is_ongoing:
            return
        now_ms = self._clock.wall_ms()
        head = replace(transaction.head, state=ONGOING, started_ms=now_ms, updated_ms=now_ms)
        self.store.record(HeadChanged(transaction.id, head))
        self._watch(transaction)

    # --- Its end ----------------------------------------------------------------------------------------------------

    def end(
        self, transactional_id: str, producer: ProducerIdentity, is_commit: bool, raises_epoch: bool
    ) -> ProducerIdentity:
        """Commit or abort the open transaction. `raises_epoch` says that the producer goes on as what it is told here:
        in the next epoch, or with a new id where there is none left (KIP-890).

        InvalidTransactionalId, InvalidProducerMapping, ProducerFenced; InvalidTransactionState where there is nothing
        to be ended so.
        """
        if not transactional_id:
            raise InvalidTransactionalId("a transactional id is missing")
        transaction = self.store.transactions.get(transactional_id)
        if transaction is None:
            raise InvalidProducerMapping(f"there is no transactional id '{transactional_id}'")
        head = transaction.head
        if raises_epoch and _has_been_ended_by(head, producer):
            if head.state != (COMPLETE_COMMIT if is_commit else COMPLETE_ABORT):
                raise InvalidTransactionState(f"the transaction of '{transactional_id}' has ended otherwise")
            return ProducerIdentity(head.producer_id, head.epoch)
        if head.producer_id != producer.producer_id:
            raise InvalidProducerMapping(f"transactional id '{transactional_id}' is not this producer's")
        if head.epoch != producer.epoch:
            raise _fenced(transaction)
        if not transaction.is_ongoing:
            if not raises_epoch and head.state == (COMPLETE_COMMIT if is_commit else COMPLETE_ABORT):
                # It asks again.
                return producer
            if is_commit or not raises_epoch:
                raise InvalidTransactionState(f"'{transactional_id}' has no transaction open")
            # A producer that adds partitions by writing to them cannot know whether the broker has seen any.
        self._end(transaction, is_commit, raises_epoch)
        return ProducerIdentity(transaction.head.producer_id, transaction.head.epoch)

    def abort(self, transactional_id: str) -> None:
        """Abort the open transaction, and shut its producer out. TransactionNotFound; InvalidTransactionState where
        none is open."""
        transaction = self.find(transactional_id)
        if not transaction.is_ongoing:
            raise InvalidTransactionState(f"'{transactional_id}' has no transaction open")
        self._abort_fencing(transaction)

    def _abort_fencing(self, transaction: Transaction) -> None:
        head = transaction.head
        epoch = _fencing_epoch(head)
        self._write_markers(transaction, epoch, False)
        now_ms = self._clock.wall_ms()
        self.store.record(
            HeadChanged(
                transaction.id, replace(head, epoch=epoch, last_epoch=-1, state=COMPLETE_ABORT, updated_ms=now_ms)
            )
        )

    def _end(self, transaction: Transaction, is_commit: bool, raises_epoch: bool) -> None:
        """Everything that a transaction's end is, in this turn: nothing here may make the ledger begin a new frame."""
        head = transaction.head
        marker_epoch = _fencing_epoch(head) if raises_epoch else head.epoch
        self._write_markers(transaction, marker_epoch, is_commit)
        if is_commit:
            self._commit_offsets(transaction)
        head = replace(
            head,
            state=COMPLETE_COMMIT if is_commit else COMPLETE_ABORT,
            raises_epochs=raises_epoch,
            updated_ms=self._clock.wall_ms(),
        )
        if raises_epoch and _is_exhausted(head.epoch):
            head = replace(
                head,
                producer_id=self._producer_ids.next(),
                epoch=0,
                previous_producer_id=head.producer_id,
                last_epoch=head.epoch,
            )
        elif raises_epoch:
            head = replace(head, epoch=marker_epoch, last_epoch=head.epoch)
        self.store.record(HeadChanged(transaction.id, head))

    def _write_markers(self, transaction: Transaction, epoch: int, is_commit: bool) -> None:
        now_ms = self._clock.wall_ms()
        self._turn.now_ms = now_ms
        marker = end_marker(transaction.head.producer_id, epoch, is_commit, now_ms, COORDINATOR_EPOCH)
        for place in transaction.partitions:
            partition = self._partition(place)
            if partition is not None:
                partition.append(marker)

    def _partition(self, place: Place) -> Partition | None:
        """The partition; None where its topic was deleted meanwhile."""
        topic = self._topics.by_name.get(place[0])
        return topic.partitions[place[1]] if topic is not None and place[1] < len(topic.partitions) else None

    def _commit_offsets(self, transaction: Transaction) -> None:
        for group, offsets in self.store.pending.of(transaction.id).items():
            present = self._groups.offsets.of(group)
            committed = []
            for (topic, number), value in offsets.items():
                known = present.get(topic, {}).get(number)
                # What was committed since, without a transaction, stays.
                if known is None or known.committed_ms <= value.committed_ms:
                    committed.append((topic, number, value))
            if committed:
                self._groups.store.record(OffsetsCommitted(group, tuple(committed)))

    # --- Time -------------------------------------------------------------------------------------------------------

    def _watch(self, transaction: Transaction) -> None:
        """Have the open transaction aborted when it takes too long."""
        if transaction.timeout is None:
            transaction.timeout = Alarm(self._clock, partial(self._timed_out, transaction))
        due_ms = transaction.head.started_ms + transaction.head.timeout_ms
        transaction.timeout.set(max(0, due_ms - self._clock.wall_ms()))

    def _timed_out(self, transaction: Transaction) -> None:
        head = transaction.head
        # The alarm is left alone when a transaction ends: most of them are short.
        if not transaction.is_ongoing:
            return
        if self._clock.wall_ms() < head.started_ms + head.timeout_ms:
            self._watch(transaction)
            return
        logger.warning("the transaction of '%s' is aborted: it took more than %d ms", transaction.id, head.timeout_ms)
        self.store.totals.timed_out_total += 1
        # Its producer is told what has become of it, and may go on in the next epoch.
        self._end(transaction, False, True)

    def expire(self) -> None:
        """Forget the transactional ids that nobody has used for long."""
        limit_ms = self._clock.wall_ms() - self._settings.id_expiry_ms
        for transaction in list(self.store.transactions.values()):
            if not transaction.is_ongoing and transaction.head.updated_ms <= limit_ms:
                self.store.record(Forgotten(transaction.id))

    # --- Recovery ---------------------------------------------------------------------------------------------------

    def restored(self) -> None:
        """All that is known has been applied: open transactions go on."""
        for transaction in self.store.transactions.values():
            if transaction.is_ongoing:
                self._watch(transaction)
        if any(self._is_orphan(*found) for found in self._open_in_partitions()):
            # Nothing can be recorded before recovery is over.
            self._clock.call_later(0, self._abort_orphans)

    def _open_in_partitions(self) -> list[tuple[Place, Partition, int]]:
        """What partitions know of open transactions: of each the producer's id."""
        return [
            ((topic.name, number), partition, producer_id)
            for topic in self._topics.by_name.values()
            for number, partition in enumerate(topic.partitions)
            if partition.transactions.unstable_count > 0
            for producer_id, producer in partition.producers.known.items()
            if producer.transaction_start >= 0
        ]

    def _is_orphan(self, place: Place, _partition: Partition, producer_id: int) -> bool:
        """Whether no transaction will end what a producer has begun in a partition: the journal's files before the
        latest ones, and the checkpoint that knew of it, are lost."""
        return not any(
            transaction.is_ongoing and transaction.head.producer_id == producer_id and place in transaction.partitions
            for transaction in self.store.transactions.values()
        )

    def _abort_orphans(self) -> None:
        now_ms = self._clock.wall_ms()
        self._turn.now_ms = now_ms
        for place, partition, producer_id in self._open_in_partitions():
            if self._is_orphan(place, partition, producer_id):
                logger.critical("a transaction in %s-%d is aborted: nothing else is known of it", *place)
                epoch = partition.producers.known[producer_id].epoch
                partition.append(end_marker(producer_id, epoch, False, now_ms, COORDINATOR_EPOCH))
        self._turn.touch()

    def clear(self) -> None:
        """The virtual host is new: no transaction of an older one with its name comes back."""
        self.store.record(Cleared())

    def stop(self) -> None:
        """The broker stops, or the virtual host is gone: nothing happens by itself any more."""
        for transaction in self.store.transactions.values():
            transaction.stop()


def _fenced(transaction: Transaction) -> ProducerFenced:
    return ProducerFenced(f"there is a newer producer with the transactional id '{transaction.id}'")


def _fencing_epoch(head: TransactionHead) -> int:
    """The epoch of a marker that shuts the producer out."""
    return min(head.epoch + 1, EPOCH_MAX)


def _has_been_ended_by(head: TransactionHead, producer: ProducerIdentity) -> bool:
    """Whether the producer asks again for the end of a transaction that has raised its epoch."""
    if head.state not in (COMPLETE_COMMIT, COMPLETE_ABORT) or not head.raises_epochs:
        return False
    if head.epoch == 0 and head.previous_producer_id == producer.producer_id:
        return producer.epoch == head.last_epoch
    return head.producer_id == producer.producer_id and head.last_epoch >= 0 and producer.epoch == head.epoch - 1


class Transactions(RecordKeeper):
    """The transactions of all virtual hosts: what they share, and how they are found again after a restart."""

    change = CHANGE_TRANSACTION

    def __init__(
        self,
        clock: Clock,
        turn: Turn,
        ledger: Ledger,
        producer_ids: ProducerIds,
        settings: TransactionSettings | None = None,
    ) -> None:
        self.settings: Final = settings or TransactionSettings()
        self.totals: Final = TransactionTotals()
        self._clock: Final = clock
        self._turn: Final = turn
        self._ledger: Final = ledger
        self._producer_ids: Final = producer_ids
        self._coordinators: Final[dict[str, TransactionCoordinator]] = {}
        self._expiry: Timer | None = None

    def add(self, vhost: str, topics: Topics, groups: GroupCoordinator) -> TransactionCoordinator:
        """The coordinator of a virtual host, without transactions."""
        store = TransactionStore(vhost, self.totals, groups.store.pending, self._turn, self._ledger)
        coordinator = self._coordinators[vhost] = TransactionCoordinator(
            store, self.settings, topics, groups, self._producer_ids, self._clock, self._turn
        )
        if self._expiry is None:
            self._expiry = self._clock.call_later(TRANSACTIONAL_ID_EXPIRY_CHECK_MS, self._expire)
        return coordinator

    def remove(self, vhost: str) -> None:
        """The virtual host is gone, and its transactions with it: records of it are passed over from now on."""
        self._coordinators.pop(vhost).store.apply(Cleared())

    def stop(self) -> None:
        """The broker stops: nothing happens by itself any more."""
        if self._expiry is not None:
            self._expiry.cancel()
        for coordinator in self._coordinators.values():
            coordinator.stop()

    def _expire(self) -> None:
        for coordinator in self._coordinators.values():
            coordinator.expire()
        self._expiry = self._clock.call_later(TRANSACTIONAL_ID_EXPIRY_CHECK_MS, self._expire)

    # --- Recovery ---------------------------------------------------------------------------------------------------

    def restore(self, payload: bytes) -> None:
        vhost, record = decode_record(payload)
        coordinator = self._coordinators.get(vhost)
        if coordinator is not None:
            coordinator.store.apply(record)

    def restored(self) -> None:
        for coordinator in self._coordinators.values():
            coordinator.restored()
        totals = self.totals
        # What was counted so far had happened before.
        totals.committed_total = totals.aborted_total = 0
        if totals.transactional_ids:
            logger.info(
                "recovered %d transactional ids, %d of them with an open transaction",
                totals.transactional_ids, totals.ongoing,
            )  # fmt: skip

    def capture(self) -> list[TransactionState]:
        return [state for coordinator in self._coordinators.values() for state in coordinator.store.capture()]
