"""DescribeGroups: state and members of groups.

Behaviour: what members say of themselves is told of a stable group only, as it is the chosen protocol's. Groups of
other types are not found here.
Versions: up to 5 a group that is not there is described as dead; from 6 on it is an error, too (KIP-1043). From 3 on
what the user is authorized to do is told to those who ask for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.broker.groups.errors import GroupNotFound
from millpond.broker.groups.group import Group
from millpond.broker.groups.records import DEAD, STABLE
from millpond.protocols.kafka.authorized_operations import operations_on_group
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED, NONE, code_of
from millpond.protocols.kafka.groups import answer_for_group, coordinator, may_use_group
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(15, "DescribeGroups", 0, 6)
def describe_groups(call: Call, request: Any) -> None:
    tells_operations = getattr(request, "include_authorized_operations", False)
    answer_for_group(call, {"groups": [_described(call, group_id, tells_operations) for group_id in request.groups]})


def _described(call: Call, group_id: str, tells_operations: bool) -> Tree:
    if not may_use_group(call, Operation.DESCRIBE, group_id):
        return {"error_code": GROUP_AUTHORIZATION_FAILED, "group_id": group_id}
    try:
        group = coordinator(call).group(group_id)
        if group.modern is not None:
            raise GroupNotFound(f"Group {group_id} is not a classic group.")
    except PeerError as error:
        code, message = (code_of(error), str(error)) if call.version >= 6 else (NONE, None)
        dead: dict[str, object] = {
            "error_code": code,
            "error_message": message,
            "group_id": group_id,
            "group_state": DEAD,
        }
        if tells_operations and code == NONE:
            dead["authorized_operations"] = operations_on_group(call.connection, group_id)
        return dead
    told: dict[str, object] = {
        "group_id": group_id,
        "group_state": group.state,
        "protocol_type": group.head.protocol_type or "",
        "members": _members(group),
    }
    if group.state == STABLE:
        told["protocol_data"] = group.head.protocol
    if tells_operations:
        told["authorized_operations"] = operations_on_group(call.connection, group_id)
    return told


def _members(group: Group) -> list[Tree]:
    return [
        {
            "member_id": member.member_id,
            "group_instance_id": member.state.instance_id,
            "client_id": member.state.client_id,
            "client_host": member.state.client_host,
            "member_metadata": member.metadata(group.head.protocol) if group.state == STABLE else b"",
            "member_assignment": member.state.assignment,
        }
        for member in group.members.values()
    ]
