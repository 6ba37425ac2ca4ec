"""DescribeProducers: the idempotent producers that a partition knows.

Behaviour: each with its epoch, its last sequence number, when it appended last and where its open transaction begins.
What is asked for twice is answered once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.protocols.kafka.apis.list_offsets import find_partition
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call, Connection


@api(61, "DescribeProducers", 0, 0)
def describe_producers(call: Call, request: Any) -> Tree:
    asked: dict[str, dict[int, None]] = {}
    for topic in request.topics:
        asked.setdefault(topic.name, {}).update(dict.fromkeys(topic.partition_indexes))
    return {
        "topics": [
            {"name": name, "partitions": [_producers(call.connection, name, number) for number in numbers]}
            for name, numbers in asked.items()
        ]
    }


def _producers(connection: Connection, name: str, number: int) -> Tree:
    partition, error = find_partition(connection, name, number)
    if partition is None:
        return {"partition_index": number, "error_code": error, "active_producers": []}
    return {
        "partition_index": number,
        "active_producers": [
            {
                "producer_id": int(producer.producer_id),
                "producer_epoch": int(producer.epoch),
                "last_sequence": int(producer.batches[-1].last) if producer.batches else -1,
                "last_timestamp": int(producer.batches[-1].timestamp_ms) if producer.batches else -1,
                "coordinator_epoch": int(producer.coordinator_epoch),
                "current_txn_start_offset": int(producer.transaction_start),
            }
            for producer in partition.producers.known.values()
        ],
    }
