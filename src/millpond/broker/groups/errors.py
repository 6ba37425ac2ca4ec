"""What can be wrong with a request to a group. Drawn with all others in `millpond.base.errors`; a protocol turns the
`kind` into its own code."""

from __future__ import annotations

from millpond.base.errors import PeerError


class GroupError(PeerError):
    """A request to a group that cannot be done."""

    kind = "group-error"


class InvalidGroupName(GroupError):
    kind = "invalid-group-name"


class InvalidSessionTimeout(GroupError):
    kind = "invalid-session-timeout"


class InconsistentProtocol(GroupError):
    """Of what a member can do, there is nothing that all others can do too."""

    kind = "inconsistent-group-protocol"


class UnknownMember(GroupError):
    kind = "unknown-member"


class MemberIdRequired(GroupError):
    """The member is to join again with the id that goes with this."""

    kind = "member-id-required"


class FencedInstance(GroupError):
    """Another client has joined with the same instance id since."""

    kind = "fenced-instance"


class IllegalGeneration(GroupError):
    kind = "illegal-generation"


class RebalanceInProgress(GroupError):
    """The member is to join again."""

    kind = "rebalance-in-progress"


class GroupFull(GroupError):
    """No room for another member, or for another group."""

    kind = "group-full"


class GroupTooLarge(GroupError):
    """What the members say of themselves, or are assigned, is too much."""

    kind = "group-too-large"


class GroupNotFound(GroupError):
    kind = "group-not-found"


class GroupNotEmpty(GroupError):
    kind = "group-not-empty"


class GroupSubscribed(GroupError):
    """Members of the group read the topic."""

    kind = "group-subscribed"


class OffsetMetadataTooLarge(GroupError):
    kind = "offset-metadata-too-large"


class TooManyOffsets(GroupError):
    kind = "too-many-offsets"


class InvalidGroupRequest(GroupError):
    """What is asked for makes no sense, whatever the group is like."""

    kind = "invalid-group-request"


class UnsupportedAssignor(GroupError):
    kind = "unsupported-assignor"


class InvalidPattern(GroupError):
    """A subscription's regular expression cannot be read, or is too much."""

    kind = "invalid-pattern"


class FencedMemberEpoch(GroupError):
    """The member is to give everything up, and to join again."""

    kind = "fenced-member-epoch"


class StaleMemberEpoch(GroupError):
    """The member has another epoch by now, which it will hear of by its next heartbeat."""

    kind = "stale-member-epoch"


class UnreleasedInstance(GroupError):
    """Another client has the instance id, and has not left."""

    kind = "unreleased-instance"


class OldClient(GroupError):
    """The client knows nothing of the epochs of members, and is a member that has one."""

    kind = "old-client"
