"""SyncGroup: a member asks for its assignment; the leader brings those of all.

Behaviour: answered when the leader has assigned.
Versions: from 3 on with the instance id of a static member, from 5 on with the protocol that was chosen, which is
checked.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from millpond.broker.access import Operation
from millpond.broker.groups.group import SyncRequest, SyncResult
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED, INCONSISTENT_GROUP_PROTOCOL
from millpond.protocols.kafka.groups import answer_for_group, coordinator, error_code, may_use_group
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(14, "SyncGroup", 0, 5)
def sync_group(call: Call, request: Any) -> Tree | None:
    if not may_use_group(call, Operation.READ, request.group_id):
        return {"error_code": GROUP_AUTHORIZATION_FAILED}
    protocol_type = getattr(request, "protocol_type", None)
    protocol = getattr(request, "protocol_name", None)
    if call.version >= 5 and (protocol_type is None or protocol is None):
        return {"error_code": INCONSISTENT_GROUP_PROTOCOL}
    asked = SyncRequest(
        group=request.group_id,
        member_id=request.member_id,
        instance_id=getattr(request, "group_instance_id", None),
        generation=request.generation_id,
        protocol_type=protocol_type,
        protocol=protocol,
        assignments=tuple([(given.member_id, bytes(given.assignment)) for given in request.assignments]),
    )
    coordinator(call).membership.sync(asked, partial(_answer, call))
    return None


def _answer(call: Call, result: SyncResult) -> None:
    answer_for_group(
        call,
        {
            "error_code": error_code(result.error),
            "protocol_type": result.protocol_type,
            "protocol_name": result.protocol,
            "assignment": result.assignment,
        },
    )
