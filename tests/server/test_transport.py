"""What is written to a socket that is closing goes nowhere, and is no error."""

from __future__ import annotations

import asyncio
from typing import Any

from millpond.server.transport import SocketTransport


class ClosingSocket(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in {"peername", "sockname"} else default

    def is_closing(self) -> bool:
        return self.is_closed

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_reading(self) -> bool:
        return False

    def resume_reading(self) -> None:
        raise RuntimeError("the socket is closed")


def test_nothing_is_written_to_a_socket_that_is_closing() -> None:
    socket = ClosingSocket()
    transport = SocketTransport(socket)
    transport.write(b"a")
    transport.write_all([b"b", b"c"])
    assert b"".join(socket.written) == b"abc"
    socket.is_closed = True
    transport.write(b"d")
    transport.write_all([b"e"])
    transport.resume_reading()
    assert b"".join(socket.written) == b"abc"
