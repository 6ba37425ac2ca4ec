"""The management API's routes: each a line of what is asked, and a call of `views.py`, `changes.py` or `metrics.py`.

Lists come whole, or by `?page=1&page_size=100&name=TEXT` as RabbitMQ's do: then with the counts around them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Annotated, Final
from urllib.parse import unquote

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends as Dependency
from pydantic import AfterValidator, BaseModel, Field
from starlette.exceptions import HTTPException

from millpond.admin import changes, metrics, views
from millpond.admin.gate import Principal
from millpond.admin.views import Node, Shown
from millpond.base.errors import AccessRefused, NotFound, PeerError
from millpond.base.limits import ADMIN_PAGE_ITEMS_MAX
from millpond.broker.broker import Broker
from millpond.broker.vhost import VirtualHost

STATUS_BY_KIND: Final = {"not-found": 404, "access-refused": 401, "not-allowed": 403, "resource-locked": 409}

# A part of a path, which arrives as it was sent: the name of a virtual host may hold a slash.
Name = Annotated[str, AfterValidator(lambda text: unquote(text, errors="surrogateescape"))]


class Json(Response):
    """Values as JSON. Names that are not Unicode, and AMQP's own types in arguments, come out as text."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return json.dumps(content, default=_plain).encode()


class UserBody(BaseModel):
    password: str | None = None
    password_hash: str | None = None
    tags: str | list[str] = ""


class PermissionBody(BaseModel):
    configure: str
    write: str
    read: str


class RedriveBody(BaseModel):
    to: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None


class Page:
    """What a list is asked for."""

    def __init__(
        self,
        page: Annotated[int | None, Query(ge=1)] = None,
        page_size: Annotated[int, Query(ge=1, le=ADMIN_PAGE_ITEMS_MAX)] = 100,
        name: str = "",
    ) -> None:
        self.number, self.size, self.name = page, page_size, name

    def of(self, items: Iterable[Shown]) -> Json:
        if self.number is None:
            return Json(list(items))
        everything = list(items)
        found = [item for item in everything if self.name in item.get("name", "")]
        shown = found[(self.number - 1) * self.size : self.number * self.size]
        return Json(
            {
                "items": shown,
                "item_count": len(shown),
                "filtered_count": len(found),
                "total_count": len(everything),
                "page": self.number,
                "page_size": self.size,
                "page_count": max(1, -(-len(found) // self.size)),
            }
        )


Paged = Annotated[Page, Depends()]


def _principal(request: Request) -> Principal:
    principal: Principal = request.scope["principal"]
    return principal


Asking = Annotated[Principal, Depends(_principal)]


def _visible_vhosts(request: Request, principal: Asking) -> list[VirtualHost]:
    broker: Broker = request.app.state.broker
    return [
        vhost
        for vhost in broker.vhosts.values()
        if principal.sees_everything
        or (principal.name is not None and broker.access.has_vhost(principal.name, vhost.name))
    ]


Visible = Annotated[list[VirtualHost], Depends(_visible_vhosts)]


def _vhost_of_path(visible: Visible, vhost: Name) -> list[VirtualHost]:
    for found in visible:
        if found.name == vhost:
            return [found]
    raise NotFound(f"no vhost '{vhost}'")


# A list of one, so that the routes of one virtual host and of all are the same.
InVhost = Annotated[list[VirtualHost], Depends(_vhost_of_path)]


def _administrators_only(principal: Asking) -> None:
    if not principal.is_administrator:
        raise AccessRefused("Not administrator user")


def _monitoring_only(principal: Asking) -> None:
    if not principal.sees_everything:
        raise AccessRefused("Not monitor user")


def application(broker: Broker, node: Node) -> FastAPI:
    """All routes, on this broker. It expects `gate.Gate` around it."""
    made = FastAPI(title="Millpond", docs_url=None, redoc_url=None, openapi_url=None)
    made.state.broker = broker
    for routes in (
        _node(broker, node),
        _topology(node),
        _metrics(broker, Depends(_monitoring_only)),
        _users(broker, Depends(_administrators_only)),
        _changes(broker, Depends(_administrators_only)),
    ):
        made.include_router(routes)
    made.add_exception_handler(PeerError, _peer_error)
    made.add_exception_handler(RequestValidationError, _not_valid)
    made.add_exception_handler(HTTPException, _http_error)
    return made


def _node(broker: Broker, node: Node) -> APIRouter:
    routes = APIRouter(prefix="/api")

    @routes.get("/overview")
    async def _overview() -> Response:
        return Json(views.overview(broker, node))

    @routes.get("/whoami")
    async def _whoami(principal: Asking) -> Response:
        return Json({"name": principal.name, "tags": sorted(principal.tags)})

    @routes.get("/connections")
    async def _connections(principal: Asking, page: Paged) -> Response:
        shown = (views.connection(connection) for connection in broker.connections)
        return page.of(one for one in shown if principal.sees_everything or one.get("user") == principal.name)

    return routes


def _topology(node: Node) -> APIRouter:
    routes = APIRouter(prefix="/api")

    def queues(vhosts: list[VirtualHost]) -> Iterable[Shown]:
        return (views.queue(vhost.name, queue, node) for vhost in vhosts for queue in vhost.queues.values())

    def exchanges(vhosts: list[VirtualHost]) -> Iterable[Shown]:
        return (views.exchange(vhost.name, found) for vhost in vhosts for found in vhost.router.exchanges.values())

    def bindings(vhosts: list[VirtualHost]) -> Iterable[Shown]:
        return (binding for vhost in vhosts for binding in views.bindings(vhost))

    def consumers(vhosts: list[VirtualHost]) -> Iterable[Shown]:
        return (
            views.consumer(vhost.name, queue, consumer)
            for vhost in vhosts
            for queue in vhost.queues.values()
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

    @routes.get("/queues/{vhost}/{name}")
    async def _queue(found: InVhost, name: Name) -> Response:
        [vhost] = found
        if name not in vhost.queues:
            raise NotFound(f"no {vhost.queue_resource(name)}")
        return Json(views.queue(vhost.name, vhost.queues[name], node))

    @routes.get("/exchanges/{vhost}/{name}")
    async def _exchange(found: InVhost, name: Name) -> Response:
        [vhost] = found
        return Json(views.exchange(vhost.name, vhost.exchange(name)))

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
        return page.of(views.user(user) for user in access.list_users())

    @routes.get("/users/{name}")
    async def _user(name: Name) -> Response:
        return Json(views.user(access.user(name)))

    @routes.put("/users/{name}")
    async def _put_user(name: Name, body: UserBody) -> Response:
        exists = any(user.name == name for user in access.list_users())
        tags = body.tags.split(",") if isinstance(body.tags, str) else body.tags
        tags = [tag.strip() for tag in tags if tag.strip()]
        await changes.put_user(broker, name, body.password, body.password_hash, tags)
        return Response(status_code=204 if exists else 201)

    @routes.delete("/users/{name}", status_code=204)
    async def _delete_user(name: Name) -> None:
        await changes.delete_user(broker, name)

    @routes.get("/users/{name}/permissions")
    async def _permissions_of_user(name: Name) -> Response:
        access.user(name)
        return Json([views.permission(row) for row in access.list_permissions(user=name)])

    @routes.get("/permissions")
    async def _permissions() -> Response:
        return Json([views.permission(row) for row in access.list_permissions()])

    @routes.get("/permissions/{vhost}/{user}")
    async def _permission(vhost: Name, user: Name) -> Response:
        for row in access.list_permissions(user, vhost):
            return Json(views.permission(row))
        raise NotFound(f"user '{user}' has no permissions in vhost '{vhost}'")

    @routes.put("/permissions/{vhost}/{user}")
    async def _put_permission(vhost: Name, user: Name, body: PermissionBody) -> Response:
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
    async def _put_vhost(vhost: Name, principal: Asking) -> Response:
        exists = vhost in broker.vhosts
        await changes.create_vhost(broker, vhost, principal.name)
        return Response(status_code=204 if exists else 201)

    @routes.delete("/vhosts/{vhost}", status_code=204)
    async def _delete_vhost(vhost: Name) -> None:
        await changes.delete_vhost(broker, vhost)

    @routes.delete("/queues/{vhost}/{name}", status_code=204)
    async def _delete_queue(
        vhost: Name,
        name: Name,
        if_unused: Annotated[bool, Query(alias="if-unused")] = False,
        if_empty: Annotated[bool, Query(alias="if-empty")] = False,
    ) -> None:
        await changes.delete_queue(broker, vhost, name, if_unused, if_empty)

    @routes.delete("/queues/{vhost}/{name}/contents", status_code=204)
    async def _purge_queue(vhost: Name, name: Name) -> None:
        await changes.purge_queue(broker, vhost, name)

    @routes.post("/queues/{vhost}/{name}/redrive")
    async def _redrive(vhost: Name, name: Name, body: RedriveBody) -> Response:
        return Json(await changes.redrive(broker, vhost, name, body.to, body.limit))

    @routes.delete("/connections/{name}", status_code=204)
    async def _close_connection(name: Name, request: Request) -> None:
        changes.close_connection(broker, name, request.headers.get("x-reason", "Closed via management plugin"))

    return routes


async def _peer_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PeerError)
    texts = {"not-found": "Object Not Found", "access-refused": "not_authorised"}
    body = {"error": texts.get(error.kind, "bad_request"), "reason": str(error)}
    return Json(body, status_code=STATUS_BY_KIND.get(error.kind, 400))


async def _not_valid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Without the input: it may be a password.
    reasons = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return Json({"error": "bad_request", "reason": "; ".join(reasons)}, status_code=400)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = {"error": "Object Not Found" if error.status_code == 404 else "bad_request", "reason": str(error.detail)}
    return Json(body, status_code=error.status_code, headers=error.headers)


def _plain(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, (bytes, bytearray)) else str(value)
