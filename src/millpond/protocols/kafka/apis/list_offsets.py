"""ListOffsets: where a partition begins and ends, and what was there at a time.

Behaviour: -1 is the latest offset (as readers see it: of what is durable, and for those who want committed records only
of what no open transaction comes before), -2 the earliest, -3 that of the record with
the largest timestamp (from version 7), -4 the earliest that is here and not in remote storage (from version 8), any
other the first record that is not older.
Not implemented: -5 and -6, which are about remote storage.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from millpond.base.limits import KAFKA_ITEMS_PER_TURN
from millpond.broker.access import Operation
from millpond.broker.streams.partition import Partition
from millpond.protocols.kafka.apis.metadata import LEADER_EPOCH
from millpond.protocols.kafka.errors import (
    FENCED_LEADER_EPOCH,
    NONE,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_LEADER_EPOCH,
    UNKNOWN_TOPIC_OR_PARTITION,
    UNSUPPORTED_VERSION,
)
from millpond.protocols.kafka.registry import Steps, answer, api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call, Connection

LATEST: Final = -1
EARLIEST: Final = -2
MAX_TIMESTAMP: Final = -3
EARLIEST_LOCAL: Final = -4
READ_UNCOMMITTED: Final = 0
READ_COMMITTED: Final = 1


class _Lookup:
    """Collects what is asked for, and answers when it is complete."""

    def __init__(self, call: Call, is_committed_only: bool) -> None:
        self._call = call
        self._is_committed_only = is_committed_only
        self.topics: list[dict[str, Any]] = []
        self.missing = 1

    def end_of(self, partition: Partition) -> int:
        """Up to where this client reads."""
        return int(partition.stable_end if self._is_committed_only else partition.durable_end)

    def found(self, partition: Partition, entry: dict[str, Any], offset: int, timestamp_ms: int) -> None:
        if offset >= self.end_of(partition):
            offset = timestamp_ms = -1
        if offset < 0:
            del entry["leader_epoch"]
        entry["offset"], entry["timestamp"] = offset, timestamp_ms
        self.one_less()

    def one_less(self) -> None:
        self.missing -= 1
        if self.missing == 0:
            answer(self._call, {"topics": self.topics})


@api(2, "ListOffsets", 1, 9)
def list_offsets(call: Call, request: Any) -> Steps:
    lookup = _Lookup(call, getattr(request, "isolation_level", READ_UNCOMMITTED) == READ_COMMITTED)
    looked_up = 0
    for topic in request.topics:
        partitions: list[dict[str, Any]] = []
        lookup.topics.append({"name": topic.name, "partitions": partitions})
        for asked in topic.partitions:
            entry: dict[str, Any] = {"partition_index": asked.partition_index}
            partitions.append(entry)
            _look_up(call, lookup, topic.name, asked, entry)
            looked_up += 1
            if looked_up % KAFKA_ITEMS_PER_TURN == 0:
                yield
    lookup.one_less()
    return None


def _look_up(call: Call, lookup: _Lookup, name: str, asked: Any, entry: dict[str, Any]) -> None:
    partition, error = find_partition(call.connection, name, asked.partition_index, Operation.DESCRIBE)
    epoch = getattr(asked, "current_leader_epoch", -1)
    if not error and epoch not in {-1, LEADER_EPOCH}:
        error = UNKNOWN_LEADER_EPOCH if epoch > LEADER_EPOCH else FENCED_LEADER_EPOCH
    if partition is None or error:
        entry["error_code"] = error
        return
    entry["leader_epoch"] = LEADER_EPOCH
    if asked.timestamp == LATEST:
        entry["offset"] = lookup.end_of(partition)
    elif asked.timestamp in {EARLIEST, EARLIEST_LOCAL}:
        entry["offset"] = int(partition.start_offset)
    elif asked.timestamp == MAX_TIMESTAMP and call.version >= 7:
        lookup.missing += 1
        partition.store.find_newest(partition, partial(lookup.found, partition, entry))
    elif asked.timestamp < 0:
        entry["error_code"] = UNSUPPORTED_VERSION
    else:
        lookup.missing += 1
        partition.store.find_record_at(partition, asked.timestamp, partial(lookup.found, partition, entry))


def find_partition(
    connection: Connection, name: str, number: int, operation: Operation = Operation.READ
) -> tuple[Partition | None, int]:
    """A partition with which the connection's user may do this, and otherwise why not."""
    assert connection.vhost is not None
    if not connection.apis.may(connection, operation, name):
        return None, TOPIC_AUTHORIZATION_FAILED
    topic = connection.vhost.topics.by_name.get(name)
    if topic is None or not 0 <= number < len(topic.partitions):
        return None, UNKNOWN_TOPIC_OR_PARTITION
    return topic.partitions[number], NONE
