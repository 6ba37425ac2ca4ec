"""What heartbeats of all groups whose assignment the broker decides have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from millpond.base.limits import GROUP_BYTES_MAX, GROUP_MEMBER_BYTES_MAX, GROUP_NAME_BYTES_MAX, GROUPS_BYTES_MAX
from millpond.broker.groups.errors import FencedMemberEpoch, GroupTooLarge, InvalidGroupRequest
from millpond.broker.groups.group import Group
from millpond.broker.groups.modern import ModernMember
from millpond.broker.groups.modern_records import Assignment, ModernMemberState
from millpond.broker.groups.store import GroupStore

# The epoch of who leaves.
LEAVE_EPOCH: Final = -1


@dataclass(frozen=True, slots=True)
class MemberAnswer:
    """What a member is told."""

    member_id: str
    epoch: int
    heartbeat_interval_ms: int = 0
    # None where it is as the member knows it.
    assigned: Assignment | None = None


def check_newer_epoch(member: ModernMember, epoch: int, group_type: str) -> None:
    """FencedMemberEpoch where a member has an epoch that it was never given."""
    if epoch > member.current.epoch:
        raise FencedMemberEpoch(
            f"The {group_type} group member has a greater member epoch ({epoch}) than the one known by the group "
            f"coordinator ({member.current.epoch}). The member must abandon all its partitions and rejoin."
        )


def check_member_size(store: GroupStore, group: Group, state: ModernMemberState, size_before: int) -> None:
    """GroupTooLarge where a member says too much of itself, or all members do; InvalidGroupRequest where the names by
    which its records call it are too long."""
    names = (state.member_id, state.instance_id or "", state.rack_id or "", *state.topics)
    if max(map(len, names)) > GROUP_NAME_BYTES_MAX:
        raise InvalidGroupRequest(f"a name has at most {GROUP_NAME_BYTES_MAX} characters")
    size = state.size
    more = size - size_before
    if size > GROUP_MEMBER_BYTES_MAX:
        raise GroupTooLarge(f"a member says at most {GROUP_MEMBER_BYTES_MAX} bytes of itself")
    if more > 0 and group.member_bytes + more > GROUP_BYTES_MAX:
        raise GroupTooLarge(f"the members of group '{group.id}' take more than {GROUP_BYTES_MAX} bytes")
    if more > 0 and store.totals.member_bytes + more > GROUPS_BYTES_MAX:
        raise GroupTooLarge(f"the members of all groups take more than {GROUPS_BYTES_MAX} bytes")
