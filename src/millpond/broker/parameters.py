"""Runtime parameters: values that administrators set by component and name, in a virtual host or for the whole node.

    component                     where it acts
    operator_policy               the virtual host's operator policies (`policies.py`), which RabbitMQ keeps here too
    vhost-limits, name "limits"   how many queues and connections a virtual host may have
    user-limits                   how many connections and channels a user may have; global, the name is the user's
    those in KEPT                 kept, shown and exported for links to other brokers; they act on nothing here

Global parameters have no component and act on nothing: they are for tools to keep something in. Rules and texts are
RabbitMQ's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import LimitExceeded, NotAllowed, NotFound, PreconditionFailed
from millpond.base.limits import NAME_BYTES_MAX, PARAMETERS_MAX
from millpond.broker.arguments import COUNT_MAX
from millpond.broker.policies import OPERATOR_POLICY, checked_policy, erlang, validation_failed
from millpond.catalog.rows import ParameterRow, PolicyRow

if TYPE_CHECKING:
    from millpond.broker.broker import ClientConnection
    from millpond.broker.vhost import VirtualHost
    from millpond.catalog.catalog import Catalog

logger = logging.getLogger(__name__)

OPERATOR_POLICIES: Final = "operator_policy"
VHOST_LIMITS: Final = "vhost-limits"
LIMITS: Final = "limits"
USER_LIMITS: Final = "user-limits"
# In the catalog, global parameters have no virtual host; and, but for the limits of users, no component.
GLOBAL: Final = ""

QUEUES_MAX: Final = "max-queues"
CONNECTIONS_MAX: Final = "max-connections"
CHANNELS_MAX: Final = "max-channels"

# Components of RabbitMQ's federation and shovel.
KEPT: Final = frozenset({"federation", "federation-upstream", "federation-upstream-set", "shovel"})

_VHOST_LIMIT_NAMES: Final = (CONNECTIONS_MAX, QUEUES_MAX)
_USER_LIMIT_NAMES: Final = (CONNECTIONS_MAX, CHANNELS_MAX)
_POLICY_FIELDS: Final = ("pattern", "definition", "priority", "apply-to")

# Virtual host, component, name.
Key = tuple[str, str, str]


class Parameters:
    """All parameters of the node. `vhosts` are the broker's; the end of the turn, in which a change is recorded, is the
    caller's to see to."""

    def __init__(self, catalog: Catalog, vhosts: Mapping[str, VirtualHost]) -> None:
        self._catalog: Final = catalog
        self._vhosts: Final = vhosts
        # By virtual host, component and name. Operator policies are where policies are.
        self._values: Final[dict[Key, Any]] = {}

    def load(self, rows: Iterable[ParameterRow]) -> None:
        """Take over what the catalog holds. The virtual hosts are there already."""
        for row in rows:
            self._values[row.vhost, row.component, row.name] = row.value
            if row.component == VHOST_LIMITS:
                self._limit_vhost(row.vhost)

    def forget_vhost(self, vhost: str) -> None:
        """Forget those in a virtual host that is deleted; `Catalog.delete_vhost` deletes them there."""
        for key in [key for key in self._values if key[0] == vhost]:
            del self._values[key]

    # --- In a virtual host ----------------------------------------------------------------------------------------

    def rows(self, component: str | None = None, vhost: str | None = None) -> list[ParameterRow]:
        """All of virtual hosts, or of one of them, or of a component."""
        found = [ParameterRow(*key, value) for key, value in self._values.items() if key[0] != GLOBAL]
        for where in self._vhosts.values():
            found += [operator_policy_parameter(row) for row in where.policies.rows(OPERATOR_POLICY)]
        return sorted(
            (row for row in found if component in {None, row.component} and vhost in {None, row.vhost}),
            key=lambda row: (row.vhost, row.component, row.name),
        )

    def row(self, vhost: str, component: str, name: str) -> ParameterRow:
        """Raises NotFound."""
        for row in self.rows(component, vhost):
            if row.name == name:
                return row
        raise NotFound("Parameter does not exist")

    def check(self, vhost: str, component: str, name: str, value: object) -> Callable[[], None]:
        """What sets the parameter. PreconditionFailed where it cannot be, in RabbitMQ's words."""
        if component == "policy":
            raise PreconditionFailed("policies may not be set using this method")
        if component == OPERATOR_POLICIES:
            policy = _operator_policy(vhost, name, value)
            return lambda: self._vhosts[vhost].put_policy(policy)
        if component == VHOST_LIMITS:
            if name != LIMITS:
                raise validation_failed(f"parameters of {VHOST_LIMITS} are called {LIMITS}")
            _check_limits(value, _VHOST_LIMIT_NAMES, LIMITS)
        elif component not in KEPT:
            raise validation_failed(f"component {component} not found")
        _check_name(name)
        return lambda: self._put(vhost, component, name, value)

    def put(self, vhost: str, component: str, name: str, value: object) -> None:
        """Set a parameter. `vhost` is there."""
        self.check(vhost, component, name, value)()
        if component in KEPT:
            logger.warning("parameters of %s are kept, and act on nothing", component)

    def clear(self, vhost: str, component: str, name: str) -> None:
        """NotFound where there is no such parameter."""
        if component == "policy":
            raise PreconditionFailed("policies may not be cleared using this method")
        if component == OPERATOR_POLICIES:
            self._vhosts[vhost].delete_policy(name, OPERATOR_POLICY)
        else:
            self._clear(vhost, component, name)

    # --- Limits ---------------------------------------------------------------------------------------------------

    def limits_of_vhost(self, vhost: str) -> dict[str, int]:
        return dict(self._values.get((vhost, VHOST_LIMITS, LIMITS), {}))

    def put_vhost_limit(self, vhost: str, name: str, value: object) -> None:
        """Set one limit of a virtual host; a negative one is none."""
        self.put(vhost, VHOST_LIMITS, LIMITS, {**self.limits_of_vhost(vhost), name: value})

    def clear_vhost_limit(self, vhost: str, name: str) -> None:
        """It need not be set."""
        remaining = self.limits_of_vhost(vhost)
        if remaining.pop(name, None) is not None:
            if remaining:
                self.put(vhost, VHOST_LIMITS, LIMITS, remaining)
            else:
                self._clear(vhost, VHOST_LIMITS, LIMITS)

    def limits_of_user(self, user: str) -> dict[str, int]:
        return dict(self._values.get((GLOBAL, USER_LIMITS, user), {}))

    def check_user_limits(self, limits: object) -> None:
        """PreconditionFailed where they are not what limits of users are."""
        _check_limits(limits, _USER_LIMIT_NAMES, USER_LIMITS)

    def put_user_limits(self, user: str, limits: dict[str, Any]) -> None:
        """Set all limits of a user, who is there, anew."""
        self.check_user_limits(limits)
        if limits:
            self._put(GLOBAL, USER_LIMITS, user, limits)
        elif (GLOBAL, USER_LIMITS, user) in self._values:
            self._clear(GLOBAL, USER_LIMITS, user)

    def forget_user(self, user: str) -> None:
        """Forget the limits of a user who is deleted; `Catalog.delete_user` deletes them there."""
        self._values.pop((GLOBAL, USER_LIMITS, user), None)

    def check_connection(
        self,
        connections: Iterable[ClientConnection],
        user: str,
        vhost: VirtualHost,
        newcomer: ClientConnection | None = None,
    ) -> None:
        """NotAllowed where `user` may not open one more connection to `vhost`. `newcomer`, which may be among the
        connections, does not count. They are looked at only where there is a limit."""
        limit = int(vhost.connections_max)
        if limit >= 0 and sum(one.vhost_name() == vhost.name for one in connections if one is not newcomer) >= limit:
            raise NotAllowed(
                f"access to vhost '{vhost.name}' refused for user '{user}': connection limit ({limit}) is reached"
            )
        limit = self.limits_of_user(user).get(CONNECTIONS_MAX, -1)
        if limit >= 0 and sum(one.user == user for one in connections if one is not newcomer) >= limit:
            raise NotAllowed(f"connection refused for user '{user}': user connection limit ({limit}) is reached")

    def check_channel(self, connections: Iterable[ClientConnection], user: str) -> None:
        """NotAllowed where `user` may not open one more channel."""
        if (GLOBAL, USER_LIMITS, user) not in self._values:
            return
        limit = self.limits_of_user(user).get(CHANNELS_MAX, -1)
        if limit >= 0 and sum(one.channel_count() for one in connections if one.user == user) >= limit:
            raise NotAllowed(
                f"number of channels opened for user '{user}' has reached the maximum allowed user limit of {limit}"
            )

    def _limit_vhost(self, name: str) -> None:
        vhost = self._vhosts.get(name)
        if vhost is not None:
            limits = self.limits_of_vhost(name)
            vhost.queues_max = limits.get(QUEUES_MAX, -1)
            vhost.connections_max = limits.get(CONNECTIONS_MAX, -1)

    # --- Global ---------------------------------------------------------------------------------------------------

    def global_rows(self) -> list[ParameterRow]:
        return [ParameterRow(*key, value) for key, value in sorted(self._values.items()) if key[:2] == (GLOBAL, "")]

    def global_row(self, name: str) -> ParameterRow:
        """Raises NotFound."""
        if (GLOBAL, "", name) not in self._values:
            raise NotFound("Parameter does not exist")
        return ParameterRow(GLOBAL, "", name, self._values[GLOBAL, "", name])

    def put_global(self, name: str, value: object) -> None:
        _check_name(name)
        self._put(GLOBAL, "", name, value)

    def clear_global(self, name: str) -> None:
        """NotFound where there is no such parameter."""
        self._clear(GLOBAL, "", name)

    def check_room(self, keys: set[Key]) -> None:
        """LimitExceeded where these, of which some may be there already, are too many."""
        if len(self._values) + len(keys) > PARAMETERS_MAX and len(self._values.keys() | keys) > PARAMETERS_MAX:
            raise LimitExceeded(f"there are at most {PARAMETERS_MAX} parameters")

    def _put(self, vhost: str, component: str, name: str, value: Any) -> None:
        key = (vhost, component, name)
        self.check_room({key})
        self._catalog.put_parameter(ParameterRow(*key, value))
        self._values[key] = value
        if component == VHOST_LIMITS:
            self._limit_vhost(vhost)

    def _clear(self, vhost: str, component: str, name: str) -> None:
        if (vhost, component, name) not in self._values:
            raise NotFound("Parameter does not exist")
        self._catalog.delete_parameter(vhost, component, name)
        del self._values[vhost, component, name]
        if component == VHOST_LIMITS:
            self._limit_vhost(vhost)


def operator_policy_parameter(row: PolicyRow) -> ParameterRow:
    """An operator policy as the parameter that it is in RabbitMQ."""
    value = {
        "pattern": row.pattern,
        "definition": row.definition,
        "priority": row.priority,
        "apply-to": row.apply_to,
    }
    return ParameterRow(row.vhost, OPERATOR_POLICIES, row.name, value)


def _operator_policy(vhost: str, name: str, value: object) -> PolicyRow:
    if not isinstance(value, dict):
        raise validation_failed(f"{name} not a list {erlang(value)}")
    if unknown := [key for key in value if key not in _POLICY_FIELDS]:
        raise validation_failed(f"Unrecognised terms {erlang(unknown)} in {name}")
    pattern, definition, priority, apply_to = (value.get(field) for field in _POLICY_FIELDS)
    return checked_policy(vhost, name, OPERATOR_POLICY, pattern, definition, priority, apply_to)


def _check_limits(limits: object, names: tuple[str, ...], what: str) -> None:
    # An Erlang list of nothing, as RabbitMQ's files have it, stands for no limits too.
    if limits == []:
        return
    if not isinstance(limits, dict):
        raise validation_failed(f"{what} not a list {erlang(limits)}")
    if unknown := [f"{{{erlang(name)},{erlang(value)}}}" for name, value in limits.items() if name not in names]:
        raise validation_failed(f"Unrecognised terms [{','.join(unknown)}] in {what}")
    for name, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > COUNT_MAX:
            raise validation_failed(f"{name} should be a number, actually was {erlang(value)}")


def _check_name(name: str) -> None:
    if not 0 < len(name.encode(errors="surrogatepass")) <= NAME_BYTES_MAX:
        raise validation_failed(f"a parameter's name has 1 to {NAME_BYTES_MAX} bytes")
