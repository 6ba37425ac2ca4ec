"""CreatePartitions: give topics more partitions.

Behaviour: `count` is how many a topic is to have from now on; it cannot have fewer than it has. Where the keys of
records go changes with it, and the records stay where they are.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.protocols.kafka.apis.create_topics import Refused, check_replicas
from millpond.protocols.kafka.errors import (
    INVALID_REPLICA_ASSIGNMENT,
    INVALID_REQUEST,
    NONE,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_OR_PARTITION,
    code_of,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call, Connection


@api(37, "CreatePartitions", 0, 3)
def create_partitions(call: Call, request: Any) -> None:
    counts = Counter(topic.name for topic in request.topics)
    results: dict[str, Tree] = {}
    for asked in request.topics:
        if asked.name in results:
            continue
        code, message = NONE, None
        try:
            if counts[asked.name] > 1:
                raise Refused(INVALID_REQUEST, "Duplicate topic name.")
            _grow(call.connection, asked, request.validate_only)
        except Refused as refused:
            code, message = refused.code, str(refused)
        except PeerError as error:
            code, message = code_of(error), str(error)
        results[asked.name] = {"name": asked.name, "error_code": code, "error_message": message}
    answer_when_durable(call, {"results": list(results.values())})


def _grow(connection: Connection, asked: Any, validate_only: bool) -> None:
    assert connection.vhost is not None
    topics = connection.vhost.topics
    if not connection.apis.may(connection, Operation.ALTER, asked.name):
        raise Refused(TOPIC_AUTHORIZATION_FAILED, "Topic authorization failed.")
    topic = topics.by_name.get(asked.name)
    if topic is None:
        raise Refused(UNKNOWN_TOPIC_OR_PARTITION, "This server does not host this topic-partition.")
    count = int(asked.count)
    topics.check_partitions(topic, count)
    if asked.assignments is not None:
        new = count - len(topic.partitions)
        if len(asked.assignments) != new:
            raise Refused(
                INVALID_REPLICA_ASSIGNMENT,
                f"Attempted to add {new} additional partition(s), but only {len(asked.assignments)} assignment(s) "
                "were specified.",
            )
        for assignment in asked.assignments:
            check_replicas(assignment.broker_ids)
    if not validate_only:
        topics.add_partitions(topic, count)
