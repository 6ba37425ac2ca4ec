"""Heartbeat: a member is alive, and learns that it should join again.

Versions: from 3 on with the instance id of a static member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED, code_of
from millpond.protocols.kafka.groups import coordinator, may_use_group
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(12, "Heartbeat", 0, 4)
def heartbeat(call: Call, request: Any) -> Tree:
    if not may_use_group(call, Operation.READ, request.group_id):
        return {"error_code": GROUP_AUTHORIZATION_FAILED}
    instance_id = getattr(request, "group_instance_id", None)
    try:
        coordinator(call).membership.heartbeat(request.group_id, request.member_id, instance_id, request.generation_id)
    except PeerError as error:
        return {"error_code": code_of(error)}
    return {}
