"""AddPartitionsToTxn: a producer is about to write to these partitions in its transaction.

Behaviour: the first of them begins the transaction. If one cannot be added, none is.
Versions: from 2 on a producer that was shut out is told so. From 4 on it is a broker's request for several
transactions, with which it may only ask whether partitions have been added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import CLUSTER, CLUSTER_NAME, Operation
from millpond.broker.transactions.coordinator import ProducerIdentity
from millpond.protocols.kafka.errors import (
    CLUSTER_AUTHORIZATION_FAILED,
    NONE,
    OPERATION_NOT_ATTEMPTED,
    TOPIC_AUTHORIZATION_FAILED,
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_OR_PARTITION,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api
from millpond.protocols.kafka.transactions import answer_for_transaction, code_in, coordinator, identity, may_use

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

_FENCED_FROM = 2
_BATCHED_FROM = 4

Places = list[tuple[str, int]]


@api(24, "AddPartitionsToTxn", 0, 5)
def add_partitions_to_txn(call: Call, request: Any) -> Tree | None:
    if call.version >= _BATCHED_FROM:
        return _add_batched(call, request)
    transactional_id = request.v3_and_below_transactional_id
    producer = ProducerIdentity(int(request.v3_and_below_producer_id), int(request.v3_and_below_producer_epoch))
    places = _places(request.v3_and_below_topics)
    codes: dict[tuple[str, int], int] = {}
    if not may_use(call, transactional_id):
        codes = dict.fromkeys(places, TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
    else:
        codes = _impossible(call, places)
        if not codes:
            codes = dict.fromkeys(places, _added(call, transactional_id, producer, places))
    tree = {"results_by_topic_v3_and_below": _by_topic(request.v3_and_below_topics, codes)}
    answer_for_transaction(call, tree)
    return None


def _add_batched(call: Call, request: Any) -> Tree | None:
    connection = call.connection
    allowed_to = (Operation.CLUSTER_ACTION, Operation.ALTER)
    # There are no other brokers here: whoever may change the cluster may try this.
    if not any(connection.apis.may(connection, operation, CLUSTER_NAME, CLUSTER) for operation in allowed_to):
        return {"error_code": CLUSTER_AUTHORIZATION_FAILED, "results_by_transaction": []}
    results: list[Tree] = []
    for asked in request.transactions:
        transactional_id, producer, places = asked.transactional_id, identity(asked), _places(asked.topics)
        codes = _impossible(call, places)
        if not codes and asked.verify_only:
            codes = {place: _verified(call, transactional_id, producer, place) for place in places}
        elif not codes:
            codes = dict.fromkeys(places, _added(call, transactional_id, producer, places))
        results.append({"transactional_id": transactional_id, "topic_results": _by_topic(asked.topics, codes)})
    answer_for_transaction(call, {"results_by_transaction": results})
    return None


def _places(topics: Any) -> Places:
    return [(topic.name, number) for topic in topics for number in topic.partitions]


def _impossible(call: Call, places: Places) -> dict[tuple[str, int], int]:
    """The codes of all partitions where one of them cannot be written to; empty where none is like that."""
    connection = call.connection
    assert connection.vhost is not None
    topics = connection.vhost.topics.by_name
    codes: dict[tuple[str, int], int] = {}
    allowed: dict[str, bool] = {}
    for name, number in places:
        if name not in allowed:
            allowed[name] = connection.apis.may_write(connection, name)
        topic = topics.get(name)
        if not allowed[name]:
            codes[name, number] = TOPIC_AUTHORIZATION_FAILED
        elif topic is None or not 0 <= number < len(topic.partitions):
            codes[name, number] = UNKNOWN_TOPIC_OR_PARTITION
    return {**dict.fromkeys(places, OPERATION_NOT_ATTEMPTED), **codes} if codes else {}


def _added(call: Call, transactional_id: str, producer: ProducerIdentity, places: Places) -> int:
    try:
        coordinator(call).add_partitions(transactional_id, producer, places)
    except PeerError as error:
        return code_in(error, call, _FENCED_FROM)
    return NONE


def _verified(call: Call, transactional_id: str, producer: ProducerIdentity, place: tuple[str, int]) -> int:
    try:
        coordinator(call).check_partition(transactional_id, producer, place)
    except PeerError as error:
        return code_in(error, call, _FENCED_FROM)
    return NONE


def _by_topic(topics: Any, codes: dict[tuple[str, int], int]) -> list[Tree]:
    return [
        {
            "name": topic.name,
            "results_by_partition": [
                {"partition_index": number, "partition_error_code": codes[topic.name, number]}
                for number in topic.partitions
            ],
        }
        for topic in topics
    ]
