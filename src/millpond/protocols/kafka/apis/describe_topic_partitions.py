"""DescribeTopicPartitions: topics with their partitions, so many at a time.

Behaviour: topics in the order of their names, all or those that are asked for, from the cursor on. Where more
partitions are to be told than the limit, the answer has the cursor from which the next request goes on. What the
user is authorized to do is told of each topic (KIP-430).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.base.limits import KAFKA_PARTITIONS_DESCRIBED_MAX
from millpond.broker.streams.topics import check_topic_name
from millpond.protocols.kafka.apis.metadata import described
from millpond.protocols.kafka.authorized_operations import operations_on_topic
from millpond.protocols.kafka.errors import (
    INVALID_REQUEST,
    INVALID_TOPIC_EXCEPTION,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_OR_PARTITION,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(75, "DescribeTopicPartitions", 0, 0)
def describe_topic_partitions(call: Call, request: Any) -> Tree:
    connection = call.connection
    assert connection.vhost is not None
    topics = {topic.name: topic for topic in connection.vhost.topics.known_to_kafka()}
    cursor = request.cursor
    first, index = ("", 0) if cursor is None else (cursor.topic_name, int(cursor.partition_index))
    asked = {topic.name for topic in request.topics}
    if cursor is not None and (index < 0 or (asked and first not in asked)):
        # There is no field for an error of the whole: Kafka tells it of each topic.
        return {"topics": [{"error_code": INVALID_REQUEST, "name": name} for name in sorted(asked)]}
    room = max(1, min(int(request.response_partition_limit), KAFKA_PARTITIONS_DESCRIBED_MAX))
    found: list[Tree] = []
    for name in sorted(name for name in asked or topics if name >= first):
        if not connection.apis.may_see(connection, name):
            if asked:
                found.append({"error_code": TOPIC_AUTHORIZATION_FAILED, "name": name})
            continue
        if name not in topics:
            # It was asked for, or has been the cursor's and is gone.
            found.append({"error_code": _missing(name), "name": name})
            continue
        start = index if name == first else 0
        count = len(topics[name].partitions)
        if room == 0:
            return {"topics": found, "next_cursor": {"topic_name": name, "partition_index": start}}
        end = min(count, start + room)
        operations = operations_on_topic(connection, name)
        found.append({**described(topics[name], start, end), "topic_authorized_operations": operations})
        room -= max(0, end - start)
        if end < count:
            return {"topics": found, "next_cursor": {"topic_name": name, "partition_index": end}}
    return {"topics": found}


def _missing(name: str) -> int:
    try:
        check_topic_name(name)
    except PeerError:
        return INVALID_TOPIC_EXCEPTION
    return UNKNOWN_TOPIC_OR_PARTITION
