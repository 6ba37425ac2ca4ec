"""What to do for each method that is not on the hot path.

Each AMQP class has a file in `classes/`, which puts its handlers into the tables here: a new method is a function there
and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from millpond.base.errors import ChannelFault, CommandInvalid, NotAllowed, PeerError
from millpond.broker.access import Operation
from millpond.broker.permitted import check_name, check_topic
from millpond.protocols.amqp.methods import Method, decode_method

if TYPE_CHECKING:
    from millpond.protocols.amqp.channel import Channel
    from millpond.protocols.amqp.connection import Connection

_M = TypeVar("_M", bound=Method)

# Method id -> handler.
CHANNEL_HANDLERS: Final[dict[int, Callable[[Any, Any], None]]] = {}
CONNECTION_HANDLERS: Final[dict[int, Callable[[Any, Any], None]]] = {}


def on_channel(
    method: type[_M],
) -> Callable[[Callable[[Channel, _M], None]], Callable[[Channel, _M], None]]:
    """Make a function the handler of a method on a channel."""

    def register(handler: Callable[[Channel, _M], None]) -> Callable[[Channel, _M], None]:
        CHANNEL_HANDLERS[method.method_id] = handler
        return handler

    return register


def on_connection(
    method: type[_M],
) -> Callable[[Callable[[Connection, _M], None]], Callable[[Connection, _M], None]]:
    """Make a function the handler of a method on channel 0."""

    def register(handler: Callable[[Connection, _M], None]) -> Callable[[Connection, _M], None]:
        CONNECTION_HANDLERS[method.method_id] = handler
        return handler

    return register


class MethodTable:
    """Dispatches methods to their handlers."""

    def __init__(self, connections_max: int) -> None:
        self.connections_max: Final = connections_max

    def check_connections(self, connection: Connection) -> None:
        """NotAllowed where the node has as many connections as it may have."""
        if len(connection.broker.connections) >= self.connections_max:
            raise NotAllowed(
                f"connection refused for user '{connection.user}': node connection limit ({self.connections_max}) "
                "is reached"
            )

    def handle(self, connection: Connection, channel: Channel, payload: bytes) -> None:
        """A method on an open channel."""
        method = decode_method(payload)
        handler = CHANNEL_HANDLERS.get(method.method_id)
        if handler is None:
            raise CommandInvalid("unimplemented method")
        handler(channel, method)

    def handle_connection(self, connection: Connection, method: Method) -> None:
        """A method on channel 0."""
        handler = CONNECTION_HANDLERS.get(method.method_id)
        if handler is None:
            raise ChannelFault(f"unexpected method in connection state {connection.state_name()}")
        handler(connection, method)

    def greet(self, connection: Connection) -> None:
        """The client has named the protocol: start the handshake."""
        from millpond.protocols.amqp.classes import connection as connection_class

        connection_class.greet(connection)

    def handshake_failed(self, connection: Connection, error: PeerError, method_id: int) -> None:
        """Something went wrong before the connection was open."""
        from millpond.protocols.amqp.classes import connection as connection_class

        connection_class.handshake_failed(connection, error, method_id)

    def describe(self, connection: Connection) -> dict[str, object]:
        """The connection as operators see it."""
        from millpond.protocols.amqp.classes import connection as connection_class

        return connection_class.describe(connection)

    def describe_channels(self, connection: Connection) -> list[dict[str, object]]:
        """Its channels as operators see them."""
        from millpond.protocols.amqp.classes import channel as channel_class

        return [channel_class.describe(channel) for channel in connection.channels.values()]

    def describe_place(self, channel: Channel) -> dict[str, object]:
        """What names a channel to operators."""
        from millpond.protocols.amqp.classes import channel as channel_class

        return channel_class.describe_place(channel)

    def check_write(self, connection: Connection, kind: str, name: str) -> None:
        """AccessRefused where the connection's user may not write there."""
        check(connection, Operation.WRITE, kind, name)

    def check_topics(self, connection: Connection, exchange: str, routing_keys: list[str]) -> None:
        """AccessRefused where the connection's user may not publish there with one of these routing keys."""
        if connection.vhost is not None:
            for key in routing_keys:
                check_topic(connection.access, connection.user, connection.vhost, Operation.WRITE, exchange, key)

    def may_impersonate(self, connection: Connection) -> bool:
        """Whether the user may publish in another user's name."""
        return "impersonator" in connection.access.user(connection.user).tags


def host_of(connection: Connection) -> str:
    """The address of the connection's client, of which permissions may speak."""
    return connection.transport.peer_host() or ""


def check(connection: Connection, operation: Operation, kind: str, name: str) -> None:
    """AccessRefused where the connection's user may not do `operation`."""
    if connection.vhost is not None:
        check_name(connection.access, connection.user, host_of(connection), connection.vhost, operation, kind, name)


def check_any(connection: Connection, kind: str, name: str) -> None:
    """AccessRefused where the connection's user may do nothing at all to it: what a passive declaration asks."""
    if connection.vhost is not None:
        connection.access.check_any(connection.user, connection.vhost.name, kind, name, host_of(connection))


def load(connections_max: int) -> MethodTable:
    """The table with the handlers of all classes."""
    from millpond.protocols.amqp.classes import basic, channel, confirm, connection, exchange, queue, tx

    # Importing them has filled the tables.
    del basic, channel, confirm, connection, exchange, queue, tx
    return MethodTable(connections_max)
