"""Topic permissions in the management API: /api/topic-permissions. Only administrators see and change them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from millpond.admin import changes, views
from millpond.admin.requests import Json, Name, Paged, administrators_only, body_as
from millpond.base.errors import NotFound
from millpond.broker.broker import Broker


class TopicPermissionBody(BaseModel):
    exchange: str
    write: str
    read: str


def routes(broker: Broker) -> APIRouter:
    made = APIRouter(prefix="/api", dependencies=[Depends(administrators_only)])
    access = broker.access

    @made.get("/topic-permissions")
    async def _everywhere(page: Paged) -> Response:
        return page.of(map(views.topic_permission, access.list_topic_permissions()))

    @made.get("/users/{user}/topic-permissions")
    async def _of_user(user: Name) -> Response:
        access.user(user)
        return Json([views.topic_permission(row) for row in access.list_topic_permissions(user=user)])

    @made.get("/vhosts/{vhost}/topic-permissions")
    async def _in_vhost(vhost: Name) -> Response:
        broker.vhost(vhost)
        return Json([views.topic_permission(row) for row in access.list_topic_permissions(vhost=vhost)])

    @made.get("/topic-permissions/{vhost}/{user}")
    async def _of_user_in_vhost(vhost: Name, user: Name) -> Response:
        rows = access.list_topic_permissions(user, vhost)
        if not rows:
            raise NotFound(f"user '{user}' has no topic permissions in vhost '{vhost}'")
        return Json([views.topic_permission(row) for row in rows])

    @made.put("/topic-permissions/{vhost}/{user}")
    async def _put(
        vhost: Name, user: Name, body: Annotated[TopicPermissionBody, body_as(TopicPermissionBody)]
    ) -> Response:
        exists = bool(access.list_topic_permissions(user, vhost))
        await changes.set_topic_permission(broker, user, vhost, body.exchange, body.write, body.read)
        return Response(status_code=204 if exists else 201)

    @made.delete("/topic-permissions/{vhost}/{user}", status_code=204)
    async def _delete_all(vhost: Name, user: Name) -> None:
        await changes.clear_topic_permissions(broker, user, vhost, None)

    @made.delete("/topic-permissions/{vhost}/{user}/{exchange}", status_code=204)
    async def _delete(vhost: Name, user: Name, exchange: Name) -> None:
        await changes.clear_topic_permissions(broker, user, vhost, exchange)

    return made
