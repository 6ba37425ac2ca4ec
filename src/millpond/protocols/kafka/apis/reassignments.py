"""ElectLeaders, AlterPartitionReassignments, ListPartitionReassignments and AlterReplicaLogDirs: who holds a partition,
who leads it, and in which directory.

Behaviour: this node holds all of them and leads all of them, and nothing is ever under way: no election is needed, a
partition may be assigned to where it is, and there is no reassignment to be listed or called off. The data directory
is the only one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.broker.access import CLUSTER, CLUSTER_NAME, Operation
from millpond.protocols.kafka.apis.create_topics import Refused, check_replicas
from millpond.protocols.kafka.errors import (
    CLUSTER_AUTHORIZATION_FAILED,
    ELECTION_NOT_NEEDED,
    LOG_DIR_NOT_FOUND,
    NO_REASSIGNMENT_IN_PROGRESS,
    NONE,
    UNKNOWN_TOPIC_OR_PARTITION,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millpond.protocols.kafka.connection import Call, Connection


@api(43, "ElectLeaders", 0, 2)
def elect_leaders(call: Call, request: Any) -> Tree:
    # Where all partitions are meant, those that need no election are not told.
    return {
        "replica_election_results": [
            {
                "topic": asked.topic,
                "partition_result": [_election(call.connection, asked.topic, number) for number in asked.partitions],
            }
            for asked in request.topic_partitions or ()
        ]
    }


def _election(connection: Connection, name: str, number: int) -> Tree:
    try:
        _check_partition(connection, name, number)
    except Refused as refused:
        return {"partition_id": number, "error_code": refused.code, "error_message": str(refused)}
    return {
        "partition_id": number,
        "error_code": ELECTION_NOT_NEEDED,
        "error_message": "Leader election not needed for topic partition.",
    }


@api(45, "AlterPartitionReassignments", 0, 0)
def alter_partition_reassignments(call: Call, request: Any) -> Tree:
    return {
        "responses": [
            {
                "name": topic.name,
                "partitions": [
                    _reassigned(call.connection, topic.name, asked.partition_index, asked.replicas)
                    for asked in topic.partitions
                ],
            }
            for topic in request.topics
        ]
    }


def _reassigned(connection: Connection, name: str, number: int, replicas: Sequence[int] | None) -> Tree:
    code, message = NONE, None
    try:
        _check_partition(connection, name, number)
        if replicas is None:
            raise Refused(NO_REASSIGNMENT_IN_PROGRESS, "No partition reassignment is in progress.")
        check_replicas(replicas)
    except Refused as refused:
        code, message = refused.code, str(refused)
    return {"partition_index": number, "error_code": code, "error_message": message}


def _check_partition(connection: Connection, name: str, number: int) -> None:
    assert connection.vhost is not None
    if not connection.apis.may(connection, Operation.ALTER, CLUSTER_NAME, CLUSTER):
        raise Refused(CLUSTER_AUTHORIZATION_FAILED, "Cluster authorization failed.")
    topic = connection.vhost.topics.by_name.get(name)
    if topic is None or not 0 <= number < len(topic.partitions):
        raise Refused(UNKNOWN_TOPIC_OR_PARTITION, f"No such partition as {name}-{number}")


@api(34, "AlterReplicaLogDirs", 1, 2)
def alter_replica_log_dirs(call: Call, request: Any) -> Tree:
    results: dict[str, dict[int, int]] = {}
    for directory in request.dirs:
        is_here = directory.path == call.connection.broker.store.folder
        for topic in directory.topics:
            for number in topic.partitions:
                results.setdefault(topic.name, {})[number] = _moved(call.connection, topic.name, number, is_here)
    return {
        "results": [
            {
                "topic_name": name,
                "partitions": [{"partition_index": number, "error_code": code} for number, code in codes.items()],
            }
            for name, codes in results.items()
        ]
    }


def _moved(connection: Connection, name: str, number: int, is_here: bool) -> int:
    try:
        _check_partition(connection, name, number)
    except Refused as refused:
        return refused.code
    return NONE if is_here else LOG_DIR_NOT_FOUND


@api(46, "ListPartitionReassignments", 0, 0)
def list_partition_reassignments(call: Call, request: Any) -> Tree:
    connection = call.connection
    if not connection.apis.may(connection, Operation.DESCRIBE, CLUSTER_NAME, CLUSTER):
        return {"error_code": CLUSTER_AUTHORIZATION_FAILED, "topics": []}
    return {"topics": []}
