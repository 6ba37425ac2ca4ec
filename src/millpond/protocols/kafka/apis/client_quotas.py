"""DescribeClientQuotas, AlterClientQuotas: how much users and clients may produce and fetch.

Behaviour: what quotas there are and which of them counts is said in `broker/quotas.py`. The changes of one entity are
made together or not at all. Who may see and change them is said in `ApiTable.may_administer`.
Versions: 0 and 1.
Not implemented: quotas of addresses (entities of type ip). request_percentage and controller_mutation_rate are kept and
told, and do nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.broker.quotas import CLIENT, USER
from millpond.protocols.kafka.errors import (
    CLUSTER_AUTHORIZATION_FAILED,
    INVALID_REQUEST,
    NONE,
    UNSUPPORTED_VERSION,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millpond.protocols.kafka.connection import Call

# How a filter matches.
_EXACT: Final = 0
_DEFAULT: Final = 1
_SPECIFIED: Final = 2

_UNAUTHORIZED: Final = "Cluster authorization failed."


@api(48, "DescribeClientQuotas", 0, 1)
def describe_client_quotas(call: Call, request: Any) -> Tree:
    connection = call.connection
    if not connection.apis.may_administer(connection, Operation.DESCRIBE_CONFIGS):
        return {"error_code": CLUSTER_AUTHORIZATION_FAILED, "error_message": _UNAUTHORIZED, "entries": None}
    exact: dict[str, str | None] = {}
    specified: set[str] = set()
    for component in request.components:
        kind = component.entity_type
        code, message = _problem(component, kind in exact or kind in specified)
        if code != NONE:
            return {"error_code": code, "error_message": message, "entries": None}
        if component.match_type == _SPECIFIED:
            specified.add(kind)
        else:
            exact[kind] = component.match
    entries = [
        {
            "entity": _told(entity),
            "values": [{"key": name, "value": value} for name, value in quotas.items()],
        }
        for entity, quotas in connection.broker.quotas.items()
        if (not request.strict or len(entity) == len(exact) + len(specified))
        and specified <= entity.keys()
        and all(kind in entity and entity[kind] == name for kind, name in exact.items())
    ]
    return {"error_message": None, "entries": entries}


def _problem(component: Any, is_twice: bool) -> tuple[int, str]:
    """What is wrong with a part of a filter."""
    kind = component.entity_type
    if is_twice:
        return INVALID_REQUEST, f"Entity type {kind} cannot appear more than once in the filter."
    if kind not in {USER, CLIENT}:
        return UNSUPPORTED_VERSION, f"Unsupported entity type {kind}"
    if component.match_type not in {_EXACT, _DEFAULT, _SPECIFIED}:
        return INVALID_REQUEST, f"Unknown match type {component.match_type}"
    if (component.match is None) != (component.match_type != _EXACT):
        return INVALID_REQUEST, "A match string is for exact matches, which need one."
    return NONE, ""


@api(49, "AlterClientQuotas", 0, 1)
def alter_client_quotas(call: Call, request: Any) -> None:
    connection = call.connection
    may = connection.apis.may_administer(connection, Operation.ALTER_CONFIGS)
    entries: list[Tree] = []
    for asked in request.entries:
        code, message = (CLUSTER_AUTHORIZATION_FAILED, _UNAUTHORIZED) if not may else _alter(call, asked, request)
        entity = [{"entity_type": part.entity_type, "entity_name": part.entity_name} for part in asked.entity]
        entries.append({"error_code": code, "error_message": message, "entity": entity})
    answer_when_durable(call, {"entries": entries})


def _alter(call: Call, asked: Any, request: Any) -> tuple[int, str | None]:
    quotas = call.connection.broker.quotas
    entity = {part.entity_type: part.entity_name for part in asked.entity}
    if len(entity) < len(asked.entity):
        return INVALID_REQUEST, "Invalid client quota entity, duplicate entity entry"
    changes = {op.key: None if op.remove else float(op.value) for op in asked.ops}
    if len(changes) < len(asked.ops):
        return INVALID_REQUEST, "Duplicate quota key"
    try:
        if request.validate_only:
            quotas.check(entity, changes)
        else:
            quotas.alter(entity, changes)
    except PeerError as error:
        return INVALID_REQUEST, str(error)
    return NONE, None


def _told(entity: dict[str, str | None]) -> Sequence[Tree]:
    return [{"entity_type": kind, "entity_name": name} for kind, name in entity.items()]
