"""What a user is authorized to do, as bit fields that tell it to clients which ask for it (KIP-430).

The bit of an operation is its code in AclOperation. Of each kind of resource those are told that Apache Kafka has for
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from millpond.broker.access import CLUSTER, CLUSTER_NAME, GROUP, TOPIC, Operation

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Connection

_BITS: Final = {
    Operation.READ: 3,
    Operation.WRITE: 4,
    Operation.CREATE: 5,
    Operation.DELETE: 6,
    Operation.ALTER: 7,
    Operation.DESCRIBE: 8,
    Operation.CLUSTER_ACTION: 9,
    Operation.DESCRIBE_CONFIGS: 10,
    Operation.ALTER_CONFIGS: 11,
    Operation.IDEMPOTENT_WRITE: 12,
}
_OF_TOPICS: Final = (
    Operation.READ,
    Operation.WRITE,
    Operation.CREATE,
    Operation.DELETE,
    Operation.ALTER,
    Operation.DESCRIBE,
    Operation.DESCRIBE_CONFIGS,
    Operation.ALTER_CONFIGS,
)
_OF_GROUPS: Final = (
    Operation.READ,
    Operation.DELETE,
    Operation.DESCRIBE,
    Operation.DESCRIBE_CONFIGS,
    Operation.ALTER_CONFIGS,
)
_OF_CLUSTER: Final = (
    Operation.CREATE,
    Operation.ALTER,
    Operation.DESCRIBE,
    Operation.CLUSTER_ACTION,
    Operation.DESCRIBE_CONFIGS,
    Operation.ALTER_CONFIGS,
    Operation.IDEMPOTENT_WRITE,
)


def operations_on_topic(connection: Connection, name: str) -> int:
    """What the connection's user may do to a topic."""
    return _field(connection, _OF_TOPICS, name, TOPIC)


def operations_on_group(connection: Connection, name: str) -> int:
    """What the connection's user may do to a group."""
    return _field(connection, _OF_GROUPS, name, GROUP)


def operations_on_cluster(connection: Connection) -> int:
    """What the connection's user may do to the cluster; nothing where even that may not be known."""
    if not connection.apis.may(connection, Operation.DESCRIBE, CLUSTER_NAME, CLUSTER):
        return 0
    return _field(connection, _OF_CLUSTER, CLUSTER_NAME, CLUSTER)


def _field(connection: Connection, operations: tuple[Operation, ...], name: str, resource: str) -> int:
    may = connection.apis.may
    return sum([1 << _BITS[operation] for operation in operations if may(connection, operation, name, resource)])
