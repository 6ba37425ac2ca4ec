"""Connections and channels in the management API.

Who has the tag monitoring or administrator sees all of them, others see their own; administrators close all of them,
others their own.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response

from millpond.admin import views
from millpond.admin.gate import Principal
from millpond.admin.requests import Asking, InVhost, Json, Name, Paged
from millpond.admin.views import Node, Shown
from millpond.base.errors import AccessRefused, NotFound
from millpond.broker.broker import Broker, ClientConnection


def routes(broker: Broker, node: Node) -> APIRouter:
    made = APIRouter(prefix="/api")
    _connections(made, broker, node)
    _channels(made, broker, node)
    return made


def _connections(made: APIRouter, broker: Broker, node: Node) -> None:
    @made.get("/connections")
    async def _everywhere(principal: Asking, page: Paged) -> Response:
        return page.of(views.connection(connection, node) for connection in _visible(broker, principal))

    @made.get("/vhosts/{vhost}/connections")
    async def _in_vhost(principal: Asking, vhost: InVhost, page: Paged) -> Response:
        found = _visible(broker, principal, vhost[0].name)
        return page.of(views.connection(connection, node) for connection in found)

    @made.get("/connections/username/{user}")
    async def _of_user(principal: Asking, user: Name) -> Response:
        found = (connection for connection in _visible(broker, principal) if connection.user == user)
        return Json([views.connection(connection, node) for connection in found])

    @made.get("/connections/{name}")
    async def _connection(principal: Asking, name: Name) -> Response:
        return Json(views.connection(_named(broker, name, principal, principal.sees_everything), node))

    @made.delete("/connections/{name}", status_code=204)
    async def _close(principal: Asking, name: Name, request: Request) -> None:
        reason = request.headers.get("x-reason", "Closed via management plugin")
        _named(broker, name, principal, principal.is_administrator).close_by_operator(reason)


def _channels(made: APIRouter, broker: Broker, node: Node) -> None:
    def shown(connections: Iterator[ClientConnection]) -> Iterator[Shown]:
        for connection in connections:
            for channel in connection.describe_channels():
                yield views.channel(channel, node)

    @made.get("/channels")
    async def _everywhere(principal: Asking, page: Paged) -> Response:
        return page.of(shown(_visible(broker, principal)))

    @made.get("/vhosts/{vhost}/channels")
    async def _in_vhost(principal: Asking, vhost: InVhost, page: Paged) -> Response:
        return page.of(shown(_visible(broker, principal, vhost[0].name)))

    @made.get("/connections/{name}/channels")
    async def _of_connection(principal: Asking, name: Name) -> Response:
        connection = _named(broker, name, principal, principal.sees_everything)
        return Json(list(shown(iter([connection]))))

    @made.get("/channels/{name}")
    async def _channel(principal: Asking, name: Name) -> Response:
        # "PEER -> BROKER (NUMBER)": its connection's name, and its own number.
        connection = _named(broker, name.rpartition(" (")[0], principal, principal.sees_everything)
        for channel in shown(iter([connection])):
            if channel["name"] == name:
                consumers = list(_consumers(broker, connection.vhost_name(), name, node))
                return Json({**channel, "consumer_details": consumers})
        raise NotFound(f"no channel '{name}'")


def _visible(broker: Broker, principal: Principal, vhost: str | None = None) -> Iterator[ClientConnection]:
    for connection in broker.connections:
        is_visible = principal.sees_everything or connection.user == principal.name
        if is_visible and vhost in {None, connection.vhost_name()}:
            yield connection


def _named(broker: Broker, name: str, principal: Principal, is_allowed: bool) -> ClientConnection:
    """The connection called `name`, which is the user's own where `is_allowed` is false. NotFound, AccessRefused."""
    for connection in broker.connections:
        if connection.name == name:
            if not is_allowed and connection.user != principal.name:
                raise AccessRefused("User not authorised to access object")
            return connection
    raise NotFound(f"no connection '{name}'")


def _consumers(broker: Broker, vhost: str, channel: str, node: Node) -> Iterator[Shown]:
    """The consumers of a channel."""
    for queue in broker.vhost(vhost).all_queues():
        for consumer in queue.consumers:
            if consumer.describe_channel().get("name") == channel:
                yield views.consumer(vhost, queue, consumer, node)
