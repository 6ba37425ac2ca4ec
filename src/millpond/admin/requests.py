"""What the routes share: how values are written and read, who asks, which virtual hosts they may see."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Query, Request, Response
from pydantic import AfterValidator

from millpond.admin.gate import Principal
from millpond.admin.views import Shown
from millpond.base.errors import AccessRefused, NotFound
from millpond.base.limits import ADMIN_PAGE_ITEMS_MAX
from millpond.broker.broker import Broker
from millpond.broker.vhost import VirtualHost

# A part of a path, which arrives as it was sent: the name of a virtual host may hold a slash.
Name = Annotated[str, AfterValidator(lambda text: unquote(text, errors="surrogateescape"))]


class Json(Response):
    """Values as JSON. Names that are not Unicode, and AMQP's own types in arguments, come out as text."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return json.dumps(content, default=_plain).encode()


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


def administrators_only(principal: Asking) -> None:
    if not principal.is_administrator:
        raise AccessRefused("Not administrator user")


def policymakers_only(principal: Asking) -> None:
    """RabbitMQ's rule for policies and parameters; which virtual hosts they see, `Visible` decides."""
    if not principal.is_policymaker:
        raise AccessRefused("User not authorised to access object")


def monitoring_only(principal: Asking) -> None:
    if not principal.sees_everything:
        raise AccessRefused("Not monitor user")


def _plain(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, (bytes, bytearray)) else str(value)
