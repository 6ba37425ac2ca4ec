"""ListGroups: the groups of the virtual host.

Versions: from 4 on with their states, and those in some states only; from 5 on by type: classic, consumer, share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.broker.access import CLUSTER, CLUSTER_NAME, Operation
from millpond.protocols.kafka.groups import answer_for_group, coordinator, may_use_group
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(16, "ListGroups", 0, 5)
def list_groups(call: Call, request: Any) -> None:
    states = {state.strip().lower() for state in getattr(request, "states_filter", ())}
    types = {kind.strip().lower() for kind in getattr(request, "types_filter", ())}
    apis = call.connection.apis
    sees_all = apis.may(call.connection, Operation.DESCRIBE, CLUSTER_NAME, CLUSTER)
    groups = [
        {
            "group_id": group.id,
            "protocol_type": group.protocol_type or "",
            "group_state": group.state,
            "group_type": group.type,
        }
        for group in coordinator(call).groups()
        if (sees_all or may_use_group(call, Operation.DESCRIBE, group.id))
        and (not states or group.state.lower() in states)
        and (not types or group.type in types)
    ]
    answer_for_group(call, {"groups": groups})
