"""Partitions as assignors count them, and how to share things out evenly while moving as few as possible."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from millpond.broker.groups.modern_records import Assignment

# (topic id, partition)
Place = tuple[bytes, int]

_Thing = TypeVar("_Thing")
_Owner = TypeVar("_Owner")


def places_of(assignment: Assignment) -> list[Place]:
    return [(topic_id, number) for topic_id in sorted(assignment) for number in sorted(assignment[topic_id])]


def assignment_of(places: Iterable[Place]) -> Assignment:
    found: dict[bytes, set[int]] = {}
    for topic_id, number in places:
        found.setdefault(topic_id, set()).add(number)
    return {topic_id: frozenset(found[topic_id]) for topic_id in sorted(found)}


def evenly(things: Sequence[_Thing], had: Mapping[_Owner, Sequence[_Thing]]) -> dict[_Owner, list[_Thing]]:
    """Give each thing to one owner, so that no owner has two more than another, and owners keep what they had as far as
    that lets them. Those that come first have the precedence."""
    if not had:
        return {}
    least, extra = divmod(len(things), len(had))
    left = dict.fromkeys(things)
    given: dict[_Owner, list[_Thing]] = {}
    for owner, before in had.items():
        kept = given[owner] = []
        for thing in before:
            if len(kept) > least or (len(kept) == least and extra == 0):
                break
            if thing in left:
                del left[thing]
                kept.append(thing)
                extra -= len(kept) > least
    # The order of the owners decides between those who have the same.
    owners = list(given)
    smallest = [(len(given[owner]), number) for number, owner in enumerate(owners)]
    heapq.heapify(smallest)
    for thing in left:
        count, number = smallest[0]
        given[owners[number]].append(thing)
        heapq.heapreplace(smallest, (count + 1, number))
    return given
