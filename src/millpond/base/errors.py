"""Every error that Millpond raises on purpose, in one hierarchy.

    MillpondError
    ├── PeerError             what a client asked for cannot be done; protocols turn `kind` into their own reply
    │   ├── NotFound          no such virtual host, exchange, queue
    │   ├── AccessRefused     authentication failed, or the user has no permission
    │   ├── PreconditionFailed  declared with other arguments, in use, not empty, unknown delivery tag
    │   │   ├── AlreadyExists   a name that is taken
    │   │   ├── InvalidName     a name that nothing may have
    │   │   ├── InvalidCount    so many partitions cannot be
    │   │   ├── InvalidSetting  no such entry of a configuration, or not this value
    │   │   └── ReadOnlyTopic   what changes with the queue that it belongs to only
    │   ├── ResourceLocked    an exclusive queue of another connection
    │   ├── NotAllowed        forbidden whatever the permissions
    │   ├── NotImplementedHere  a valid request that this broker does not serve
    │   ├── SyntaxFault       bytes that do not decode
    │   ├── FrameFault        a frame that breaks the framing
    │   ├── UnexpectedFrame   a frame that is not valid in the present state
    │   ├── CommandInvalid    a method that is not valid in the present state
    │   ├── ChannelFault      a channel that is not open, or is open already
    │   ├── LimitExceeded     more than `limits.py` or the configuration grants
    │   ├── TransactionError  a request to a transaction; they are in `broker/transactions/errors.py`
    │   └── GroupError        a request to a consumer group; they are in `broker/groups/errors.py`
    │       ├── InvalidGroupName, InvalidSessionTimeout, InconsistentProtocol
    │       ├── UnknownMember, MemberIdRequired, FencedInstance, IllegalGeneration, RebalanceInProgress
    │       ├── GroupFull, GroupTooLarge, TooManyOffsets, OffsetMetadataTooLarge
    │       └── GroupNotFound, GroupNotEmpty, GroupSubscribed
    ├── OperatorError         our misuse: each has the process's exit code
    │   ├── ConfigurationError
    │   ├── DataDirectoryInUse
    │   ├── UnsupportedFormat a data directory written by a newer version
    │   ├── ListenerError     an address that cannot be bound
    │   └── NotRunning        a command that needs a running broker found none
    └── StorageError          the disk did not do what it promised
        ├── CorruptData       a checksum does not match; the data is never served
        └── StorageFailed     a write or sync failed for good; nothing is acknowledged any more

A `PeerError` never ends the process, and a bug is none of these: it is raised as it is and crashes loudly.
"""

from __future__ import annotations


class MillpondError(Exception):
    """Base of all errors that Millpond raises on purpose."""


class PeerError(MillpondError):
    """A client's request that cannot be done. `str(error)` is the text sent to the client, without any code."""

    kind = "peer-error"


class NotFound(PeerError):
    kind = "not-found"


class AccessRefused(PeerError):
    kind = "access-refused"


class PreconditionFailed(PeerError):
    kind = "precondition-failed"


class AlreadyExists(PreconditionFailed):
    """A name that is taken."""


class InvalidName(PreconditionFailed):
    """A name that nothing may have."""


class ReadOnlyTopic(PreconditionFailed):
    """A topic that is what a queue keeps of its messages: it changes with the queue only."""


class InvalidCount(PreconditionFailed):
    """So many partitions cannot be."""


class InvalidSetting(PreconditionFailed):
    """There is no such entry in a configuration, or it cannot have this value."""


class ResourceLocked(PeerError):
    kind = "resource-locked"


class NotAllowed(PeerError):
    kind = "not-allowed"


class NotImplementedHere(PeerError):
    kind = "not-implemented"


class SyntaxFault(PeerError):
    kind = "syntax-error"


class FrameFault(PeerError):
    kind = "frame-error"


class UnexpectedFrame(PeerError):
    kind = "unexpected-frame"


class CommandInvalid(PeerError):
    kind = "command-invalid"


class ChannelFault(PeerError):
    kind = "channel-error"


class LimitExceeded(PeerError):
    kind = "limit-exceeded"


class OperatorError(MillpondError):
    """A mistake of the person or script that runs Millpond. `exit_code` follows BSD's sysexits.h."""

    exit_code = 70


class ConfigurationError(OperatorError):
    exit_code = 78


class DataDirectoryInUse(OperatorError):
    exit_code = 75


class UnsupportedFormat(OperatorError):
    exit_code = 76


class ListenerError(OperatorError):
    exit_code = 71


class NotRunning(OperatorError):
    exit_code = 69


class StorageError(MillpondError):
    """The disk did not do what it promised."""


class CorruptData(StorageError):
    """A checksum or a length does not match what was written."""


class StorageFailed(StorageError):
    """A write or a sync failed for good: what was not yet durable will never be acknowledged."""
