"""DeleteRecords: let what lies before an offset be gone.

Behaviour: readers no longer see it, and the answer comes when that is durable; the disk gets back what whole segments
took. -1 is the end of what readers see. A topic whose cleanup.policy is compact alone is not to be cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from millpond.broker.access import Operation
from millpond.protocols.kafka.errors import (
    NONE,
    OFFSET_OUT_OF_RANGE,
    POLICY_VIOLATION,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_OR_PARTITION,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call, Connection

HIGH_WATERMARK: Final = -1


@api(21, "DeleteRecords", 0, 2)
def delete_records(call: Call, request: Any) -> None:
    topics: list[Tree] = []
    for topic in request.topics:
        partitions: list[Tree] = []
        for asked in topic.partitions:
            start, code = _cut(call.connection, topic.name, asked.partition_index, asked.offset)
            partitions.append({"partition_index": asked.partition_index, "low_watermark": start, "error_code": code})
        topics.append({"name": topic.name, "partitions": partitions})
    answer_when_durable(call, {"topics": topics})


def _cut(connection: Connection, name: str, number: int, offset: int) -> tuple[int, int]:
    """Where the partition begins now, and 0; or -1 and why not."""
    assert connection.vhost is not None
    if not connection.apis.may(connection, Operation.DELETE, name):
        return -1, TOPIC_AUTHORIZATION_FAILED
    topic = connection.vhost.topics.by_name.get(name)
    if topic is None or not 0 <= number < len(topic.partitions):
        return -1, UNKNOWN_TOPIC_OR_PARTITION
    if not topic.settings.deletes or topic.is_history:
        return -1, POLICY_VIOLATION
    partition = topic.partitions[number]
    end = int(partition.durable_end)
    if offset == HIGH_WATERMARK:
        offset = end
    if not 0 <= offset <= end:
        return -1, OFFSET_OUT_OF_RANGE
    partition.trim_before(offset)
    return int(partition.start_offset), NONE
