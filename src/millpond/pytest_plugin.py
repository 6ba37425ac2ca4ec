"""The pytest plugin: the fixture `millpond_broker` gives a test a broker of its own.

It runs on a thread with an event loop of its own, so that tests with blocking clients work as well as coroutines; it
keeps everything in memory and listens on a free port. A test suite changes its settings by a fixture of
its own, see docs/embedding.md:

    @pytest.fixture
    def millpond_settings(tmp_path):
        return {"data_dir": tmp_path, "kafka": "127.0.0.1:0"}
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from millpond.embedded import Broker

# Recovery of a large data directory takes a while; nothing else does.
START_DEADLINE_S: Final = 60.0
STOP_DEADLINE_S: Final = 10.0


class BackgroundBroker:
    """A broker on a thread of its own, for callers that block."""

    def __init__(self, **settings: Any) -> None:
        self._settings: Final = settings
        self._broker: Broker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Returns when all listeners accept. Raises what `millpond.Broker` raises."""
        from millpond.embedded import Broker
        from millpond.server.event_loop import new_event_loop

        assert self._thread is None, "the broker runs already"
        broker = Broker(**self._settings)
        loop = new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="millpond", daemon=True)
        thread.start()
        self._loop, self._thread = loop, thread
        try:
            self._call(broker.start(), START_DEADLINE_S)
        except BaseException:
            self._end_thread()
            raise
        self._broker = broker
        # A restart comes back at the same address, where the clients look for it.
        for listener in ("amqp", "amqps", "kafka", "kafka_tls", "admin"):
            if getattr(broker.settings, listener) is not None:
                host, port = broker.address(listener)
                self._settings[listener] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def stop(self) -> None:
        """Stop cleanly. Harmless when it does not run."""
        broker, self._broker = self._broker, None
        if broker is not None:
            try:
                self._call(broker.stop(), STOP_DEADLINE_S)
            finally:
                self._end_thread()

    def restart(self) -> None:
        """Stop cleanly and start at the same addresses. What a broker in memory held is gone."""
        self.stop()
        self.start()

    def address(self, listener: str = "amqp") -> tuple[str, int]:
        return self._running().address(listener)

    @property
    def kafka_address(self) -> str:
        return self._running().kafka_address

    @property
    def amqp_url(self) -> str:
        return self._running().amqp_url

    @property
    def amqp_host(self) -> str:
        return self.address()[0]

    @property
    def amqp_port(self) -> int:
        return self.address()[1]

    def _running(self) -> Broker:
        assert self._broker is not None, "the broker does not run"
        return self._broker

    def _call(self, coroutine: Coroutine[Any, Any, None], deadline_s: float) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(deadline_s)

    def _end_thread(self) -> None:
        loop, self._loop = self._loop, None
        thread, self._thread = self._thread, None
        assert loop is not None
        assert thread is not None
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture
def millpond_settings() -> Mapping[str, Any]:
    """What `millpond_broker` passes to `millpond.Broker`; for a test suite to override."""
    return {}


@pytest.fixture
def millpond_broker(millpond_settings: Mapping[str, Any]) -> Iterator[BackgroundBroker]:
    """A broker of the test's own, on a free port, that keeps everything in memory."""
    broker = BackgroundBroker(**millpond_settings)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
