"""What becomes of a share group's deliveries when its members come and go."""

from __future__ import annotations

from typing import Final

from millpond.broker.groups.share_membership import ShareGroupWatcher
from millpond.broker.shares.coordinator import Shares


class MemberWatcher(ShareGroupWatcher):
    """Gives back what members held that are gone, and forgets what deleted groups have worked off."""

    def __init__(self, shares: Shares) -> None:
        self._shares: Final = shares

    def changed(self, group_id: str) -> None:
        """A group begins in a partition when a member fetches from it."""

    def member_gone(self, group_id: str, member_id: str) -> None:
        self._shares.release_member(group_id, member_id)

    def deleted(self, group_id: str) -> None:
        self._shares.delete_group(group_id)
