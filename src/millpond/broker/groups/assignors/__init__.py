"""How partitions are shared out among the members of a group: pure functions, one a module.

An assignor gets the members with what they read and have, and the topics, and says who is to have what. The same input
has the same result, whatever the order of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from millpond.broker.groups.modern_records import Assignment


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A member, as an assignor sees it: its name (by which members are told apart and ordered), the ids of the topics
    that it reads, of those that there are, and what it was to have until now."""

    name: str
    topics: frozenset[bytes]
    target: Assignment


# Members by their ids, and how many partitions each topic has by its id, to the target of each member.
Assignor = Callable[[Mapping[str, Subscriber], Mapping[bytes, int]], dict[str, Assignment]]


def _assignors() -> dict[str, Assignor]:
    from millpond.broker.groups.assignors import range as by_range
    from millpond.broker.groups.assignors import uniform

    return {"uniform": uniform.assign, "range": by_range.assign}


# Those of consumer groups. The first one is used where members do not say.
ASSIGNORS: Final[dict[str, Assignor]] = {}
DEFAULT_ASSIGNOR: Final = "uniform"


def assignors() -> dict[str, Assignor]:
    if not ASSIGNORS:
        ASSIGNORS.update(_assignors())
    return ASSIGNORS
