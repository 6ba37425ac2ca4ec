"""Serves the management API on sockets that listen already, in the node's own event loop.

FastAPI and uvicorn take half a second and some 40 MiB, and most brokers in a test suite are never asked: so they are
imported, and all routes are made, when the first client connects, on a thread, while the broker goes on with its work.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from millpond.base.limits import ADMIN_LOGIN_THREADS, ADMIN_REQUESTS_MAX

if TYPE_CHECKING:
    from pathlib import Path

    import uvicorn
    from fastapi import FastAPI

    from millpond.admin.messages import MakeProperties
    from millpond.admin.views import Node
    from millpond.broker.broker import Broker

logger = logging.getLogger(__name__)

# Requests under way may end when the broker stops; who only keeps a connection open is not waited for.
STOP_DEADLINE_S: Final = 1


class AdminServer:
    """The management API of one broker.

    `listener` is that of the TCP address, where every request brings a name and a password; `unix_socket` listens at
    `unix_path`, whose mode has let in whoever connects. The server closes both and removes the path. `make_properties`
    encodes the properties of messages that are published here.
    """

    def __init__(
        self,
        broker: Broker,
        node: Node,
        listener: socket.socket | None,
        unix_socket: socket.socket | None,
        unix_path: Path,
        make_properties: MakeProperties,
    ) -> None:
        self._broker: Final = broker
        self._node: Final = node
        self._make_properties: Final = make_properties
        # Each with whether its clients are trusted.
        given = [(listener, False), (unix_socket, True)]
        self._sockets: Final = [(sock, trusted) for sock, trusted in given if sock is not None]
        self._unix_path: Final = unix_path if unix_socket is not None else None
        self._logins: Final = ThreadPoolExecutor(ADMIN_LOGIN_THREADS, thread_name_prefix="millpond-admin-login")
        self._serving: asyncio.Task[None] | None = None
        self._servers: list[uvicorn.Server] = []
        self._stopping = False

    def start(self) -> None:
        """Serve from now on. Returns at once: the kernel holds the first client until all is loaded."""
        loop = asyncio.get_running_loop()
        for sock, _ in self._sockets:
            loop.add_reader(sock, self._first_client)

    async def stop(self) -> None:
        """Let requests under way end, and close the sockets. Harmless when repeated."""
        self._stopping = True
        self._watch_no_more()
        for server in self._servers:
            server.should_exit = True
        if self._serving is not None:
            with suppress(asyncio.CancelledError):
                await self._serving
        for sock, _ in self._sockets:
            sock.close()
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)
        self._logins.shutdown(wait=False, cancel_futures=True)

    def _watch_no_more(self) -> None:
        loop = asyncio.get_running_loop()
        for sock, _ in self._sockets:
            if sock.fileno() >= 0:
                loop.remove_reader(sock)

    def _first_client(self) -> None:
        self._watch_no_more()
        if self._serving is None:
            self._serving = asyncio.get_running_loop().create_task(self._serve(), name="millpond-admin")

    async def _serve(self) -> None:
        routes = await asyncio.to_thread(self._make_routes)
        if self._stopping:
            return
        import uvicorn

        from millpond.admin.gate import Gate

        class Server(uvicorn.Server):
            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                # Signals are the node's, or the embedding program's.
                yield

        serving = []
        for sock, trusted in self._sockets:
            config = uvicorn.Config(
                Gate(routes, self._broker.access, self._logins, trusted, self._broker.clock),
                loop="none",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                # Behind a proxy the peer is the proxy: whose word for the client is not taken without being told to.
                proxy_headers=False,
                server_header=False,
                limit_concurrency=ADMIN_REQUESTS_MAX,
                timeout_graceful_shutdown=STOP_DEADLINE_S,
            )
            server = Server(config)
            self._servers.append(server)
            serving.append(server.serve(sockets=[sock]))
        await asyncio.gather(*serving)

    def _make_routes(self) -> FastAPI:
        """On a thread, so that it asks nothing of the broker."""
        import uvicorn.protocols.http.h11_impl  # noqa: F401

        from millpond.admin.application import application

        routes = application(self._broker, self._node, self._make_properties)
        # FastAPI puts off half of the work until it looks for a route the first time.
        asyncio.run(routes(dict(_NOWHERE), _no_request, _no_answer))
        return routes


_NOWHERE: Final = {
    "type": "http",
    "method": "GET",
    "path": "/",
    "raw_path": b"/",
    "root_path": "",
    "query_string": b"",
    "headers": (),
    "http_version": "1.1",
    "scheme": "http",
}


async def _no_request() -> dict[str, Any]:
    return {"type": "http.request"}


async def _no_answer(message: MutableMapping[str, Any]) -> None:
    """Of what nobody has asked."""
