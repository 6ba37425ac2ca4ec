"""How sockets are read from: in turn, and not while whoever they belong to wants nothing."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Final

import pytest

from millpond.base.limits import READ_BYTES_LARGE
from millpond.protocols.transport import Transport
from millpond.server.event_loop import new_event_loop
from millpond.server.transport import ServerProtocol

DEADLINE_S: Final = 20.0
SENT_BYTES: Final = 4 << 20


class Reader:
    """A connection that notes what it is given, and when a round of the event loop is over."""

    def __init__(self, pauses_after: int, transport: Transport) -> None:
        self.transport: Final = transport
        # Lengths of what has come; 0 for the end of a round.
        self.reads: Final[list[int]] = []
        self.is_paused = False
        self._pauses_after: Final = pauses_after

    def receive(self, data: bytes) -> None:
        assert not self.is_paused, "it has paused"
        asyncio.get_running_loop().call_soon(self.reads.append, 0)
        self.reads.append(len(data))
        if sum(self.reads) >= self._pauses_after:
            self.is_paused = True
            self.transport.pause_reading()

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def lost(self) -> None: ...

    def close_by_operator(self, reason: str) -> None: ...


async def _read(pauses_after: int) -> list[int]:
    """What a reader gets of a client that sends all it has at once."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENT_BYTES)
    theirs.setblocking(False)
    readers: list[Reader] = []

    def connect(transport: Transport) -> Reader:
        readers.append(Reader(pauses_after, transport))
        return readers[0]

    sending = asyncio.create_task(loop.sock_sendall(theirs, bytes(SENT_BYTES)))
    await loop.connect_accepted_socket(lambda: ServerProtocol(connect, {}), ours)
    [reader] = readers
    async with asyncio.timeout(DEADLINE_S):
        while sum(reader.reads) < pauses_after:
            await asyncio.sleep(0)
        if reader.is_paused and pauses_after < SENT_BYTES:
            for _ in range(100):
                await asyncio.sleep(0)
            reader.is_paused = False
            reader.transport.resume_reading()
            while not reader.is_paused:
                await asyncio.sleep(0)
    sending.cancel()
    reader.transport.abort()
    theirs.close()
    return reader.reads


@pytest.mark.parametrize("new_loop", [new_event_loop, asyncio.new_event_loop])
def test_a_quick_sender_is_read_from_once_a_round(new_loop: object) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:  # type: ignore[arg-type]
        reads = runner.run(_read(SENT_BYTES))
    assert sum(reads) == SENT_BYTES
    for first, second in itertools.pairwise(reads):
        assert not (first >= READ_BYTES_LARGE and second), "it was read from twice in a round"


def test_who_has_paused_is_given_nothing_in_the_next_round() -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        reads = runner.run(_read(READ_BYTES_LARGE))
    assert reads[0] > 0
    assert sum(1 for size in reads if size) >= 2
