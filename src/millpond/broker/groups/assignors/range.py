"""The assignor "range": each topic's partitions are cut into as many ranges as there are members that read it.

Members that read the same topics, of as many partitions each, have the same numbers of all of them, which joins of
topics need. Members keep their ranges as long as nobody comes or goes; static members come back to theirs, as they are
ordered by their instance ids.
"""

from __future__ import annotations

from collections.abc import Mapping

from millpond.broker.groups.assignors import Subscriber
from millpond.broker.groups.modern_records import Assignment


def assign(members: Mapping[str, Subscriber], topics: Mapping[bytes, int]) -> dict[str, Assignment]:
    """See `Assignor`."""
    given: dict[str, dict[bytes, frozenset[int]]] = {member_id: {} for member_id in members}
    ordered = sorted(members, key=lambda member_id: members[member_id].name)
    for topic_id in sorted(topics):
        readers = [member_id for member_id in ordered if topic_id in members[member_id].topics]
        if not readers:
            continue
        least, extra = divmod(topics[topic_id], len(readers))
        first = 0
        for number, member_id in enumerate(readers):
            end = first + least + (number < extra)
            if end > first:
                given[member_id][topic_id] = frozenset(range(first, end))
            first = end
    return dict(given)
