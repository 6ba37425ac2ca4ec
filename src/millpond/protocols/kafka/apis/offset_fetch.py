"""OffsetFetch: how far groups have come.

Behaviour: -1 for a partition that the group has no offset of, and for every one of a group that is not there. Topics
that the user may not read are refused where they are named, and left out where all are asked for.
Versions: from 2 on no topics at all means every one; from 7 on stable offsets only may be asked for: where a
transaction is open that may change one, it is refused; from 8 on for several groups.
Not implemented: version 0, as in Apache Kafka 4; topics by their ids (10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.broker.groups.records import CommittedOffset
from millpond.protocols.kafka.errors import TOPIC_AUTHORIZATION_FAILED, UNSTABLE_OFFSET_COMMIT
from millpond.protocols.kafka.groups import answer_for_group, coordinator
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millpond.protocols.kafka.connection import Call


@api(9, "OffsetFetch", 1, 9)
def offset_fetch(call: Call, request: Any) -> None:
    if call.version < 8:
        wants_stable = getattr(request, "require_stable", False)
        answer_for_group(call, {"topics": _offsets(call, request.group_id, request.topics, wants_stable)})
        return
    groups = [
        {
            "group_id": asked.group_id,
            "topics": _offsets(call, asked.group_id, asked.topics, request.require_stable),
        }
        for asked in request.groups
    ]
    answer_for_group(call, {"groups": groups})


def _offsets(call: Call, group_id: str, topics: Any, wants_stable: bool) -> list[dict[str, Any]]:
    offsets = coordinator(call).offsets
    found = _found(call, offsets.of(group_id), topics)
    if wants_stable:
        for topic in found:
            name, partitions = topic["name"], topic["partitions"]
            topic["partitions"] = [
                _refused(told["partition_index"], UNSTABLE_OFFSET_COMMIT)
                if offsets.is_unstable(group_id, name, told["partition_index"])
                else told
                for told in partitions
            ]
    return found


def _found(call: Call, known: Mapping[str, Mapping[int, CommittedOffset]], topics: Any) -> list[dict[str, Any]]:
    connection = call.connection
    if topics is None:
        return [
            {"name": name, "partitions": [_told(number, committed) for number, committed in partitions.items()]}
            for name, partitions in known.items()
            if connection.apis.may_read(connection, name)
        ]
    return [_of_topic(call, topic, known.get(topic.name, {})) for topic in topics]


def _of_topic(call: Call, topic: Any, offsets: Mapping[int, CommittedOffset]) -> dict[str, Any]:
    if call.connection.apis.may_read(call.connection, topic.name):
        partitions = [_told(number, offsets.get(number)) for number in topic.partition_indexes]
    else:
        partitions = [_refused(number, TOPIC_AUTHORIZATION_FAILED) for number in topic.partition_indexes]
    return {"name": topic.name, "partitions": partitions}


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
