"""TxnOffsetCommit: how far a group has come, once the producer's transaction is committed.

Behaviour: as OffsetCommit, but that a rebalance does not matter, and that nobody sees the offsets before the
transaction ends. The group must have been added to the transaction.
Versions: from 3 on with the member and its generation; from 4 on a group that was not added is a reason to abort; from
5 on the group is added by this (KIP-890).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.broker.groups.offsets import CommitRequest, OffsetCommit
from millpond.protocols.kafka.errors import (
    GROUP_AUTHORIZATION_FAILED,
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    code_of,
)
from millpond.protocols.kafka.groups import by_topic, partition_error
from millpond.protocols.kafka.registry import api
from millpond.protocols.kafka.transactions import (
    answer_for_transaction,
    code_for_data,
    coordinator,
    identity,
    may_use,
)

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

_ABORTABLE_FROM = 4
_ADDS_GROUP_FROM = 5


@api(28, "TxnOffsetCommit", 0, 5)
def txn_offset_commit(call: Call, request: Any) -> None:
    connection = call.connection
    codes: dict[tuple[str, int], int] = {}
    offsets: list[OffsetCommit] = []
    refusal = 0
    if not may_use(call, request.transactional_id):
        refusal = TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    elif not connection.apis.may(connection, Operation.READ, request.group_id, "group"):
        refusal = GROUP_AUTHORIZATION_FAILED
    for topic in request.topics:
        for asked in topic.partitions:
            error = refusal or partition_error(call, topic.name, asked.partition_index)
            if error:
                codes[topic.name, asked.partition_index] = error
                continue
            leader_epoch = getattr(asked, "committed_leader_epoch", -1)
            metadata = asked.committed_metadata or ""
            offsets.append(
                OffsetCommit(topic.name, asked.partition_index, asked.committed_offset, leader_epoch, metadata)
            )
    if offsets:
        codes.update(_commit(call, request, offsets))
    answer_for_transaction(call, {"topics": by_topic(request.topics, [topic.name for topic in request.topics], codes)})


def _commit(call: Call, request: Any, offsets: list[OffsetCommit]) -> dict[tuple[str, int], int]:
    """The codes of those that are refused."""
    asked = CommitRequest(
        group=request.group_id,
        offsets=tuple(offsets),
        member_id=getattr(request, "member_id", ""),
        generation=getattr(request, "generation_id", -1),
        instance_id=getattr(request, "group_instance_id", None),
    )
    try:
        refused = coordinator(call).commit_offsets(
            request.transactional_id, identity(request), asked, call.version >= _ADDS_GROUP_FROM
        )
    except PeerError as error:
        code = code_for_data(error, call.version >= _ABORTABLE_FROM)
        return {(one.topic, one.partition): code for one in offsets}
    return {place: code_of(error) for place, error in refused.items()}
