"""Policies: settings for all queues and exchanges whose names match a pattern, and which can be changed while they run.

There are two kinds, each with its own names: users' policies, and operator policies, which are limits that users cannot
lift. Of each kind the one with the highest priority that matches applies to an object; no two policies of a kind are
ever combined. What acts on a queue:

    the policy's definition ── merged with ── the operator policy's ── merged with ── the queue's arguments

`POLICY_KEYS` in `arguments.py` has the keys and how values are merged. Rules and texts are RabbitMQ's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from millpond.base import limits
from millpond.base.errors import LimitExceeded, NotFound, PreconditionFailed
from millpond.broker.arguments import COUNT_MAX, POLICY_KEYS
from millpond.broker.patterns import NOTHING, compile_pattern
from millpond.catalog.rows import PolicyRow

# Kinds, as the catalog has them.
POLICY: Final = "policy"
OPERATOR_POLICY: Final = "operator"

ALL: Final = "all"
QUEUES: Final = "queues"
EXCHANGES: Final = "exchanges"
# Type of a queue -> what applies to queues of this type only.
_APPLY_TO_BY_TYPE: Final = {"classic": "classic_queues", "quorum": "quorum_queues", "stream": "streams"}
_APPLY_TO: Final = frozenset({ALL, QUEUES, EXCHANGES, *_APPLY_TO_BY_TYPE.values()})


@dataclass(frozen=True, slots=True)
class Applied:
    """What policies make of one queue or exchange: those that apply to it, and both definitions merged."""

    policy: PolicyRow | None
    operator_policy: PolicyRow | None
    definition: dict[str, Any]


class Policies:
    """The policies of one virtual host."""

    def __init__(self) -> None:
        self._by_kind: Final[dict[str, dict[str, _Policy]]] = {POLICY: {}, OPERATOR_POLICY: {}}
        # The same, in the order in which they are tried: the first that matches applies.
        self._ordered: Final[dict[str, list[_Policy]]] = {POLICY: [], OPERATOR_POLICY: []}

    def put(self, row: PolicyRow) -> None:
        """Add the policy, or replace that of the same kind and name. LimitExceeded where there are too many."""
        self.check_room(row.kind, {row.name})
        self._by_kind[row.kind][row.name] = _Policy(row)
        self._order(row.kind)

    def check_room(self, kind: str, names: set[str]) -> None:
        """LimitExceeded where these, of which some may be there already, are too many."""
        if len(self._by_kind[kind].keys() | names) > limits.POLICIES_PER_VHOST_MAX:
            raise LimitExceeded(f"a virtual host has at most {limits.POLICIES_PER_VHOST_MAX} policies of a kind")

    def remove(self, name: str, kind: str) -> None:
        """Raises NotFound."""
        self.row(name, kind)
        del self._by_kind[kind][name]
        self._order(kind)

    def _order(self, kind: str) -> None:
        # RabbitMQ promises nothing where two have the same priority. Here the name decides: always the same one.
        self._ordered[kind] = sorted(
            self._by_kind[kind].values(), key=lambda policy: (-policy.row.priority, policy.row.name)
        )

    def row(self, name: str, kind: str) -> PolicyRow:
        """Raises NotFound."""
        policy = self._by_kind[kind].get(name)
        if policy is None:
            raise NotFound(f"no {'operator policy' if kind == OPERATOR_POLICY else 'policy'} '{name}'")
        return policy.row

    def rows(self, kind: str) -> list[PolicyRow]:
        """All of a kind, by name."""
        return [policy.row for _, policy in sorted(self._by_kind[kind].items())]

    def of_queue(self, name: str, queue_type: str) -> Applied | None:
        """What applies to a queue; None where nothing does."""
        return self._applied(name, {ALL, QUEUES, _APPLY_TO_BY_TYPE.get(queue_type, "")}, queue_type)

    def of_exchange(self, name: str) -> Applied | None:
        """What applies to an exchange; None where nothing does."""
        return self._applied(name, {ALL, EXCHANGES}, "")

    def _applied(self, name: str, apply_to: set[str], queue_type: str) -> Applied | None:
        policy, operator_policy = (
            next((one.row for one in self._ordered[kind] if one.applies(name, apply_to, queue_type)), None)
            for kind in (POLICY, OPERATOR_POLICY)
        )
        if policy is None and operator_policy is None:
            return None
        return Applied(policy, operator_policy, _merged(policy, operator_policy, queue_type))


class _Policy:
    """A policy with its pattern compiled."""

    __slots__ = ("_not_for", "_pattern", "row")

    def __init__(self, row: PolicyRow) -> None:
        self.row: Final = row
        try:
            self._pattern = compile_pattern(row.pattern)
        except ValueError:
            # Another version accepted what the catalog holds: it matches nothing.
            self._pattern = NOTHING
        keys = [POLICY_KEYS[key] for key in row.definition if key in POLICY_KEYS]
        self._not_for: Final = frozenset[str]().union(*(key.not_for for key in keys))

    def applies(self, name: str, apply_to: set[str], queue_type: str) -> bool:
        return (
            self.row.apply_to in apply_to and queue_type not in self._not_for and self._pattern.search(name) is not None
        )


def _merged(policy: PolicyRow | None, operator_policy: PolicyRow | None, queue_type: str) -> dict[str, Any]:
    definition = dict(policy.definition) if policy is not None else {}
    for key, limit in operator_policy.definition.items() if operator_policy is not None else ():
        known = POLICY_KEYS.get(key)
        merge = known.with_operator if known is not None else None
        definition[key] = limit if key not in definition or merge is None else merge(definition[key], limit, queue_type)
    return definition


def effective_arguments(arguments: dict[str, object], applied: Applied | None, queue_type: str) -> dict[str, object]:
    """The arguments that act on a queue: its own, merged with what policies say."""
    if applied is None:
        return arguments
    merged = dict(arguments)
    for key, value in applied.definition.items():
        known = POLICY_KEYS.get(key)
        if known is not None:
            name = "x-" + key
            merged[name] = known.with_argument(value, merged[name], queue_type) if name in merged else value
    return merged


# --- What a policy may be ---------------------------------------------------------------------------------------------


def checked_policy(
    vhost: str,
    name: str,
    kind: str,
    pattern: object,
    definition: object,
    priority: object = None,
    apply_to: object = None,
) -> PolicyRow:
    """A policy out of values that somebody sent. PreconditionFailed has RabbitMQ's text for all that is wrong."""
    priority = 0 if priority is None else priority
    apply_to = ALL if apply_to is None else apply_to
    problems = [
        problem
        for problem in (
            _definition_problem(definition, kind),
            _apply_to_problem(apply_to),
            _pattern_problem(pattern),
            _priority_problem(priority),
        )
        if problem is not None
    ]
    if not 0 < len(name.encode(errors="surrogatepass")) <= limits.NAME_BYTES_MAX:
        problems.append(f"a policy's name has 1 to {limits.NAME_BYTES_MAX} bytes")
    if problems:
        raise validation_failed(*problems)
    assert isinstance(pattern, str)
    assert isinstance(apply_to, str)
    assert isinstance(definition, dict)
    assert isinstance(priority, (int, float))
    return PolicyRow(vhost, name, kind, pattern, apply_to, dict(definition), int(priority))


def validation_failed(*problems: str) -> PreconditionFailed:
    """RabbitMQ's way to say what is wrong with a policy or a parameter."""
    return PreconditionFailed("\n".join(["Validation failed\n", *problems, ""]))


def _definition_problem(definition: object, kind: str) -> str | None:
    if not isinstance(definition, Mapping):
        return f"definition must be a dictionary: {erlang(definition)}"
    if not definition:
        return "no policy provided"
    unknown = []
    for key, value in definition.items():
        known = POLICY_KEYS.get(key)
        if known is None or (kind == OPERATOR_POLICY and known.with_operator is None):
            unknown.append(f"{{{erlang(key)},{erlang(value)}}}")
        elif known.check(value, {}) is not None:
            return f"{erlang(value)} is not a valid {known.what}"
    if unknown:
        return f"[{','.join(unknown)}] are not recognised policy settings"
    return _delayed_retry_problem(definition)


def _delayed_retry_problem(definition: Mapping[str, Any]) -> str | None:
    kind, low, high = (definition.get(f"delayed-retry-{part}") for part in ("type", "min", "max"))
    if kind not in {None, "disabled"} and low is None:
        return f"delayed-retry-min is required when delayed-retry-type is {kind}"
    if low is not None and high is not None and high < low:
        return f"delayed-retry-max ({high}) must not be smaller than delayed-retry-min ({low})"
    return None


def _apply_to_problem(apply_to: object) -> str | None:
    if isinstance(apply_to, str) and apply_to in _APPLY_TO:
        return None
    return (
        f"apply-to '{apply_to}' unrecognised; should be one of: 'queues', 'classic_queues',  'quorum_queues', "
        "'streams', 'exchanges', or 'all'"
    )


def _pattern_problem(pattern: object) -> str | None:
    if not isinstance(pattern, str):
        return f"pattern should be a binary but was {erlang(pattern)}"
    try:
        compile_pattern(pattern)
    except ValueError as error:
        return f"pattern should be regular expression but is invalid: {error}"
    return None


def _priority_problem(priority: object) -> str | None:
    # RabbitMQ takes fractions too. The catalog keeps whole numbers, and nobody misses the others.
    if isinstance(priority, bool) or not isinstance(priority, (int, float)) or priority != priority // 1:
        return f"priority should be a number, actually was {erlang(priority)}"
    return None if abs(priority) <= COUNT_MAX else f"priority should be a number of 64 bits, actually was {priority}"


def erlang(value: object) -> str:
    """A JSON value as RabbitMQ's texts show it."""
    if isinstance(value, str):
        return f'<<"{value}">>'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "#{" + ",".join(f"{erlang(key)} => {erlang(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(erlang, value)) + "]"
    return "null" if value is None else str(value)
