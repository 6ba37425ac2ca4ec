"""ShareAcknowledge: what a member of a share group has done with records.

Behaviour: each batch of offsets is accepted, released, rejected, renewed or said to be gaps, as a whole or record by
record. A batch that the member does not hold all of is refused with INVALID_RECORD_STATE, and nothing of it changes. A
share session must be there; with epoch -1 it ends, and what the member still holds is available again.
Versions: 2 may renew locks (type 4), and then says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.broker.shares.sessions import FINAL_EPOCH, INITIAL_EPOCH, InvalidShareSessionEpoch
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED, INVALID_REQUEST, NONE, code_of
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer, api
from millpond.protocols.kafka.share_groups import NO_LEADER, acknowledge, has_renewals, id_bytes, shares_of

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(79, "ShareAcknowledge", 1, 2)
def share_acknowledge(call: Call, request: Any) -> Tree | None:
    shares, group_id, member = shares_of(call), request.group_id or "", request.member_id or ""
    connection = call.connection
    if not connection.apis.may(connection, Operation.READ, group_id, "group"):
        return {"error_code": GROUP_AUTHORIZATION_FAILED, "acquisition_lock_timeout": 0}
    if not member:
        return {"error_code": INVALID_REQUEST, "acquisition_lock_timeout": 0}
    if has_renewals(request.topics) != getattr(request, "is_renew_ack", False):
        return {"error_code": INVALID_REQUEST, "acquisition_lock_timeout": 0}
    try:
        if request.share_session_epoch == INITIAL_EPOCH:
            raise InvalidShareSessionEpoch("The share session epoch is invalid.")
        session = shares.sessions.go_on(group_id, member, request.share_session_epoch)
        group = shares.opened(group_id)
    except PeerError as error:
        return {"error_code": code_of(error), "error_message": str(error), "acquisition_lock_timeout": 0}
    responses: list[Tree] = []
    for topic in request.topics:
        topic_id = id_bytes(topic.topic_id)
        partitions: list[Tree] = []
        for asked in topic.partitions:
            place = (topic_id, asked.partition_index)
            code = acknowledge(call, group, member, place, asked.acknowledgement_batches)
            entry = {"partition_index": asked.partition_index, "error_code": code, "current_leader": NO_LEADER}
            partitions.append(entry)
        responses.append({"topic_id": topic_id, "partitions": partitions})
    if request.share_session_epoch == FINAL_EPOCH:
        shares.end_session(session)
    tree: Tree = {
        "error_code": NONE,
        "acquisition_lock_timeout": group.settings.lock_ms,
        "responses": responses,
    }
    answer(call, tree, int(connection.ledger.covering()))
    return None
