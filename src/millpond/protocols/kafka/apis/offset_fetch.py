"""OffsetFetch: how far groups have come.

Behaviour: -1 for a partition that the group has no offset of, and for every one of a group that is not there. Topics
that the user may not read are refused where they are named, and left out where all are asked for.
Versions: from 2 on no topics at all means every one; from 8 on for several groups; from 9 on a member of a group whose
assignment the broker decides says which epoch it has, and is told where that is over; from 10 on topics are told by
their ids.
Not implemented: version 0, as in Apache Kafka 4. There are no transactions, so that offsets
are always stable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.broker.groups.records import CommittedOffset
from millpond.protocols.kafka.errors import (
    GROUP_AUTHORIZATION_FAILED,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_ID,
    code_of,
)
from millpond.protocols.kafka.groups import answer_for_group, coordinator, may_use_group, topic_names
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millpond.protocols.kafka.connection import Call


@api(9, "OffsetFetch", 1, 10)
def offset_fetch(call: Call, request: Any) -> None:
    if call.version < 8:
        answer_for_group(call, _of_group(call, request))
        return
    answer_for_group(call, {"groups": [_of_group(call, asked) for asked in request.groups]})


def _of_group(call: Call, asked: Any) -> Tree:
    if may_use_group(call, Operation.DESCRIBE, asked.group_id):
        return _known_of_group(call, asked)
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


def _known_of_group(call: Call, asked: Any) -> Tree:
    member_id, epoch = getattr(asked, "member_id", None), getattr(asked, "member_epoch", -1)
    try:
        coordinator(call).offsets.check_fetcher(asked.group_id, member_id, epoch)
    except PeerError as error:
        return {"group_id": asked.group_id, "topics": [], "error_code": code_of(error)}
    return {"group_id": asked.group_id, "topics": _offsets(call, asked.group_id, asked.topics)}


def _offsets(call: Call, group_id: str, topics: Any) -> list[Tree]:
    known = coordinator(call).offsets.of(group_id)
    connection = call.connection
    if topics is None:
        found: list[Tree] = [
            {**_called(call, name), "partitions": [_told(number, one) for number, one in offsets.items()]}
            for name, offsets in known.items()
            if connection.apis.may_see(connection, name)
        ]
        # Queues have offsets, but no ids.
        return found if call.version < 10 else [one for one in found if one["topic_id"] is not None]
    names = topic_names(call, topics)
    return [_of_topic(call, topic, name, known.get(name or "", {})) for topic, name in zip(topics, names, strict=True)]


def _called(call: Call, name: str) -> dict[str, object]:
    found = coordinator(call).topics.find(name)
    return {"name": name, "topic_id": None if found is None else found[0]}


def _of_topic(call: Call, topic: Any, name: str | None, offsets: Mapping[int, CommittedOffset]) -> Tree:
    if name is None:
        partitions = _refused(topic, UNKNOWN_TOPIC_ID)
        return {"topic_id": None if topic.topic_id is None else topic.topic_id.bytes, "partitions": partitions}
    if call.connection.apis.may_see(call.connection, name):
        partitions = [_told(number, offsets.get(number)) for number in topic.partition_indexes]
    else:
        partitions = _refused(topic, TOPIC_AUTHORIZATION_FAILED)
    return {**_called(call, name), "partitions": partitions}


def _refused(topic: Any, code: int) -> list[Tree]:
    refused = {"committed_offset": -1, "metadata": "", "error_code": code}
    return [{"partition_index": number, **refused} for number in topic.partition_indexes]


def _told(number: int, committed: CommittedOffset | None) -> Tree:
    if committed is None:
        return {"partition_index": number, "committed_offset": -1, "metadata": ""}
    return {
        "partition_index": number,
        "committed_offset": committed.offset,
        "committed_leader_epoch": committed.leader_epoch,
        "metadata": committed.metadata,
    }
