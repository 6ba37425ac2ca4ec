"""OffsetFetch: how far groups have come.

Behaviour: -1 for a partition that the group has no offset of, and for every one of a group that is not there. Topics
that the user may not read are refused where they are named, and left out where all are asked for.
Versions: from 2 on no topics at all means every one; from 8 on for several groups.
Not implemented: version 0, as in Apache Kafka 4; topics by their ids (10). There are no transactions, so that offsets
are always stable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.broker.access import Operation
from millpond.broker.groups.records import CommittedOffset
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED, TOPIC_AUTHORIZATION_FAILED
from millpond.protocols.kafka.groups import answer_for_group, coordinator, may_use_group
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millpond.protocols.kafka.connection import Call


@api(9, "OffsetFetch", 1, 9)
def offset_fetch(call: Call, request: Any) -> None:
    if call.version < 8:
        answer_for_group(call, _of_group(call, request))
        return
    answer_for_group(call, {"groups": [_of_group(call, asked) for asked in request.groups]})


def _of_group(call: Call, asked: Any) -> Tree:
    if may_use_group(call, Operation.DESCRIBE, asked.group_id):
        return {"group_id": asked.group_id, "topics": _offsets(call, asked.group_id, asked.topics)}
    code = GROUP_AUTHORIZATION_FAILED
    told: list[Tree] = []
    if call.version < 2:
        # There is no field for the error of the whole.
        refused = {"committed_offset": -1, "metadata": "", "error_code": code}
        told = [
            {
                "name": topic.name,
                "partitions": [{"partition_index": number, **refused} for number in topic.partition_indexes],
            }
            for topic in asked.topics
        ]
    return {"group_id": asked.group_id, "topics": told, "error_code": code}


def _offsets(call: Call, group_id: str, topics: Any) -> list[Tree]:
    known = coordinator(call).offsets.of(group_id)
    connection = call.connection
    if topics is None:
        return [
            {"name": name, "partitions": [_told(number, committed) for number, committed in offsets.items()]}
            for name, offsets in known.items()
            if connection.apis.may_see(connection, name)
        ]
    return [_of_topic(call, topic, known.get(topic.name, {})) for topic in topics]


def _of_topic(call: Call, topic: Any, offsets: Mapping[int, CommittedOffset]) -> Tree:
    if call.connection.apis.may_see(call.connection, topic.name):
        partitions = [_told(number, offsets.get(number)) for number in topic.partition_indexes]
    else:
        refused = {"committed_offset": -1, "metadata": "", "error_code": TOPIC_AUTHORIZATION_FAILED}
        partitions = [{"partition_index": number, **refused} for number in topic.partition_indexes]
    return {"name": topic.name, "partitions": partitions}


def _told(number: int, committed: CommittedOffset | None) -> Tree:
    if committed is None:
        return {"partition_index": number, "committed_offset": -1, "metadata": ""}
    return {
        "partition_index": number,
        "committed_offset": committed.offset,
        "committed_leader_epoch": committed.leader_epoch,
        "metadata": committed.metadata,
    }
