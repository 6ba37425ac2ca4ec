"""The configuration of topics and of the node, as a Kafka client reads and changes it."""

from __future__ import annotations

from typing import Any

import pytest

from millpond.broker.streams.topic_settings import TOPIC_CONFIGS
from millpond.protocols.kafka import errors
from millpond.protocols.kafka.broker_configs import BROKER_NAMES
from tests.protocols.kafka.harness import Client
from tests.protocols.kafka.test_topic_administration import code_of, forbid

DESCRIBE, ALTER, INCREMENTAL_ALTER, LIST_RESOURCES = 32, 33, 44, 74
TOPIC, BROKER = 2, 4
SET, DELETE, APPEND, SUBTRACT = range(4)


def describe(client: Client, kind: int, name: str, *keys: str, version: int = 4, **options: object) -> Any:
    resource = {"resource_type": kind, "resource_name": name, "configuration_keys": keys or None}
    [result] = client.call(DESCRIBE, version, resources=[resource], **options).results
    return result


def values(result: Any) -> dict[str, str]:
    return {config.name: config.value for config in result.configs}


def change(client: Client, name: str, *changes: tuple[str, int, str | None], **options: object) -> Any:
    """Change a topic's entries one by one."""
    configs = [{"name": key, "config_operation": operation, "value": value} for key, operation, value in changes]
    kind = options.pop("kind", TOPIC)
    resources = [{"resource_type": kind, "resource_name": name, "configs": configs}]
    [result] = client.call(INCREMENTAL_ALTER, 1, resources=resources, **options).responses
    return result


def replace(client: Client, name: str, kind: int = TOPIC, validate_only: bool = False, **entries: str) -> Any:
    """Give a topic this configuration."""
    configs = [{"name": key.replace("_", "."), "value": value} for key, value in entries.items()]
    resources = [{"resource_type": kind, "resource_name": name, "configs": configs}]
    [result] = client.call(ALTER, 2, resources=resources, validate_only=validate_only).responses
    return result


# --- Described ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, 5))
def test_a_topic_tells_its_whole_configuration(client: Client, version: int) -> None:
    client.pond.topic("orders", retention_ms="77")
    result = describe(client, TOPIC, "orders", version=version)
    assert values(result) == {name: entry.default for name, entry in TOPIC_CONFIGS.items()} | {"retention.ms": "77"}
    sources = {config.name: config.config_source for config in result.configs}
    assert (sources["retention.ms"], sources["segment.ms"]) == (1, 5)
    assert not any(config.read_only or config.is_sensitive or config.synonyms for config in result.configs)


def test_synonyms_are_the_topics_own_value_and_the_nodes(client: Client) -> None:
    client.pond.topic("orders", retention_ms="77")
    keys = ("retention.ms", "max.message.bytes")
    result = describe(client, TOPIC, "orders", *keys, include_synonyms=True, include_documentation=True)
    told = {
        config.name: [(synonym.name, synonym.value, synonym.source) for synonym in config.synonyms]
        for config in result.configs
    }
    assert told == {
        "retention.ms": [("retention.ms", "77", 1), ("log.retention.hours", "168", 5)],
        "max.message.bytes": [("message.max.bytes", "1048588", 5)],
    }
    assert {config.name: config.config_type for config in result.configs} == {"retention.ms": 5, "max.message.bytes": 3}
    assert all(config.documentation for config in result.configs)


def test_the_node_tells_its_configuration_which_is_read_only(client: Client) -> None:
    result = describe(client, BROKER, "1")
    told = values(result)
    assert told["node.id"] == "1"
    assert told["advertised.listeners"] == "PLAINTEXT://127.0.0.1:9092"
    assert told["log.retention.hours"] == "168"
    # Finer units are listed as well, and are not set.
    assert all(told[name] is None for name in ("log.retention.ms", "log.retention.minutes", "log.roll.ms"))
    assert set(told) >= {name for name, _ in BROKER_NAMES.values()}
    assert all(config.read_only for config in result.configs)
    assert values(describe(client, BROKER, "1", "num.partitions")) == {"num.partitions": "1"}
    # Nothing has been set for all brokers at run time.
    assert describe(client, BROKER, "").configs == ()


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [
        (TOPIC, "nope", errors.UNKNOWN_TOPIC_OR_PARTITION),
        (TOPIC, "not/valid", errors.INVALID_TOPIC_EXCEPTION),
        (BROKER, "2", errors.INVALID_REQUEST),
        (BROKER, "one", errors.INVALID_REQUEST),
        (8, "1", errors.INVALID_REQUEST),
        (99, "", errors.INVALID_REQUEST),
    ],
)
def test_what_has_no_configuration_is_answered_with_an_error(client: Client, kind: int, name: str, code: int) -> None:
    result = describe(client, kind, name)
    assert (code_of(result), result.resource_type, result.resource_name) == (code, kind, name)
    assert result.error_message


def test_what_is_asked_for_twice_is_answered_once(client: Client) -> None:
    client.pond.topic("orders")
    resource = {"resource_type": TOPIC, "resource_name": "orders", "configuration_keys": None}
    assert len(client.call(DESCRIBE, 4, resources=[resource] * 50).results) == 1


def test_resources_are_listed(client: Client) -> None:
    client.pond.topic("orders")

    def listed(*kinds: int) -> list[tuple[int, str]]:
        response = client.call(LIST_RESOURCES, 1, resource_types=kinds)
        assert code_of(response) == errors.NONE
        return [(found.resource_type, found.resource_name) for found in response.config_resources]

    assert listed() == [(TOPIC, "orders"), (BROKER, "1")]
    assert listed(BROKER) == [(BROKER, "1")]
    assert listed(16) == []
    assert code_of(client.call(LIST_RESOURCES, 1, resource_types=[77])) == errors.UNSUPPORTED_VERSION
    assert client.call(LIST_RESOURCES, 0).config_resources == ()


# --- Changed one by one ---------------------------------------------------------------------------------------------


def test_entries_are_set_deleted_and_lists_added_to_and_taken_from(client: Client) -> None:
    topic = client.pond.topic("orders", retention_ms="77")
    result = change(client, "orders", ("retention.ms", DELETE, None), ("max.message.bytes", SET, "1000"))
    assert code_of(result) == errors.NONE
    assert topic.overrides == {"max.message.bytes": "1000"}
    assert topic.settings.batch_bytes_max == 1000
    change(client, "orders", ("cleanup.policy", APPEND, "compact,delete"))
    assert topic.overrides["cleanup.policy"] == "delete,compact"
    assert topic.partitions[0].compacts
    change(client, "orders", ("cleanup.policy", SUBTRACT, "delete"))
    assert topic.overrides["cleanup.policy"] == "compact"
    # To delete what is not there changes nothing, whatever it is called.
    assert code_of(change(client, "orders", ("nope", DELETE, None))) == errors.NONE


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ([("nope", SET, "1")], errors.INVALID_CONFIG),
        ([("retention.ms", SET, "soon")], errors.INVALID_CONFIG),
        ([("retention.ms", APPEND, "1")], errors.INVALID_CONFIG),
        ([("nope", SUBTRACT, "1")], errors.INVALID_CONFIG),
        ([("cleanup.policy", APPEND, "shred")], errors.INVALID_CONFIG),
        ([("retention.ms", SET, None)], errors.INVALID_REQUEST),
        ([("retention.ms", 9, "1")], errors.INVALID_REQUEST),
        ([("retention.ms", SET, "1"), ("retention.ms", DELETE, None)], errors.INVALID_REQUEST),
    ],
)
def test_a_change_that_cannot_be_changes_nothing(
    client: Client, changes: list[tuple[str, int, str | None]], code: int
) -> None:
    topic = client.pond.topic("orders", segment_ms="5")
    result = change(client, "orders", ("max.message.bytes", SET, "1000"), *changes)
    assert code_of(result) == code
    assert result.error_message
    assert topic.overrides == {"segment.ms": "5"}


def test_validation_alone_changes_nothing(client: Client) -> None:
    topic = client.pond.topic("orders")
    assert code_of(change(client, "orders", ("retention.ms", SET, "1"), validate_only=True)) == errors.NONE
    assert code_of(change(client, "orders", ("retention.ms", SET, "x"), validate_only=True)) == errors.INVALID_CONFIG
    assert code_of(replace(client, "orders", validate_only=True, retention_ms="1")) == errors.NONE
    assert topic.overrides == {}


def test_a_resource_that_is_named_twice_is_not_changed(client: Client) -> None:
    topic = client.pond.topic("orders")
    configs = [{"name": "retention.ms", "config_operation": SET, "value": "1"}]
    resource = {"resource_type": TOPIC, "resource_name": "orders", "configs": configs}
    responses = client.call(INCREMENTAL_ALTER, 1, resources=[resource, resource]).responses
    assert [code_of(response) for response in responses] == [errors.INVALID_REQUEST] * 2
    assert topic.overrides == {}


def test_the_nodes_configuration_is_not_changed_by_clients(client: Client) -> None:
    for name in ("1", ""):
        result = change(client, name, ("log.retention.ms", SET, "1"), kind=BROKER)
        assert code_of(result) == errors.INVALID_REQUEST
        assert "Cannot update these configs dynamically: log.retention.ms" in result.error_message
        assert code_of(change(client, name, ("log.retention.ms", DELETE, None), kind=BROKER)) == errors.NONE
    assert code_of(change(client, "2", kind=BROKER)) == errors.INVALID_REQUEST
    assert code_of(change(client, "1", kind=8)) == errors.INVALID_REQUEST


def test_topics_that_are_not_there_or_not_the_users_are_not_changed(client: Client) -> None:
    client.pond.topic("orders")
    assert code_of(change(client, "nope", ("retention.ms", SET, "1"))) == errors.UNKNOWN_TOPIC_OR_PARTITION
    forbid(client.pond)  # type: ignore[arg-type]
    assert code_of(change(client, "orders", ("retention.ms", SET, "1"))) == errors.TOPIC_AUTHORIZATION_FAILED
    assert code_of(replace(client, "orders", retention_ms="1")) == errors.TOPIC_AUTHORIZATION_FAILED


# --- Replaced -------------------------------------------------------------------------------------------------------


def test_a_topics_configuration_is_replaced_as_a_whole(client: Client) -> None:
    topic = client.pond.topic("orders", retention_ms="77", segment_ms="5")
    assert code_of(replace(client, "orders", segment_ms="6", cleanup_policy="compact")) == errors.NONE
    assert topic.overrides == {"segment.ms": "6", "cleanup.policy": "compact"}
    assert code_of(replace(client, "orders", nope="1")) == errors.INVALID_CONFIG
    assert topic.overrides == {"segment.ms": "6", "cleanup.policy": "compact"}
    assert code_of(replace(client, "orders")) == errors.NONE
    assert topic.overrides == {}


# --- Counted --------------------------------------------------------------------------------------------------------


def test_requests_and_the_errors_in_their_answers_are_counted(client: Client) -> None:
    client.pond.topic("orders")
    describe(client, TOPIC, "nope")
    describe(client, TOPIC, "orders")
    client.fetch("nope", 0)
    client.produce("nope", None)
    broker = client.pond.broker
    assert broker.requests["kafka", "DescribeConfigs"] == 2
    assert broker.request_errors == {
        ("kafka", "DescribeConfigs", errors.UNKNOWN_TOPIC_OR_PARTITION): 1,
        ("kafka", "Fetch", errors.UNKNOWN_TOPIC_OR_PARTITION): 1,
        ("kafka", "Produce", errors.UNKNOWN_TOPIC_OR_PARTITION): 1,
    }
