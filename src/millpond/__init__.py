"""Millpond: one broker for queues and streams that the clients people already have connect to unmodified.

    async with millpond.Broker(data_dir=None, amqp="127.0.0.1:0") as broker:
        print(broker.amqp_url)

Importing this package is cheap: what a name needs is loaded when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millpond.embedded import Broker as Broker

__version__ = "0.1.0"
__all__ = ["Broker", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Broker":
        from millpond.embedded import Broker

        return Broker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
