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
from millpond.broker.groups.group import Group, Member
from millpond.broker.groups.lag import end_offset
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
        members = [_member(group, member) for member in group.members.values()]
        offsets = _offsets(vhost, group)
        lag = sum(one["lag"] or 0 for one in offsets)
        return Json({**_listed(vhost, group), "lag": lag, "member_details": members, "offset_details": offsets})

    @made.delete("/groups/{vhost}/{name}", status_code=204, dependencies=[Depends(administrators_only)])
    async def _delete(vhost: UsableVhost, name: GroupName) -> None:
        await changes.delete_group(broker, vhost, name)

    return made


def _listed(vhost: VirtualHost, group: Group) -> Shown:
    head = group.head
    return {
        "name": group.id,
        "vhost": vhost.name,
        "state": head.state,
        "state_since": head.since_ms,
        "generation": head.generation,
        "protocol_type": head.protocol_type,
        "protocol": head.protocol,
        "leader": head.leader,
        "members": len(group.members),
        "offsets": group.offset_count,
    }


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
