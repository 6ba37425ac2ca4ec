"""DescribeAcls, CreateAcls, DeleteAcls: who may do what.

Behaviour: ACLs are rows of the one table of permissions, of the listener's virtual host. RabbitMQ's permissions are
shown among them where an ACL can say what their patterns say: `.*`, `^name$`, `^prefix.*`; they are changed as
RabbitMQ's are, and not by DeleteAcls. What one request adds or deletes is done in one step. Users need not exist.
Who may see and change ACLs is said in `ApiTable.may_administer`.
Versions: 1 to 3. Version 1 has no pattern types: that is literal.
Not implemented: principals of another type than User.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import PeerError
from millpond.broker.access import (
    ALLOW,
    ANY,
    CLUSTER,
    CLUSTER_NAME,
    DENY,
    GROUP,
    LITERAL,
    PREFIX,
    TOPIC,
    TRANSACTIONAL_ID,
    Operation,
)
from millpond.catalog.rows import PermissionRow, RuleRow
from millpond.protocols.kafka.errors import CLUSTER_AUTHORIZATION_FAILED, INVALID_REQUEST, code_of
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call, Connection

# Kafka's numbers. 1 is any of them, in filters.
_ANY_CODE: Final = 1
RESOURCES: Final = {2: TOPIC, 3: GROUP, 4: CLUSTER, 5: TRANSACTIONAL_ID, 6: "delegation_token", 7: "user"}
PATTERNS: Final = {3: LITERAL, 4: PREFIX}
_MATCH: Final = 2
EFFECTS: Final = {2: DENY, 3: ALLOW}
OPERATIONS: Final = {
    2: "all",
    3: "read",
    4: "write",
    5: "create",
    6: "delete",
    7: "alter",
    8: "describe",
    9: "cluster_action",
    10: "describe_configs",
    11: "alter_configs",
    12: "idempotent_write",
    13: "create_tokens",
    14: "describe_tokens",
}
_RESOURCE_CODES: Final = {name: code for code, name in RESOURCES.items()}
_PATTERN_CODES: Final = {name: code for code, name in PATTERNS.items()}
_EFFECT_CODES: Final = {name: code for code, name in EFFECTS.items()}
_OPERATION_CODES: Final = {name: code for code, name in OPERATIONS.items()}

_USER: Final = "User:"
_REFUSED: Final = {"error_code": CLUSTER_AUTHORIZATION_FAILED, "error_message": "Cluster authorization failed."}


@api(29, "DescribeAcls", 1, 3)
def describe_acls(call: Call, request: Any) -> Tree:
    connection = call.connection
    if not connection.apis.may_administer(connection, Operation.DESCRIBE):
        return {**_REFUSED, "resources": []}
    try:
        wanted = _Filter(request)
    except ValueError as error:
        return {"error_code": INVALID_REQUEST, "error_message": str(error), "resources": []}
    access, vhost = connection.broker.access, connection.settings.vhost
    found: dict[tuple[str, str, str], list[Tree]] = {}
    shown = (rule for row in access.list_permissions(vhost=vhost) for rule in shown_permission(row))
    for rule in dict.fromkeys([*access.list_rules(vhost), *shown]):
        if wanted.matches(rule):
            found.setdefault((rule.resource_type, rule.pattern, rule.pattern_type), []).append(_entry(rule))
    return {
        "error_message": None,
        "resources": [
            {
                "resource_type": _RESOURCE_CODES[resource],
                "resource_name": name,
                "pattern_type": _PATTERN_CODES[pattern],
                "acls": acls,
            }
            for (resource, name, pattern), acls in found.items()
        ],
    }


@api(30, "CreateAcls", 1, 3)
def create_acls(call: Call, request: Any) -> None:
    connection = call.connection
    results: list[Tree] = []
    may = connection.apis.may_administer(connection, Operation.ALTER)
    for asked in request.creations:
        if not may:
            results.append(_REFUSED)
            continue
        try:
            connection.broker.access.add_rule(_rule(connection, asked))
        except ValueError as error:
            results.append({"error_code": INVALID_REQUEST, "error_message": str(error)})
        except PeerError as error:
            results.append({"error_code": code_of(error), "error_message": str(error)})
        else:
            results.append({"error_message": None})
    answer_when_durable(call, {"results": results})


@api(31, "DeleteAcls", 1, 3)
def delete_acls(call: Call, request: Any) -> None:
    connection = call.connection
    results: list[Tree] = []
    may = connection.apis.may_administer(connection, Operation.ALTER)
    access, vhost = connection.broker.access, connection.settings.vhost
    deleted: dict[RuleRow, None] = {}
    for asked in request.filters:
        if not may:
            results.append({**_REFUSED, "matching_acls": []})
            continue
        try:
            wanted = _Filter(asked)
        except ValueError as error:
            results.append({"error_code": INVALID_REQUEST, "error_message": str(error), "matching_acls": []})
            continue
        # What several filters match is told for each of them.
        found = [rule for rule in access.list_rules(vhost) if wanted.matches(rule)]
        deleted.update(dict.fromkeys(found))
        results.append({"error_message": None, "matching_acls": [{**_place(rule), **_entry(rule)} for rule in found]})
    for rule in deleted:
        access.delete_rule(rule)
    answer_when_durable(call, {"filter_results": results})


def _entry(rule: RuleRow) -> Tree:
    return {
        "error_message": None,
        "principal": _USER + rule.user,
        "host": rule.host,
        "operation": _OPERATION_CODES[rule.operation],
        "permission_type": _EFFECT_CODES[rule.effect],
    }


def _place(rule: RuleRow) -> Tree:
    return {
        "resource_type": _RESOURCE_CODES[rule.resource_type],
        "resource_name": rule.pattern,
        "pattern_type": _PATTERN_CODES[rule.pattern_type],
    }


def _rule(connection: Connection, asked: Any) -> RuleRow:
    """The row that somebody wants to add. Raises ValueError where it cannot be."""
    resource = _known(RESOURCES, asked.resource_type, "resourceType")
    pattern = _known(PATTERNS, getattr(asked, "resource_pattern_type", _PATTERN_CODES[LITERAL]), "patternType")
    operation = _known(OPERATIONS, asked.operation, "operation")
    effect = _known(EFFECTS, asked.permission_type, "permissionType")
    name, principal = asked.resource_name, asked.principal
    if not name:
        raise ValueError("Resource name should not be empty")
    if resource == CLUSTER and (name != CLUSTER_NAME or pattern != LITERAL):
        raise ValueError(f"The only valid name for the CLUSTER resource is {CLUSTER_NAME}")
    if not principal.startswith(_USER) or principal == _USER:
        raise ValueError(f"{principal!r} is no principal: write User:NAME")
    return RuleRow(
        principal.removeprefix(_USER), connection.settings.vhost, resource, pattern, name, operation, effect, asked.host
    )


def _known(table: dict[int, str], code: int, what: str) -> str:
    found = table.get(code)
    if found is None:
        raise ValueError(f"Invalid {what} {code}")
    return found


class _Filter:
    """Which rows somebody asks for. Raises ValueError where that is not known."""

    def __init__(self, asked: Any) -> None:
        self._resource: Final = _wanted(RESOURCES, asked.resource_type_filter, "resourceType")
        self._name: Final = asked.resource_name_filter
        self._pattern_code: Final = int(getattr(asked, "pattern_type_filter", _PATTERN_CODES[LITERAL]))
        if self._pattern_code not in {_ANY_CODE, _MATCH, *PATTERNS}:
            raise ValueError(f"Invalid patternType {self._pattern_code}")
        self._principal: Final = asked.principal_filter
        self._host: Final = asked.host_filter
        self._operation: Final = _wanted(OPERATIONS, asked.operation, "operation")
        self._effect: Final = _wanted(EFFECTS, asked.permission_type, "permissionType")

    def matches(self, rule: RuleRow) -> bool:
        return (
            self._resource in {None, rule.resource_type}
            and self._operation in {None, rule.operation}
            and self._effect in {None, rule.effect}
            and self._host in {None, rule.host}
            and self._principal in {None, _USER + rule.user}
            and self._matches_name(rule)
        )

    def _matches_name(self, rule: RuleRow) -> bool:
        if self._pattern_code in PATTERNS and PATTERNS[self._pattern_code] != rule.pattern_type:
            return False
        if self._name is None or self._name == rule.pattern:
            return True
        if self._pattern_code != _MATCH:
            return False
        # All rows that have a say about this name.
        return rule.pattern == ANY if rule.pattern_type == LITERAL else self._name.startswith(rule.pattern)


def _wanted(table: dict[int, str], code: int, what: str) -> str | None:
    return None if code == _ANY_CODE else _known(table, code, what)


# --- RabbitMQ's permissions as ACLs -----------------------------------------------------------------------------------

# What each of the three patterns gives, of topics, groups and transactional ids.
_GIVEN: Final = {
    "configure": ("create", "delete", "alter", "alter_configs"),
    "write": ("write",),
    "read": ("read",),
}
# Which of them there are for each resource.
_OF_RESOURCE: Final = {
    TOPIC: {"create", "delete", "alter", "alter_configs", "write", "read"},
    GROUP: {"delete", "read"},
    TRANSACTIONAL_ID: {"write"},
}
_EVERYTHING: Final = {".*", "^.*", ".*$", "^.*$"}
_NAME: Final = re.compile(r"\^((?:[A-Za-z0-9_-]|\\[^A-Za-z0-9])+)(\$|\.\*\$?|)")


def shown_permission(row: PermissionRow) -> Iterator[RuleRow]:
    """A permission of RabbitMQ's as ACLs, as far as ACLs can say what its patterns say."""
    for regex, given in ((row.configure, "configure"), (row.write, "write"), (row.read, "read")):
        said = _said(regex)
        if said is not None:
            pattern_type, name = said
            for resource, known in _OF_RESOURCE.items():
                for operation in _GIVEN[given]:
                    if operation in known:
                        yield RuleRow(row.user, row.vhost, resource, pattern_type, name, operation)


def _said(regex: str) -> tuple[str, str] | None:
    """A literal name or a prefix that means what the regular expression means; None where there is none."""
    if regex in _EVERYTHING:
        return LITERAL, ANY
    found = _NAME.fullmatch(regex)
    if found is None:
        return None
    return LITERAL if found[2] == "$" else PREFIX, re.sub(r"\\(.)", r"\1", found[1])
