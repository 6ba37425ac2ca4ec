"""Queues, exchanges and bindings in the management API: one of them in full, and declaring, deleting and purging.

What is changed is changed in the name of the user who asks, who needs the same permissions as by AMQP. Who comes by the
socket of the data directory may do everything.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, unquote_plus

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from millpond.admin import changes, views
from millpond.admin.gate import Principal
from millpond.admin.requests import Asking, InVhost, Json, Name, ShortText, UsableVhost, body_as
from millpond.admin.views import Node, Shown
from millpond.base.errors import NotFound
from millpond.broker.access import Operation
from millpond.broker.broker import Broker
from millpond.broker.exchanges.exchange import Binding, Destination, Exchange
from millpond.broker.permitted import check_binding, check_exchange_declaration, check_queue_declaration
from millpond.broker.vhost import VirtualHost

Arguments = Annotated[dict[str, Any], Field(default_factory=dict)]
IfUnused = Annotated[bool, Query(alias="if-unused")]
IfEmpty = Annotated[bool, Query(alias="if-empty")]

# How a path names the two kinds of destinations.
KINDS = {"q": "queue", "e": "exchange"}


class QueueBody(BaseModel):
    durable: bool = False
    auto_delete: bool = False
    arguments: Arguments


class ExchangeBody(BaseModel):
    type: ShortText = "direct"
    durable: bool = False
    auto_delete: bool = False
    internal: bool = False
    arguments: Arguments


class BindingBody(BaseModel):
    routing_key: ShortText = ""
    arguments: Arguments


def routes(broker: Broker, node: Node) -> APIRouter:
    made = APIRouter(prefix="/api")
    _queues(made, broker, node)
    _exchanges(made, broker)
    _bindings(made, broker)
    return made


def _queues(made: APIRouter, broker: Broker, node: Node) -> None:
    access = broker.access

    def check(principal: Principal, vhost: VirtualHost, operation: Operation, name: str) -> None:
        if vhost.find_queue(name) is None:
            raise NotFound(f"no {vhost.queue_resource(name)}")
        if principal.name is not None:
            access.check(principal.name, vhost.name, operation, "queue", name, principal.host)

    @made.get("/queues/{vhost}/{name}")
    async def _queue(found: InVhost, name: Name) -> Response:
        [vhost] = found
        queue = vhost.find_queue(name)
        if queue is None:
            raise NotFound(f"no {vhost.queue_resource(name)}")
        consumers = [views.consumer(vhost.name, queue, consumer, node) for consumer in queue.consumers]
        return Json({**views.queue(vhost.name, queue, node), "consumer_details": consumers})

    @made.put("/queues/{vhost}/{name}")
    async def _declare(
        vhost: UsableVhost, principal: Asking, name: Name, body: Annotated[QueueBody, body_as(QueueBody)]
    ) -> Response:
        if principal.name is not None:
            check_queue_declaration(access, principal.name, principal.host, vhost, name, body.arguments)
        exists = vhost.find_queue(name) is not None
        await changes.declare_queue(broker, vhost, name, body.durable, body.auto_delete, body.arguments)
        return Response(status_code=204 if exists else 201)

    @made.delete("/queues/{vhost}/{name}", status_code=204)
    async def _delete(
        vhost: UsableVhost, principal: Asking, name: Name, if_unused: IfUnused = False, if_empty: IfEmpty = False
    ) -> None:
        check(principal, vhost, Operation.CONFIGURE, name)
        await changes.delete_queue(broker, vhost, name, if_unused, if_empty)

    @made.delete("/queues/{vhost}/{name}/contents", status_code=204)
    async def _purge(vhost: UsableVhost, principal: Asking, name: Name) -> None:
        check(principal, vhost, Operation.READ, name)
        changes.purge_queue(broker, vhost, name)


def _exchanges(made: APIRouter, broker: Broker) -> None:
    access = broker.access

    @made.get("/exchanges/{vhost}/{name}")
    async def _exchange(found: InVhost, name: Name) -> Response:
        [vhost] = found
        return Json(views.exchange(vhost, vhost.exchange(_exchange_name(name))))

    @made.put("/exchanges/{vhost}/{name}")
    async def _declare(
        vhost: UsableVhost, principal: Asking, name: Name, body: Annotated[ExchangeBody, body_as(ExchangeBody)]
    ) -> Response:
        if principal.name is not None:
            check_exchange_declaration(access, principal.name, principal.host, vhost, name, body.arguments)
        exists = name in vhost.router.exchanges
        await changes.declare_exchange(
            broker, vhost, name, body.type, body.durable, body.auto_delete, body.internal, body.arguments
        )
        return Response(status_code=204 if exists else 201)

    @made.delete("/exchanges/{vhost}/{name}", status_code=204)
    async def _delete(vhost: UsableVhost, principal: Asking, name: Name, if_unused: IfUnused = False) -> None:
        name = _exchange_name(name)
        vhost.exchange(name)
        if principal.name is not None:
            access.check(principal.name, vhost.name, Operation.CONFIGURE, "exchange", name, principal.host)
        await changes.delete_exchange(broker, vhost, name, if_unused)


def _bindings(made: APIRouter, broker: Broker) -> None:
    access = broker.access

    def shown(vhost: VirtualHost, source: str, kind: str, destination: str) -> list[Shown]:
        """The bindings from one exchange to one destination, both of which must exist."""
        exchange, found = _ends(vhost, source, kind, destination)
        if not exchange.name:
            return [views.default_binding(vhost.name, destination)] if found.kind == "queue" else []
        return [views.binding(vhost.name, binding) for binding in exchange.bindings_to(found)]

    def check(principal: Principal, vhost: VirtualHost, found: Destination, source: Exchange, key: str) -> None:
        if principal.name is not None:
            check_binding(access, principal.name, principal.host, vhost, found.kind, found.name, source.name, key)

    @made.get("/queues/{vhost}/{name}/bindings")
    async def _of_queue(found: InVhost, name: Name) -> Response:
        [vhost] = found
        if vhost.find_queue(name) is None:
            raise NotFound(f"no {vhost.queue_resource(name)}")
        return Json([one for one in views.bindings(vhost) if _leads_to(one, "queue", name)])

    @made.get("/exchanges/{vhost}/{name}/bindings/source")
    async def _from_exchange(found: InVhost, name: Name) -> Response:
        [vhost] = found
        name = vhost.exchange(_exchange_name(name)).name
        return Json([one for one in views.bindings(vhost) if one["source"] == name])

    @made.get("/exchanges/{vhost}/{name}/bindings/destination")
    async def _to_exchange(found: InVhost, name: Name) -> Response:
        [vhost] = found
        name = vhost.exchange(_exchange_name(name)).name
        return Json([one for one in views.bindings(vhost) if _leads_to(one, "exchange", name)])

    @made.get("/bindings/{vhost}/e/{source}/{kind}/{destination}")
    async def _between(found: InVhost, source: Name, kind: str, destination: Name) -> Response:
        return Json(shown(found[0], source, kind, destination))

    @made.get("/bindings/{vhost}/e/{source}/{kind}/{destination}/{key}")
    async def _binding(found: InVhost, source: Name, kind: str, destination: Name, key: Name) -> Response:
        for one in shown(found[0], source, kind, destination):
            if _is_named(one["properties_key"], key):
                return Json(one)
        raise NotFound(f"no binding '{key}'")

    @made.post("/bindings/{vhost}/e/{source}/{kind}/{destination}")
    async def _bind(
        vhost: UsableVhost,
        principal: Asking,
        source: Name,
        kind: str,
        destination: Name,
        body: Annotated[BindingBody, body_as(BindingBody)],
    ) -> Response:
        exchange, found = _ends(vhost, source, kind, destination)
        check(principal, vhost, found, exchange, body.routing_key)
        await changes.bind(broker, vhost, exchange, found, body.routing_key, body.arguments)
        made_key = Binding(exchange, found, body.routing_key, body.arguments).properties_key
        place = f"{quote(destination, safe='', errors='surrogateescape')}/{quote(made_key, safe='')}"
        return Response(status_code=201, headers={"location": place})

    @made.delete("/bindings/{vhost}/e/{source}/{kind}/{destination}/{key}", status_code=204)
    async def _unbind(
        vhost: UsableVhost, principal: Asking, source: Name, kind: str, destination: Name, key: Name
    ) -> None:
        exchange, found = _ends(vhost, source, kind, destination)
        for binding in exchange.bindings_to(found):
            if _is_named(binding.properties_key, key):
                check(principal, vhost, found, exchange, binding.routing_key)
                await changes.unbind(broker, vhost, binding)
                return
        raise NotFound(f"no binding '{key}'")


def _ends(vhost: VirtualHost, source: str, kind: str, destination: str) -> tuple[Exchange, Destination]:
    if kind not in KINDS:
        raise NotFound(f"no kind of destination '{kind}': there are q and e")
    exchange = vhost.exchange(_exchange_name(source))
    if KINDS[kind] == "exchange":
        return exchange, vhost.exchange_bound(_exchange_name(destination))
    queue = vhost.find_queue(destination)
    if queue is None:
        raise NotFound(f"no {vhost.queue_resource(destination)}")
    return exchange, queue


def _exchange_name(name: str) -> str:
    """A path cannot have an empty part: it says amq.default for the default exchange."""
    return "" if name == "amq.default" else name


def _leads_to(shown: Shown, kind: str, name: str) -> bool:
    return bool(shown["destination_type"] == kind and shown["destination"] == name)


def _is_named(properties_key: str, asked: str) -> bool:
    """Clients send back the key they were given, quoted once more for the path, or as it is."""
    return asked in {properties_key, unquote_plus(properties_key)}
