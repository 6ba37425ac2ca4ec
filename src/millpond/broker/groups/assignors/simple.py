"""The assignor of share groups, Apache Kafka's "simple".

Every partition has members that read it, and every member has a partition where it reads a topic that has one. With
more partitions than members each is one member's; with fewer, several members read the same one, as many as evenly as
possible. Who has a partition keeps it as long as that is so.
"""

from __future__ import annotations

from collections.abc import Mapping

from millpond.broker.groups.assignors import Subscriber
from millpond.broker.groups.assignors.places import Place, assignment_of, evenly, places_of
from millpond.broker.groups.modern_records import Assignment


def assign(members: Mapping[str, Subscriber], topics: Mapping[bytes, int]) -> dict[str, Assignment]:
    """See `Assignor`."""
    given: dict[str, set[Place]] = {member_id: set() for member_id in members}
    by_subscription: dict[frozenset[bytes], list[str]] = {}
    for member_id in sorted(members, key=lambda one: members[one].name):
        by_subscription.setdefault(members[member_id].topics, []).append(member_id)
    # Who reads the same topics shares them out among each other.
    for subscription, subscribers in by_subscription.items():
        places = [
            (topic_id, number)
            for topic_id in sorted(subscription)
            if topic_id in topics
            for number in range(topics[topic_id])
        ]
        if places:
            _share(places, {member_id: members[member_id] for member_id in subscribers}, given)
    return {member_id: assignment_of(places) for member_id, places in given.items()}


def _share(places: list[Place], members: Mapping[str, Subscriber], given: dict[str, set[Place]]) -> None:
    """Give every place to a member, and every member a place."""
    had = {member_id: places_of(one.target) for member_id, one in members.items()}
    if len(places) >= len(members):
        for member_id, one_of in evenly(places, had).items():
            given[member_id].update(one_of)
        return
    readers: dict[Place, list[str]] = {place: [] for place in places}
    for member_id, before in had.items():
        for place in before:
            if place in readers:
                readers[place].append(member_id)
    for place, those in evenly(list(members), readers).items():
        for member_id in those:
            given[member_id].add(place)
