"""ListTransactions: the transactional ids of the virtual host.

Behaviour: those that the user may know of, in some states only, or of some producers. States that are not known are
told.
Versions: from 1 on those whose transaction began longer ago than so many milliseconds; from 2 on those whose whole id a
regular expression matches, in RE2's syntax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.broker.groups.errors import InvalidPattern
from millpond.broker.groups.subscription_pattern import compiled
from millpond.broker.transactions.records import STATES
from millpond.protocols.kafka.errors import code_of
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api
from millpond.protocols.kafka.transactions import answer_for_transaction, coordinator, may_see

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

# States in which Apache Kafka has transactions too, but never here.
_OTHER_STATES = frozenset({"PrepareCommit", "PrepareAbort", "PrepareEpochFence", "Dead"})


@api(66, "ListTransactions", 0, 2)
def list_transactions(call: Call, request: Any) -> Tree | None:
    states, producers = set(request.state_filters), set(request.producer_id_filters)
    duration_ms = getattr(request, "duration_filter", -1)
    pattern = getattr(request, "transactional_id_pattern", None)
    try:
        matches = compiled(pattern).fullmatch if pattern else None
    except InvalidPattern as error:
        return {"error_code": code_of(error), "unknown_state_filters": [], "transaction_states": []}
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
        if matches is not None and matches(transaction.id) is None:
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
