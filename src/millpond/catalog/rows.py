"""What the catalog stores, one frozen dataclass a table. The column order here is the column order of `tables.py`.

`arguments`, `configs`, `definition` and `value` hold AMQP field values and are stored by `field_values.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

DESTINATION_QUEUE: Final = "queue"
DESTINATION_EXCHANGE: Final = "exchange"


@dataclass(frozen=True, slots=True)
class VhostRow:
    name: str
    description: str = ""
    tags: tuple[str, ...] = ()
    default_queue_type: str = "classic"


@dataclass(frozen=True, slots=True)
class UserRow:
    """`password_hash` is a PHC string of argon2, or one of RabbitMQ's with a prefix of its own, or None for a user who
    cannot log in with a password."""

    name: str
    password_hash: str | None = field(repr=False)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PermissionRow:
    """Regular expressions for the names that `user` may configure, write to and read from in `vhost`."""

    user: str
    vhost: str
    configure: str
    write: str
    read: str


@dataclass(frozen=True, slots=True)
class RuleRow:
    """One permission: `user`, or "*" for everybody, may do (`effect` "allow") or may not do ("deny") one operation to
    what `pattern` names, from `host` or from everywhere ("*"). `pattern_type` is "literal" or "prefix"."""

    user: str
    vhost: str
    resource_type: str
    pattern_type: str
    pattern: str
    operation: str
    effect: str = "allow"
    host: str = "*"


@dataclass(frozen=True, slots=True)
class ScramRow:
    """How `user` logs in by SCRAM: bytes are hexadecimal digits."""

    user: str
    mechanism: str
    iterations: int
    salt: str = field(repr=False)
    stored_key: str = field(repr=False)
    server_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """`entity` has a name, or None for the default, for each of "user" and "client-id" that the quota speaks of."""

    entity: dict[str, str | None]
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class TopicPermissionRow:
    """Regular expressions for the routing keys that `user` may write to and read from at the topic exchange."""

    user: str
    vhost: str
    exchange: str
    write: str
    read: str


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    vhost: str
    name: str
    type: str
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueRow:
    """`id` names the queue's log and is never given to another queue; 0 where it has not been given one yet."""

    vhost: str
    name: str
    durable: bool = True
    auto_delete: bool = False
    exclusive: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    id: int = 0


@dataclass(frozen=True, slots=True)
class TopicRow:
    """`id` is 32 hexadecimal digits; `configs` has what differs from the defaults, as texts. `arguments` are those of
    the stream that AMQP has declared; None where the topic was made in another way."""

    vhost: str
    name: str
    id: str
    configs: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """`id` names the partition's log, and is never given to another log; 0 where it has not been given one yet."""

    vhost: str
    topic: str
    number: int
    id: int = 0


@dataclass(frozen=True, slots=True)
class BindingRow:
    """`source` is an exchange, or a topic where the row is one of `topic_bindings`.

    All columns together are the key: bindings that differ in their arguments only are different bindings."""

    vhost: str
    source: str
    destination_type: str
    destination: str
    routing_key: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """`kind` is "policy" or "operator"; operator policies are limits that a user's policy cannot lift."""

    vhost: str
    name: str
    kind: str
    pattern: str
    apply_to: str
    definition: dict[str, Any]
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ParameterRow:
    """A runtime parameter of `component` (shovel, federation-upstream, ...). Global ones have "" as their vhost, and as
    their component, but for "user-limits"."""

    vhost: str
    component: str
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class CatalogState:
    """All that the catalog holds."""

    settings: dict[str, str]
    vhosts: list[VhostRow]
    users: list[UserRow]
    permissions: list[PermissionRow]
    topic_permissions: list[TopicPermissionRow]
    exchanges: list[ExchangeRow]
    queues: list[QueueRow]
    topics: list[TopicRow]
    partitions: list[PartitionRow]
    bindings: list[BindingRow]
    topic_bindings: list[BindingRow]
    policies: list[PolicyRow]
    parameters: list[ParameterRow]
    rules: list[RuleRow] = field(default_factory=list)
    scram_credentials: list[ScramRow] = field(default_factory=list)
    quotas: list[QuotaRow] = field(default_factory=list)
