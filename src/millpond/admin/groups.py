"""Consumer groups in the management API: Millpond's own paths, in the manner of RabbitMQ's."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Response
from pydantic import AfterValidator

from millpond.admin import changes
from millpond.admin.requests import InVhost, Json, Paged, UsableVhost, Visible, administrators_only
from millpond.admin.views import Shown
from millpond.broker.broker import Broker
from millpond.broker.groups.consumer_membership import assignor_of
from millpond.broker.groups.group import Group, Member
from millpond.broker.groups.lag import end_offset
from millpond.broker.groups.modern import ModernGroup, ModernMember
from millpond.broker.groups.modern_records import CONSUMER, Assignment
from millpond.broker.groups.subscription import assigned_partitions
from millpond.broker.vhost import VirtualHost


def _unquoted(text: str) -> str:
    return unquote(text, errors="surrogateescape")


# Longer than the names of RabbitMQ's things may be.
GroupName = Annotated[str, AfterValidator(_unquoted)]


def routes(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/api")

    @made.get("/groups")
    async def _everywhere(visible: Visible, page: Paged) -> Response:
        return page.of(_listed(vhost, group) for vhost in visible for group in vhost.groups.groups())

    @made.get("/groups/{vhost}")
    async def _in_vhost(found: InVhost, page: Paged) -> Response:
        return page.of(_listed(vhost, group) for vhost in found for group in vhost.groups.groups())

    @made.get("/groups/{vhost}/{name}")
    async def _group(found: InVhost, name: GroupName) -> Response:
        [vhost] = found
        group = vhost.groups.group(name)
        if group.modern is None:
            members = [_member(group, member) for member in group.members.values()]
        else:
            members = [_modern_member(vhost, group.modern, one) for one in group.modern.members.values()]
        offsets = _offsets(vhost, group)
        lag = sum(one["lag"] or 0 for one in offsets)
        return Json({**_listed(vhost, group), "lag": lag, "member_details": members, "offset_details": offsets})

    @made.delete("/groups/{vhost}/{name}", status_code=204, dependencies=[Depends(administrators_only)])
    async def _delete(vhost: UsableVhost, name: GroupName) -> None:
        await changes.delete_group(broker, vhost, name)

    return made


def _listed(vhost: VirtualHost, group: Group) -> Shown:
    head, modern = group.head, group.modern
    shown: Shown = {
        "name": group.id,
        "vhost": vhost.name,
        "type": group.type,
        "state": group.state,
        "state_since": head.since_ms if modern is None else modern.head.since_ms,
        "generation": head.generation if modern is None else modern.head.epoch,
        "protocol_type": group.protocol_type,
        "protocol": head.protocol,
        "leader": head.leader,
        "members": group.member_count,
        "offsets": group.offset_count,
    }
    if modern is not None:
        shown["group_epoch"], shown["assignment_epoch"] = modern.head.epoch, modern.head.assignment_epoch
        shown["protocol"] = assignor_of(modern) if modern.type == CONSUMER else "simple"
    return shown


def _modern_member(vhost: VirtualHost, modern: ModernGroup, member: ModernMember) -> Shown:
    state, current = member.state, member.current
    return {
        "member_id": state.member_id,
        "instance_id": state.instance_id,
        "client_id": state.client_id,
        "client_host": state.client_host,
        "rack_id": state.rack_id,
        "speaks": "classic" if member.is_classic else modern.type,
        "epoch": current.epoch,
        "topics": list(state.topics),
        "pattern": state.pattern,
        "assignment": _places(vhost, current.assigned),
        "revoking": _places(vhost, current.revoking),
        "target": _places(vhost, modern.target(state.member_id)),
    }


def _places(vhost: VirtualHost, assignment: Assignment) -> Shown:
    topics = vhost.groups.topics
    names = {topic_id: topics.name(topic_id) or topic_id.hex() for topic_id in assignment}
    return {names[topic_id]: sorted(partitions) for topic_id, partitions in assignment.items()}


def _member(group: Group, member: Member) -> Shown:
    state = member.state
    return {
        "member_id": state.member_id,
        "instance_id": state.instance_id,
        "client_id": state.client_id,
        "client_host": state.client_host,
        "session_timeout_ms": state.session_timeout_ms,
        "rebalance_timeout_ms": state.rebalance_timeout_ms,
        "protocols": [name for name, _ in state.protocols],
        # Of other clients than Kafka's consumers it is not known.
        "assignment": assigned_partitions(state.assignment) if group.reads_topics else None,
    }


def _offsets(vhost: VirtualHost, group: Group) -> list[Shown]:
    shown: list[Shown] = []
    for topic, partitions in sorted(group.offsets.items()):
        for number, committed in sorted(partitions.items()):
            end = end_offset(vhost, topic, number)
            shown.append(
                {
                    "topic": topic,
                    "partition": number,
                    "offset": committed.offset,
                    "end_offset": end,
                    "lag": None if end is None else max(0, end - committed.offset),
                    "metadata": committed.metadata,
                    "committed_at": committed.committed_ms,
                }
            )
    return shown
