"""InitProducerId: an id by which an idempotent producer numbers what it sends.

Behaviour: an id is never given twice, also not after a restart: the catalog remembers which block of them is in use.
A producer that names the id and epoch it has gets a new id as well: the next epoch it can take by itself, and only
those with transactions are given it (KIP-360).
Not implemented: transactions. Who names a transactional id is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.broker.access import CLUSTER, CLUSTER_NAME, Operation
from millpond.protocols.kafka.errors import (
    CLUSTER_AUTHORIZATION_FAILED,
    INVALID_REQUEST,
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(22, "InitProducerId", 0, 5)
def init_producer_id(call: Call, request: Any) -> Tree | None:
    if request.transactional_id is not None:
        return {
            "error_code": TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "producer_id": -1, "producer_epoch": -1,
        }  # fmt: skip
    apis = call.connection.apis
    if not apis.may(call.connection, Operation.IDEMPOTENT_WRITE, CLUSTER_NAME, CLUSTER):
        return {"error_code": CLUSTER_AUTHORIZATION_FAILED, "producer_id": -1, "producer_epoch": -1}
    producer_id = getattr(request, "producer_id", -1)
    epoch = getattr(request, "producer_epoch", -1)
    if (producer_id == -1) != (epoch == -1):
        return {"error_code": INVALID_REQUEST, "producer_id": -1, "producer_epoch": -1}
    new_id = call.connection.broker.producer_ids.next()
    answer_when_durable(call, {"producer_id": new_id, "producer_epoch": 0})
    return None
