"""FindCoordinator: which broker a group, or a transaction, is looked after by: always this node.

Behaviour: any group, and any transactional id that the user may see, may be asked for; it need not exist.
Versions: from 1 on there are types of keys, from 4 on several keys.
Not implemented: share groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from millpond.broker.access import Operation
from millpond.protocols.kafka.apis.metadata import NODE_ID, node_address
from millpond.protocols.kafka.errors import (
    GROUP_AUTHORIZATION_FAILED,
    INVALID_REQUEST,
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
)
from millpond.protocols.kafka.groups import may_use_group
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api
from millpond.protocols.kafka.transactions import may_see

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

TYPE_GROUP: Final = 0
TYPE_TRANSACTION: Final = 1


@api(10, "FindCoordinator", 0, 6)
def find_coordinator(call: Call, request: Any) -> Tree:
    key_type = getattr(request, "key_type", TYPE_GROUP)
    if call.version < 4:
        return _found(call, key_type, request.key)
    return {"coordinators": [_found(call, key_type, key) for key in request.coordinator_keys]}


def _found(call: Call, key_type: int, key: str) -> Tree:
    if key_type == TYPE_GROUP and not may_use_group(call, Operation.DESCRIBE, key):
        code, message = GROUP_AUTHORIZATION_FAILED, "Group authorization failed."
    elif key_type == TYPE_TRANSACTION and not may_see(call, key):
        code, message = TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "no access to this transactional id"
    elif key_type in (TYPE_GROUP, TYPE_TRANSACTION):
        host, port = node_address(call.connection)
        return {"key": key, "node_id": NODE_ID, "host": host, "port": port}
    else:
        code, message = INVALID_REQUEST, f"there are no coordinators of type {key_type} here"
    return {"key": key, "node_id": -1, "host": "", "port": -1, "error_code": code, "error_message": message}
