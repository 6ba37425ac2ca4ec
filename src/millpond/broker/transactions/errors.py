"""What can be wrong with a request to a transaction. Drawn with all others in `millpond.base.errors`; a protocol turns
the `kind` into its own code."""

from __future__ import annotations

from millpond.base.errors import PeerError


class TransactionError(PeerError):
    """A request to a transaction that cannot be done."""

    kind = "transaction-error"


class InvalidTransactionalId(TransactionError):
    kind = "invalid-transactional-id"


class InvalidTransactionTimeout(TransactionError):
    kind = "invalid-transaction-timeout"


class InvalidProducerMapping(TransactionError):
    """The producer's id is not that of its transactional id."""

    kind = "invalid-producer-mapping"


class ProducerFenced(TransactionError):
    """Another producer has taken over the transactional id since, or the transaction was aborted for its timeout."""

    kind = "producer-fenced"


class InvalidTransactionState(TransactionError):
    """There is no transaction that could be ended so."""

    kind = "invalid-transaction-state"


class NotInTransaction(TransactionError):
    """What is to be part of the transaction has not been added to it: the producer must abort it."""

    kind = "not-in-transaction"


class TransactionNotFound(TransactionError):
    kind = "transaction-not-found"


class TooManyTransactions(TransactionError):
    """No room for another transactional id, or for another partition in a transaction."""

    kind = "too-many-transactions"
