"""What the APIs of transactions share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millpond.base.errors import PeerError
from millpond.broker.access import TRANSACTIONAL_ID, Operation
from millpond.broker.transactions.coordinator import ProducerIdentity
from millpond.protocols.kafka.errors import (
    INVALID_PRODUCER_EPOCH,
    INVALID_TXN_STATE,
    PRODUCER_FENCED,
    TRANSACTION_ABORTABLE,
    code_of,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer

if TYPE_CHECKING:
    from millpond.broker.transactions.coordinator import TransactionCoordinator
    from millpond.protocols.kafka.connection import Call


def coordinator(call: Call) -> TransactionCoordinator:
    """The coordinator of the transactions that this client sees."""
    vhost = call.connection.vhost
    assert vhost is not None
    return vhost.transactions


def answer_for_transaction(call: Call, tree: Tree) -> None:
    """Answer when all that the answer may speak of is durable."""
    answer(call, tree, coordinator(call).sequence)


def may_use(call: Call, transactional_id: str) -> bool:
    """Whether the client may be a producer with this transactional id."""
    return call.connection.apis.may(call.connection, Operation.WRITE, transactional_id, TRANSACTIONAL_ID)


def may_see(call: Call, transactional_id: str) -> bool:
    """Whether the client may know of it."""
    return call.connection.apis.may(call.connection, Operation.DESCRIBE, transactional_id, TRANSACTIONAL_ID)


def identity(request: object) -> ProducerIdentity:
    """The producer that a request names."""
    producer_id, epoch = request.producer_id, request.producer_epoch  # type: ignore[attr-defined]
    return ProducerIdentity(int(producer_id), int(epoch))


def code_in(error: PeerError, call: Call, fenced_from: int) -> int:
    """The code of an error. Clients of versions before `fenced_from` know a fenced producer as one of an old epoch."""
    code = code_of(error)
    return INVALID_PRODUCER_EPOCH if code == PRODUCER_FENCED and call.version < fenced_from else code


def code_for_data(error: PeerError, abortable: bool) -> int:
    """The code where a producer brings records or offsets. `abortable` says that it knows errors for which it is to
    abort its transaction and may go on then."""
    code = code_of(error)
    if code == PRODUCER_FENCED:
        return INVALID_PRODUCER_EPOCH
    return INVALID_TXN_STATE if code == TRANSACTION_ABORTABLE and not abortable else code
