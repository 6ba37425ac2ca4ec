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
    ReadOnlyTopic,
    StorageFailed,
)
from millpond.broker.groups import errors as groups
from millpond.broker.shares import sessions as shares
from millpond.broker.transactions import errors as transactions

UNKNOWN_SERVER_ERROR: Final = -1
NONE: Final = 0
OFFSET_OUT_OF_RANGE: Final = 1
CORRUPT_MESSAGE: Final = 2
UNKNOWN_TOPIC_OR_PARTITION: Final = 3
LEADER_NOT_AVAILABLE: Final = 5
REQUEST_TIMED_OUT: Final = 7
MESSAGE_TOO_LARGE: Final = 10
OFFSET_METADATA_TOO_LARGE: Final = 12
COORDINATOR_NOT_AVAILABLE: Final = 15
INVALID_TOPIC_EXCEPTION: Final = 17
INVALID_REQUIRED_ACKS: Final = 21
ILLEGAL_GENERATION: Final = 22
INCONSISTENT_GROUP_PROTOCOL: Final = 23
INVALID_GROUP_ID: Final = 24
UNKNOWN_MEMBER_ID: Final = 25
INVALID_SESSION_TIMEOUT: Final = 26
REBALANCE_IN_PROGRESS: Final = 27
INVALID_COMMIT_OFFSET_SIZE: Final = 28
TOPIC_AUTHORIZATION_FAILED: Final = 29
GROUP_AUTHORIZATION_FAILED: Final = 30
CLUSTER_AUTHORIZATION_FAILED: Final = 31
INVALID_TIMESTAMP: Final = 32
UNSUPPORTED_SASL_MECHANISM: Final = 33
ILLEGAL_SASL_STATE: Final = 34
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
INVALID_TXN_STATE: Final = 48
INVALID_PRODUCER_ID_MAPPING: Final = 49
INVALID_TRANSACTION_TIMEOUT: Final = 50
TRANSACTIONAL_ID_AUTHORIZATION_FAILED: Final = 53
OPERATION_NOT_ATTEMPTED: Final = 55
KAFKA_STORAGE_ERROR: Final = 56
LOG_DIR_NOT_FOUND: Final = 57
SASL_AUTHENTICATION_FAILED: Final = 58
NON_EMPTY_GROUP: Final = 68
GROUP_ID_NOT_FOUND: Final = 69
FETCH_SESSION_ID_NOT_FOUND: Final = 70
INVALID_FETCH_SESSION_EPOCH: Final = 71
FENCED_LEADER_EPOCH: Final = 74
UNKNOWN_LEADER_EPOCH: Final = 75
UNSUPPORTED_COMPRESSION_TYPE: Final = 76
MEMBER_ID_REQUIRED: Final = 79
GROUP_MAX_SIZE_REACHED: Final = 81
FENCED_INSTANCE_ID: Final = 82
ELECTION_NOT_NEEDED: Final = 84
NO_REASSIGNMENT_IN_PROGRESS: Final = 85
GROUP_SUBSCRIBED_TO_TOPIC: Final = 86
INVALID_RECORD: Final = 87
UNSTABLE_OFFSET_COMMIT: Final = 88
PRODUCER_FENCED: Final = 90
RESOURCE_NOT_FOUND: Final = 91
DUPLICATE_RESOURCE: Final = 92
UNACCEPTABLE_CREDENTIAL: Final = 93
UNKNOWN_TOPIC_ID: Final = 100
TRANSACTIONAL_ID_NOT_FOUND: Final = 105
FETCH_SESSION_TOPIC_ID_ERROR: Final = 106
FENCED_MEMBER_EPOCH: Final = 110
UNRELEASED_INSTANCE_ID: Final = 111
UNSUPPORTED_ASSIGNOR: Final = 112
STALE_MEMBER_EPOCH: Final = 113
MISMATCHED_ENDPOINT_TYPE: Final = 114
UNSUPPORTED_ENDPOINT_TYPE: Final = 115
TRANSACTION_ABORTABLE: Final = 120
INVALID_RECORD_STATE: Final = 121
SHARE_SESSION_NOT_FOUND: Final = 122
INVALID_SHARE_SESSION_EPOCH: Final = 123
INVALID_REGULAR_EXPRESSION: Final = 128
SHARE_SESSION_LIMIT_REACHED: Final = 133

# The nearest class of an error's ancestry counts.
_CODES: Final[dict[type[PeerError], int]] = {
    AccessRefused: TOPIC_AUTHORIZATION_FAILED,
    groups.FencedMemberEpoch: FENCED_MEMBER_EPOCH,
    groups.InvalidGroupRequest: INVALID_REQUEST,
    groups.InvalidPattern: INVALID_REGULAR_EXPRESSION,
    groups.OldClient: UNSUPPORTED_VERSION,
    groups.StaleMemberEpoch: STALE_MEMBER_EPOCH,
    groups.UnreleasedInstance: UNRELEASED_INSTANCE_ID,
    groups.UnsupportedAssignor: UNSUPPORTED_ASSIGNOR,
    groups.FencedInstance: FENCED_INSTANCE_ID,
    groups.GroupFull: GROUP_MAX_SIZE_REACHED,
    groups.GroupNotEmpty: NON_EMPTY_GROUP,
    groups.GroupNotFound: GROUP_ID_NOT_FOUND,
    groups.GroupSubscribed: GROUP_SUBSCRIBED_TO_TOPIC,
    # As Apache Kafka answers where its log refuses a group for its size.
    groups.GroupTooLarge: UNKNOWN_SERVER_ERROR,
    groups.IllegalGeneration: ILLEGAL_GENERATION,
    groups.InconsistentProtocol: INCONSISTENT_GROUP_PROTOCOL,
    groups.InvalidGroupName: INVALID_GROUP_ID,
    groups.InvalidSessionTimeout: INVALID_SESSION_TIMEOUT,
    groups.MemberIdRequired: MEMBER_ID_REQUIRED,
    groups.OffsetMetadataTooLarge: OFFSET_METADATA_TOO_LARGE,
    groups.RebalanceInProgress: REBALANCE_IN_PROGRESS,
    groups.TooManyOffsets: INVALID_COMMIT_OFFSET_SIZE,
    groups.UnknownMember: UNKNOWN_MEMBER_ID,
    transactions.InvalidProducerMapping: INVALID_PRODUCER_ID_MAPPING,
    transactions.InvalidTransactionalId: INVALID_REQUEST,
    transactions.InvalidTransactionState: INVALID_TXN_STATE,
    transactions.InvalidTransactionTimeout: INVALID_TRANSACTION_TIMEOUT,
    transactions.NotInTransaction: TRANSACTION_ABORTABLE,
    transactions.ProducerFenced: PRODUCER_FENCED,
    transactions.TooManyTransactions: POLICY_VIOLATION,
    transactions.TransactionNotFound: TRANSACTIONAL_ID_NOT_FOUND,
    shares.InvalidShareSessionEpoch: INVALID_SHARE_SESSION_EPOCH,
    shares.ShareSessionLimitReached: SHARE_SESSION_LIMIT_REACHED,
    shares.ShareSessionNotFound: SHARE_SESSION_NOT_FOUND,
    AlreadyExists: TOPIC_ALREADY_EXISTS,
    InvalidCount: INVALID_PARTITIONS,
    InvalidName: INVALID_TOPIC_EXCEPTION,
    InvalidSetting: INVALID_CONFIG,
    LimitExceeded: POLICY_VIOLATION,
    NotFound: UNKNOWN_TOPIC_OR_PARTITION,
    # As Apache Kafka answers for topics of its own.
    ReadOnlyTopic: INVALID_TOPIC_EXCEPTION,
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
