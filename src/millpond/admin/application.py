"""The management API's routes: each a line of what is asked, and a call of `views.py`, `changes.py` or `metrics.py`.

Lists come whole, or by `?page=1&page_size=100&name=TEXT` as RabbitMQ's do: then with the counts around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.params import Depends as Dependency
from pydantic import BaseModel

from millpond.admin import (
    changes,
    clients,
    definitions,
    groups,
    messages,
    metrics,
    nodes,
    parameters,
    policies,
    quotas,
    shares,
    topic_permissions,
    topics,
    topology,
    transactions,
    views,
)
from millpond.admin.messages import MakeProperties
from millpond.admin.requests import (
    Asking,
    InVhost,
    Json,
    Name,
    Paged,
    Visible,
    add_error_handlers,
    administrators_only,
    body_as,
    monitoring_only,
)
from millpond.admin.views import Node, Shown
from millpond.base.errors import NotFound
from millpond.broker.arguments import checked_default_queue_type
from millpond.broker.broker import Broker
from millpond.broker.password_hashes import from_definitions
from millpond.broker.vhost import VirtualHost


class UserBody(BaseModel):
    password: str | None = None
    password_hash: str | None = None
    hashing_algorithm: str | None = None
    tags: str | list[str] = ""


class VhostBody(BaseModel):
    description: str = ""
    tags: str | list[str] = ""
    default_queue_type: str = ""


class PermissionBody(BaseModel):
    configure: str
    write: str
    read: str


def application(broker: Broker, node: Node, make_properties: MakeProperties) -> FastAPI:
    """All routes, on this broker. It expects `gate.Gate` around it."""
    made = FastAPI(title="Millpond", docs_url=None, redoc_url=None, openapi_url=None)
    made.state.broker = broker
    for routes in (
        _node(broker, node),
        nodes.routes(broker, node),
        _topology(node),
        _metrics(broker, Depends(monitoring_only)),
        _users(broker, Depends(administrators_only)),
        _changes(broker, Depends(administrators_only)),
        policies.routes(broker),
        parameters.routes(broker),
        definitions.routes(broker),
        topic_permissions.routes(broker),
        quotas.routes(broker),
        clients.routes(broker, node),
        topology.routes(broker, node),
        topics.routes(broker),
        messages.routes(broker, make_properties),
        groups.routes(broker),
        shares.routes(broker),
        transactions.routes(broker),
    ):
        made.include_router(routes)
    add_error_handlers(made)
    return made


def _node(broker: Broker, node: Node) -> APIRouter:
    routes = APIRouter(prefix="/api")

    @routes.get("/overview")
    async def _overview() -> Response:
        return Json(views.overview(broker, node))

    @routes.get("/whoami")
    async def _whoami(principal: Asking) -> Response:
        return Json({"name": principal.name, "tags": sorted(principal.tags)})

    return routes


def _topology(node: Node) -> APIRouter:
    routes = APIRouter(prefix="/api")

    def queues(vhosts: list[VirtualHost]) -> Iterable[Shown]:
        return (views.listed_queue(vhost.name, queue, node) for vhost in vhosts for queue in vhost.all_queues())

    def exchanges(vhosts: list[VirtualHost]) -> Iterable[Shown]:
        return (views.exchange(vhost, found) for vhost in vhosts for found in vhost.router.exchanges.values())

    def bindings(vhosts: list[VirtualHost]) -> Iterable[Shown]:
        return (binding for vhost in vhosts for binding in views.bindings(vhost))

    def consumers(vhosts: list[VirtualHost]) -> Iterable[Shown]:
        return (
            views.consumer(vhost.name, queue, consumer, node)
            for vhost in vhosts
            for queue in vhost.all_queues()
            for consumer in queue.consumers
        )

    @routes.get("/vhosts")
    async def _vhosts(visible: Visible, page: Paged) -> Response:
        return page.of(map(views.vhost, visible))

    @routes.get("/vhosts/{vhost}")
    async def _vhost(found: InVhost) -> Response:
        return Json(views.vhost(found[0]))

    def listed(path: str, items: Callable[[list[VirtualHost]], Iterable[Shown]]) -> None:
        @routes.get(path)
        async def _everywhere(visible: Visible, page: Paged) -> Response:
            return page.of(items(visible))

        @routes.get(path + "/{vhost}")
        async def _in_vhost(found: InVhost, page: Paged) -> Response:
            return page.of(items(found))

    listed("/queues", queues)
    listed("/exchanges", exchanges)
    listed("/bindings", bindings)
    listed("/consumers", consumers)

    return routes


def _metrics(broker: Broker, guard: Dependency) -> APIRouter:
    routes = APIRouter(prefix="/metrics", dependencies=[guard])
    rendered = metrics.Metrics(broker)

    @routes.get("")
    async def _summed() -> Response:
        return Response(rendered.summed(), media_type=metrics.CONTENT_TYPE)

    @routes.get("/per-object")
    async def _per_queue() -> Response:
        return Response(rendered.per_queue(), media_type=metrics.CONTENT_TYPE)

    return routes


def _users(broker: Broker, guard: Dependency) -> APIRouter:
    routes = APIRouter(prefix="/api", dependencies=[guard])
    access = broker.access

    @routes.get("/users")
    async def _list_users(page: Paged) -> Response:
        return page.of(views.user(user, broker.parameters) for user in access.list_users())

    @routes.get("/users/{name}")
    async def _user(name: Name) -> Response:
        return Json(views.user(access.user(name), broker.parameters))

    @routes.put("/users/{name}")
    async def _put_user(name: Name, body: Annotated[UserBody, body_as(UserBody)]) -> Response:
        exists = any(user.name == name for user in access.list_users())
        tags = body.tags.split(",") if isinstance(body.tags, str) else body.tags
        tags = [tag.strip() for tag in tags if tag.strip()]
        stored = from_definitions(body.password_hash or "", body.hashing_algorithm)
        await changes.put_user(broker, name, body.password, stored, tags)
        return Response(status_code=204 if exists else 201)

    @routes.delete("/users/{name}", status_code=204)
    async def _delete_user(name: Name) -> None:
        await changes.delete_user(broker, name)

    @routes.get("/users/{name}/permissions")
    async def _permissions_of_user(name: Name) -> Response:
        access.user(name)
        return Json([views.permission(row) for row in access.list_permissions(user=name)])

    @routes.get("/permissions")
    async def _permissions(page: Paged) -> Response:
        return page.of(views.permission(row) for row in access.list_permissions())

    @routes.get("/permissions/{vhost}/{user}")
    async def _permission(vhost: Name, user: Name) -> Response:
        for row in access.list_permissions(user, vhost):
            return Json(views.permission(row))
        raise NotFound(f"user '{user}' has no permissions in vhost '{vhost}'")

    @routes.put("/permissions/{vhost}/{user}")
    async def _put_permission(
        vhost: Name, user: Name, body: Annotated[PermissionBody, body_as(PermissionBody)]
    ) -> Response:
        exists = access.has_vhost(user, vhost)
        await changes.set_permission(broker, user, vhost, body.configure, body.write, body.read)
        return Response(status_code=204 if exists else 201)

    @routes.delete("/permissions/{vhost}/{user}", status_code=204)
    async def _delete_permission(vhost: Name, user: Name) -> None:
        await changes.clear_permission(broker, user, vhost)

    return routes


def _changes(broker: Broker, guard: Dependency) -> APIRouter:
    routes = APIRouter(prefix="/api", dependencies=[guard])

    @routes.put("/vhosts/{vhost}")
    async def _put_vhost(vhost: Name, principal: Asking, body: Annotated[VhostBody, body_as(VhostBody)]) -> Response:
        exists = vhost in broker.vhosts
        checked_default_queue_type(body.default_queue_type)
        await changes.create_vhost(broker, vhost, principal.name)
        if body.model_fields_set:
            tags = body.tags.split(",") if isinstance(body.tags, str) else body.tags
            named = tuple(tag.strip() for tag in tags if tag.strip())
            await changes.describe_vhost(broker, vhost, body.description, named, body.default_queue_type)
        return Response(status_code=204 if exists else 201)

    @routes.delete("/vhosts/{vhost}", status_code=204)
    async def _delete_vhost(vhost: Name) -> None:
        await changes.delete_vhost(broker, vhost)

    return routes
