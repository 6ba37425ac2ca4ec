"""ListTransactions: the transactional ids of the virtual host.

Behaviour: those that the user may know of, in some states only, or of some producers. States that are not known are
told.
Versions: from 1 on those whose transaction began longer ago than so many milliseconds.
Not implemented: regular expressions (2). Python's may take for ever, and these come from any client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.broker.transactions.records import STATES
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api
from millpond.protocols.kafka.transactions import answer_for_transaction, coordinator, may_see

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

# States in which Apache Kafka has transactions too, but never here.
_OTHER_STATES = frozenset({"PrepareCommit", "PrepareAbort", "PrepareEpochFence", "Dead"})


@api(66, "ListTransactions", 0, 1)
def list_transactions(call: Call, request: Any) -> Tree | None:
    states, producers = set(request.state_filters), set(request.producer_id_filters)
    duration_ms = getattr(request, "duration_filter", -1)
    now_ms = call.connection.broker.clock.wall_ms()
    found: list[Tree] = []
    for transaction in coordinator(call).all():
        head = transaction.head
        if states and head.state not in states:
            continue
        if producers and head.producer_id not in producers:
            continue
        if duration_ms >= 0 and now_ms - head.started_ms <= duration_ms:
            continue
        if may_see(call, transaction.id):
            found.append(
                {
                    "transactional_id": transaction.id,
                    "producer_id": head.producer_id,
                    "transaction_state": head.state,
                }
            )
    unknown = sorted(states - set(STATES) - _OTHER_STATES)
    answer_for_transaction(call, {"unknown_state_filters": unknown, "transaction_states": found})
    return None
