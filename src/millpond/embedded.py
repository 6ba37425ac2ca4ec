"""A broker inside the caller's program: the real one, in the caller's event loop.

    async with millpond.Broker(data_dir="pond") as broker:
        connection = await aio_pika.connect(broker.amqp_url)

Without a data directory everything is kept in memory. Listeners take a free port of the loopback interface unless told
otherwise; Kafka's protocol and the management API are off unless asked for. The environment is not looked at, and
nothing is changed in the process: not its logging, its signals or its garbage collector.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from millpond.base.errors import NotRunning
from millpond.config import ListenAddress, Settings

if TYPE_CHECKING:
    from millpond.server.node import Node


class Broker:
    """One node. `settings` are those of docs/configuration.md, by their names.

    Raises ConfigurationError at once for a setting that is unknown or wrong.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        amqp: str = "127.0.0.1:0",
        kafka: str = "off",
        admin: str = "off",
        **settings: object,
    ) -> None:
        storage = {"memory": True} if data_dir is None else {"data": Path(data_dir)}
        self.settings = Settings.of(amqp=amqp, kafka=kafka, admin=admin, **storage, **settings)
        self._node: Node | None = None

    async def start(self) -> None:
        """Open the data, recover, and listen. Raises OperatorError (a directory in use, an address taken)."""
        assert self._node is None, "the broker has been started already"
        # SQLite, the protocols and the core are loaded by the first broker that starts, not by `import millpond`.
        from millpond.server.node import Node

        node = Node(self.settings)
        await node.start()
        self._node = node

    async def stop(self) -> None:
        """Close the connections and write what is not written yet. Harmless when it does not run."""
        node, self._node = self._node, None
        if node is not None:
            await node.stop()

    def address(self, listener: str = "amqp") -> tuple[str, int]:
        """The host and the port that a listener is bound to. Raises NotRunning where there is none."""
        if self._node is None or listener not in self._node.addresses:
            raise NotRunning(f"the broker has no listener {listener} at present")
        return self._node.addresses[listener]

    @property
    def kafka_address(self) -> str:
        """HOST:PORT, as Kafka's clients want it for `bootstrap.servers`. Raises NotRunning where it does not listen."""
        return str(ListenAddress(*self.address("kafka")))

    @property
    def amqp_url(self) -> str:
        """For any AMQP 0-9-1 client, with the default user, at the virtual host `/`."""
        host, port = self.address("amqp")
        user = quote(self.settings.default_user, safe="")
        password = quote(self.settings.default_password.get_secret_value(), safe="")
        return f"amqp://{user}:{password}@{f'[{host}]' if ':' in host else host}:{port}/%2F"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
