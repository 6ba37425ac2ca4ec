"""Topics in the management API: shown, made, configured, given more partitions, deleted.

What is changed is changed in the name of the user who asks, who needs the permission to configure the topic, as by
Kafka's protocol. RabbitMQ has no such routes.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from millpond.admin import changes, views
from millpond.admin.gate import Principal
from millpond.admin.requests import Asking, InVhost, Json, Name, Paged, UsableVhost, Visible, body_as
from millpond.admin.views import Shown
from millpond.base.errors import PreconditionFailed
from millpond.broker.access import Operation
from millpond.broker.broker import Broker
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.record_router import STATES
from millpond.broker.streams.topic import Topic
from millpond.broker.streams.topic_settings import TOPIC_CONFIGS, checked_config
from millpond.broker.vhost import VirtualHost

ConfigValue = str | int | float | bool


class TopicBody(BaseModel):
    partitions: int = 1
    configs: Annotated[dict[str, ConfigValue], Field(default_factory=dict)]


class ChangesBody(BaseModel):
    # null for an entry that is to have its default again.
    configs: dict[str, ConfigValue | None]


class PartitionsBody(BaseModel):
    count: int


def routes(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/api")
    _shown(made, broker)
    _changed(made, broker)
    return made


def _shown(made: APIRouter, broker: Broker) -> None:
    async def listed(vhosts: list[VirtualHost]) -> list[Shown]:
        found = [(vhost.name, topic) for vhost in vhosts for topic in vhost.topics.by_name.values()]
        sizes = await _sizes(broker, [partition for _, topic in found for partition in topic.partitions])
        return [_summary(vhost, topic, sizes) for vhost, topic in found]

    @made.get("/topics")
    async def _everywhere(visible: Visible, page: Paged) -> Response:
        return page.of(await listed(visible))

    @made.get("/topics/{vhost}")
    async def _in_vhost(found: InVhost, page: Paged) -> Response:
        return page.of(await listed(found))

    @made.get("/topics/{vhost}/{name}")
    async def _topic(found: InVhost, name: Name) -> Response:
        [vhost] = found
        topic = vhost.topics.topic(name)
        sizes = await _sizes(broker, topic.partitions)
        return Json({**_summary(vhost.name, topic, sizes), **_details(topic, sizes), **_routing(vhost, topic)})


def _changed(made: APIRouter, broker: Broker) -> None:
    def check(principal: Principal, vhost: VirtualHost, name: str) -> None:
        if principal.name is not None:
            broker.access.check(principal.name, vhost.name, Operation.CONFIGURE, "topic", name, principal.host)

    def existing(principal: Principal, vhost: VirtualHost, name: str) -> Topic:
        # Who may not change it is not told whether it is there.
        check(principal, vhost, name)
        return vhost.topics.topic(name)

    @made.put("/topics/{vhost}/{name}")
    async def _create(
        vhost: UsableVhost, principal: Asking, name: Name, body: Annotated[TopicBody, body_as(TopicBody)]
    ) -> Response:
        check(principal, vhost, name)
        configs: dict[str, str | None] = {key: _text(value) for key, value in body.configs.items()}
        topic = vhost.topics.by_name.get(name)
        if topic is not None:
            _check_same(topic, body.partitions, configs)
            return Response(status_code=204)
        await changes.create_topic(broker, vhost, name, body.partitions, configs)
        return Response(status_code=201)

    @made.patch("/topics/{vhost}/{name}", status_code=204)
    async def _configure(
        vhost: UsableVhost, principal: Asking, name: Name, body: Annotated[ChangesBody, body_as(ChangesBody)]
    ) -> None:
        topic = existing(principal, vhost, name)
        configs: dict[str, str | None] = {**topic.overrides}
        for key, value in body.configs.items():
            if value is not None:
                configs[key] = _text(value)
            elif key in TOPIC_CONFIGS:
                configs.pop(key, None)
            else:
                checked_config(key, value)
        await changes.configure_topic(broker, vhost, topic, configs)

    @made.post("/topics/{vhost}/{name}/partitions", status_code=204)
    async def _grow(
        vhost: UsableVhost, principal: Asking, name: Name, body: Annotated[PartitionsBody, body_as(PartitionsBody)]
    ) -> None:
        await changes.add_partitions(broker, vhost, existing(principal, vhost, name), body.count)

    @made.delete("/topics/{vhost}/{name}", status_code=204)
    async def _delete(vhost: UsableVhost, principal: Asking, name: Name) -> None:
        await changes.delete_topic(broker, vhost, existing(principal, vhost, name))


def _text(value: ConfigValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_same(topic: Topic, partitions: int, configs: dict[str, str | None]) -> None:
    """PreconditionFailed where a topic is not what somebody wants to make."""
    if len(topic.partitions) != partitions:
        raise PreconditionFailed(f"topic '{topic.name}' exists, with {len(topic.partitions)} partition(s)")
    if {key: checked_config(key, value) for key, value in configs.items()} != topic.overrides:
        raise PreconditionFailed(f"topic '{topic.name}' exists, with another configuration")


async def _sizes(broker: Broker, partitions: list[Partition]) -> dict[int, int]:
    """How many bytes each has, by the ids of their logs."""
    done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    def measured(sizes: list[int]) -> None:
        if not done.done():
            done.set_result(sizes)

    broker.streams.measure(partitions, measured)
    sizes = await done
    return {int(partition.log_id): size for partition, size in zip(partitions, sizes, strict=True)}


def _summary(vhost: str, topic: Topic, sizes: dict[int, int]) -> Shown:
    partitions = topic.partitions
    return {
        "name": topic.name,
        "vhost": vhost,
        "id": str(uuid.UUID(bytes=topic.id)),
        "partitions": len(partitions),
        "configs": dict(topic.overrides),
        "messages": sum(int(partition.durable_end - partition.start_offset) for partition in partitions),
        # Without partitions that have come while these were measured.
        "bytes": sum(sizes.get(int(partition.log_id), 0) for partition in partitions),
        "bytes_in_memory": sum(int(partition.hot_bytes) for partition in partitions),
        "producers": sum(len(partition.producers.known) for partition in partitions),
        "message_stats": {
            "appended_bytes": sum(int(partition.appended_bytes) for partition in partitions),
            "read_bytes": sum(int(partition.read_bytes) for partition in partitions),
        },
    }


def _routing(vhost: VirtualHost, topic: Topic) -> Shown:
    """What is bound to the topic as to an exchange, and how far its records have been routed there."""
    source = vhost.sources.find(topic.name)
    numbers = {int(partition.log_id): number for number, partition in enumerate(topic.partitions)}
    return {
        "bindings": [views.binding(vhost.name, binding) for binding in source.bindings()] if source is not None else [],
        "cursors": [
            {
                # Empty for the one that all bindings share which do not say where they begin.
                "name": router.source.cursor,
                "partition": numbers[int(router.partition.log_id)],
                "next_offset": int(router.next_offset),
                "lag": int(router.lag),
                "state": STATES[int(router.state)],
                "routed": int(router.routed_total),
                "unroutable": int(router.unroutable_total),
                "missed": int(router.missed_total),
            }
            for router in vhost.sources.routers_of(topic)
        ],
    }


def _details(topic: Topic, sizes: dict[int, int]) -> dict[str, Any]:
    return {
        "partition_details": [
            {
                "partition": number,
                "start_offset": int(partition.start_offset),
                "end_offset": int(partition.durable_end),
                "bytes": sizes.get(int(partition.log_id), 0),
                "bytes_in_memory": int(partition.hot_bytes),
                "producers": len(partition.producers.known),
            }
            for number, partition in enumerate(topic.partitions)
        ],
        "effective_configs": {
            name: {**_effective(topic, name), "acts": entry.acts} for name, entry in TOPIC_CONFIGS.items()
        },
    }


def _effective(topic: Topic, name: str) -> dict[str, str]:
    limit = int(topic.limit_of(name))
    if limit >= 0:
        return {"value": str(limit), "source": "policy"}
    return {"value": topic.config(name), "source": "topic" if name in topic.overrides else "default"}
