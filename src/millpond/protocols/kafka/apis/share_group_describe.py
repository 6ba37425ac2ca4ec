"""ShareGroupDescribe: state, epochs and members of share groups, with what each member fetches from.

Behaviour: a group of another type is not found, nor is one that is not there.
Versions: 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from millpond.broker.groups.modern_records import SHARE
from millpond.protocols.kafka.groups import answer_for_group, described_modern, placed
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.broker.groups.group import Group
    from millpond.broker.groups.modern import ModernGroup
    from millpond.protocols.kafka.connection import Call
    from millpond.protocols.kafka.messages import Tree

ASSIGNOR: Final = "simple"


@api(77, "ShareGroupDescribe", 1, 1)
def share_group_describe(call: Call, request: Any) -> None:
    answer_for_group(call, {"groups": described_modern(call, request, SHARE, _told)})


def _told(call: Call, group: Group, modern: ModernGroup) -> dict[str, object]:
    members: list[Tree] = [
        {
            "member_id": member.member_id,
            "rack_id": member.state.rack_id,
            "member_epoch": member.current.epoch,
            "client_id": member.state.client_id,
            "client_host": member.state.client_host,
            "subscribed_topic_names": list(member.state.topics),
            "assignment": placed(call, member.current.assigned),
        }
        for member in modern.members.values()
    ]
    return {"assignor_name": ASSIGNOR, "members": members}
