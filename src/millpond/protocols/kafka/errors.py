"""Kafka's error codes, and those by which the core's errors are answered.

Source: Apache Kafka, "Error Codes".
"""

from __future__ import annotations

from typing import Final

from millpond.base.errors import (
    AccessRefused,
    AlreadyExists,
    InvalidCount,
    InvalidName,
    InvalidSetting,
    LimitExceeded,
    NotFound,
    PeerError,
    StorageFailed,
)

UNKNOWN_SERVER_ERROR: Final = -1
NONE: Final = 0
OFFSET_OUT_OF_RANGE: Final = 1
CORRUPT_MESSAGE: Final = 2
UNKNOWN_TOPIC_OR_PARTITION: Final = 3
REQUEST_TIMED_OUT: Final = 7
MESSAGE_TOO_LARGE: Final = 10
COORDINATOR_NOT_AVAILABLE: Final = 15
INVALID_TOPIC_EXCEPTION: Final = 17
INVALID_REQUIRED_ACKS: Final = 21
TOPIC_AUTHORIZATION_FAILED: Final = 29
GROUP_AUTHORIZATION_FAILED: Final = 30
CLUSTER_AUTHORIZATION_FAILED: Final = 31
INVALID_TIMESTAMP: Final = 32
UNSUPPORTED_VERSION: Final = 35
TOPIC_ALREADY_EXISTS: Final = 36
INVALID_PARTITIONS: Final = 37
INVALID_REPLICATION_FACTOR: Final = 38
INVALID_REPLICA_ASSIGNMENT: Final = 39
INVALID_CONFIG: Final = 40
NOT_CONTROLLER: Final = 41
INVALID_REQUEST: Final = 42
POLICY_VIOLATION: Final = 44
OUT_OF_ORDER_SEQUENCE_NUMBER: Final = 45
INVALID_PRODUCER_EPOCH: Final = 47
TRANSACTIONAL_ID_AUTHORIZATION_FAILED: Final = 53
KAFKA_STORAGE_ERROR: Final = 56
FETCH_SESSION_ID_NOT_FOUND: Final = 70
INVALID_FETCH_SESSION_EPOCH: Final = 71
FENCED_LEADER_EPOCH: Final = 74
UNKNOWN_LEADER_EPOCH: Final = 75
UNSUPPORTED_COMPRESSION_TYPE: Final = 76
INVALID_RECORD: Final = 87
RESOURCE_NOT_FOUND: Final = 91
UNKNOWN_TOPIC_ID: Final = 100

# The nearest class of an error's ancestry counts.
_CODES: Final[dict[type[PeerError], int]] = {
    AccessRefused: TOPIC_AUTHORIZATION_FAILED,
    AlreadyExists: TOPIC_ALREADY_EXISTS,
    InvalidCount: INVALID_PARTITIONS,
    InvalidName: INVALID_TOPIC_EXCEPTION,
    InvalidSetting: INVALID_CONFIG,
    LimitExceeded: POLICY_VIOLATION,
    NotFound: UNKNOWN_TOPIC_OR_PARTITION,
}


def code_of(error: PeerError | StorageFailed) -> int:
    """The code of an error. One without a line in the table is our mistake, and is answered as such."""
    if isinstance(error, StorageFailed):
        return KAFKA_STORAGE_ERROR
    for kind in type(error).__mro__:
        code = _CODES.get(kind)
        if code is not None:
            return code
    return UNKNOWN_SERVER_ERROR
