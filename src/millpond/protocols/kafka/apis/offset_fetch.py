"""OffsetFetch: how far groups have come.

Behaviour: -1 for a partition that the group has no offset of, and for every one of a group that is not there. Topics
that the user may not read are refused where they are named, and left out where all are asked for.
Versions: from 2 on no topics at all means every one; from 7 on stable offsets only may be asked for: where a
transaction is open that may change one, it is refused; from 8 on for several groups; from 9 on a member of a group
whose assignment the broker decides says which epoch it has, and is told where that is over; from 10 on topics are told
by their ids.
Not implemented: version 0, as in Apache Kafka 4.
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
    UNSTABLE_OFFSET_COMMIT,
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
        answer_for_group(call, _of_group(call, request, getattr(request, "require_stable", False)))
        return
    groups = [_of_group(call, asked, request.require_stable) for asked in request.groups]
    answer_for_group(call, {"groups": groups})


def _of_group(call: Call, asked: Any, wants_stable: bool) -> Tree:
    if may_use_group(call, Operation.DESCRIBE, asked.group_id):
        return _known_of_group(call, asked, wants_stable)
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


def _known_of_group(call: Call, asked: Any, wants_stable: bool) -> Tree:
    member_id, epoch = getattr(asked, "member_id", None), getattr(asked, "member_epoch", -1)
    try:
        coordinator(call).offsets.check_fetcher(asked.group_id, member_id, epoch)
    except PeerError as error:
        return {"group_id": asked.group_id, "topics": [], "error_code": code_of(error)}
    return {"group_id": asked.group_id, "topics": _offsets(call, asked.group_id, asked.topics, wants_stable)}


def _offsets(call: Call, group_id: str, topics: Any, wants_stable: bool) -> list[dict[str, Any]]:
    offsets = coordinator(call).offsets
    found = _found(call, offsets.of(group_id), topics)
    if wants_stable:
        for topic in found:
            name, partitions = topic.get("name", ""), topic["partitions"]
            topic["partitions"] = [
                _refused(told["partition_index"], UNSTABLE_OFFSET_COMMIT)
                if "error_code" not in told and offsets.is_unstable(group_id, name, told["partition_index"])
                else told
                for told in partitions
            ]
    return found


def _found(call: Call, known: Mapping[str, Mapping[int, CommittedOffset]], topics: Any) -> list[dict[str, Any]]:
    connection = call.connection
    if topics is None:
        found: list[dict[str, Any]] = [
            {**_called(call, name), "partitions": [_told(number, one) for number, one in partitions.items()]}
            for name, partitions in known.items()
            if connection.apis.may_see(connection, name)
        ]
        # Queues have offsets, but no ids.
        return found if call.version < 10 else [one for one in found if one["topic_id"] is not None]
    names = topic_names(call, topics)
    return [_of_topic(call, topic, name, known.get(name or "", {})) for topic, name in zip(topics, names, strict=True)]


def _called(call: Call, name: str) -> dict[str, object]:
    found = coordinator(call).topics.find(name)
    return {"name": name, "topic_id": None if found is None else found[0]}


def _of_topic(call: Call, topic: Any, name: str | None, offsets: Mapping[int, CommittedOffset]) -> dict[str, Any]:
    if name is None:
        partitions = [_refused(number, UNKNOWN_TOPIC_ID) for number in topic.partition_indexes]
        return {"topic_id": None if topic.topic_id is None else topic.topic_id.bytes, "partitions": partitions}
    if call.connection.apis.may_see(call.connection, name):
        partitions = [_told(number, offsets.get(number)) for number in topic.partition_indexes]
    else:
        partitions = [_refused(number, TOPIC_AUTHORIZATION_FAILED) for number in topic.partition_indexes]
    return {**_called(call, name), "partitions": partitions}


def _refused(number: int, code: int) -> Tree:
    return {"partition_index": number, "committed_offset": -1, "metadata": "", "error_code": code}


def _told(number: int, committed: CommittedOffset | None) -> Tree:
    if committed is None:
        return {"partition_index": number, "committed_offset": -1, "metadata": ""}
    return {
        "partition_index": number,
        "committed_offset": committed.offset,
        "committed_leader_epoch": committed.leader_epoch,
        "metadata": committed.metadata,
    }
