"""What stands between clients and the broker, and cuts, stalls and dribbles their connections."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

READ_BYTES: Final = 65536
# Of so many connections one gets its bytes in small pieces.
DRIBBLED: Final = 8
PIECE_BYTES_MAX: Final = 600
# A connection is cut after so many more bytes at most, which is in the middle of something.
CUT_AFTER_BYTES_MAX: Final = 4096
STALL_S: Final = (0.2, 6.0)


class Link:
    """One client's connection and its other half."""

    def __init__(self, choose: random.Random) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        # So many bytes, in whatever direction, until it is cut; -1 for never.
        self.bytes_left = -1
        self.piece_bytes = choose.randint(1, PIECE_BYTES_MAX) if choose.randrange(DRIBBLED) == 0 else READ_BYTES
        self.writers: list[asyncio.StreamWriter] = []

    def cut(self, with_reset: bool) -> None:
        for writer in self.writers:
            if with_reset:
                _reset_at_close(writer)
            with suppress(Exception):
                writer.transport.abort() if with_reset else writer.close()
        self.flows.set()


class Proxy:
    """Ports of its own, each in front of one that is told later. It lives in a thread; `disturb_one` is for others."""

    def __init__(self, choose: random.Random, done: Counter[str]) -> None:
        self._choose = choose
        self._done = done
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="proxy")
        self._thread.start()

    def listen(self, target: Callable[[], int]) -> int:
        """Listen in front of a port of this machine; returns the port where."""

        async def serve() -> int:
            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = asyncio.current_task()
                assert task is not None
                self._tasks.add(task)
                try:
                    await self._carry(target(), reader, writer)
                finally:
                    self._tasks.discard(task)

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            self._servers.append(server)
            port: int = server.sockets[0].getsockname()[1]
            return port

        return asyncio.run_coroutine_threadsafe(serve(), self._loop).result()

    def disturb_one(self) -> None:
        """Cut a connection in the middle of something, or have it stand still for a while."""
        self._loop.call_soon_threadsafe(self._disturb)

    def heal(self) -> None:
        """What stands still goes on."""

        def flow() -> None:
            for link in self._links:
                link.bytes_left = -1
                link.flows.set()

        self._loop.call_soon_threadsafe(flow)

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            # What was aborted is closed a turn later.
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _disturb(self) -> None:
        links = sorted(self._links, key=id)
        if not links:
            return
        link = self._choose.choice(links)
        chance = self._choose.random()
        if chance < 0.6:
            self._done["connections cut in the middle of something"] += 1
            link.bytes_left = self._choose.randint(0, CUT_AFTER_BYTES_MAX)
        else:
            self._done["connections that stood still"] += 1
            link.flows.clear()
            ends = self._choose.random() < 0.5
            after_s = self._choose.uniform(*STALL_S)
            # One that stands still and is then gone has vanished without a word.
            self._loop.call_later(after_s, lambda: link.cut(with_reset=True) if ends else link.flows.set())

    async def _carry(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(self._choose)
        link.writers.append(writer)
        try:
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            link.cut(with_reset=False)
            return
        link.writers.append(to_broker)
        self._links.add(link)
        ways = [
            asyncio.ensure_future(self._copy(link, reader, to_broker)),
            asyncio.ensure_future(self._copy(link, from_broker, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self._links.discard(link)
            link.cut(with_reset=link.bytes_left == 0)

    async def _copy(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(link.piece_bytes):
                await link.flows.wait()
                if 0 <= link.bytes_left <= len(data):
                    writer.write(data[: link.bytes_left])
                    link.bytes_left = 0
                    return
                if link.bytes_left > 0:
                    link.bytes_left -= len(data)
                writer.write(data)
                await writer.drain()


def _reset_at_close(writer: asyncio.StreamWriter) -> None:
    """So that the other side is told by a reset, as when a machine has forgotten the connection."""
    found: Any = writer.get_extra_info("socket")
    with suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
