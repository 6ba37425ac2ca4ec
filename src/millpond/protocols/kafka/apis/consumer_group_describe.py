"""ConsumerGroupDescribe: state, epochs and members of consumer groups, with what each member has and is to have.

Behaviour: a group of another type is not found, nor is one that is not there.
Versions: from 1 on with what protocol a member speaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from millpond.broker.groups.consumer_membership import assignor_of
from millpond.broker.groups.modern_records import CONSUMER
from millpond.protocols.kafka.groups import answer_for_group, described_modern, placed
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.broker.groups.group import Group
    from millpond.broker.groups.modern import ModernGroup
    from millpond.protocols.kafka.connection import Call
    from millpond.protocols.kafka.messages import Tree

TYPE_CLASSIC: Final = 0
TYPE_CONSUMER: Final = 1


@api(69, "ConsumerGroupDescribe", 0, 1)
def consumer_group_describe(call: Call, request: Any) -> None:
    answer_for_group(call, {"groups": described_modern(call, request, CONSUMER, _told)})


def _told(call: Call, group: Group, modern: ModernGroup) -> dict[str, object]:
    return {"assignor_name": assignor_of(modern), "members": _members(call, modern)}


def _members(call: Call, modern: ModernGroup) -> list[Tree]:
    return [
        {
            "member_id": member.member_id,
            "instance_id": member.state.instance_id,
            "rack_id": member.state.rack_id,
            "member_epoch": member.current.epoch,
            "client_id": member.state.client_id,
            "client_host": member.state.client_host,
            "subscribed_topic_names": list(member.state.topics),
            "subscribed_topic_regex": member.state.pattern,
            "assignment": placed(call, member.current.assigned),
            "target_assignment": placed(call, modern.target(member.member_id)),
            "member_type": TYPE_CLASSIC if member.is_classic else TYPE_CONSUMER,
        }
        for member in modern.members.values()
    ]
