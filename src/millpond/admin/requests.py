"""What the routes of the management API share: names in paths, JSON bodies and answers, pages, and who asks.

A body is a JSON object, or nothing. Everything in it is checked before a route sees it, so that what AMQP, the catalog
or JSON could not carry on is refused here: text that is not Unicode, numbers beyond 64 bits, nesting without end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import unquote

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from millpond.admin.gate import Principal
from millpond.admin.views import Shown
from millpond.base.errors import AccessRefused, NotFound, PeerError, PreconditionFailed, SyntaxFault
from millpond.base.limits import ADMIN_COLUMNS_MAX, ADMIN_PAGE_ITEMS_MAX, FIELD_VALUE_DEPTH_MAX, NAME_BYTES_MAX
from millpond.broker.broker import Broker
from millpond.broker.vhost import VirtualHost

Model = TypeVar("Model", bound=BaseModel)

# As RabbitMQ answers; whatever is not here is 400.
STATUS_BY_KIND: Final = {
    "not-found": 404,
    "group-not-found": 404,
    "transaction-not-found": 404,
    "access-refused": 401,
    "not-allowed": 401,
}


def _short(text: str) -> str:
    if len(text.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
        raise ValueError(f"a name has at most {NAME_BYTES_MAX} bytes")
    return text


def _name_of(text: str) -> str:
    return _short(unquote(text, errors="surrogateescape"))


# A part of a path, which arrives as it was sent: the name of a virtual host may hold a slash.
Name = Annotated[str, AfterValidator(_name_of)]
# A name or routing key in a body: AMQP's shortstr.
ShortText = Annotated[str, AfterValidator(_short)]


class Json(Response):
    """Values as JSON. Names that are not Unicode, and AMQP's own types in arguments, come out as text."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        try:
            return json.dumps(content, default=_plain, allow_nan=False).encode()
        except ValueError:
            # A header or argument of AMQP may be a number that JSON does not have.
            return json.dumps(_finite(content), default=_plain).encode()


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, (bytes, bytearray)) else str(value)


# --- Bodies -----------------------------------------------------------------------------------------------------------


async def json_body(request: Request) -> dict[str, Any]:
    """The object in a request's body; nothing at all, and null, are the empty one. Raises SyntaxFault."""
    content = await request.body()
    if not content:
        return {}
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise SyntaxFault("not_json") from None
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise SyntaxFault("not_json")
    _check(body, 0)
    return body


def _check(value: object, depth: int) -> None:
    if depth > FIELD_VALUE_DEPTH_MAX:
        raise PreconditionFailed(f"tables and arrays may be nested {FIELD_VALUE_DEPTH_MAX} deep")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise SyntaxFault("a text is not valid Unicode") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, depth)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise SyntaxFault("not_json")
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise PreconditionFailed("a number has at most 64 bits")


def body_as(model: type[Model]) -> Any:
    """A route's dependency: the body as a `model`."""

    async def read(request: Request) -> Model:
        return model.model_validate(await json_body(request))

    return Depends(read)


# --- Lists ------------------------------------------------------------------------------------------------------------


class Page:
    """What a list is asked for: a page of it, those with a text in their names, an order, some of the columns.

    A column within another is named with a dot, `message_stats.publish`.
    """

    def __init__(
        self,
        page: Annotated[int | None, Query(ge=1)] = None,
        page_size: Annotated[int, Query(ge=1, le=ADMIN_PAGE_ITEMS_MAX)] = 100,
        name: str = "",
        sort: str = "",
        sort_reverse: str = "",
        columns: str = "",
    ) -> None:
        self.number, self.size, self.name = page, page_size, name.lower()
        self.sort, self.is_reversed = sort.split(".") if sort else [], sort_reverse == "true"
        self.columns = [column.split(".") for column in columns.split(",") if column]
        if len(self.columns) > ADMIN_COLUMNS_MAX:
            raise PreconditionFailed(f"a list shows at most {ADMIN_COLUMNS_MAX} columns")

    def of(self, items: Iterable[Shown]) -> Json:
        everything = list(items)
        if self.sort:
            everything.sort(key=self._sort_key)
        if self.is_reversed:
            everything.reverse()
        if self.number is None:
            return Json(self._with_columns(everything))
        found = [item for item in everything if self.name in item.get("name", "").lower()]
        shown = found[(self.number - 1) * self.size : self.number * self.size]
        return Json(
            {
                "items": self._with_columns(shown),
                "item_count": len(shown),
                "filtered_count": len(found),
                "total_count": len(everything),
                "page": self.number,
                "page_size": self.size,
                "page_count": max(1, -(-len(found) // self.size)),
            }
        )

    def _sort_key(self, item: Shown) -> tuple[int, Any]:
        """A place for everything, of whatever kind it is: numbers, then what is missing, then texts."""
        value: object = item
        for part in self.sort:
            if not isinstance(value, dict):
                return 1, ""
            value = value.get(part)
        if isinstance(value, (int, float)):
            return 0, value
        return (1, "") if value is None else (2, str(value))

    def _with_columns(self, items: list[Shown]) -> list[Shown]:
        return [_columns_of(item, self.columns) for item in items] if self.columns else items


def _columns_of(item: Shown, columns: list[list[str]]) -> Shown:
    """What there is of the columns. The others are left out, as by RabbitMQ."""
    made: Shown = {}
    for column in columns:
        value: object = item
        for part in column:
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            _put(made, column, value)
    return made


def _put(made: Shown, column: list[str], value: object) -> None:
    within: Any = made
    for part in column[:-1]:
        within = within.setdefault(part, {})
        if not isinstance(within, dict):
            return
    within[column[-1]] = value


Paged = Annotated[Page, Depends()]


# --- Who asks ---------------------------------------------------------------------------------------------------------


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


def _usable_vhost(request: Request, principal: Asking, vhost: Name) -> VirtualHost:
    broker: Broker = request.app.state.broker
    found = broker.vhosts.get(vhost)
    # Who may not use it is not told that it is there. What is done in it needs permissions, an administrator's too.
    if found is None or not (
        principal.is_administrator
        or (principal.name is not None and broker.access.has_vhost(principal.name, found.name))
    ):
        raise NotFound(f"no vhost '{vhost}'")
    return found


# The virtual host of a request that changes something in it.
UsableVhost = Annotated[VirtualHost, Depends(_usable_vhost)]


def administrators_only(principal: Asking) -> None:
    if not principal.is_administrator:
        raise AccessRefused("Not administrator user")


def policymakers_only(principal: Asking) -> None:
    """RabbitMQ's rule for policies and parameters. Which virtual hosts they see, `Visible` decides."""
    if not principal.is_policymaker:
        raise AccessRefused("User not authorised to access object")


def monitoring_only(principal: Asking) -> None:
    if not principal.sees_everything:
        raise AccessRefused("Not monitor user")


# --- Errors -----------------------------------------------------------------------------------------------------------


def add_error_handlers(application: FastAPI) -> None:
    """Errors as RabbitMQ's management API tells them."""
    application.add_exception_handler(ClientDisconnect, _gone)
    application.add_exception_handler(PeerError, _peer_error)
    application.add_exception_handler(RequestValidationError, _not_valid)
    application.add_exception_handler(ValidationError, _not_valid)
    application.add_exception_handler(HTTPException, _http_error)


async def _gone(_request: Request, _error: Exception) -> Response:
    """Who hangs up before the end of a body is not answered, and no bug."""
    return Response(status_code=400)


async def _peer_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PeerError)
    status = STATUS_BY_KIND.get(error.kind, 400)
    told = {404: "Object Not Found", 401: "not_authorised"}
    return Json({"error": told.get(status, "bad_request"), "reason": str(error)}, status_code=status)


async def _not_valid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, (RequestValidationError, ValidationError))
    # Without the input: it may be a password.
    reasons = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return Json({"error": "bad_request", "reason": "; ".join(reasons)}, status_code=400)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = {"error": "Object Not Found" if error.status_code == 404 else "bad_request", "reason": str(error.detail)}
    return Json(body, status_code=error.status_code, headers=error.headers)
