"""DeleteGroups: groups are forgotten, with their offsets.

Behaviour: each is told for itself; one with members is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED, code_of
from millpond.protocols.kafka.groups import answer_for_group, coordinator, may_use_group
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(42, "DeleteGroups", 0, 2)
def delete_groups(call: Call, request: Any) -> None:
    results = [_deleted(call, group_id) for group_id in dict.fromkeys(request.groups_names)]
    answer_for_group(call, {"results": results})


def _deleted(call: Call, group_id: str) -> Tree:
    if not may_use_group(call, Operation.DELETE, group_id):
        return {"group_id": group_id, "error_code": GROUP_AUTHORIZATION_FAILED}
    try:
        coordinator(call).delete(group_id)
    except PeerError as error:
        return {"group_id": group_id, "error_code": code_of(error)}
    return {"group_id": group_id}
