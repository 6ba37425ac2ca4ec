"""What the APIs of consumer groups share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import PeerError
from millpond.broker.access import GROUP, Operation
from millpond.broker.groups.errors import GroupNotFound
from millpond.protocols.kafka.apis.list_offsets import find_partition
from millpond.protocols.kafka.authorized_operations import operations_on_group
from millpond.protocols.kafka.errors import (
    GROUP_AUTHORIZATION_FAILED,
    NONE,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_ID,
    code_of,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer

if TYPE_CHECKING:
    from millpond.broker.groups.coordinator import GroupCoordinator
    from millpond.broker.groups.group import Group
    from millpond.broker.groups.modern import ModernGroup
    from millpond.broker.groups.modern_records import Assignment
    from millpond.broker.groups.modern_requests import MemberAnswer
    from millpond.protocols.kafka.connection import Call

_MILLISECOND: Final = dt.timedelta(milliseconds=1)


def coordinator(call: Call) -> GroupCoordinator:
    """The coordinator of the groups that this client sees."""
    vhost = call.connection.vhost
    assert vhost is not None
    return vhost.groups


def may_use_group(call: Call, operation: Operation, group_id: str) -> bool:
    """Whether the connection's user may do this to a group."""
    return call.connection.apis.may(call.connection, operation, group_id, GROUP)


def answer_for_group(call: Call, tree: Tree) -> None:
    """Answer when all that the answer may speak of is durable."""
    answer(call, tree, coordinator(call).sequence)


def error_code(error: PeerError | None) -> int:
    return NONE if error is None else code_of(error)


def milliseconds(duration: dt.timedelta) -> int:
    return duration // _MILLISECOND


def partition_error(call: Call, topic: str, partition: int) -> int:
    """Why this client cannot have an offset in a partition; NONE where it can."""
    return find_partition(call.connection, topic, partition)[1]


def topic_names(call: Call, topics: Any) -> list[str | None]:
    """What the topics of a request are called, which newer versions of it tell by their ids; None for one that is not
    there."""
    if call.version < 10:
        return [topic.name for topic in topics]
    known = coordinator(call).topics
    return [None if topic.topic_id is None else known.name(topic.topic_id.bytes) for topic in topics]


def by_topic(topics: Any, names: list[str | None], codes: dict[tuple[str, int], int]) -> list[Tree]:
    """The answer for partitions that were asked for: each with its code."""
    return [
        {
            "name": name or "",
            "topic_id": _topic_id(topic),
            "partitions": [
                {
                    "partition_index": partition.partition_index,
                    "error_code": UNKNOWN_TOPIC_ID
                    if name is None
                    else codes.get((name, partition.partition_index), NONE),
                }
                for partition in topic.partitions
            ],
        }
        for topic, name in zip(topics, names, strict=True)
    ]


def _topic_id(topic: Any) -> bytes | None:
    found = getattr(topic, "topic_id", None)
    return None if found is None else found.bytes


def told_member(answer: MemberAnswer) -> Tree:
    """The answer to a heartbeat of a group whose assignment the broker decides."""
    tree: dict[str, object] = {
        "member_id": answer.member_id,
        "member_epoch": answer.epoch,
        "heartbeat_interval": answer.heartbeat_interval_ms,
    }
    if answer.assigned is not None:
        tree["assignment"] = {
            "topic_partitions": [
                {"topic_id": topic_id, "partitions": sorted(partitions)}
                for topic_id, partitions in answer.assigned.items()
            ]
        }
    return tree


def why_no_member(call: Call, group_id: str, topics: Iterable[str] | None) -> int:
    """Why the client may not be in the group, subscribed to these topics; NONE where it may."""
    connection = call.connection
    if not may_use_group(call, Operation.READ, group_id):
        return GROUP_AUTHORIZATION_FAILED
    if any(not connection.apis.may_see(connection, topic) for topic in topics or ()):
        return TOPIC_AUTHORIZATION_FAILED
    return NONE


def told_error(error: PeerError) -> Tree:
    """The answer to a heartbeat that was refused."""
    return {"error_code": code_of(error), "error_message": str(error)}


def placed(call: Call, assignment: Assignment) -> Tree:
    """Partitions as operators are told of them: with the names of their topics, of those that are there."""
    topics = coordinator(call).topics
    return {
        "topic_partitions": [
            {"topic_id": topic_id, "topic_name": name, "partitions": sorted(partitions)}
            for topic_id, partitions in assignment.items()
            if (name := topics.name(topic_id)) is not None
        ]
    }


def _topics_of(call: Call, modern: ModernGroup) -> set[str]:
    """The names that a description of the group tells: what its members subscribe to, have, and are to have."""
    names: set[str] = set()
    ids: set[bytes] = set()
    for member in modern.members.values():
        names.update(member.state.topics)
        ids.update(member.current.assigned, modern.target(member.state.member_id))
    topics = coordinator(call).topics
    return names.union(name for topic_id in ids if (name := topics.name(topic_id)) is not None)


def described_modern(
    call: Call, request: Any, group_type: str, told: Callable[[Call, Group, ModernGroup], dict[str, object]]
) -> list[Tree]:
    """What operators are told of groups of a type; `told` adds what only this type has."""
    return [
        _described_modern(call, request, group_id, group_type, told) for group_id in dict.fromkeys(request.group_ids)
    ]


def _described_modern(
    call: Call,
    request: Any,
    group_id: str,
    group_type: str,
    told: Callable[[Call, Group, ModernGroup], dict[str, object]],
) -> Tree:
    connection = call.connection
    if not connection.apis.may(connection, Operation.DESCRIBE, group_id, "group"):
        return {"group_id": group_id, "error_code": GROUP_AUTHORIZATION_FAILED}
    try:
        group = coordinator(call).group(group_id)
        if group.modern is None or group.type != group_type:
            raise GroupNotFound(f"Group {group_id} is not a {group_type} group.")
    except PeerError as error:
        return {"group_id": group_id, **told_error(error)}
    # Apache Kafka's rule: there is no telling of a group without the topics of its members.
    if any(not connection.apis.may_see(connection, topic) for topic in _topics_of(call, group.modern)):
        return {
            "group_id": group_id,
            "error_code": TOPIC_AUTHORIZATION_FAILED,
            "error_message": "The group has described topic(s) that the client is not authorized to describe.",
        }
    head = group.modern.head
    tree: dict[str, object] = {
        "group_id": group_id,
        "group_state": group.state,
        "group_epoch": head.epoch,
        "assignment_epoch": head.assignment_epoch,
        **told(call, group, group.modern),
    }
    if request.include_authorized_operations:
        tree["authorized_operations"] = operations_on_group(connection, group_id)
    return tree
