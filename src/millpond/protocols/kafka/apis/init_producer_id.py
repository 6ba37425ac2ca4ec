"""InitProducerId: an id by which a producer numbers what it sends, and the epoch that shuts older producers out.

Behaviour: an id is never given twice, also not after a restart: the catalog remembers which block of them is in use.
Without a transactional id, a producer that names the id and epoch it has gets a new id as well: the next epoch it can
take by itself. With one, the producer gets the next epoch of the transactional id's producer id, or a new id where no
epoch is left. A transaction that is open is aborted: Apache Kafka has the client ask again meanwhile, here it is done
when this is answered.
Versions: from 3 on a producer may name the id and epoch that it goes on from (KIP-360); from 4 on one that was shut out
is told so.
Not implemented: version 6, transactions in two phases (KIP-939).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import CLUSTER, CLUSTER_NAME, Operation
from millpond.broker.transactions.coordinator import ProducerIdentity
from millpond.protocols.kafka.errors import (
    CLUSTER_AUTHORIZATION_FAILED,
    INVALID_REQUEST,
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
)
from millpond.protocols.kafka.groups import milliseconds
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api
from millpond.protocols.kafka.transactions import answer_for_transaction, code_in, coordinator, may_use

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

_FENCED_FROM = 4


@api(22, "InitProducerId", 0, 5)
def init_producer_id(call: Call, request: Any) -> Tree | None:
    transactional_id = request.transactional_id
    if transactional_id is not None and not may_use(call, transactional_id):
        return _refused(TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
    if transactional_id is None and not call.connection.apis.may(
        call.connection, Operation.IDEMPOTENT_WRITE, CLUSTER_NAME, CLUSTER
    ):
        return _refused(CLUSTER_AUTHORIZATION_FAILED)
    producer_id = getattr(request, "producer_id", -1)
    epoch = getattr(request, "producer_epoch", -1)
    if (producer_id == -1) != (epoch == -1):
        return _refused(INVALID_REQUEST)
    if transactional_id is None:
        new_id = call.connection.broker.producer_ids.next()
        answer_when_durable(call, {"producer_id": new_id, "producer_epoch": 0})
        return None
    expected = ProducerIdentity(int(producer_id), int(epoch)) if producer_id != -1 else None
    timeout_ms = milliseconds(request.transaction_timeout)
    try:
        given = coordinator(call).begin_producer(transactional_id, timeout_ms, expected)
    except PeerError as error:
        return _refused(code_in(error, call, _FENCED_FROM))
    answer_for_transaction(call, {"producer_id": given.producer_id, "producer_epoch": given.epoch})
    return None


def _refused(code: int) -> Tree:
    return {"error_code": code, "producer_id": -1, "producer_epoch": -1}
