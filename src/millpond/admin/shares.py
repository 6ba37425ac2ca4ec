"""What share groups have worked off, in the management API: Millpond's own paths, in the manner of RabbitMQ's."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Response
from pydantic import AfterValidator

from millpond.admin.requests import InVhost, Json, Paged, Visible
from millpond.admin.views import Shown
from millpond.broker.broker import Broker
from millpond.broker.shares.coordinator import ShareGroup
from millpond.broker.shares.share_partition import SharePartition
from millpond.broker.vhost import VirtualHost


def _unquoted(text: str) -> str:
    return unquote(text, errors="surrogateescape")


# Longer than the names of RabbitMQ's things may be.
GroupName = Annotated[str, AfterValidator(_unquoted)]


def routes(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/api")

    @made.get("/shares")
    async def _everywhere(visible: Visible, page: Paged) -> Response:
        return page.of(_listed(vhost, group) for vhost in visible for group in vhost.shares.groups.values())

    @made.get("/shares/{vhost}")
    async def _in_vhost(found: InVhost, page: Paged) -> Response:
        return page.of(_listed(vhost, group) for vhost in found for group in vhost.shares.groups.values())

    @made.get("/shares/{vhost}/{name}")
    async def _group(found: InVhost, name: GroupName) -> Response:
        [vhost] = found
        group = vhost.shares.group(name)
        places = sorted(group.partitions.values(), key=lambda one: (one.topic.name, one.number))
        return Json(
            {
                **_listed(vhost, group),
                "configs": vhost.shares.configs(name),
                "partition_details": [_partition(place) for place in places],
            }
        )

    return made


def _listed(vhost: VirtualHost, group: ShareGroup) -> Shown:
    places = group.partitions.values()
    return {
        "name": group.id,
        "vhost": vhost.name,
        # The AMQP queue of this name, over the same records.
        "queue": group.queue is not None,
        "sessions": len(vhost.shares.sessions.of_group(group.id)),
        "partitions": len(places),
        "messages_ready": group.ready,
        "messages_acquired": group.held,
        "messages_dlx": sum(place.dead_count for place in places),
        "lag": sum(max(0, place.lag) for place in places),
    }


def _partition(place: SharePartition) -> Shown:
    state = place.state
    return {
        "topic": place.topic.name,
        "partition": place.number,
        "start_offset": None if state is None else place.start,
        "window_end": None if state is None else int(state.end),
        "end_offset": place.end,
        "messages_ready": place.ready,
        "messages_acquired": place.held,
        "messages_dlx": place.dead_count,
        "lag": None if state is None else place.lag,
        "ranges": 0 if state is None else int(state.range_count),
        "delivered": 0 if state is None else int(state.delivered_total),
        "accepted": 0 if state is None else int(state.accepted_total),
        "released": 0 if state is None else int(state.released_total),
        "rejected": 0 if state is None else int(state.rejected_total),
        "exhausted": 0 if state is None else int(state.exhausted_total),
        "timed_out": 0 if state is None else int(state.timed_out_total),
    }
