"""The coordinator of a virtual host's consumer groups, and that of all virtual hosts together.

Protocols call `vhost.groups`: `membership` for those who join by the classic protocol, `consumers` for those who do so
by the newer one, `shares` for members of share groups, `offsets` for how far they have come, and what is here
for operators. Whoever answers a client waits until the commit `sequence` is durable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from millpond.base.clock import Timer
from millpond.base.limits import (
    GROUP_INITIAL_REBALANCE_DELAY_MS,
    GROUP_MEMBERS_MAX,
    GROUP_SESSION_TIMEOUT_MAX_MS,
    GROUP_SESSION_TIMEOUT_MIN_MS,
    GROUPS_MAX,
    OFFSETS_EXPIRY_AT_ONCE,
    OFFSETS_EXPIRY_CHECK_MS,
    OFFSETS_MAX,
    OFFSETS_RETENTION_MINUTES,
)
from millpond.broker.groups.errors import GroupNotEmpty, GroupNotFound
from millpond.broker.groups.group import Group
from millpond.broker.groups.migration import MixedMembership
from millpond.broker.groups.modern import TopicDirectory
from millpond.broker.groups.modern_records import SHARE
from millpond.broker.groups.offsets import Offsets
from millpond.broker.groups.records import Cleared, GroupDeleted, decode_record
from millpond.broker.groups.share_membership import ShareMembership
from millpond.broker.groups.store import GroupSettings, GroupState, GroupStore, GroupTotals
from millpond.broker.groups.topic_directory import NoTopics
from millpond.broker.keepers import RecordKeeper
from millpond.broker.records import CHANGE_GROUP

if TYPE_CHECKING:
    from millpond.base.clock import Clock
    from millpond.broker.ledger import Ledger
    from millpond.broker.turn import Turn

logger = logging.getLogger(__name__)

MINUTE_MS: Final = 60_000

DEFAULT_SETTINGS: Final = GroupSettings(
    session_timeout_min_ms=GROUP_SESSION_TIMEOUT_MIN_MS,
    session_timeout_max_ms=GROUP_SESSION_TIMEOUT_MAX_MS,
    initial_rebalance_delay_ms=GROUP_INITIAL_REBALANCE_DELAY_MS,
    members_max=GROUP_MEMBERS_MAX,
    offsets_retention_ms=OFFSETS_RETENTION_MINUTES * MINUTE_MS,
    groups_max=GROUPS_MAX,
    offsets_max=OFFSETS_MAX,
)


class GroupCoordinator:
    """The groups of one virtual host."""

    def __init__(self, store: GroupStore, has_topic: Callable[[str], bool], topics: TopicDirectory) -> None:
        self.store: Final = store
        self._has_topic: Final = has_topic
        self.topics: Final = topics
        self.membership: Final = MixedMembership(store, topics)
        self.consumers: Final = self.membership.consumers
        self.shares: Final = ShareMembership(store, topics)
        self.offsets: Final = Offsets(store, self.membership)

    @property
    def sequence(self) -> int:
        """The commit that makes durable what a client may be told now."""
        return self.store.sequence

    def groups(self) -> Iterable[Group]:
        """All groups, to be looked at."""
        return self.store.groups.values()

    def group(self, group_id: str) -> Group:
        """One group, to be looked at. GroupNotFound where there is none."""
        group = self.store.groups.get(group_id)
        if group is None:
            raise GroupNotFound(f"there is no group '{group_id}'")
        return group

    def delete(self, group_id: str) -> None:
        """Delete a group with its offsets. GroupNotFound, or GroupNotEmpty where it has members."""
        group = self.group(group_id)
        if not group.is_empty:
            raise GroupNotEmpty(f"group '{group_id}' has members")
        self.store.record(GroupDeleted(group_id))
        if group.type == SHARE:
            self.shares.deleted(group_id)

    def expire(self, group: Group) -> None:
        """Forget offsets that are too old, and the group when nothing is left of it."""
        # What a share group has come to is not among these offsets.
        if group.type != SHARE and self.offsets.expire(group) and group.is_empty and not self._is_waited_for(group):
            self.store.record(GroupDeleted(group.id))

    def _is_waited_for(self, group: Group) -> bool:
        """Whether members, or a transaction's offsets, are on their way."""
        return bool(group.pending) or self.store.pending.has_any(group.id)

    def restored(self) -> None:
        """All that is known of the groups has been applied: they go on."""
        # The catalog is durable a little before the journal, which may not have been told that a topic was deleted.
        for topic in list(self.store.topics):
            if not self._has_topic(topic):
                self.offsets.topic_deleted(topic)
        for group in list(self.groups()):
            if group.type == SHARE:
                self.shares.restored(group)
            else:
                self.membership.restored(group)

    def clear(self) -> None:
        """The virtual host is new: no group of an older one with its name comes back."""
        self.store.record(Cleared())


class ConsumerGroups(RecordKeeper):
    """The groups of all virtual hosts: what they share, and how they are found again after a restart."""

    change = CHANGE_GROUP

    def __init__(self, clock: Clock, turn: Turn, ledger: Ledger, settings: GroupSettings = DEFAULT_SETTINGS) -> None:
        self.settings: Final = settings
        self.totals: Final = GroupTotals()
        self._clock: Final = clock
        self._turn: Final = turn
        self._ledger: Final = ledger
        self._coordinators: Final[dict[str, GroupCoordinator]] = {}
        self._expiry: Timer | None = None

    def add(
        self, vhost: str, has_topic: Callable[[str], bool], topics: TopicDirectory | None = None
    ) -> GroupCoordinator:
        """The coordinator of a virtual host, without groups. `has_topic` says whether offsets may be in what has this
        name; `topics` are those whose partitions are shared out."""
        store = GroupStore(vhost, self.settings, self.totals, self._clock, self._turn, self._ledger)
        coordinator = self._coordinators[vhost] = GroupCoordinator(store, has_topic, topics or NoTopics())
        if self._expiry is None:
            self._expiry = self._clock.call_later(OFFSETS_EXPIRY_CHECK_MS, self._expire)
        return coordinator

    def remove(self, vhost: str) -> None:
        """The virtual host is gone, and its groups with it: records of it are passed over from now on."""
        self._coordinators.pop(vhost).store.apply(Cleared())

    def stop(self) -> None:
        """The broker stops: nothing happens by itself any more."""
        if self._expiry is not None:
            self._expiry.cancel()
        for coordinator in self._coordinators.values():
            for group in coordinator.groups():
                group.stop()

    def _expire(self) -> None:
        everything = [(vhost, group.id) for vhost, one in self._coordinators.items() for group in one.groups()]
        self._expire_some(iter(everything))

    def _expire_some(self, groups: Iterator[tuple[str, str]]) -> None:
        """A few groups each time: others want the loop too."""
        looked_at = 0
        for vhost, group_id in groups:
            coordinator = self._coordinators.get(vhost)
            group = coordinator.store.groups.get(group_id) if coordinator is not None else None
            if coordinator is None or group is None:
                continue
            looked_at += 1 + group.offset_count
            coordinator.expire(group)
            if looked_at >= OFFSETS_EXPIRY_AT_ONCE:
                self._expiry = self._clock.call_later(1, partial(self._expire_some, groups))
                return
        self._expiry = self._clock.call_later(OFFSETS_EXPIRY_CHECK_MS, self._expire)

    # --- Recovery ---------------------------------------------------------------------------------------------------

    def restore(self, payload: bytes) -> None:
        vhost, record = decode_record(payload)
        coordinator = self._coordinators.get(vhost)
        if coordinator is not None:
            coordinator.store.apply(record)

    def restored(self) -> None:
        for coordinator in self._coordinators.values():
            coordinator.restored()
        if self.totals.groups:
            logger.info("recovered %d consumer groups with %d offsets", self.totals.groups, self.totals.offsets)

    def capture(self) -> list[GroupState]:
        return [
            GroupState(vhost, group)
            for vhost, coordinator in self._coordinators.items()
            for group in coordinator.groups()
        ]
