"""How the operator's commands reach users and permissions: through the running broker, or in its data.

    RunningBroker    the management API, over DATA/admin.sock (whoever may open it is trusted) or over --url
    StoppedBroker    the catalog itself, under the data directory's lock

Both raise `NotFound`, `AccessRefused` and `PreconditionFailed` for what cannot be done.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote, unquote, urlsplit

import typer

from millpond import config
from millpond.base.errors import (
    AccessRefused,
    ConfigurationError,
    DataDirectoryInUse,
    MillpondError,
    NotFound,
    NotRunning,
    PreconditionFailed,
)
from millpond.server.data_directory import ADMIN_SOCKET, CATALOG, LOCK, short_path

# An answer takes milliseconds; a broker that hangs must not hang its operator as well.
ANSWER_TIMEOUT_S: Final = 30.0

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The broker's data directory. Default: MILLPOND_DATA, or ./data.", show_default=False),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="A broker elsewhere: http://USER@HOST:PORT, its password in MILLPOND_PASSWORD or asked for.",
        show_default=False,
    ),
]


class Administration(ABC):
    """What the commands need. Users and permissions have the fields of RabbitMQ's management API."""

    @abstractmethod
    def users(self) -> list[dict[str, Any]]: ...

    @abstractmethod
    def put_user(self, name: str, password: str | None, tags: Sequence[str]) -> None:
        """Create the user, or replace its password and tags. Without a password it cannot log in by one."""

    @abstractmethod
    def delete_user(self, name: str) -> None: ...

    @abstractmethod
    def permissions(self) -> list[dict[str, Any]]: ...

    @abstractmethod
    def set_permission(self, user: str, vhost: str, configure: str, write: str, read: str) -> None: ...

    @abstractmethod
    def clear_permission(self, user: str, vhost: str) -> None: ...

    @abstractmethod
    def topic_permissions(self) -> list[dict[str, Any]]: ...

    @abstractmethod
    def set_topic_permission(self, user: str, vhost: str, exchange: str, write: str, read: str) -> None: ...

    @abstractmethod
    def clear_topic_permissions(self, user: str, vhost: str, exchange: str | None) -> None:
        """Those at one exchange, or at all."""

    @abstractmethod
    def quotas(self) -> list[dict[str, Any]]: ...

    @abstractmethod
    def alter_quotas(self, entity: dict[str, str | None], quotas: dict[str, float | None]) -> None: ...

    def user(self, name: str) -> dict[str, Any]:
        for user in self.users():
            if user["name"] == name:
                return user
        raise NotFound(f"no user '{name}'")


class RunningBroker(Administration):
    """A broker's management API."""

    def __init__(self, connection: http.client.HTTPConnection, where: str, authorization: str | None = None) -> None:
        self._connection: Final = connection
        self._where: Final = where
        self._headers: Final = {"Content-Type": "application/json"}
        if authorization is not None:
            self._headers["Authorization"] = authorization

    def request(self, method: str, path: str, body: object = None) -> Any:
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotRunning(f"no broker answers at {self._where}") from error
        if answer.status >= 400:
            raise _refused(answer.status, content)
        return json.loads(content) if content else None

    def users(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/api/users"))

    def put_user(self, name: str, password: str | None, tags: Sequence[str]) -> None:
        self.request("PUT", f"/api/users/{_quoted(name)}", {"password": password, "tags": ",".join(tags)})

    def delete_user(self, name: str) -> None:
        self.request("DELETE", f"/api/users/{_quoted(name)}")

    def permissions(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/api/permissions"))

    def set_permission(self, user: str, vhost: str, configure: str, write: str, read: str) -> None:
        body = {"configure": configure, "write": write, "read": read}
        self.request("PUT", f"/api/permissions/{_quoted(vhost)}/{_quoted(user)}", body)

    def clear_permission(self, user: str, vhost: str) -> None:
        self.request("DELETE", f"/api/permissions/{_quoted(vhost)}/{_quoted(user)}")

    def topic_permissions(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/api/topic-permissions"))

    def set_topic_permission(self, user: str, vhost: str, exchange: str, write: str, read: str) -> None:
        body = {"exchange": exchange, "write": write, "read": read}
        self.request("PUT", f"/api/topic-permissions/{_quoted(vhost)}/{_quoted(user)}", body)

    def clear_topic_permissions(self, user: str, vhost: str, exchange: str | None) -> None:
        path = f"/api/topic-permissions/{_quoted(vhost)}/{_quoted(user)}"
        self.request("DELETE", path if exchange is None else f"{path}/{_quoted(exchange)}")

    def quotas(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/api/quotas"))

    def alter_quotas(self, entity: dict[str, str | None], quotas: dict[str, float | None]) -> None:
        self.request("PUT", "/api/quotas", {"entity": entity, "quotas": quotas})


class StoppedBroker(Administration):
    """The catalog of a broker that does not run. Each change is durable when the method returns."""

    def __init__(self, path: Path) -> None:
        from millpond.broker.access import Access
        from millpond.broker.exchanges.registry import PREDECLARED
        from millpond.broker.quotas import ClientQuotas
        from millpond.catalog.catalog import Catalog

        self._catalog: Final = Catalog(path)
        self._catalog.open()
        state = self._catalog.load()
        self._vhosts: Final = {row.name for row in state.vhosts}
        self._exchanges: Final = {(row.vhost, row.name) for row in state.exchanges}
        self._exchanges.update((vhost, name) for vhost in self._vhosts for name, _ in PREDECLARED)
        self._access: Final = Access(self._catalog)
        self._access.load(state)
        self._quotas: Final = ClientQuotas(self._catalog)
        self._quotas.load(state.quotas)

    def close(self) -> None:
        self._catalog.close()

    def users(self) -> list[dict[str, Any]]:
        return [{"name": user.name, "tags": list(user.tags)} for user in self._access.list_users()]

    def put_user(self, name: str, password: str | None, tags: Sequence[str]) -> None:
        from millpond.broker import scram_credentials

        stored = None if password is None else self._access.hash_password(password.encode())
        scram = () if password is None else scram_credentials.of_password(password.encode())
        self._access.put_user(name, stored, tags, scram)
        self._catalog.commit()

    def delete_user(self, name: str) -> None:
        self._access.delete_user(name)
        self._catalog.commit()

    def permissions(self) -> list[dict[str, Any]]:
        return [
            {"user": row.user, "vhost": row.vhost, "configure": row.configure, "write": row.write, "read": row.read}
            for row in self._access.list_permissions()
        ]

    def set_permission(self, user: str, vhost: str, configure: str, write: str, read: str) -> None:
        self._check_vhost(vhost)
        self._access.set_permission(user, vhost, configure, write, read)
        self._catalog.commit()

    def clear_permission(self, user: str, vhost: str) -> None:
        self._check_vhost(vhost)
        self._access.clear_permission(user, vhost)
        self._catalog.commit()

    def topic_permissions(self) -> list[dict[str, Any]]:
        return [
            {"user": row.user, "vhost": row.vhost, "exchange": row.exchange, "write": row.write, "read": row.read}
            for row in self._access.list_topic_permissions()
        ]

    def set_topic_permission(self, user: str, vhost: str, exchange: str, write: str, read: str) -> None:
        self._check_vhost(vhost)
        if (vhost, exchange) not in self._exchanges:
            raise NotFound(f"no exchange '{exchange}' in vhost '{vhost}'")
        self._access.set_topic_permission(user, vhost, exchange, write, read)
        self._catalog.commit()

    def clear_topic_permissions(self, user: str, vhost: str, exchange: str | None) -> None:
        self._check_vhost(vhost)
        self._access.clear_topic_permissions(user, vhost, exchange)
        self._catalog.commit()

    def quotas(self) -> list[dict[str, Any]]:
        return [{"entity": entity, "quotas": quotas} for entity, quotas in self._quotas.items()]

    def alter_quotas(self, entity: dict[str, str | None], quotas: dict[str, float | None]) -> None:
        self._quotas.alter(entity, quotas)
        self._catalog.commit()

    def _check_vhost(self, vhost: str) -> None:
        if vhost not in self._vhosts:
            raise NotFound(f"vhost '{vhost}' not found")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short_path(self._path) as name:
            self.sock.connect(name)


@contextmanager
def administration(data: Path | None, url: str | None) -> Iterator[Administration]:
    """The broker at `url`; else the one that runs on `data`; else, where none does, the data itself."""
    if url is None:
        folder = _data_directory(data)
        if not _listens(folder):
            with _stopped(folder) as stopped:
                yield stopped
            return
    with running_broker(data, url) as running:
        yield running


@contextmanager
def running_broker(data: Path | None, url: str | None) -> Iterator[RunningBroker]:
    """The broker at `url`, else the one that runs on `data`. Raises NotRunning with the first request."""
    if url is not None:
        connection, where, authorization = _by_url(url)
    else:
        folder = _data_directory(data)
        connection, where, authorization = _UnixConnection(folder / ADMIN_SOCKET), str(folder / ADMIN_SOCKET), None
    try:
        yield RunningBroker(connection, where, authorization)
    finally:
        connection.close()


@contextmanager
def _stopped(folder: Path) -> Iterator[StoppedBroker]:
    from millpond.base.filesystem import OsFilesystem

    if not (folder / CATALOG).exists():
        raise NotRunning(f"there is no broker's data in {folder}, and none runs there")
    try:
        lock = OsFilesystem().lock(str(folder / LOCK))
    except DataDirectoryInUse as error:
        raise DataDirectoryInUse(f"{error}, which does not answer at {folder / ADMIN_SOCKET}") from None
    try:
        stopped = StoppedBroker(folder / CATALOG)
        try:
            yield stopped
        finally:
            stopped.close()
    finally:
        lock.close()


def _data_directory(data: Path | None) -> Path:
    return data if data is not None else config.load({}).data


def _listens(folder: Path) -> bool:
    connection = _UnixConnection(folder / ADMIN_SOCKET)
    try:
        connection.connect()
    except PermissionError:
        raise AccessRefused(f"{folder / ADMIN_SOCKET} belongs to another user") from None
    except OSError:
        return False
    finally:
        connection.close()
    return True


def _by_url(url: str) -> tuple[http.client.HTTPConnection, str, str]:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigurationError("--url: is not an address: write http://USER@HOST:PORT")
    name = unquote(parts.username or "guest")
    password = unquote(parts.password) if parts.password is not None else os.environ.get("MILLPOND_PASSWORD")
    if password is None and not sys.stdin.isatty():
        # Nobody is there to be asked.
        raise ConfigurationError(f"the password of {name} is missing: put it in MILLPOND_PASSWORD")
    if password is None:
        password = typer.prompt(f"Password of {name}", hide_input=True, err=True)
    credentials = base64.b64encode(f"{name}:{password}".encode()).decode()
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=ANSWER_TIMEOUT_S)
    return connection, f"{connection.host}:{connection.port}", f"Basic {credentials}"


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _refused(status: int, content: bytes) -> MillpondError:
    try:
        told = json.loads(content)
        reason = str(told.get("reason") or told.get("detail"))
    except (ValueError, AttributeError):
        reason = f"the broker answered {status}"
    kinds: dict[int, type[MillpondError]] = {401: AccessRefused, 403: AccessRefused, 404: NotFound}
    # RabbitMQ's texts have lines; an error on a terminal is one.
    return kinds.get(status, PreconditionFailed if status < 500 else MillpondError)(" ".join(reason.split()))
