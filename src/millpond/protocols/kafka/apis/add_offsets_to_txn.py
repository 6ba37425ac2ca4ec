"""AddOffsetsToTxn: a producer is about to commit offsets of this group in its transaction.

Behaviour: it begins the transaction if none is open. The group need not exist.
Versions: from 2 on a producer that was shut out is told so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.protocols.kafka.errors import (
    GROUP_AUTHORIZATION_FAILED,
    NONE,
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api
from millpond.protocols.kafka.transactions import answer_for_transaction, code_in, coordinator, identity, may_use

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

_FENCED_FROM = 2


@api(25, "AddOffsetsToTxn", 0, 4)
def add_offsets_to_txn(call: Call, request: Any) -> Tree | None:
    connection = call.connection
    if not may_use(call, request.transactional_id):
        return {"error_code": TRANSACTIONAL_ID_AUTHORIZATION_FAILED}
    if not connection.apis.may(connection, Operation.READ, request.group_id, "group"):
        return {"error_code": GROUP_AUTHORIZATION_FAILED}
    code = NONE
    try:
        coordinator(call).add_group(request.transactional_id, identity(request), request.group_id)
    except PeerError as error:
        code = code_in(error, call, _FENCED_FROM)
    answer_for_transaction(call, {"error_code": code})
    return None
