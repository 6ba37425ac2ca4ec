"""WriteTxnMarkers: end a producer's transaction in partitions, as brokers tell each other in Apache Kafka.

Behaviour: what administrators have it for, with `kafka-transactions.sh abort`: the open transaction of the producer in
such a partition is aborted. Here that is the whole transaction, and its producer is shut out: none is ever left over in
one partition only. To commit so is refused, as only the producer knows whether all of it is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.broker.access import CLUSTER, CLUSTER_NAME, Operation
from millpond.protocols.kafka.errors import (
    CLUSTER_AUTHORIZATION_FAILED,
    INVALID_PRODUCER_EPOCH,
    INVALID_REQUEST,
    NONE,
    UNKNOWN_TOPIC_OR_PARTITION,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api
from millpond.protocols.kafka.transactions import answer_for_transaction, coordinator

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(27, "WriteTxnMarkers", 1, 1)
def write_txn_markers(call: Call, request: Any) -> Tree | None:
    connection = call.connection
    is_allowed = any(
        connection.apis.may(connection, operation, CLUSTER_NAME, CLUSTER)
        for operation in (Operation.ALTER, Operation.CLUSTER_ACTION)
    )
    markers: list[Tree] = []
    for marker in request.markers:
        topics: list[Tree] = []
        for topic in marker.topics:
            codes = [
                _ended(call, marker, topic.name, number) if is_allowed else CLUSTER_AUTHORIZATION_FAILED
                for number in topic.partition_indexes
            ]
            partitions = [
                {"partition_index": number, "error_code": code}
                for number, code in zip(topic.partition_indexes, codes, strict=True)
            ]
            topics.append({"name": topic.name, "partitions": partitions})
        markers.append({"producer_id": marker.producer_id, "topics": topics})
    answer_for_transaction(call, {"markers": markers})
    return None


def _ended(call: Call, marker: Any, name: str, number: int) -> int:
    vhost = call.connection.vhost
    assert vhost is not None
    topic = vhost.topics.by_name.get(name)
    if topic is None or not 0 <= number < len(topic.partitions):
        return UNKNOWN_TOPIC_OR_PARTITION
    if marker.transaction_result:
        return INVALID_REQUEST
    for transaction in list(coordinator(call).all()):
        head = transaction.head
        is_meant = transaction.is_ongoing and head.producer_id == marker.producer_id
        if is_meant and (name, number) in transaction.partitions:
            if marker.producer_epoch < head.epoch:
                return INVALID_PRODUCER_EPOCH
            coordinator(call).abort(transaction.id)
    # One that is over already, for this or another partition of the request, needs no marker.
    return NONE
