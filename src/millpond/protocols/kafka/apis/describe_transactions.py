"""DescribeTransactions: how transactional ids stand.

Behaviour: each with its producer, its state, and of an open transaction the partitions, as far as the user may know of
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.protocols.kafka.errors import INVALID_REQUEST, TRANSACTIONAL_ID_AUTHORIZATION_FAILED, code_of
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api
from millpond.protocols.kafka.transactions import answer_for_transaction, coordinator, may_see

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(65, "DescribeTransactions", 0, 0)
def describe_transactions(call: Call, request: Any) -> None:
    states = [_described(call, transactional_id) for transactional_id in request.transactional_ids]
    answer_for_transaction(call, {"transaction_states": states})


def _described(call: Call, transactional_id: str) -> Tree:
    if not may_see(call, transactional_id):
        return _refused(transactional_id, TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
    if not transactional_id:
        return _refused(transactional_id, INVALID_REQUEST)
    try:
        transaction = coordinator(call).find(transactional_id)
    except PeerError as error:
        return _refused(transactional_id, code_of(error))
    connection = call.connection
    topics: dict[str, list[int]] = {}
    for topic, number in transaction.partitions:
        topics.setdefault(topic, []).append(number)
    head = transaction.head
    return {
        "transactional_id": transactional_id,
        "transaction_state": head.state,
        "transaction_timeout": head.timeout_ms,
        "transaction_start_time": head.started_ms,
        "producer_id": head.producer_id,
        "producer_epoch": head.epoch,
        "topics": [
            {"topic": name, "partitions": numbers}
            for name, numbers in topics.items()
            if connection.apis.may_see(connection, name)
        ],
    }


def _refused(transactional_id: str, code: int) -> Tree:
    return {
        "transactional_id": transactional_id,
        "error_code": code,
        "transaction_start_time": 0,
        "topics": [],
    }
