"""`millpond publish` and `millpond consume`: messages from and to the terminal, as any AMQP 0-9-1 client would."""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from millpond.base.errors import (
    AccessRefused,
    ConfigurationError,
    MillpondError,
    NotFound,
    NotRunning,
    PeerError,
    PreconditionFailed,
)

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

DEFAULT_URL: Final = "amqp://guest:guest@127.0.0.1:5672/%2F"
# Deliveries under way while they are printed: enough to keep the connection busy.
PREFETCH: Final = 100
# The most that AMQP can say.
PREFETCH_MAX: Final = 65_535

Url = Annotated[
    str | None,
    typer.Option(
        help=f"The broker, amqp://USER:PASSWORD@HOST:PORT/VHOST. Default: MILLPOND_URL, or {DEFAULT_URL}.",
        show_default=False,
    ),
]


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


def register(application: typer.Typer) -> None:
    application.command("publish")(publish)
    application.command("consume")(consume)


def publish(
    body: Annotated[str | None, typer.Argument(help="The message; standard input where it is left out.")] = None,
    exchange: Annotated[str, typer.Option(help="The exchange; the default exchange where it is left out.")] = "",
    routing_key: Annotated[str, typer.Option("--routing-key", "-k", help="The routing key, or the queue's name.")] = "",
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="A header, NAME=VALUE.")] = None,
    content_type: Annotated[str | None, typer.Option(help="The content type.")] = None,
    persistent: Annotated[bool, typer.Option("--persistent", help="Have it survive a restart.")] = False,
    mandatory: Annotated[bool, typer.Option(help="Fail where no queue takes it; needs --confirm.")] = True,
    confirm: Annotated[bool, typer.Option(help="Wait until the broker has taken responsibility.")] = True,
    lines: Annotated[bool, typer.Option("--lines", help="Each line of standard input is a message.")] = False,
    url: Url = None,
) -> None:
    """Publish a message, or one a line."""
    import pika

    if lines and body is not None:
        raise typer.BadParameter("--lines reads standard input, so there is no BODY to give")
    properties = pika.BasicProperties(
        headers=_headers(header or []),
        content_type=content_type,
        delivery_mode=pika.DeliveryMode.Persistent.value if persistent else pika.DeliveryMode.Transient.value,
    )
    with _channel(url) as channel:
        if confirm:
            channel.confirm_delivery()
        for message in _bodies(body, lines):
            channel.basic_publish(exchange, routing_key, message, properties, mandatory=mandatory and confirm)


def _headers(given: list[str]) -> dict[str, Any] | None:
    headers = {}
    for header in given:
        name, equals, value = header.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{header!r} is not a header: write NAME=VALUE")
        headers[name] = value
    return headers or None


def _bodies(body: str | None, lines: bool) -> Iterator[bytes]:
    if body is not None:
        # What the shell could not decode goes out as the bytes that it was.
        yield os.fsencode(body)
    elif lines:
        for line in sys.stdin.buffer:
            yield line.removesuffix(b"\n")
    else:
        yield sys.stdin.buffer.read()


def consume(
    queue: Annotated[str, typer.Argument(help="The queue.")],
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many messages.")] = None,
    ack: Annotated[bool, typer.Option("--ack/--requeue", help="Take the messages, or put them back.")] = True,
    output: Annotated[Format, typer.Option("--format", help="Bodies only, or a JSON object a line.")] = Format.TEXT,
    timeout: Annotated[float | None, typer.Option(help="End when nothing came for so many seconds.")] = None,
    offset: Annotated[
        str | None,
        typer.Option(help="Of a stream: begin with first, last, next, a number, or what came in the last 1h, 7D..."),
    ] = None,
    url: Url = None,
) -> None:
    """Print the messages of a queue as they come, until --count or --timeout or Ctrl-C."""
    # A stream keeps its messages: there an acknowledgement only asks for more.
    ack = ack or offset is not None
    arguments: dict[str, Any] | None = None
    if offset is not None:
        arguments = {"x-stream-offset": int(offset) if offset.isascii() and offset.isdigit() else offset}
    with _channel(url) as channel:
        # Messages that are put back stay unacknowledged until the end: otherwise they would come again at once.
        prefetch = min(count or PREFETCH, PREFETCH) if ack else min(count or 0, PREFETCH_MAX)
        channel.basic_qos(prefetch_count=prefetch)
        held = 0
        try:
            arrivals = channel.consume(queue, inactivity_timeout=timeout, arguments=arguments)
            for printed, (method, properties, body) in enumerate(arrivals, 1):
                if method is None:
                    break
                _print(output, method, properties, body)
                held = method.delivery_tag if ack else 0
                # Each acknowledgement brings one message more. Towards the end none is wanted: the last ones are
                # acknowledged together, so that none comes only to be given back and marked as redelivered.
                if held and (count is None or printed + prefetch <= count):
                    channel.basic_ack(held)
                    held = 0
                if printed == count:
                    break
        finally:
            # In this order: an acknowledgement before the cancel would bring one message more.
            if channel.is_open:
                channel.cancel()
            if held and channel.is_open:
                channel.basic_ack(held, multiple=True)


def _print(output: Format, method: Any, properties: Any, body: bytes) -> None:
    if output is Format.TEXT:
        sys.stdout.buffer.write(body + b"\n")
    else:
        shown: dict[str, object] = {
            "exchange": method.exchange,
            "routing_key": method.routing_key,
            "redelivered": method.redelivered,
            "properties": {name: value for name, value in vars(properties).items() if value is not None},
        }
        try:
            shown["body"] = body.decode()
        except UnicodeDecodeError:
            shown["body_base64"] = base64.b64encode(body).decode()
        sys.stdout.buffer.write(json.dumps(shown, default=_plain, ensure_ascii=False).encode() + b"\n")
    # Who reads along in a pipe sees a message before it is acknowledged.
    sys.stdout.buffer.flush()


def _plain(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


@contextmanager
def _channel(url: str | None) -> Iterator[BlockingChannel]:
    """A channel of a connection of its own. What goes wrong on it comes out as an error of ours."""
    import pika
    import pika.exceptions as refusals

    # It tells on its own, in many lines, what is told here in one.
    logging.getLogger("pika").setLevel(logging.CRITICAL + 1)
    try:
        parameters = pika.URLParameters(url or os.environ.get("MILLPOND_URL") or DEFAULT_URL)
    except (ValueError, TypeError):
        raise ConfigurationError("--url: is not an address: write amqp://USER:PASSWORD@HOST:PORT/VHOST") from None
    where = f"{parameters.host}:{parameters.port}"
    try:
        with pika.BlockingConnection(parameters) as connection:
            yield connection.channel()
    except (refusals.ProbableAuthenticationError, refusals.AuthenticationError):
        raise AccessRefused(f"{where} refused the login of {_user(parameters)}") from None
    except refusals.ProbableAccessDeniedError:
        raise AccessRefused(f"{where} refused access to vhost {parameters.virtual_host}") from None
    except (refusals.ChannelClosedByBroker, refusals.ConnectionClosedByBroker) as error:
        raise _refused(error.reply_code, error.reply_text) from None
    except refusals.UnroutableError:
        raise NotFound("no queue takes the message") from None
    except refusals.NackError:
        raise PreconditionFailed("the broker did not accept the message") from None
    except refusals.ConsumerCancelled:
        raise NotFound("the queue was deleted") from None
    except (refusals.AMQPConnectionError, OSError) as error:
        if isinstance(error, BrokenPipeError) and not sys.stdout.closed:
            raise SystemExit(0) from None
        raise NotRunning(f"no broker answers at {where}") from None


def _user(parameters: Any) -> str:
    return str(getattr(parameters.credentials, "username", "this user"))


def _refused(code: int, text: str) -> MillpondError:
    kinds: dict[int, type[PeerError]] = {403: AccessRefused, 404: NotFound, 530: AccessRefused}
    # RabbitMQ's texts begin with the code's name, "NOT_FOUND - ".
    return kinds.get(code, PreconditionFailed)(text.partition(" - ")[2] or text)
