"""OffsetForLeaderEpoch: where an epoch of a partition's leader ended, by which a reader finds out whether what it has
read is still so.

Behaviour: there is one epoch, 0, that never ends: its end is the end of what readers see. Of a later one nothing is
known, and is answered as Kafka does, without an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.protocols.kafka.apis.metadata import LEADER_EPOCH
from millpond.protocols.kafka.errors import (
    NONE,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_LEADER_EPOCH,
    UNKNOWN_TOPIC_OR_PARTITION,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call, Connection


@api(23, "OffsetForLeaderEpoch", 2, 4)
def offset_for_leader_epoch(call: Call, request: Any) -> Tree:
    return {
        "topics": [
            {
                "topic": topic.topic,
                "partitions": [_end(call.connection, topic.topic, asked) for asked in topic.partitions],
            }
            for topic in request.topics
        ]
    }


def _end(connection: Connection, name: str, asked: Any) -> Tree:
    assert connection.vhost is not None
    number = asked.partition
    topic = connection.vhost.topics.by_name.get(name)
    code = NONE
    if not connection.apis.may_see(connection, name):
        code = TOPIC_AUTHORIZATION_FAILED
    elif topic is None or not 0 <= number < len(topic.partitions):
        code = UNKNOWN_TOPIC_OR_PARTITION
    elif asked.current_leader_epoch > LEADER_EPOCH:
        code = UNKNOWN_LEADER_EPOCH
    if code != NONE or topic is None:
        return {"partition": number, "error_code": code, "leader_epoch": -1, "end_offset": -1}
    if asked.leader_epoch != LEADER_EPOCH:
        return {"partition": number, "leader_epoch": -1, "end_offset": -1}
    end = int(topic.partitions[number].durable_end)
    return {"partition": number, "leader_epoch": LEADER_EPOCH, "end_offset": end}
