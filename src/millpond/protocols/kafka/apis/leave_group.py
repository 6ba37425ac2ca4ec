"""LeaveGroup: members leave, so that nobody has to wait for their sessions to end.

Behaviour: each member is told for itself. A static one may be named by its instance id alone.
Versions: up to 2 for one member, whose error is that of the request; from 3 on for several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED, code_of
from millpond.protocols.kafka.groups import answer_for_group, coordinator, error_code, may_use_group
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(13, "LeaveGroup", 0, 5)
def leave_group(call: Call, request: Any) -> Tree | None:
    if not may_use_group(call, Operation.READ, request.group_id):
        return {"error_code": GROUP_AUTHORIZATION_FAILED}
    leaving: list[tuple[str, str | None]]
    if call.version < 3:
        leaving = [(request.member_id, None)]
    else:
        leaving = [(member.member_id, member.group_instance_id) for member in request.members]
    try:
        told = coordinator(call).membership.leave(request.group_id, leaving)
    except PeerError as error:
        answer_for_group(call, {"error_code": code_of(error)})
        return None
    members = [
        {"member_id": member_id, "group_instance_id": instance_id, "error_code": error_code(error)}
        for (member_id, instance_id), error in zip(leaving, told, strict=True)
    ]
    code = error_code(told[0]) if call.version < 3 else 0
    answer_for_group(call, {"error_code": code, "members": members})
    return None
