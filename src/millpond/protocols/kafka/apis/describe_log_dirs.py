"""DescribeLogDirs: where partitions are kept, and how large they are.

Behaviour: one directory, the node's; of each partition the bytes in its log and those that are still on the way there.
Topics that the user may know of; none is on the way to another directory.
Versions: 3 and later have an error of the whole, 4 the size of the disk and the room that is left.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from millpond.broker.access import CLUSTER, CLUSTER_NAME, Operation
from millpond.protocols.kafka.errors import CLUSTER_AUTHORIZATION_FAILED
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer, api

if TYPE_CHECKING:
    from millpond.broker.streams.partition import Partition
    from millpond.protocols.kafka.connection import Call


@api(35, "DescribeLogDirs", 1, 4)
def describe_log_dirs(call: Call, request: Any) -> None:
    connection = call.connection
    assert connection.vhost is not None
    if not connection.apis.may(connection, Operation.DESCRIBE, CLUSTER_NAME, CLUSTER):
        answer(call, {"error_code": CLUSTER_AUTHORIZATION_FAILED, "results": []})
        return
    asked = None
    if request.topics is not None:
        asked = {(topic.topic, number) for topic in request.topics for number in topic.partitions}
    found: list[tuple[str, int, Partition]] = []
    for topic in connection.vhost.topics.known_to_kafka():
        found += [
            (topic.name, number, partition)
            for number, partition in enumerate(topic.partitions)
            if asked is None or (topic.name, number) in asked
        ]
    connection.broker.streams.measure([partition for _, _, partition in found], partial(_answer, call, found))


def _answer(call: Call, found: list[tuple[str, int, Partition]], sizes: list[int]) -> None:
    store = call.connection.broker.store
    topics: dict[str, list[Tree]] = {}
    for (name, number, _), size in zip(found, sizes, strict=True):
        topics.setdefault(name, []).append({"partition_index": number, "partition_size": size})
    total, usable = store.disk_space()
    answer(
        call,
        {
            "results": [
                {
                    "log_dir": store.folder,
                    "topics": [{"name": name, "partitions": partitions} for name, partitions in topics.items()],
                    "total_bytes": total,
                    "usable_bytes": usable,
                }
            ]
        },
    )
