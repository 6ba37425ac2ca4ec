"""Offsets of groups that wait for the end of a transaction: they become the groups' offsets when it is committed.

Until then the offset of such a partition is unstable: a consumer that wants only stable ones waits. What a record of
the group takes away (the group, a topic, an offset) is taken away here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from millpond.broker.groups.records import CommittedOffset

# (topic, partition)
Place = tuple[str, int]
GroupOffsets = dict[str, dict[Place, CommittedOffset]]


class PendingOffsets:
    """Those of one virtual host, by the transactional id that they wait for."""

    def __init__(self) -> None:
        self._owners: Final[dict[str, GroupOffsets]] = {}
        # How many transactions have an offset of a place, by group.
        self._places: Final[dict[str, dict[Place, int]]] = {}
        self.count = 0

    def of(self, owner: str) -> GroupOffsets:
        """A copy of what waits for one transaction."""
        return {group: dict(offsets) for group, offsets in self._owners.get(owner, {}).items()}

    def has(self, group: str, topic: str, partition: int) -> bool:
        """Whether a group's offset may still change by a transaction."""
        places = self._places.get(group)
        return places is not None and (topic, partition) in places

    def has_any(self, group: str) -> bool:
        return group in self._places

    def add(self, owner: str, group: str, offsets: Iterable[tuple[str, int, CommittedOffset]]) -> None:
        values = self._owners.setdefault(owner, {}).setdefault(group, {})
        for topic, partition, committed in offsets:
            if (topic, partition) not in values:
                self.count += 1
                places = self._places.setdefault(group, {})
                places[topic, partition] = places.get((topic, partition), 0) + 1
            values[topic, partition] = committed

    def forget(self, owner: str) -> None:
        """The transaction has ended."""
        for group, values in self._owners.pop(owner, {}).items():
            for place in values:
                self._uncount(group, place)

    def forget_places(self, group: str, gone: Iterable[Place]) -> None:
        """Offsets of a group were deleted."""
        if group in self._places:
            for place in gone:
                for groups in self._owners.values():
                    if groups.get(group, {}).pop(place, None) is not None:
                        self._uncount(group, place)

    def forget_group(self, group: str) -> None:
        self.forget_places(group, list(self._places.get(group, ())))
        for groups in self._owners.values():
            groups.pop(group, None)

    def forget_topic(self, topic: str) -> None:
        for group, places in list(self._places.items()):
            self.forget_places(group, [place for place in places if place[0] == topic])

    def _uncount(self, group: str, place: Place) -> None:
        self.count -= 1
        places = self._places[group]
        places[place] -= 1
        if not places[place]:
            del places[place]
            if not places:
                del self._places[group]
