"""What the APIs of share groups have in common: naming partitions by topic ids, and acknowledging records."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import LimitExceeded
from millpond.protocols.kafka.errors import (
    INVALID_RECORD_STATE,
    INVALID_REQUEST,
    NONE,
    POLICY_VIOLATION,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_ID,
    UNKNOWN_TOPIC_OR_PARTITION,
)
from millpond.protocols.kafka.messages import Tree

if TYPE_CHECKING:
    from millpond.broker.shares.coordinator import ShareGroup, Shares
    from millpond.broker.shares.share_partition import SharePartition
    from millpond.protocols.kafka.connection import Call

# Acknowledge types.
GAP: Final = 0
ACCEPT: Final = 1
RELEASE: Final = 2
REJECT: Final = 3
RENEW: Final = 4

# What a response says of the leader where nothing is to be said.
NO_LEADER: Final[Tree] = {"leader_id": -1, "leader_epoch": -1}

_NO_TOPIC: Final = bytes(16)


def shares_of(call: Call) -> Shares:
    """The share groups that this client sees."""
    vhost = call.connection.vhost
    assert vhost is not None
    return vhost.shares


def id_bytes(topic_id: uuid.UUID | None) -> bytes:
    return _NO_TOPIC if topic_id is None else topic_id.bytes


def find(call: Call, group: ShareGroup, topic_id: bytes, number: int) -> tuple[SharePartition | None, int]:
    """A partition of a group, and otherwise why this client cannot have it."""
    connection = call.connection
    assert connection.vhost is not None
    topic = connection.vhost.topics.by_id.get(topic_id)
    if topic is None:
        return None, UNKNOWN_TOPIC_ID
    if not connection.apis.may_read(connection, topic.name):
        return None, TOPIC_AUTHORIZATION_FAILED
    if not 0 <= number < len(topic.partitions):
        return None, UNKNOWN_TOPIC_OR_PARTITION
    try:
        return group.shares.partition(group, topic, number), NONE
    except LimitExceeded:
        return None, POLICY_VIOLATION


def has_renewals(topics: Any) -> bool:
    """Whether a request renews a lock."""
    for topic in topics:
        for partition in topic.partitions:
            for batch in partition.acknowledgement_batches:
                if RENEW in batch.acknowledge_types:
                    return True
    return False


def acknowledge(call: Call, group: ShareGroup, member: str, place: tuple[bytes, int], batches: Any) -> int:
    """Do as a member says with what it holds of a partition. The first error, or NONE."""
    found, code = find(call, group, *place)
    if found is None:
        return code
    state = found.state
    if state is None:
        return INVALID_RECORD_STATE
    last_end = -1
    for batch in batches:
        first, end, types = batch.first_offset, batch.last_offset + 1, batch.acknowledge_types
        if first < 0 or first < last_end or end <= first or not types or len(types) not in {1, end - first}:
            return INVALID_REQUEST
        if any(not GAP <= kind <= RENEW for kind in types) or (RENEW in types and not group.settings.renews):
            return INVALID_REQUEST
        last_end = end
    for batch in batches:
        first, end = batch.first_offset, batch.last_offset + 1
        if not state.is_held(member, first, end):
            return INVALID_RECORD_STATE
        for kind, start, stop in _runs(first, end, batch.acknowledge_types):
            _settle(found, member, kind, start, stop)
    # Others may have waited for room.
    found.wake_readers()
    return NONE


def _runs(first: int, end: int, types: tuple[int, ...]) -> Iterable[tuple[int, int, int]]:
    """The ranges in which the acknowledge type is the same, as (type, first, end)."""
    if len(types) == 1:
        yield types[0], first, end
        return
    start = first
    for offset in range(first + 1, end + 1):
        if offset == end or types[offset - first] != types[start - first]:
            yield types[start - first], start, offset
            start = offset


def _settle(found: SharePartition, member: str, kind: int, first: int, end: int) -> None:
    state = found.state
    assert state is not None
    if kind == ACCEPT:
        state.accept(member, first, end)
    elif kind == RELEASE:
        state.release(member, first, end)
    elif kind == REJECT:
        state.reject(member, first, end)
    elif kind == GAP:
        state.archive(member, first, end)
    else:
        shares = found.group.shares
        deadline_ms = shares.clock.monotonic_ms() + found.group.settings.lock_ms
        state.renew(member, first, end, deadline_ms)
        found.watch(deadline_ms)
