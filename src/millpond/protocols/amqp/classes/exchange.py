"""Class exchange, with RabbitMQ's exchange.bind and exchange.unbind."""

from __future__ import annotations

from millpond.base.errors import AccessRefused
from millpond.broker.access import Operation
from millpond.broker.permitted import check_binding, check_exchange_declaration
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.channel import Channel
from millpond.protocols.amqp.registry import check, check_any, host_of, on_channel


def without_line_breaks(name: str) -> str:
    """RabbitMQ drops line breaks from names that clients read from files."""
    return name.replace("\r", "").replace("\n", "")


@on_channel(methods.ExchangeDeclare)
def declare(channel: Channel, method: methods.ExchangeDeclare) -> None:
    name = without_line_breaks(method.exchange)
    vhost = channel.vhost
    connection = channel.connection
    if not name:
        raise AccessRefused("operation not permitted on the default exchange")
    if method.passive:
        check_any(connection, "exchange", name)
        vhost.exchange(name)
    else:
        check_exchange_declaration(
            connection.access, connection.user, host_of(connection), vhost, name, method.arguments
        )
        vhost.declare_exchange(name, method.type, method.durable, method.auto_delete, method.internal, method.arguments)
    if not method.nowait:
        connection.send(channel.number, methods.ExchangeDeclareOk())


@on_channel(methods.ExchangeDelete)
def delete(channel: Channel, method: methods.ExchangeDelete) -> None:
    name = without_line_breaks(method.exchange)
    if name:
        check(channel.connection, Operation.CONFIGURE, "exchange", name)
    channel.vhost.delete_exchange(name, method.if_unused)
    if not method.nowait:
        channel.connection.send(channel.number, methods.ExchangeDeleteOk())


@on_channel(methods.ExchangeBind)
def bind(channel: Channel, method: methods.ExchangeBind) -> None:
    source, destination = _ends(channel, method.source, method.destination, method.routing_key)
    vhost = channel.vhost
    vhost.bind(vhost.exchange(source), vhost.exchange_bound(destination), method.routing_key, method.arguments)
    if not method.nowait:
        channel.connection.send(channel.number, methods.ExchangeBindOk())


@on_channel(methods.ExchangeUnbind)
def unbind(channel: Channel, method: methods.ExchangeUnbind) -> None:
    source, destination = _ends(channel, method.source, method.destination, method.routing_key)
    vhost = channel.vhost
    vhost.unbind(vhost.exchange(source), vhost.exchange_bound(destination), method.routing_key, method.arguments)
    if not method.nowait:
        channel.connection.send(channel.number, methods.ExchangeUnbindOk())


def _ends(channel: Channel, source: str, destination: str, routing_key: str) -> tuple[str, str]:
    """The two names, which the user must be allowed to read from and write to."""
    source, destination = without_line_breaks(source), without_line_breaks(destination)
    if not source or not destination:
        raise AccessRefused("operation not permitted on the default exchange")
    connection = channel.connection
    check_binding(
        connection.access,
        connection.user,
        host_of(connection),
        channel.vhost,
        "exchange",
        destination,
        source,
        routing_key,
    )
    return source, destination
