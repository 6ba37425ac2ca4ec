"""What the APIs of consumer groups share."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import PeerError
from millpond.broker.access import GROUP, Operation
from millpond.protocols.kafka.apis.list_offsets import find_partition
from millpond.protocols.kafka.errors import NONE, code_of
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer

if TYPE_CHECKING:
    from millpond.broker.groups.coordinator import GroupCoordinator
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


def by_topic(topics: Any, codes: dict[tuple[str, int], int]) -> list[Tree]:
    """The answer for partitions that were asked for: each with its code."""
    return [
        {
            "name": topic.name,
            "partitions": [
                {
                    "partition_index": partition.partition_index,
                    "error_code": codes.get((topic.name, partition.partition_index), NONE),
                }
                for partition in topic.partitions
            ],
        }
        for topic in topics
    ]
