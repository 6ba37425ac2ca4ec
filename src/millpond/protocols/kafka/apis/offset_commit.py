"""OffsetCommit: how far a group has come.

Behaviour: by a member of the present generation, or by anybody (generation -1, no member) for a group that has no
members; such a group is made where there is none. Partitions that do not exist, or that the user may not read, are
refused one by one. In a group whose assignment the broker decides the generation is the member's epoch.
Versions: 2 to 4 say how long the offsets are to be kept. From 6 on with the leader's epoch, from 7 on with the instance
id of a static member, from 9 on a group that is not there is called so, and members of the new protocol may commit.
From 10 on topics are told by their ids.
Not implemented: versions 0 and 1, as in Apache Kafka 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.base.limits import KAFKA_ITEMS_PER_TURN
from millpond.broker.access import Operation
from millpond.broker.groups.errors import GroupNotFound
from millpond.broker.groups.offsets import CommitRequest, OffsetCommit
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED, ILLEGAL_GENERATION, code_of
from millpond.protocols.kafka.groups import (
    answer_for_group,
    by_topic,
    coordinator,
    may_use_group,
    milliseconds,
    partition_error,
    topic_names,
)
from millpond.protocols.kafka.registry import Steps, api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(8, "OffsetCommit", 2, 10)
def offset_commit(call: Call, request: Any) -> Steps:
    codes: dict[tuple[str, int], int] = {}
    offsets: list[OffsetCommit] = []
    names = topic_names(call, request.topics)
    if not may_use_group(call, Operation.READ, request.group_id):
        for topic, name in zip(request.topics, names, strict=True):
            places = [(name or "", asked.partition_index) for asked in topic.partitions]
            codes.update(dict.fromkeys(places, GROUP_AUTHORIZATION_FAILED))
        answer_for_group(call, {"topics": by_topic(request.topics, names, codes)})
        return None
    looked_at = 0
    for topic, name in zip(request.topics, names, strict=True):
        if name is None:
            continue
        for asked in topic.partitions:
            looked_at += 1
            if looked_at % KAFKA_ITEMS_PER_TURN == 0:
                yield
            error = partition_error(call, name, asked.partition_index)
            if error:
                codes[name, asked.partition_index] = error
                continue
            leader_epoch = getattr(asked, "committed_leader_epoch", -1)
            metadata = asked.committed_metadata or ""
            offsets.append(OffsetCommit(name, asked.partition_index, asked.committed_offset, leader_epoch, metadata))
    if offsets:
        codes.update(_commit(call, request, offsets))
    answer_for_group(call, {"topics": by_topic(request.topics, names, codes)})
    return None


def _commit(call: Call, request: Any, offsets: list[OffsetCommit]) -> dict[tuple[str, int], int]:
    """The codes of those that are refused."""
    asked = CommitRequest(
        group=request.group_id,
        offsets=tuple(offsets),
        member_id=request.member_id,
        generation=request.generation_id_or_member_epoch,
        instance_id=getattr(request, "group_instance_id", None),
        retention_ms=milliseconds(request.retention_time) if call.version < 5 else -1,
        knows_epochs=call.version >= 9,
    )
    try:
        refused = coordinator(call).offsets.commit(asked)
    except PeerError as error:
        code = code_of(error)
        if isinstance(error, GroupNotFound) and call.version < 9:
            code = ILLEGAL_GENERATION
        return {(one.topic, one.partition): code for one in offsets}
    return {place: code_of(error) for place, error in refused.items()}
