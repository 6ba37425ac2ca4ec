"""DescribeConfigs: the configuration of topics, groups and this node; ListConfigResources: which of them there are.

Behaviour: all entries, or those that are asked for by name; each with its source: the topic's own configuration, or the
node's, which are the defaults. A topic's entry has the node's as a synonym. What is asked for twice is answered once.
Versions: DescribeConfigs 3 and later tell types and documentation. ListConfigResources 0 is about client metrics, of
which there are none.
Not implemented: the levels of loggers, and client metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import PeerError
from millpond.broker.access import CLUSTER, CLUSTER_NAME, Operation
from millpond.broker.shares import settings
from millpond.broker.shares.settings import GROUP_CONFIGS
from millpond.broker.streams.topic_settings import BOOLEAN, DOUBLE, INT, LIST, LONG, STRING, TOPIC_CONFIGS
from millpond.broker.streams.topics import check_topic_name
from millpond.protocols.kafka.apis.metadata import NODE_ID
from millpond.protocols.kafka.errors import (
    CLUSTER_AUTHORIZATION_FAILED,
    GROUP_AUTHORIZATION_FAILED,
    INVALID_REQUEST,
    INVALID_TOPIC_EXCEPTION,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_OR_PARTITION,
    UNSUPPORTED_VERSION,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millpond.broker.streams.topic import Topic
    from millpond.protocols.kafka.connection import Call, Connection

# Kinds of resources.
TOPIC: Final = 2
BROKER: Final = 4
GROUP: Final = 32
# Those that may be asked for: the levels of loggers and client metrics have no configuration here.
_LISTED: Final = {TOPIC, BROKER, 8, 16, GROUP}

# Sources of a value.
TOPIC_CONFIG: Final = 1
GROUP_CONFIG: Final = 8
STATIC_BROKER_CONFIG: Final = 4
DEFAULT_CONFIG: Final = 5

_TYPES: Final = {BOOLEAN: 1, STRING: 2, INT: 3, LONG: 5, DOUBLE: 6, LIST: 7}
_GROUP_TYPES: Final = {settings.BOOLEAN: 1, settings.STRING: 2, settings.INT: 3}


def effective_configs(overrides: Mapping[str, str]) -> list[tuple[str, str]]:
    """All entries of a topic's configuration, with the values that count."""
    return [(name, overrides.get(name, entry.default)) for name, entry in TOPIC_CONFIGS.items()]


@api(32, "DescribeConfigs", 1, 4)
def describe_configs(call: Call, request: Any) -> Tree:
    results: dict[tuple[int, str], Tree] = {}
    for asked in request.resources:
        key = asked.resource_type, asked.resource_name
        if key not in results:
            code, message, configs = _configs(call.connection, asked, request)
            results[key] = {
                "error_code": code,
                "error_message": message,
                "resource_type": asked.resource_type,
                "resource_name": asked.resource_name,
                "configs": configs,
            }
    return {"results": list(results.values())}


@api(74, "ListConfigResources", 0, 1)
def list_config_resources(call: Call, request: Any) -> Tree:
    connection = call.connection
    assert connection.vhost is not None
    if not connection.apis.may(connection, Operation.DESCRIBE_CONFIGS, CLUSTER_NAME, CLUSTER):
        return {"error_code": CLUSTER_AUTHORIZATION_FAILED, "config_resources": []}
    if call.version == 0:
        return {"config_resources": []}
    asked = set(request.resource_types) or {TOPIC, BROKER, GROUP}
    if asked - _LISTED:
        return {"error_code": UNSUPPORTED_VERSION, "config_resources": []}
    found: list[Tree] = []
    if TOPIC in asked:
        found += [
            {"resource_name": topic.name, "resource_type": TOPIC}
            for topic in connection.vhost.topics.known_to_kafka()
            if connection.apis.may(connection, Operation.DESCRIBE_CONFIGS, topic.name)
        ]
    if BROKER in asked:
        found.append({"resource_name": str(NODE_ID), "resource_type": BROKER})
    if GROUP in asked:
        found += [{"resource_name": name, "resource_type": GROUP} for name in connection.vhost.shares.configured()]
    return {"config_resources": found}


def _configs(connection: Connection, asked: Any, request: Any) -> tuple[int, str | None, list[Tree]]:
    name = asked.resource_name
    names = set(asked.configuration_keys or ())
    if asked.resource_type == TOPIC:
        assert connection.vhost is not None
        if not connection.apis.may(connection, Operation.DESCRIBE_CONFIGS, name):
            return TOPIC_AUTHORIZATION_FAILED, "Topic authorization failed.", []
        topic = connection.vhost.topics.by_name.get(name)
        if topic is not None:
            return 0, None, _topic_configs(topic, names, request)
        try:
            check_topic_name(name)
        except PeerError as error:
            return INVALID_TOPIC_EXCEPTION, str(error), []
        return UNKNOWN_TOPIC_OR_PARTITION, "This server does not host this topic-partition.", []
    if asked.resource_type == GROUP:
        assert connection.vhost is not None
        if not connection.apis.may(connection, Operation.DESCRIBE_CONFIGS, name, "group"):
            return GROUP_AUTHORIZATION_FAILED, "Group authorization failed.", []
        if not name:
            return INVALID_REQUEST, "Group name must not be empty", []
        return 0, None, _group_configs(connection.vhost.shares.configs(name), names, request)
    if asked.resource_type != BROKER:
        return INVALID_REQUEST, f"Unsupported resource type: {asked.resource_type}", []
    if not connection.apis.may(connection, Operation.DESCRIBE_CONFIGS, CLUSTER_NAME, CLUSTER):
        return CLUSTER_AUTHORIZATION_FAILED, "Cluster authorization failed.", []
    if not name:
        # What has been set for all brokers at run time.
        return 0, None, []
    if name != str(NODE_ID):
        return INVALID_REQUEST, wrong_broker(name), []
    return 0, None, _broker_configs(connection, names, request)


def wrong_broker(name: str) -> str:
    """Why a resource is not this node."""
    if not name.removeprefix("-").isdecimal():
        return f"Broker id must be an integer, but it is: {name}"
    return f"Unexpected broker id, expected {NODE_ID} or empty string, but received {name}"


def _topic_configs(topic: Topic, names: set[str], request: Any) -> list[Tree]:
    from millpond.protocols.kafka.broker_configs import broker_default

    configs: list[Tree] = []
    for name, value in effective_configs(topic.overrides):
        if names and name not in names:
            continue
        entry = TOPIC_CONFIGS[name]
        synonyms: list[Tree] = []
        if name in topic.overrides:
            synonyms.append({"name": name, "value": value, "source": TOPIC_CONFIG})
        default = broker_default(name)
        if default is not None:
            synonyms.append({"name": default[0], "value": default[1], "source": DEFAULT_CONFIG})
        configs.append(
            {
                "name": name,
                "value": value,
                "config_source": TOPIC_CONFIG if name in topic.overrides else DEFAULT_CONFIG,
                "synonyms": synonyms if request.include_synonyms else [],
                "config_type": _TYPES[entry.kind],
                "documentation": entry.text if getattr(request, "include_documentation", False) else None,
            }
        )
    return configs


def _group_configs(overrides: Mapping[str, str], names: set[str], request: Any) -> list[Tree]:
    configs: list[Tree] = []
    for name, entry in GROUP_CONFIGS.items():
        if names and name not in names:
            continue
        synonyms: list[Tree] = [{"name": f"group.{name}", "value": entry.default, "source": DEFAULT_CONFIG}]
        if name in overrides:
            synonyms.insert(0, {"name": name, "value": overrides[name], "source": GROUP_CONFIG})
        configs.append(
            {
                "name": name,
                "value": overrides.get(name, entry.default),
                "config_source": GROUP_CONFIG if name in overrides else DEFAULT_CONFIG,
                "synonyms": synonyms if request.include_synonyms else [],
                "config_type": _GROUP_TYPES[entry.kind],
            }
        )
    return configs


def _broker_configs(connection: Connection, names: set[str], request: Any) -> list[Tree]:
    from millpond.protocols.kafka.broker_configs import broker_configs

    configs: list[Tree] = []
    for entry in broker_configs(connection):
        if names and entry.name not in names:
            continue
        source = STATIC_BROKER_CONFIG if entry.is_set else DEFAULT_CONFIG
        synonyms: list[Tree] = []
        if entry.value is not None:
            synonyms.append({"name": entry.name, "value": entry.value, "source": source})
        configs.append(
            {
                "name": entry.name,
                "value": entry.value,
                "read_only": True,
                "config_source": source,
                "synonyms": synonyms if request.include_synonyms else [],
                "config_type": _TYPES[entry.kind],
                "documentation": entry.text if getattr(request, "include_documentation", False) else None,
            }
        )
    return configs
