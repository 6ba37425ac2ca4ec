"""How far groups are behind the ends of what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millpond.broker.groups.group import Group
    from millpond.broker.vhost import VirtualHost


def end_offset(vhost: VirtualHost, topic: str, number: int) -> int | None:
    """Where a partition ends for those who read it; None where there is none such."""
    found = vhost.topics.by_name.get(topic)
    if found is None or not 0 <= number < len(found.partitions):
        return None
    return int(found.partitions[number].durable_end)


def lag_by_topic(vhost: VirtualHost, group: Group) -> dict[str, int]:
    """How many records of each topic the group has not come to. Partitions that it has no offset of do not count."""
    lags: dict[str, int] = {}
    for topic, partitions in group.offsets.items():
        for number, committed in partitions.items():
            end = end_offset(vhost, topic, number)
            if end is not None:
                lags[topic] = lags.get(topic, 0) + max(0, end - committed.offset)
    return lags
