"""CreateTopics: make topics with so many partitions and this configuration.

Behaviour: -1 partitions, and a topic that is named twice, are as in Kafka: the node's default, and an error. There is
one replica of each partition, so a replication factor is 1 or -1, and a manual assignment names this node alone. The
answer comes when all of them are made; each topic has an error of its own, and the others are made all the same.
Versions: 5 and later answer with the configuration, 7 with the topic's id.
Not implemented: Kafka refuses a name that differs from another only in '.' and '_', for the sake of its metrics; here
it is another name.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import PeerError
from millpond.base.limits import PARTITIONS_MADE_PER_REQUEST_MAX
from millpond.broker.access import Operation
from millpond.protocols.kafka.apis.describe_configs import DEFAULT_CONFIG, TOPIC_CONFIG, effective_configs
from millpond.protocols.kafka.apis.metadata import NODE_ID, topics_of
from millpond.protocols.kafka.errors import (
    INVALID_CONFIG,
    INVALID_PARTITIONS,
    INVALID_REPLICA_ASSIGNMENT,
    INVALID_REPLICATION_FACTOR,
    INVALID_REQUEST,
    POLICY_VIOLATION,
    TOPIC_AUTHORIZATION_FAILED,
    code_of,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millpond.protocols.kafka.connection import Call, Connection

DEFAULT: Final = -1
REPLICAS: Final = 1


class Refused(Exception):
    """Why something cannot be done, by its code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code: Final = code


@api(19, "CreateTopics", 2, 7)
def create_topics(call: Call, request: Any) -> None:
    counts = Counter(topic.name for topic in request.topics)
    answered: set[str] = set()
    topics: list[Tree] = []
    room = PARTITIONS_MADE_PER_REQUEST_MAX
    for asked in request.topics:
        if asked.name not in answered:
            answered.add(asked.name)
            is_twice = counts[asked.name] > 1
            if is_twice:
                topics.append(_refusal(asked.name, INVALID_REQUEST, "Duplicate topic name."))
                continue
            created = _created(call.connection, asked, request.validate_only, room)
            if not created.get("error_code"):
                room -= _count_of(call.connection, asked.name)
            topics.append(created)
    answer_when_durable(call, {"topics": topics})


def _refusal(name: str, code: int, message: str) -> Tree:
    return {"name": name, "error_code": code, "error_message": message, "configs": []}


def _created(connection: Connection, asked: Any, validate_only: bool, room: int) -> Tree:
    """One topic's answer. The request may make `room` more partitions."""
    assert connection.vhost is not None
    topics = connection.vhost.topics
    if not connection.apis.may_create(connection, asked.name):
        return _refusal(asked.name, TOPIC_AUTHORIZATION_FAILED, "Authorization failed.")
    topic_id: bytes | None = None
    try:
        overrides = _overrides(asked)
        partitions = _partition_count(connection, asked)
        if partitions > room:
            raise Refused(POLICY_VIOLATION, f"A request makes at most {PARTITIONS_MADE_PER_REQUEST_MAX} partitions.")
        checked = topics.check_creation(asked.name, partitions, overrides)
        if not validate_only:
            topic_id = topics.create(asked.name, partitions, overrides).id
    except Refused as refused:
        return _refusal(asked.name, refused.code, str(refused))
    except PeerError as error:
        return _refusal(asked.name, code_of(error), str(error))
    if not connection.apis.may(connection, Operation.DESCRIBE_CONFIGS, asked.name):
        return {
            "name": asked.name,
            "topic_id": topic_id,
            "topic_config_error_code": TOPIC_AUTHORIZATION_FAILED,
            "num_partitions": -1,
            "replication_factor": -1,
            "configs": [],
        }
    return {
        "name": asked.name,
        "topic_id": topic_id,
        "num_partitions": partitions,
        "replication_factor": REPLICAS,
        "configs": [
            {"name": name, "value": value, "config_source": TOPIC_CONFIG if name in checked else DEFAULT_CONFIG}
            for name, value in effective_configs(checked)
        ],
    }


def _count_of(connection: Connection, name: str) -> int:
    """How many partitions a topic has; 0 where it was not made."""
    topic = topics_of(connection).by_name.get(name)
    return 0 if topic is None else len(topic.partitions)


def _overrides(asked: Any) -> dict[str, str | None]:
    nulls = [config.name for config in asked.configs if config.value is None]
    if nulls:
        raise Refused(INVALID_CONFIG, f"Null value not supported for topic configs: {','.join(nulls)}")
    return {config.name: config.value for config in asked.configs}


def _partition_count(connection: Connection, asked: Any) -> int:
    """How many partitions are wanted, or Refused where their replicas cannot be."""
    count, factor = int(asked.num_partitions), int(asked.replication_factor)
    if asked.assignments:
        if factor != DEFAULT:
            raise Refused(
                INVALID_REQUEST,
                "A manual partition assignment was specified, but replication factor was not set to -1.",
            )
        if count != DEFAULT:
            raise Refused(
                INVALID_REQUEST, "A manual partition assignment was specified, but numPartitions was not set to -1."
            )
        return _assigned_count(asked.assignments)
    if factor < DEFAULT or factor == 0:
        raise Refused(
            INVALID_REPLICATION_FACTOR, "Replication factor must be larger than 0, or -1 to use the default value."
        )
    if count < DEFAULT or count == 0:
        raise Refused(INVALID_PARTITIONS, "Number of partitions was set to an invalid non-positive value.")
    if factor > REPLICAS:
        raise Refused(
            INVALID_REPLICATION_FACTOR,
            f"Unable to replicate the partition {factor} time(s): The target replication factor of {factor} cannot be "
            "reached because only 1 broker(s) are registered.",
        )
    return int(connection.settings.partitions) if count == DEFAULT else count


def _assigned_count(assignments: Sequence[Any]) -> int:
    numbers = set()
    for assignment in assignments:
        number = int(assignment.partition_index)
        if number in numbers:
            raise Refused(
                INVALID_REPLICA_ASSIGNMENT, f"Found multiple manual partition assignments for partition {number}"
            )
        numbers.add(number)
        check_replicas(assignment.broker_ids)
    if numbers != set(range(len(numbers))):
        raise Refused(INVALID_REPLICA_ASSIGNMENT, "partitions should be a consecutive 0-based integer sequence")
    return len(numbers)


def check_replicas(broker_ids: Sequence[int]) -> None:
    """Refused where somebody wants a partition to be elsewhere than here."""
    if not broker_ids:
        raise Refused(INVALID_REPLICA_ASSIGNMENT, "The manual partition assignment includes an empty replica list.")
    for broker_id in broker_ids:
        if broker_id != NODE_ID:
            raise Refused(
                INVALID_REPLICA_ASSIGNMENT,
                f"The manual partition assignment includes broker {broker_id}, but no such broker is registered.",
            )
    if len(broker_ids) > 1:
        raise Refused(
            INVALID_REPLICA_ASSIGNMENT,
            f"The manual partition assignment includes the broker {NODE_ID} more than once.",
        )
