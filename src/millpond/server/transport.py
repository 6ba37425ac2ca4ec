"""The socket side of a connection: an asyncio protocol that hands bytes to a sans-I/O connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from typing import Protocol, cast

from millpond.base.certificate import Certificate
from millpond.base.limits import READ_BYTES_LARGE, SOCKET_BUFFER_BYTES_HIGH, SOCKET_BUFFER_BYTES_LOW
from millpond.protocols.transport import Transport


class Connection(Protocol):
    """What a protocol makes of a client's bytes."""

    def receive(self, data: bytes) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def lost(self) -> None: ...

    def close_by_operator(self, reason: str) -> None: ...


class SocketTransport(Transport):
    """One socket, by way of its asyncio transport."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        # Paused by whom it belongs to; and for the rest of this round of the event loop.
        self._paused = False
        self._taking_turns = False
        peer = transport.get_extra_info("peername")
        local = transport.get_extra_info("sockname")
        is_internet = isinstance(peer, tuple)
        self._peer: tuple[str | None, int] = (peer[0], peer[1]) if is_internet else (None, 0)
        self._local: tuple[str, int] = (local[0], local[1]) if isinstance(local, tuple) else ("", 0)

    def write(self, data: bytes) -> None:
        # It closes by itself when the peer does not take what was written before, and tells of that a little later.
        if not self._transport.is_closing():
            self._transport.write(data)

    def write_all(self, chunks: list[bytes]) -> None:
        if not self._transport.is_closing():
            self._transport.writelines(chunks)

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def pause_reading(self) -> None:
        self._paused = True
        self._follow()

    def resume_reading(self) -> None:
        self._paused = False
        self._follow()

    def let_others_read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read no more before everybody else has been read from, and the turn has ended.

        uvloop reads up to 32 times in a row from a socket whose sender is quick: 8 MB that nobody could stop, with all
        others waiting."""
        if not self._taking_turns:
            self._taking_turns = True
            self._follow()
            loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._taking_turns = False
        self._follow()

    def _follow(self) -> None:
        """Have the socket do what was asked for."""
        must_pause = self._paused or self._taking_turns
        if must_pause and self._transport.is_reading():
            self._transport.pause_reading()
        elif not must_pause and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    def peer_host(self) -> str | None:
        return self._peer[0]

    def peer_port(self) -> int:
        return self._peer[1]

    def local_address(self) -> tuple[str, int]:
        return self._local

    def is_tls(self) -> bool:
        return self._transport.get_extra_info("sslcontext") is not None

    def peer_certificate(self) -> Certificate | None:
        # Python shows what is in a certificate only where it was verified.
        shown = self._transport.get_extra_info("peercert")
        return Certificate.of_peer(shown) if shown else None


def _has_outlived_certificate(transport: asyncio.Transport) -> bool:
    """Whether the peer has taken up a TLS session whose certificate has expired since: TLS looks at it but once."""
    shown = transport.get_extra_info("peercert")
    return bool(shown) and ssl.cert_time_to_seconds(shown["notAfter"]) < time.time()


class ServerProtocol(asyncio.Protocol):
    """Accepts one client. `connect` makes its connection from its transport."""

    def __init__(self, connect: Callable[[Transport], Connection], protocols: dict[ServerProtocol, None]) -> None:
        self._connect = connect
        self._protocols = protocols
        self._connection: Connection | None = None
        self._transport: asyncio.Transport | None = None
        self._socket: SocketTransport | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        self._transport = stream
        if _has_outlived_certificate(stream):
            stream.abort()
            return
        stream.set_write_buffer_limits(high=SOCKET_BUFFER_BYTES_HIGH, low=SOCKET_BUFFER_BYTES_LOW)
        sock = stream.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # What a turn writes is written at once, so there is nothing to collect by waiting.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._protocols[self] = None
        self._socket = SocketTransport(stream)
        self._connection = self._connect(self._socket)

    def data_received(self, data: bytes) -> None:
        if self._connection is not None:
            if len(data) >= READ_BYTES_LARGE and self._socket is not None:
                self._socket.let_others_read(self._loop)
            self._connection.receive(data)

    def pause_writing(self) -> None:
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        if self._connection is not None:
            self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocols.pop(self, None)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.lost()

    def eof_received(self) -> bool | None:
        return None

    def close_by_operator(self, reason: str) -> None:
        """Close the connection, telling the client why."""
        if self._connection is not None:
            self._connection.close_by_operator(reason)

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()
