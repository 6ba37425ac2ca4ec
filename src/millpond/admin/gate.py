"""What every request passes before a route sees it: its size, its path, who sent it.

Plain ASGI, before FastAPI, which would read a request's body before it asked who sent it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import AccessRefused, NotFound
from millpond.base.limits import (
    ADMIN_LARGE_REQUEST_BYTES_MAX,
    ADMIN_LARGE_REQUESTS_MAX,
    ADMIN_LOGINS_HELD_MAX,
    ADMIN_REQUEST_BYTES_MAX,
    DEFINITIONS_BYTES_MAX,
)
from millpond.broker.access import ADMINISTRATOR

if TYPE_CHECKING:
    from millpond.base.clock import Clock
    from millpond.broker.access import Access

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# RabbitMQ's tags. `management` sees the virtual hosts that it has permissions in, `monitoring` all of them.
MONITORING: Final = "monitoring"
POLICYMAKER: Final = "policymaker"
SEEING_TAGS: Final = {"management", POLICYMAKER, MONITORING, ADMINISTRATOR}


# What RabbitMQ tells anybody, so that a load balancer needs no password: whether clients may come.
OPEN_PATHS: Final = frozenset(
    f"/api/health/checks/{check}"
    for check in ("is-in-service", "below-node-connection-limit", "ready-to-serve-clients")
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `name` is None for who came by the UNIX socket: the file's mode has let them in."""

    name: str | None
    tags: frozenset[str]
    # The address of the client, of which permissions may speak.
    host: str = ""

    @property
    def is_administrator(self) -> bool:
        return ADMINISTRATOR in self.tags

    @property
    def is_policymaker(self) -> bool:
        return self.is_administrator or POLICYMAKER in self.tags

    @property
    def sees_everything(self) -> bool:
        return self.is_administrator or MONITORING in self.tags


OWNER: Final = Principal(None, frozenset({ADMINISTRATOR}))
ANYBODY: Final = Principal("", frozenset())


class Gate:
    """Wraps an application. `trusted` is for the UNIX socket only: nobody is asked for a password there."""

    def __init__(self, application: Application, access: Access, logins: Executor, trusted: bool, clock: Clock) -> None:
        self._application: Final = application
        self._access: Final = access
        self._logins: Final = logins
        self._trusted: Final = trusted
        self._large: Final = asyncio.Semaphore(ADMIN_LARGE_REQUESTS_MAX)
        self._clock: Final = clock
        # Requests that wait because of logins that have failed.
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # As GET; the server, whose own scope says HEAD, leaves the body out.
            scope = {**scope, "method": "GET"}
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if b"transfer-encoding" in headers or not length.isdigit():
            await _refuse(send, 411, "length_required", "a request tells its length")
            return
        is_large = int(length) > ADMIN_REQUEST_BYTES_MAX
        bytes_max = _bytes_max(scope)
        if int(length) > bytes_max:
            await _refuse(send, 413, "too_large", f"a request of this kind has at most {bytes_max} bytes")
            return
        # The virtual host "/" is %2F in a path. It must stay so while the path is taken apart; the routes unquote. A
        # slash at the end means nothing to RabbitMQ, some of whose paths are written with one.
        scope["path"] = scope["raw_path"].decode("ascii").rstrip("/")
        try:
            if self._trusted:
                scope["principal"] = OWNER
            elif scope["path"] in OPEN_PATHS:
                scope["principal"] = ANYBODY
            else:
                scope["principal"] = await self._principal(scope, headers)
        except AccessRefused as error:
            await _refuse(send, 401, "not_authorised", str(error))
            return
        # A body is JSON, whatever its sender calls it: curl calls everything a form.
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"content-type"]
        scope["headers"].append((b"content-type", b"application/json"))
        if is_large:
            async with self._large:
                await self._application(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    async def _principal(self, scope: Scope, headers: dict[bytes, bytes]) -> Principal:
        name, password = _credentials(headers.get(b"authorization", b""))
        access = self._access
        host = scope["client"][0] if scope["client"] else None
        access.check_address(name, host)
        if not access.is_known_login(name, password):
            await self._log_in(name, password, host)
        try:
            tags = frozenset(access.user(name).tags)
        except NotFound:
            raise AccessRefused("Login failed") from None
        if not tags & SEEING_TAGS:
            raise AccessRefused("Not management user")
        return Principal(name, tags, host or "")

    async def _log_in(self, name: str, password: bytes, host: str | None) -> None:
        """AccessRefused where the password is wrong, the later the more often it was."""
        failures = self._access.failed_logins
        wait_ms = failures.wait_ms(host, name, self._clock.monotonic_ms())
        if wait_ms is not None and await self._waited(wait_ms):
            loop = asyncio.get_running_loop()
            if await loop.run_in_executor(self._logins, self._access.verify_password, name, password):
                return
        logger.warning("%s: login refused for user %r", host, name)
        await self._waited(failures.failed(host, name, self._clock.monotonic_ms()))
        raise AccessRefused("Login failed")

    async def _waited(self, duration_ms: int) -> bool:
        """Whether there was room to wait for so long, which is over then."""
        if duration_ms == 0:
            return True
        if self._held >= ADMIN_LOGINS_HELD_MAX:
            return False
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(duration_ms, lambda: None if over.done() else over.set_result(None))
        self._held += 1
        try:
            await over
        finally:
            self._held -= 1
            timer.cancel()
        return True


def _bytes_max(scope: Scope) -> int:
    """The largest body that a request may have. Routes of large ones read them when they know who sends them."""
    path: bytes = scope["raw_path"]
    if scope["method"] == "POST" and path.endswith(b"/publish"):
        return ADMIN_LARGE_REQUEST_BYTES_MAX
    if scope["method"] == "POST" and path.startswith(b"/api/definitions"):
        return DEFINITIONS_BYTES_MAX
    return ADMIN_REQUEST_BYTES_MAX


def _credentials(authorization: bytes) -> tuple[str, bytes]:
    scheme, _, encoded = authorization.partition(b" ")
    try:
        name, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
    except binascii.Error:
        raise AccessRefused("Login failed") from None
    if scheme.lower() != b"basic" or not colon:
        raise AccessRefused("Login failed")
    return name.decode(errors="surrogateescape"), password


async def _refuse(send: Send, status: int, error: str, reason: str) -> None:
    body = json.dumps({"error": error, "reason": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="Millpond"'))
    else:
        # The body was not read: what follows on this connection would be taken for a request.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
