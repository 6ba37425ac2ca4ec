"""ShareGroupHeartbeat: a client joins a share group, stays in it or leaves it, and learns what to fetch from.

Behaviour: epoch 0 joins, -1 leaves. A group is made where there is none; a name that another type of group has is
refused. Partitions are told when the member joins, and when they have changed.
Versions: 1, in which clients choose the ids of members.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.groups.share_membership import ShareHeartbeat
from millpond.protocols.kafka.errors import NONE
from millpond.protocols.kafka.groups import answer_for_group, coordinator, told_error, told_member, why_no_member
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(76, "ShareGroupHeartbeat", 1, 1)
def share_group_heartbeat(call: Call, request: Any) -> None:
    connection = call.connection
    topics = request.subscribed_topic_names
    refusal = why_no_member(call, request.group_id, topics)
    if refusal != NONE:
        answer_for_group(call, {"error_code": refusal})
        return
    asked = ShareHeartbeat(
        group=request.group_id,
        member_id=request.member_id,
        epoch=request.member_epoch,
        rack_id=request.rack_id,
        topics=None if topics is None else tuple(topics),
        client_id=call.client_id,
        client_host=f"/{connection.transport.peer_host()}",
    )
    try:
        tree = told_member(coordinator(call).shares.heartbeat(asked))
    except PeerError as error:
        tree = told_error(error)
    answer_for_group(call, tree)
