"""Puts the management API to a node: on its TCP listener, where there is one, and on the data directory's socket."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from millpond.admin.server import AdminServer
from millpond.admin.views import Node
from millpond.broker.broker import Broker
from millpond.broker.message import Properties
from millpond.config import Settings
from millpond.protocols.amqp.classes.connection import BEHAVES_LIKE_RABBITMQ
from millpond.protocols.amqp.properties import encode_properties, parse_properties
from millpond.server.data_directory import ADMIN_SOCKET, bind_admin_socket

logger = logging.getLogger(__name__)


def administration(
    broker: Broker,
    settings: Settings,
    listener: socket.socket | None,
    addresses: Callable[[], Mapping[str, tuple[str, int]]],
) -> AdminServer:
    """The management API of this broker, not started yet. `listener` is bound already and is closed by it.

    A broker in memory has no directory, and so no socket of that kind.
    """
    unix_socket = None
    if not settings.memory:
        try:
            unix_socket = bind_admin_socket(settings.data)
        except OSError as error:
            # Some file systems hold no sockets. The broker does not need one to do its work.
            logger.warning("the operator's commands cannot reach this broker: %s", error)
    node = Node(
        name=f"millpond@{socket.gethostname()}",
        started_ms=broker.clock.monotonic_ms(),
        addresses=addresses,
        rabbitmq_version=BEHAVES_LIKE_RABBITMQ,
        disk_free=partial(_disk_free, settings),
        disk_free_min=settings.disk_free_min,
        connections_max=settings.connections_max,
    )
    return AdminServer(broker, node, listener, unix_socket, settings.data / ADMIN_SOCKET, _amqp_properties)


def _disk_free(settings: Settings) -> int | None:
    if settings.memory:
        return None
    try:
        return shutil.disk_usage(settings.data).free
    except OSError:
        return None


def _amqp_properties(values: dict[str, Any]) -> Properties:
    return parse_properties(encode_properties(**values))
