"""Messages in the management API: publishing one, getting some, for people who want to look at a queue, and moving dead
letters back.

Every message of an application belongs on a connection of its own: here each one costs a request.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from millpond.admin import changes
from millpond.admin.gate import Principal
from millpond.admin.requests import Asking, Json, Name, ShortText, UsableVhost, administrators_only, body_as
from millpond.admin.views import Shown
from millpond.base.errors import AccessRefused, NotFound, PreconditionFailed, StorageFailed
from millpond.base.limits import (
    ADMIN_CONFIRM_TIMEOUT_MS,
    ADMIN_GET_BYTES_MAX,
    ADMIN_GET_MESSAGES_MAX,
)
from millpond.broker.access import Operation
from millpond.broker.broker import Broker
from millpond.broker.commits import FLOW
from millpond.broker.message import Address, Message, Properties, further_routing_keys
from millpond.broker.permitted import check_name, check_topic
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.message_queue import MessageQueue
from millpond.broker.vhost import JOURNALED, REFUSED, VirtualHost

# Makes the properties of a message from plain values under AMQP's names. Raises TypeError or ValueError for what has no
# encoding, PeerError for what no message may have.
MakeProperties = Callable[[dict[str, Any]], Properties]

IMPERSONATOR: Final = "impersonator"

Octet = Annotated[int, Field(ge=0, le=255)]


class PropertiesBody(BaseModel):
    """RabbitMQ takes numbers as numbers and texts as texts here, and nothing for the other; what it does not know, it
    passes over."""

    model_config = ConfigDict(strict=True)

    content_type: ShortText | None = None
    content_encoding: ShortText | None = None
    headers: dict[str, Any] | None = None
    delivery_mode: Octet | None = None
    priority: Octet | None = None
    correlation_id: ShortText | None = None
    reply_to: ShortText | None = None
    expiration: ShortText | None = None
    message_id: ShortText | None = None
    timestamp: Annotated[int, Field(ge=0)] | None = None
    type: ShortText | None = None
    user_id: ShortText | None = None
    app_id: ShortText | None = None
    cluster_id: ShortText | None = None


class PublishBody(BaseModel):
    routing_key: ShortText
    properties: PropertiesBody
    payload: Annotated[str, Field(strict=True)]
    payload_encoding: Literal["string", "base64"]


class GetBody(BaseModel):
    count: Annotated[int, Field(ge=0)]
    ackmode: Literal["ack_requeue_true", "ack_requeue_false", "reject_requeue_true", "reject_requeue_false"]
    encoding: Literal["auto", "base64"]
    truncate: Annotated[int, Field(ge=0)] | None = None


class RedriveBody(BaseModel):
    to: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None


class RewindBody(BaseModel):
    offset: Annotated[int, Field(ge=0)] | None = None
    # Milliseconds since 1970.
    timestamp: Annotated[int, Field(ge=0)] | None = None
    partition: Annotated[int, Field(ge=0)] | None = None


def routes(broker: Broker, make_properties: MakeProperties) -> APIRouter:
    made = APIRouter(prefix="/api")

    @made.post("/exchanges/{vhost}/{exchange}/publish")
    async def _publish(
        vhost: UsableVhost,
        principal: Asking,
        exchange: Name,
        body: Annotated[PublishBody, body_as(PublishBody)],
    ) -> Response:
        exchange = "" if exchange == "amq.default" else exchange
        if vhost.found_exchange(exchange) is None:
            raise NotFound("exchange_not_found")
        properties = _properties(make_properties, body.properties)
        payload = _payload(broker, body)
        routed = await _publish_message(
            broker, vhost, principal, Address(exchange, body.routing_key), properties, payload
        )
        return Json({"routed": routed})

    @made.post("/queues/{vhost}/{name}/get")
    async def _get(
        vhost: UsableVhost, principal: Asking, name: Name, body: Annotated[GetBody, body_as(GetBody)]
    ) -> Response:
        if vhost.find_queue(name) is None:
            raise NotFound("queue_not_found")
        if principal.name is not None:
            check_name(broker.access, principal.name, principal.host, vhost, Operation.READ, "queue", name)
        return Json(_get_messages(broker, vhost, name, body))

    @made.post("/queues/{vhost}/{name}/redrive", dependencies=[Depends(administrators_only)])
    async def _redrive(vhost: Name, name: Name, body: Annotated[RedriveBody, body_as(RedriveBody)]) -> Response:
        return Json(await changes.redrive(broker, vhost, name, body.to, body.limit))

    @made.post("/queues/{vhost}/{name}/rewind", dependencies=[Depends(administrators_only)])
    async def _rewind(vhost: Name, name: Name, body: Annotated[RewindBody, body_as(RewindBody)]) -> Response:
        return Json(await changes.rewind(broker, vhost, name, body.offset, body.timestamp, body.partition))

    return made


# --- Publishing -------------------------------------------------------------------------------------------------------


def _properties(make_properties: MakeProperties, body: PropertiesBody) -> Properties:
    try:
        return make_properties(body.model_dump(exclude_none=True))
    except (TypeError, ValueError) as error:
        raise PreconditionFailed(f"properties: {error}") from None


def _payload(broker: Broker, body: PublishBody) -> bytes:
    if body.payload_encoding == "string":
        payload = body.payload.encode()
    else:
        try:
            payload = base64.b64decode(body.payload, validate=True)
        except (binascii.Error, ValueError):
            raise PreconditionFailed("payload: not base64") from None
    if len(payload) > broker.message_bytes_max:
        raise PreconditionFailed(
            f"message size {len(payload)} is larger than configured max size {broker.message_bytes_max}"
        )
    return payload


async def _publish_message(
    broker: Broker, vhost: VirtualHost, principal: Principal, address: Address, properties: Properties, payload: bytes
) -> bool:
    """Whether the message has reached a queue; when this returns it is as safe as a publisher's confirm says."""
    exchange = vhost.exchange(address.exchange)
    copies = further_routing_keys(properties.headers())
    if principal.name is not None:
        _check_publish(broker, vhost, principal.name, principal.host, address, properties, copies)
    if exchange.internal:
        raise AccessRefused(f"cannot publish to internal {vhost.exchange_resource(exchange.name)}")
    alarms = [reason for reason in broker.alarms.reasons if reason != FLOW]
    if alarms:
        # A connection would be held back; nobody waits for hours for the answer to a request.
        raise PreconditionFailed(f"publishers are blocked: low on {' & '.join(alarms)}")
    broker.turn.now_ms = broker.clock.wall_ms()
    message = Message(address, properties.replaced({"BCC": None}, True), payload, broker.turn.now_ms)
    route = vhost.route(exchange, address, message.properties, copies)
    vhost.published_total += 1
    if not route.queues:
        vhost.unroutable_total += 1
        return False
    outcome = vhost.publish(route, message)
    broker.turn.touch()
    if outcome == REFUSED:
        raise PreconditionFailed("rejected Unable to publish message. Check queue limits.")
    if outcome == JOURNALED:
        await _until_durable(broker)
    return True


def _check_publish(
    broker: Broker,
    vhost: VirtualHost,
    user: str,
    host: str,
    address: Address,
    properties: Properties,
    copies: list[str] | None,
) -> None:
    access = broker.access
    check_name(access, user, host, vhost, Operation.WRITE, "exchange", address.exchange)
    for key in (address.routing_key, *(copies or ())):
        check_topic(access, user, vhost, Operation.WRITE, address.exchange, key)
    named = properties.described().get("user_id")
    if named is not None and named != user and IMPERSONATOR not in access.user(user).tags:
        raise PreconditionFailed(f"user_id property set to '{named}' but authenticated user was '{user}'")


async def _until_durable(broker: Broker) -> None:
    try:
        async with asyncio.timeout(ADMIN_CONFIRM_TIMEOUT_MS / 1000):
            await changes.committed(broker, int(broker.ledger.sequence()))
    except TimeoutError:
        raise PreconditionFailed(
            "confirm_timeout The disk has not taken the message in time. It may be in its queues all the same."
        ) from None
    except StorageFailed as error:
        raise PreconditionFailed(f"rejected {error}") from None


# --- Getting ----------------------------------------------------------------------------------------------------------


def _get_messages(broker: Broker, vhost: VirtualHost, name: str, body: GetBody) -> list[Shown]:
    queue = vhost.queue(name, None)
    vhost.used(queue)
    broker.turn.now_ms = broker.clock.wall_ms()
    entries: list[Entry] = []
    shown: list[Shown] = []
    size = 0
    # All are taken before the first is given back: else the same one would come again and again.
    while len(entries) < min(body.count, ADMIN_GET_MESSAGES_MAX) and size < ADMIN_GET_BYTES_MAX:
        entry = queue.get()
        if entry is None:
            break
        entries.append(entry)
        size += len(entry.message.body)
        shown.append(_shown(entry, queue, body))
    match body.ackmode:
        case "ack_requeue_false":
            for entry in entries:
                queue.settle(entry)
        case "reject_requeue_false":
            for entry in entries:
                queue.reject(entry)
        case _:
            queue.give_back(entries, False)
    broker.turn.touch()
    return shown


def _shown(entry: Entry, queue: MessageQueue, body: GetBody) -> Shown:
    message = entry.message
    properties = message.properties
    if queue.settings.counts_returns and entry.returns > 0:
        properties = properties.replaced({"x-delivery-count": int(entry.returns)}, True)
    payload = message.body if body.truncate is None else message.body[: body.truncate]
    encoding = "string" if body.encoding == "auto" else "base64"
    text = ""
    if encoding == "string":
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            encoding = "base64"
    return {
        "payload_bytes": len(message.body),
        "redelivered": entry.redelivered,
        "exchange": message.address.exchange,
        "routing_key": message.address.routing_key,
        "message_count": int(queue.ready),
        "properties": properties.described(),
        "payload": text if encoding == "string" else base64.b64encode(payload).decode(),
        "payload_encoding": encoding,
    }
