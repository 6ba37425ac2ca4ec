"""AlterConfigs and IncrementalAlterConfigs: another configuration for topics and groups, which acts at once.

Behaviour: AlterConfigs replaces all of a topic's own configuration; IncrementalAlterConfigs sets and deletes single
entries, and adds to and takes from those that are lists. A resource that is named twice, or an entry, is refused, and
so is a change of the node's own configuration: it is set where the node is started.
Versions: they differ in encoding alone.
Not implemented: the levels of loggers, and client metrics.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import PeerError
from millpond.broker.access import CLUSTER, CLUSTER_NAME, Operation
from millpond.broker.streams.topic_settings import LIST, TOPIC_CONFIGS, checked_config
from millpond.broker.streams.topics import check_topic_name
from millpond.protocols.kafka.apis.create_topics import Refused
from millpond.protocols.kafka.apis.describe_configs import BROKER, GROUP, TOPIC, wrong_broker
from millpond.protocols.kafka.apis.metadata import NODE_ID
from millpond.protocols.kafka.errors import (
    CLUSTER_AUTHORIZATION_FAILED,
    GROUP_AUTHORIZATION_FAILED,
    INVALID_CONFIG,
    INVALID_REQUEST,
    NONE,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_OR_PARTITION,
    code_of,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api

if TYPE_CHECKING:
    from millpond.broker.streams.topic import Topic
    from millpond.protocols.kafka.connection import Call, Connection

# What may be done to an entry.
SET: Final = 0
DELETE: Final = 1
APPEND: Final = 2
SUBTRACT: Final = 3
_VERBS: Final = {APPEND: "APPEND", SUBTRACT: "SUBTRACT"}


@api(33, "AlterConfigs", 0, 2)
def alter_configs(call: Call, request: Any) -> None:
    _alter(call, request, is_incremental=False)


@api(44, "IncrementalAlterConfigs", 0, 1)
def incremental_alter_configs(call: Call, request: Any) -> None:
    _alter(call, request, is_incremental=True)


def _alter(call: Call, request: Any, is_incremental: bool) -> None:
    counts = Counter((asked.resource_type, asked.resource_name) for asked in request.resources)
    responses: list[Tree] = []
    for asked in request.resources:
        code, message = NONE, None
        try:
            if counts[asked.resource_type, asked.resource_name] > 1:
                raise Refused(INVALID_REQUEST, "Each resource must appear at most once.")
            _check_entries(asked, is_incremental)
            if asked.resource_type == TOPIC:
                _alter_topic(call.connection, asked, is_incremental, request.validate_only)
            elif asked.resource_type == GROUP:
                _alter_group(call.connection, asked, is_incremental, request.validate_only)
            elif asked.resource_type == BROKER:
                _check_broker(call.connection, asked)
            else:
                raise Refused(INVALID_REQUEST, f"Unknown resource type {asked.resource_type}")
        except Refused as refused:
            code, message = refused.code, str(refused)
        except PeerError as error:
            code, message = code_of(error), str(error)
        responses.append(
            {
                "error_code": code,
                "error_message": message,
                "resource_type": asked.resource_type,
                "resource_name": asked.resource_name,
            }
        )
    answer_when_durable(call, {"responses": responses})


def _check_entries(asked: Any, is_incremental: bool) -> None:
    if len({config.name for config in asked.configs}) < len(asked.configs):
        raise Refused(INVALID_REQUEST, "Error due to duplicate config keys")
    nulls = [config.name for config in asked.configs if config.value is None and _operation(config) != DELETE]
    if nulls:
        raise Refused(INVALID_REQUEST, f"Null value not supported for : {', '.join(nulls)}")
    if is_incremental:
        for config in asked.configs:
            if _operation(config) not in {SET, DELETE, APPEND, SUBTRACT}:
                raise Refused(INVALID_REQUEST, f"Unknown operations type {config.config_operation}")


def _operation(config: Any) -> int:
    return int(getattr(config, "config_operation", SET))


def _check_broker(connection: Connection, asked: Any) -> None:
    """The node's configuration stays as it is; to delete what nobody could set is no change."""
    if not connection.apis.may(connection, Operation.ALTER_CONFIGS, CLUSTER_NAME, CLUSTER):
        raise Refused(CLUSTER_AUTHORIZATION_FAILED, "Cluster authorization failed.")
    name = asked.resource_name
    if name and name != str(NODE_ID):
        raise Refused(INVALID_REQUEST, wrong_broker(name))
    changed = sorted(config.name for config in asked.configs if _operation(config) != DELETE)
    if changed:
        raise Refused(
            INVALID_REQUEST,
            f"Cannot update these configs dynamically: {', '.join(changed)}. The node's settings are those that it was "
            "started with.",
        )


def _alter_topic(connection: Connection, asked: Any, is_incremental: bool, validate_only: bool) -> None:
    assert connection.vhost is not None
    name, topics = asked.resource_name, connection.vhost.topics
    if not connection.apis.may(connection, Operation.ALTER_CONFIGS, name):
        raise Refused(TOPIC_AUTHORIZATION_FAILED, "Topic authorization failed.")
    check_topic_name(name)
    topic = topics.by_name.get(name)
    if topic is None:
        raise Refused(UNKNOWN_TOPIC_OR_PARTITION, f"The topic '{name}' does not exist.")
    overrides: dict[str, str | None] = {}
    if is_incremental:
        overrides.update(topic.overrides)
        for config in asked.configs:
            value = _changed(topic, config)
            if value is None:
                overrides.pop(config.name, None)
            else:
                overrides[config.name] = value
    else:
        overrides.update({config.name: config.value for config in asked.configs})
    for key, value in overrides.items():
        checked_config(key, value)
    if not validate_only:
        topics.configure(topic, overrides)


def _alter_group(connection: Connection, asked: Any, is_incremental: bool, validate_only: bool) -> None:
    assert connection.vhost is not None
    name, shares = asked.resource_name, connection.vhost.shares
    if not connection.apis.may(connection, Operation.ALTER_CONFIGS, name, "group"):
        raise Refused(GROUP_AUTHORIZATION_FAILED, "Group authorization failed.")
    if not name:
        raise Refused(INVALID_REQUEST, "Default group resources are not allowed.")
    configs = dict(shares.configs(name)) if is_incremental else {}
    for config in asked.configs:
        operation = _operation(config)
        if operation == DELETE:
            configs.pop(config.name, None)
        elif operation == SET:
            configs[config.name] = shares.checked_config(config.name, config.value)
        else:
            raise Refused(
                INVALID_CONFIG, f"Can't {_VERBS[operation]} to key {config.name} because its type is not LIST."
            )
    if not validate_only:
        shares.configure(name, configs)


def _changed(topic: Topic, config: Any) -> str | None:
    """The value of an entry after a change; None where the topic is to have none of its own."""
    operation = _operation(config)
    if operation == SET:
        value: str = config.value
        return value
    if operation == DELETE:
        return None
    entry = TOPIC_CONFIGS.get(config.name)
    if entry is None or entry.kind != LIST:
        raise Refused(INVALID_CONFIG, f"Can't {_VERBS[operation]} to key {config.name} because its type is not LIST.")
    current = topic.overrides.get(config.name, entry.default)
    items = [item for item in current.split(",") if item]
    for item in map(str.strip, config.value.split(",")):
        if operation == APPEND and item not in items:
            items.append(item)
        elif operation == SUBTRACT and item in items:
            items.remove(item)
    return ",".join(items)
