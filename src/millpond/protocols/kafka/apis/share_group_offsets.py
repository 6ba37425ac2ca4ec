"""DescribeShareGroupOffsets, AlterShareGroupOffsets, DeleteShareGroupOffsets: where share groups begin to read.

Behaviour: of each partition the first offset that is not settled (the share-partition's start offset) is told, -1 where
the group has not begun. It can be set, also backwards, and forgotten, while the group has no members; what had become
of its records is then forgotten too. Topics that the user may not read are refused, or left out where all are asked
for.
Versions: DescribeShareGroupOffsets 1 tells the lag as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.broker.groups.errors import GroupNotEmpty, GroupNotFound
from millpond.protocols.kafka.errors import (
    GROUP_AUTHORIZATION_FAILED,
    NONE,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_OR_PARTITION,
    code_of,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api
from millpond.protocols.kafka.share_groups import shares_of

if TYPE_CHECKING:
    from millpond.broker.shares.coordinator import ShareGroup
    from millpond.broker.streams.topic import Topic
    from millpond.protocols.kafka.connection import Call

_LEADER_EPOCH = 0
_UNKNOWN = "This server does not host this topic-partition."
_NOT_ALLOWED = "Topic authorization failed."


@api(90, "DescribeShareGroupOffsets", 0, 1)
def describe_share_group_offsets(call: Call, request: Any) -> None:
    answer_when_durable(call, {"groups": [_described(call, asked) for asked in request.groups]})


def _described(call: Call, asked: Any) -> Tree:
    connection = call.connection
    group_id = asked.group_id
    if not connection.apis.may(connection, Operation.DESCRIBE, group_id, "group"):
        return {
            "group_id": group_id,
            "error_code": GROUP_AUTHORIZATION_FAILED,
            "error_message": "Group authorization failed.",
        }
    group = shares_of(call).groups.get(group_id)
    topics: list[Tree] = []
    if asked.topics is None:
        if group is None and not _is_group(call, group_id):
            error = GroupNotFound(f"Group {group_id} not found.")
            return {"group_id": group_id, "error_code": code_of(error), "error_message": str(error)}
        topics = [
            _of_topic(group, topic, [place[1] for place in group.partitions if place[0] == topic.id])
            for topic in (_topics_of(group) if group is not None else ())
            if group is not None and connection.apis.may_see(connection, topic.name)
        ]
        return {"group_id": group_id, "topics": topics}
    for wanted in asked.topics:
        topic = _topic(call, wanted.topic_name)
        if topic is None or not connection.apis.may_see(connection, wanted.topic_name):
            is_allowed = connection.apis.may_see(connection, wanted.topic_name)
            code = UNKNOWN_TOPIC_OR_PARTITION if is_allowed else TOPIC_AUTHORIZATION_FAILED
            refused = {
                "start_offset": -1,
                "error_code": code,
                "error_message": _UNKNOWN if is_allowed else _NOT_ALLOWED,
            }
            partitions = [{"partition_index": number, **refused} for number in wanted.partitions]
            topics.append({"topic_name": wanted.topic_name, "partitions": partitions})
        else:
            topics.append(_of_topic(group, topic, wanted.partitions))
    return {"group_id": group_id, "topics": topics}


def _of_topic(group: ShareGroup | None, topic: Topic, numbers: Any) -> Tree:
    partitions: list[Tree] = []
    for number in sorted(numbers):
        found = group.partitions.get((topic.id, number)) if group is not None else None
        entry: dict[str, object] = {"partition_index": number, "start_offset": -1, "lag": -1}
        if found is not None and found.state is not None:
            entry.update(start_offset=found.start, lag=found.lag, leader_epoch=_LEADER_EPOCH)
        elif not 0 <= number < len(topic.partitions):
            entry.update(error_code=UNKNOWN_TOPIC_OR_PARTITION, error_message=_UNKNOWN)
        partitions.append(entry)
    return {"topic_name": topic.name, "topic_id": topic.id, "partitions": partitions}


def _topics_of(group: ShareGroup) -> list[Topic]:
    topics = {partition.topic.id: partition.topic for partition in group.partitions.values()}
    return list(topics.values())


def _topic(call: Call, name: str) -> Topic | None:
    vhost = call.connection.vhost
    assert vhost is not None
    return vhost.topics.by_name.get(name)


def _is_group(call: Call, group_id: str) -> bool:
    vhost = call.connection.vhost
    assert vhost is not None
    return group_id in vhost.groups.store.groups or group_id in vhost.shares.groups


def _check_idle(call: Call, group_id: str) -> None:
    """GroupNotFound, or GroupNotEmpty where somebody reads."""
    vhost = call.connection.vhost
    assert vhost is not None
    if not _is_group(call, group_id):
        raise GroupNotFound(f"Group {group_id} not found.")
    group = vhost.groups.store.groups.get(group_id)
    if (group is not None and not group.is_empty) or vhost.shares.is_read(group_id):
        raise GroupNotEmpty(f"Group {group_id} is not empty.")


@api(91, "AlterShareGroupOffsets", 0, 0)
def alter_share_group_offsets(call: Call, request: Any) -> Tree | None:
    connection, group_id, shares = call.connection, request.group_id, shares_of(call)
    if not connection.apis.may(connection, Operation.READ, group_id, "group"):
        return {"error_code": GROUP_AUTHORIZATION_FAILED}
    try:
        _check_idle(call, group_id)
        group = shares.opened(group_id)
    except PeerError as error:
        return {"error_code": code_of(error), "error_message": str(error)}
    responses: list[Tree] = []
    for wanted in request.topics:
        topic = _topic(call, wanted.topic_name)
        is_allowed = connection.apis.may_read(connection, wanted.topic_name)
        partitions: list[Tree] = []
        for asked in wanted.partitions:
            number, code, message = asked.partition_index, NONE, None
            if not is_allowed:
                code, message = TOPIC_AUTHORIZATION_FAILED, _NOT_ALLOWED
            elif topic is None or not 0 <= number < len(topic.partitions):
                code, message = UNKNOWN_TOPIC_OR_PARTITION, _UNKNOWN
            else:
                try:
                    _move(group, topic, number, asked.start_offset)
                except PeerError as error:
                    code, message = code_of(error), str(error)
            partitions.append({"partition_index": number, "error_code": code, "error_message": message})
        responses.append(
            {
                "topic_name": wanted.topic_name,
                "topic_id": topic.id if topic is not None else None,
                "partitions": partitions,
            }
        )
    answer_when_durable(call, {"responses": responses})
    return None


def _move(group: ShareGroup, topic: Topic, number: int, offset: int) -> None:
    partition = topic.partitions[number]
    offset = min(max(offset, int(partition.start_offset)), int(partition.end_offset))
    group.shares.place(group, topic, number).begin_at(offset)


@api(92, "DeleteShareGroupOffsets", 0, 0)
def delete_share_group_offsets(call: Call, request: Any) -> Tree | None:
    connection, group_id, shares = call.connection, request.group_id, shares_of(call)
    if not connection.apis.may(connection, Operation.DELETE, group_id, "group"):
        return {"error_code": GROUP_AUTHORIZATION_FAILED}
    try:
        _check_idle(call, group_id)
    except PeerError as error:
        return {"error_code": code_of(error), "error_message": str(error)}
    group = shares.groups.get(group_id)
    responses: list[Tree] = []
    for wanted in request.topics:
        topic = _topic(call, wanted.topic_name)
        code, message = NONE, None
        if not connection.apis.may_read(connection, wanted.topic_name):
            code, message = TOPIC_AUTHORIZATION_FAILED, _NOT_ALLOWED
        elif topic is None:
            code, message = UNKNOWN_TOPIC_OR_PARTITION, _UNKNOWN
        elif group is not None:
            shares.delete_topic(group, topic)
        responses.append(
            {
                "topic_name": wanted.topic_name,
                "topic_id": topic.id if topic is not None else None,
                "error_code": code,
                "error_message": message,
            }
        )
    answer_when_durable(call, {"responses": responses})
    return None
