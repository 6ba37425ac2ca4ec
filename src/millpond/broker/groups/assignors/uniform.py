"""The assignor "uniform", the default one: every member has as many partitions as any other, give or take one, and
keeps what it has as far as that lets it.

Where members read different topics that cannot always be: then nobody has two partitions more than somebody else who
reads their topic too. Partitions that move are moved one by one then, until that is so.
"""

from __future__ import annotations

from collections.abc import Mapping

from millpond.broker.groups.assignors import Subscriber
from millpond.broker.groups.assignors.places import Place, assignment_of, evenly, places_of
from millpond.broker.groups.modern_records import Assignment


def assign(members: Mapping[str, Subscriber], topics: Mapping[bytes, int]) -> dict[str, Assignment]:
    """See `Assignor`."""
    ordered = sorted(members, key=lambda member_id: members[member_id].name)
    subscriptions = {members[member_id].topics for member_id in ordered}
    if len(subscriptions) <= 1:
        places = _places(topics, subscriptions.pop() if subscriptions else frozenset())
        had = {member_id: places_of(members[member_id].target) for member_id in ordered}
        return {member_id: assignment_of(given) for member_id, given in evenly(places, had).items()}
    return _assign_apart(ordered, members, topics)


def _places(topics: Mapping[bytes, int], subscription: frozenset[bytes]) -> list[Place]:
    return [
        (topic_id, number)
        for topic_id in sorted(subscription)
        if topic_id in topics
        for number in range(topics[topic_id])
    ]


def _assign_apart(
    ordered: list[str], members: Mapping[str, Subscriber], topics: Mapping[bytes, int]
) -> dict[str, Assignment]:
    """Where members read different topics."""
    readers: dict[bytes, list[str]] = {}
    for member_id in ordered:
        for topic_id in members[member_id].topics:
            if topic_id in topics:
                readers.setdefault(topic_id, []).append(member_id)
    given: dict[str, dict[bytes, list[int]]] = {member_id: {} for member_id in ordered}
    counts = dict.fromkeys(ordered, 0)
    left = dict.fromkeys(_places(topics, frozenset(readers)))
    for member_id in ordered:
        for place in places_of(members[member_id].target):
            if place in left and place[0] in members[member_id].topics:
                del left[place]
                given[member_id].setdefault(place[0], []).append(place[1])
                counts[member_id] += 1
    # Topics that few read come first: the others can make up for it.
    for topic_id, number in sorted(left, key=lambda place: (len(readers[place[0]]), place)):
        member_id = min(readers[topic_id], key=lambda one: counts[one])
        given[member_id].setdefault(topic_id, []).append(number)
        counts[member_id] += 1
    _even_out(sorted(readers), readers, given, counts)
    return {
        member_id: {topic_id: frozenset(numbers) for topic_id, numbers in sorted(of.items()) if numbers}
        for member_id, of in given.items()
    }


def _even_out(
    topics: list[bytes],
    readers: Mapping[bytes, list[str]],
    given: dict[str, dict[bytes, list[int]]],
    counts: dict[str, int],
) -> None:
    """Move partitions from who has many to who has two fewer. Each move brings the counts closer, so it ends."""
    is_moving = True
    while is_moving:
        is_moving = False
        for topic_id in topics:
            is_moving = _even_out_topic(topic_id, readers[topic_id], given, counts) or is_moving


def _even_out_topic(
    topic_id: bytes, readers: list[str], given: dict[str, dict[bytes, list[int]]], counts: dict[str, int]
) -> bool:
    has_moved = False
    while True:
        givers = [member_id for member_id in readers if given[member_id].get(topic_id)]
        if not givers:
            return has_moved
        giver, taker = max(givers, key=lambda one: counts[one]), min(readers, key=lambda one: counts[one])
        if counts[giver] - counts[taker] < 2:
            return has_moved
        given[taker].setdefault(topic_id, []).append(given[giver][topic_id].pop())
        counts[giver] -= 1
        counts[taker] += 1
        has_moved = True
