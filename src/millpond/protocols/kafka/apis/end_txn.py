"""EndTxn: commit or abort a producer's transaction.

Behaviour: answered when markers in all partitions, the groups' offsets and the transaction's new state are durable, all
of them at once.
Versions: from 2 on a producer that was shut out is told so; from 5 on the answer has the producer's next epoch, or its
next id where there is none left (KIP-890).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.protocols.kafka.errors import TRANSACTIONAL_ID_AUTHORIZATION_FAILED
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api
from millpond.protocols.kafka.transactions import answer_for_transaction, code_in, coordinator, identity, may_use

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

_FENCED_FROM = 2
_RAISES_EPOCH_FROM = 5


@api(26, "EndTxn", 0, 5)
def end_txn(call: Call, request: Any) -> Tree | None:
    transactional_id = request.transactional_id
    if not may_use(call, transactional_id):
        return {"error_code": TRANSACTIONAL_ID_AUTHORIZATION_FAILED}
    tree: dict[str, object]
    try:
        following = coordinator(call).end(
            transactional_id, identity(request), request.committed, call.version >= _RAISES_EPOCH_FROM
        )
        tree = {"producer_id": following.producer_id, "producer_epoch": following.epoch}
    except PeerError as error:
        tree = {"error_code": code_in(error, call, _FENCED_FROM)}
    answer_for_transaction(call, tree)
    return None
