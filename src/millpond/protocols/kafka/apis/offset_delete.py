"""OffsetDelete: a group forgets how far it has come in some partitions.

Behaviour: refused for topics that members of the group read. An offset that is not there counts as deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED, code_of
from millpond.protocols.kafka.groups import (
    answer_for_group,
    by_topic,
    coordinator,
    may_use_group,
    partition_error,
    topic_names,
)
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(47, "OffsetDelete", 0, 0)
def offset_delete(call: Call, request: Any) -> None:
    if not may_use_group(call, Operation.DELETE, request.group_id):
        answer_for_group(call, {"error_code": GROUP_AUTHORIZATION_FAILED})
        return
    codes: dict[tuple[str, int], int] = {}
    places: list[tuple[str, int]] = []
    for topic in request.topics:
        for asked in topic.partitions:
            error = partition_error(call, topic.name, asked.partition_index)
            if error:
                codes[topic.name, asked.partition_index] = error
            else:
                places.append((topic.name, asked.partition_index))
    try:
        refused = coordinator(call).offsets.delete(request.group_id, places)
    except PeerError as error:
        answer_for_group(call, {"error_code": code_of(error)})
        return
    codes.update({place: code_of(error) for place, error in refused.items()})
    answer_for_group(call, {"topics": by_topic(request.topics, topic_names(call, request.topics), codes)})
