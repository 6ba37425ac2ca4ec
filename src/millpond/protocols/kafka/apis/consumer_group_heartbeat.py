"""ConsumerGroupHeartbeat: a consumer joins a group, stays in it or leaves it, and learns which partitions it reads.

Behaviour: KIP-848. Epoch 0 joins, -1 leaves, -2 is a static member that will be back. What has not changed since the
heartbeat before need not be said. Partitions are told when the member says everything, and when they have changed.
Versions: in 0 the broker may choose the member's id; from 1 on the client does, and subscriptions may be by a regular
expression.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.groups.consumer_membership import ConsumerHeartbeat
from millpond.protocols.kafka.errors import NONE
from millpond.protocols.kafka.groups import (
    answer_for_group,
    coordinator,
    milliseconds,
    told_error,
    told_member,
    why_no_member,
)
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.broker.groups.modern_records import Assignment
    from millpond.protocols.kafka.connection import Call


@api(68, "ConsumerGroupHeartbeat", 0, 1)
def consumer_group_heartbeat(call: Call, request: Any) -> None:
    connection = call.connection
    topics = request.subscribed_topic_names
    refusal = why_no_member(call, request.group_id, topics)
    if refusal != NONE:
        answer_for_group(call, {"error_code": refusal})
        return
    asked = ConsumerHeartbeat(
        group=request.group_id,
        member_id=request.member_id,
        epoch=request.member_epoch,
        instance_id=request.instance_id,
        rack_id=request.rack_id,
        rebalance_timeout_ms=milliseconds(request.rebalance_timeout),
        topics=None if topics is None else tuple(topics),
        pattern=getattr(request, "subscribed_topic_regex", None),
        assignor=request.server_assignor,
        owned=_owned(request.topic_partitions),
        client_id=call.client_id,
        client_host=f"/{connection.transport.peer_host()}",
        may_see=partial(connection.apis.may_see, connection),
        knows_id=call.version >= 1,
    )
    try:
        tree = told_member(coordinator(call).consumers.heartbeat(asked))
    except PeerError as error:
        tree = told_error(error)
    answer_for_group(call, tree)


def _owned(topics: Any) -> Assignment | None:
    if topics is None:
        return None
    return {topic.topic_id.bytes: frozenset(topic.partitions) for topic in topics if topic.topic_id is not None}
