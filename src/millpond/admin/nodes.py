"""The node, and the checks that load balancers and monitoring ask it for: 200 when all is well, 503 when not.

Paths and bodies are RabbitMQ's. There is one node, so what is asked of a cluster is asked of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastapi import APIRouter, Depends, Response

from millpond.admin import views
from millpond.admin.requests import InVhost, Json, Name, Paged, monitoring_only
from millpond.admin.views import Node, Shown
from millpond.base.errors import NotFound, PreconditionFailed
from millpond.broker.broker import Broker
from millpond.broker.commits import FLOW

# Other names that RabbitMQ takes for the protocols here.
PROTOCOLS_BY_ALIAS: Final = {
    "amqp091": "amqp",
    "amqp0.9.1": "amqp",
    "amqp0-9-1": "amqp",
    "amqp0_9_1": "amqp",
    "amqps": "amqp/ssl",
}
OK: Final[Shown] = {"status": "ok"}


def routes(broker: Broker, node: Node) -> APIRouter:
    made = APIRouter(prefix="/api")
    _nodes(made, broker, node)
    _alarms(made, broker, node)
    _listeners(made, node)
    _clients(made, broker, node)
    _always_well(made)
    return made


def _failed(reason: str, **facts: object) -> Response:
    return Json({"status": "failed", "reason": reason, **facts}, status_code=503)


def _nodes(made: APIRouter, broker: Broker, node: Node) -> None:
    @made.get("/nodes", dependencies=[Depends(monitoring_only)])
    async def _every_node(page: Paged) -> Response:
        return page.of([views.this_node(broker, node)])

    @made.get("/nodes/{name}", dependencies=[Depends(monitoring_only)])
    async def _node(name: Name) -> Response:
        if name != node.name:
            raise NotFound(f"no node '{name}'")
        return Json(views.this_node(broker, node))


def _alarms(made: APIRouter, broker: Broker, node: Node) -> None:
    def check(reason: str) -> Callable[[], Response]:
        def checked() -> Response:
            # What holds publishers back for a moment is no alarm.
            raised = [alarm for alarm in broker.alarms.reasons if alarm != FLOW]
            alarms = [{"node": node.name, "resource": alarm} for alarm in raised]
            return _failed(reason, alarms=alarms) if alarms else Json(OK)

        return checked

    cluster = check("There are alarms in effect in the cluster")
    local = check("There are alarms in effect on the node")

    @made.get("/health/checks/alarms")
    async def _in_the_cluster() -> Response:
        return cluster()

    @made.get("/health/checks/local-alarms")
    async def _on_the_node() -> Response:
        return local()


def _listeners(made: APIRouter, node: Node) -> None:
    @made.get("/health/checks/port-listener/{port}")
    async def _port(port: Name) -> Response:
        # What `int` takes besides digits, and a number without end, are no ports.
        if not (port.isascii() and port.isdigit() and len(port) <= len("65535")):
            raise PreconditionFailed("Invalid port")
        ports = [listener["port"] for listener in views.listeners(node)]
        if int(port) not in ports:
            return _failed("No active listener", missing=int(port), ports=ports)
        return Json({**OK, "port": int(port)})

    @made.get("/health/checks/protocol-listener/{protocols}")
    async def _protocol(protocols: Name) -> Response:
        active = [listener["protocol"] for listener in views.listeners(node)]
        asked = {PROTOCOLS_BY_ALIAS.get(name, name) for name in protocols.lower().split(",")}
        if missing := sorted(asked.difference(active)):
            return _failed("No active listener", missing=missing, protocols=active)
        return Json({**OK, "protocols": active})


def _clients(made: APIRouter, broker: Broker, node: Node) -> None:
    def is_full() -> bool:
        return len(broker.connections) >= node.connections_max

    @made.get("/health/checks/below-node-connection-limit")
    async def _below_limit() -> Response:
        return _failed("node connection limit is reached") if is_full() else Json(OK)

    @made.get("/health/checks/ready-to-serve-clients")
    async def _ready() -> Response:
        if not {"amqp", "amqp/ssl"}.intersection(listener["protocol"] for listener in views.listeners(node)):
            return _failed("no active listeners for AMQP/AMQPS")
        if is_full():
            return _failed("node connection limit is reached", connections=len(broker.connections))
        return Json(OK)


def _always_well(made: APIRouter) -> None:
    """What cannot fail on one node that answers: it has not started while its catalog or a virtual host is missing."""

    @made.get("/health/checks/virtual-hosts")
    @made.get("/health/checks/is-in-service")
    @made.get("/health/checks/metadata-store/initialized")
    @made.get("/health/checks/metadata-store/initialized/with-data")
    @made.get("/health/checks/reached-target-cluster-size")
    @made.get("/health/checks/quorum-queues-without-elected-leaders/all-vhosts")
    @made.get("/health/checks/quorum-queues-without-elected-leaders/all-vhosts/pattern/{pattern}")
    async def _well() -> Response:
        return Json(OK)

    @made.get("/health/checks/node-is-quorum-critical")
    async def _quorum_critical() -> Response:
        return Json({**OK, "reason": "single node cluster"})

    @made.get("/aliveness-test/{vhost}")
    @made.get("/health/checks/quorum-queues-without-elected-leaders/vhost/{vhost}")
    @made.get("/health/checks/quorum-queues-without-elected-leaders/vhost/{vhost}/pattern/{pattern}")
    async def _well_in_vhost(_found: InVhost) -> Response:
        return Json(OK)
