"""JoinGroup: a client becomes a member of a group, or begins another generation of it.

Behaviour: answered when all members have joined or their time is up; the leader is told of all members, and assigns.
Versions: 0 has no rebalance timeout: the session's is taken. From 4 on a client is given its id first, and joins with
it (KIP-394). From 5 on members may be static (KIP-345). From 9 on a static leader that comes back is told to assign
nothing (KIP-814).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from millpond.broker.access import Operation
from millpond.broker.groups.group import JoinRequest, JoinResult
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED
from millpond.protocols.kafka.groups import answer_for_group, coordinator, error_code, may_use_group, milliseconds
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

# A generation and a protocol that are none.
_NOTHING_JOINED: Final = {"generation_id": -1, "protocol_name": ""}


@api(11, "JoinGroup", 0, 9)
def join_group(call: Call, request: Any) -> Tree | None:
    if not may_use_group(call, Operation.READ, request.group_id):
        return {"error_code": GROUP_AUTHORIZATION_FAILED, "member_id": request.member_id, **_NOTHING_JOINED}
    session_timeout_ms = milliseconds(request.session_timeout)
    rebalance_timeout_ms = milliseconds(request.rebalance_timeout) if call.version >= 1 else session_timeout_ms
    asked = JoinRequest(
        group=request.group_id,
        member_id=request.member_id,
        instance_id=getattr(request, "group_instance_id", None),
        client_id=call.client_id,
        client_host=f"/{call.connection.transport.peer_host()}",
        session_timeout_ms=session_timeout_ms,
        rebalance_timeout_ms=rebalance_timeout_ms,
        protocol_type=request.protocol_type,
        protocols=tuple([(protocol.name, bytes(protocol.metadata)) for protocol in request.protocols]),
        knows_id_first=call.version >= 4,
        can_skip_assignment=call.version >= 9,
        reason=getattr(request, "reason", None) or "",
    )
    coordinator(call).membership.join(asked, partial(_answer, call))
    return None


def _answer(call: Call, result: JoinResult) -> None:
    protocol = result.protocol
    if protocol is None and call.version < 7:
        protocol = ""
    members = [
        {"member_id": member.member_id, "group_instance_id": member.instance_id, "metadata": member.metadata}
        for member in result.members
    ]
    answer_for_group(
        call,
        {
            "error_code": error_code(result.error),
            "generation_id": result.generation,
            "protocol_type": result.protocol_type,
            "protocol_name": protocol,
            "leader": result.leader,
            "skip_assignment": result.skip_assignment,
            "member_id": result.member_id,
            "members": members,
        },
    )
