"""Class connection: the handshake, closing, and what may change on an open connection.

Behaviour: AMQP 0-9-1, 4.2, with RabbitMQ's extensions (authentication_failure_close, connection.blocked,
update-secret). Passwords are verified on a thread; meanwhile the connection handles nothing.

Not implemented: the mechanism RABBIT-CR-DEMO.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from millpond import __version__
from millpond.base.certificate import distinguished_name
from millpond.base.errors import AccessRefused, ChannelFault, CommandInvalid, NotAllowed, NotFound, PeerError
from millpond.base.limits import FRAME_BYTES_MIN
from millpond.broker.access import Operation
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.authentication import EXTERNAL, MECHANISMS, Credentials, external_name, offered
from millpond.protocols.amqp.connection import (
    AUTHENTICATING,
    AWAIT_OPEN,
    AWAIT_START_OK,
    AWAIT_TUNE_OK,
    OPEN,
    Connection,
)
from millpond.protocols.amqp.registry import check, on_connection
from millpond.protocols.amqp.replies import ACCESS_REFUSED, reply_for

logger = logging.getLogger(__name__)

# Clients also read what the server can not do: kombu takes 4.0 and later for servers without a prefetch limit per
# channel, and then delayed Celery tasks keep others waiting. It is there, so this names the last version that had it.
BEHAVES_LIKE_RABBITMQ: Final = "3.13.7"

CAPABILITIES: Final[dict[str, object]] = {
    "publisher_confirms": True,
    "exchange_exchange_bindings": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
    "per_consumer_qos": True,
    "consumer_priorities": True,
    "direct_reply_to": True,
}


def greet(connection: Connection) -> None:
    """Send `connection.start`."""
    connection.send(
        0,
        methods.ConnectionStart(
            version_major=0,
            version_minor=9,
            server_properties={
                "capabilities": CAPABILITIES,
                "cluster_name": "millpond",
                # Clients read from product and version how the server behaves: kombu sends the wrong kind of
                # basic.qos to anything that is not called RabbitMQ. So this says whose behaviour to expect.
                "product": "RabbitMQ",
                "version": BEHAVES_LIKE_RABBITMQ,
                "platform": f"Millpond {__version__}",
                "information": "Licensed under the Apache License 2.0",
            },
            mechanisms=" ".join(offered(connection)).encode(),
            locales=b"en_US",
        ),
    )


def _expect(connection: Connection, state: int) -> None:
    if connection.state != state:
        raise ChannelFault(f"unexpected method in connection state {connection.state_name()}")


@on_connection(methods.ConnectionStartOk)
def start_ok(connection: Connection, method: methods.ConnectionStartOk) -> None:
    _expect(connection, AWAIT_START_OK)
    connection.client_properties = method.client_properties
    capabilities = method.client_properties.get("capabilities")
    connection.capabilities = capabilities if isinstance(capabilities, dict) else {}
    if method.mechanism == EXTERNAL:
        connection.mechanism = EXTERNAL
        _log_in_by_certificate(connection)
        return
    read = MECHANISMS.get(method.mechanism)
    if read is None:
        raise CommandInvalid(f"unknown authentication mechanism '{method.mechanism}'")
    connection.mechanism = method.mechanism
    credentials = read(method.response)
    connection.access.check_address(credentials.name, connection.transport.peer_host())
    access = connection.access
    if access.is_known_login(credentials.name, credentials.password):
        _authenticated(connection, credentials.name, True)
        return
    connection.state = AUTHENTICATING
    connection.suspend()
    clock = connection.broker.clock
    host = connection.transport.peer_host()
    wait_ms = access.failed_logins.wait_ms(host, credentials.name, clock.monotonic_ms())
    if wait_ms is None:
        _authenticated(connection, credentials.name, False)
    elif wait_ms > 0:
        clock.call_later(wait_ms, partial(_verify, connection, credentials))
    else:
        _verify(connection, credentials)


def _verify(connection: Connection, credentials: Credentials) -> None:
    if connection.state != AUTHENTICATING:
        return
    connection.broker.run_blocking(
        partial(connection.access.verify_password, credentials.name, credentials.password),
        lambda result: _authenticated(connection, credentials.name, result is True),
    )


def _log_in_by_certificate(connection: Connection) -> None:
    name = external_name(connection)
    connection.access.check_address(name, connection.transport.peer_host())
    _authenticated(connection, name, connection.access.exists(name))


def _authenticated(connection: Connection, user: str, is_right: bool) -> None:
    if connection.state not in (AWAIT_START_OK, AUTHENTICATING):
        return
    if is_right:
        connection.user = user
        connection.state = AWAIT_TUNE_OK
        settings = connection.settings
        connection.send(
            0,
            methods.ConnectionTune(
                channel_max=settings.channels_max, frame_max=settings.frame_bytes_max, heartbeat=settings.heartbeat_s
            ),
        )
    else:
        logger.warning("%s: login refused for user %r", connection.describe_peer(), user)
        clock, host = connection.broker.clock, connection.transport.peer_host()
        delay_ms = connection.access.failed_logins.failed(host, user, clock.monotonic_ms())
        if delay_ms > 0:
            connection.suspend()
            clock.call_later(delay_ms, partial(_refuse, connection))
        else:
            _refuse(connection)
        return
    connection.go_on()


def _refuse(connection: Connection) -> None:
    if connection.state in (AWAIT_START_OK, AUTHENTICATING):
        connection.state = AWAIT_START_OK
        refuse_login(connection)
        connection.go_on()


def refuse_login(connection: Connection) -> None:
    """The credentials are wrong. Which part of them is not told."""
    text = (
        f"Login was refused using authentication mechanism {connection.mechanism}. For details see the broker logfile."
    )
    if connection.capabilities.get("authentication_failure_close") is True:
        connection.close_with(ACCESS_REFUSED, text)
    else:
        # AMQP 0-9-1, 4.2.2: an older client is told nothing.
        connection.transport.close()
        connection.lost()


def handshake_failed(connection: Connection, error: PeerError, method_id: int) -> None:
    """An error in method `method_id`, before the connection was open, closes it."""
    logger.warning("%s: handshake failed: %s", connection.describe_peer(), error)
    if connection.state == AWAIT_START_OK and isinstance(error, AccessRefused):
        refuse_login(connection)
    else:
        connection.close_with(reply_for(error), str(error), method_id)


@on_connection(methods.ConnectionTuneOk)
def tune_ok(connection: Connection, method: methods.ConnectionTuneOk) -> None:
    _expect(connection, AWAIT_TUNE_OK)
    settings = connection.settings
    frame_max = _negotiated("frame_max", method.frame_max, int(settings.frame_bytes_max))
    channel_max = _negotiated("channel_max", method.channel_max, int(settings.channels_max))
    if frame_max < FRAME_BYTES_MIN:
        raise NotAllowed(
            f"negotiated frame_max = {frame_max} is lower than the minimum allowed value ({FRAME_BYTES_MIN})"
        )
    connection.tuned(frame_max, channel_max, method.heartbeat)


def _negotiated(name: str, asked: int, granted: int) -> int:
    """0 asks for no limit, which is what the server grants at the most."""
    if asked > granted:
        raise NotAllowed(f"negotiated {name} = {asked} is higher than the maximum allowed value ({granted})")
    return asked or granted


@on_connection(methods.ConnectionOpen)
def open_(connection: Connection, method: methods.ConnectionOpen) -> None:
    _expect(connection, AWAIT_OPEN)
    name = method.virtual_host
    try:
        vhost = connection.broker.vhost(name)
    except NotFound:
        raise NotAllowed(f"vhost {name} not found") from None
    connection.access.check_vhost(connection.user, name)
    connection.handlers.check_connections(connection)
    connection.broker.parameters.check_connection(connection.broker.connections, connection.user, vhost)
    connection.opened(vhost)
    connection.send(0, methods.ConnectionOpenOk())


@on_connection(methods.ConnectionClose)
def close(connection: Connection, method: methods.ConnectionClose) -> None:
    connection.closed_by_client()


@on_connection(methods.ConnectionUpdateSecret)
def update_secret(connection: Connection, method: methods.ConnectionUpdateSecret) -> None:
    """Behaviour: it is for credentials that expire. Passwords do not, so any secret will do (RabbitMQ's own users).

    What the user may do is looked at again: consumers that may no longer read their queue are cancelled.
    """
    _expect(connection, OPEN)
    vhost = connection.vhost_name()
    connection.access.check_vhost(connection.user, vhost)
    for channel in connection.channels.values():
        for consumer in list(channel.consumers.values()):
            if consumer.queue is channel.reply_queue:
                continue
            try:
                check(connection, Operation.READ, "queue", consumer.queue.name)
            except AccessRefused as error:
                logger.warning("%s: consumer '%s' cancelled: %s", connection.describe_peer(), consumer.tag, error)
                channel.cancel(consumer)
    connection.send(0, methods.ConnectionUpdateSecretOk())


def describe(connection: Connection) -> dict[str, object]:
    """The connection under the names of RabbitMQ's management API."""
    host, port = connection.transport.local_address()
    peer_host, peer_port = connection.transport.peer_host(), connection.transport.peer_port()
    certificate = connection.transport.peer_certificate()
    return {
        "name": connection.name,
        "type": "network",
        "protocol": connection.protocol,
        "user": connection.user,
        "vhost": connection.vhost.name if connection.vhost is not None else "",
        "state": "blocked" if connection.is_blocked else "running",
        "channels": len(connection.channels),
        "channel_max": int(connection.channels_max),
        "frame_max": int(connection.frame_bytes_max),
        "timeout": int(connection.heartbeat_s),
        "auth_mechanism": connection.mechanism,
        "ssl": connection.transport.is_tls(),
        "peer_cert_subject": distinguished_name(certificate.subject) if certificate is not None else "",
        "peer_cert_issuer": distinguished_name(certificate.issuer) if certificate is not None else "",
        "peer_host": peer_host,
        "peer_port": peer_port,
        "host": host,
        "port": port,
        "connected_at": int(connection.connected_ms),
        "recv_oct": int(connection.received_bytes),
        "send_oct": int(connection.sent_bytes),
        "client_properties": connection.client_properties,
    }
