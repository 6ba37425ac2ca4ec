"""`millpond publish` and `millpond consume`, against a broker."""

from __future__ import annotations

import io
import json

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from millpond.cli import run
from tests.support.endpoint import Endpoint
from tests.support.pika_client import Unique

CapturedBytes = pytest.CaptureFixture[bytes]


@pytest.fixture(autouse=True)
def _broker_url(broker: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_URL", f"amqp://{broker.username}:{broker.password}@{broker.host}:{broker.port}/%2F")


class _Input:
    """Standard input, of which only the bytes are read."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_a_published_message_has_the_properties_that_were_asked_for(channel: BlockingChannel, queue: str) -> None:
    options = ["--routing-key", queue, "-H", "colour=blue", "-H", "empty=", "--content-type", "text/plain"]
    assert run(["publish", "h\N{LATIN SMALL LETTER O WITH DIAERESIS}i", "--persistent", *options]) == 0
    _, properties, body = channel.basic_get(queue, auto_ack=True)
    assert body == "h\N{LATIN SMALL LETTER O WITH DIAERESIS}i".encode()
    assert properties.headers == {"colour": "blue", "empty": ""}
    assert (properties.delivery_mode, properties.content_type) == (2, "text/plain")


def test_standard_input_is_one_message_or_one_a_line(
    channel: BlockingChannel, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", _Input(b"a\nb\n"))
    assert run(["publish", "-k", queue]) == 0
    monkeypatch.setattr("sys.stdin", _Input(b"c\nd"))
    assert run(["publish", "-k", queue, "--lines"]) == 0
    assert [channel.basic_get(queue, auto_ack=True)[2] for _ in range(3)] == [b"a\nb\n", b"c", b"d"]


def test_consume_takes_as_many_messages_as_asked_for(
    channel: BlockingChannel, queue: str, capfdbinary: CapturedBytes
) -> None:
    for body in (b"1", b"2", b"\xff"):
        channel.basic_publish("", queue, body)
    assert run(["consume", queue, "--count", "2"]) == 0
    assert capfdbinary.readouterr().out == b"1\n2\n"
    assert run(["consume", queue, "--count", "1", "--format", "json"]) == 0
    shown = json.loads(capfdbinary.readouterr().out)
    assert (shown["routing_key"], shown["body_base64"], shown["redelivered"]) == (queue, "/w==", False)


def test_consume_can_put_the_messages_back(channel: BlockingChannel, queue: str, capfdbinary: CapturedBytes) -> None:
    channel.basic_publish("", queue, b"stays")
    assert run(["consume", queue, "--requeue", "--timeout", "0.1"]) == 0
    assert run(["consume", queue, "--timeout", "0.1"]) == 0
    assert run(["consume", queue, "--timeout", "0.1"]) == 0
    assert capfdbinary.readouterr().out == b"stays\nstays\n"


def test_consume_reads_a_stream_from_where_it_is_told(
    channel: BlockingChannel, unique: Unique, capfdbinary: CapturedBytes
) -> None:
    stream = unique("stream")
    channel.queue_declare(stream, durable=True, arguments={"x-queue-type": "stream"})
    channel.confirm_delivery()
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", stream, body)
    for _ in range(2):
        assert run(["consume", stream, "--offset", "first", "--count", "3"]) == 0
        assert capfdbinary.readouterr().out == b"1\n2\n3\n"
    assert run(["consume", stream, "--offset", "1", "--count", "1", "--format", "json"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["properties"]["headers"] == {"x-stream-offset": 1}
    assert run(["consume", stream, "--offset", "1h", "--timeout", "0.2"]) == 0
    assert capfdbinary.readouterr().out == b"1\n2\n3\n"
    assert run(["consume", stream, "--offset", "soon"]) == 65
    assert b"invalid arg 'x-stream-offset'" in capfdbinary.readouterr().err
    assert run(["consume", stream, "--requeue", "--timeout", "0.1"]) == 65
    assert b"consumer prefetch count is not set for stream" in capfdbinary.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["consume", "absent"], 66, b"no queue 'absent' in vhost '/'"),
        (["publish", "x", "--exchange", "absent"], 66, b"no exchange 'absent' in vhost '/'"),
        (["publish", "x", "--routing-key", "absent", "--mandatory"], 66, b"no queue takes the message"),
        (["publish", "x", "--url", "amqp://guest:guest@127.0.0.1:1/"], 69, b"no broker answers at 127.0.0.1:1"),
    ],
)
def test_what_the_broker_refuses_is_told_in_one_line(
    arguments: list[str], code: int, text: bytes, capfdbinary: CapturedBytes
) -> None:
    assert run(arguments) == code
    assert capfdbinary.readouterr().err == b"millpond: " + text + b"\n"


def test_a_refused_login_does_not_show_the_password(broker: Endpoint, capfdbinary: CapturedBytes) -> None:
    url = f"amqp://guest:hunter2@{broker.host}:{broker.port}/"
    assert run(["publish", "x", "--url", url]) == 77
    told = capfdbinary.readouterr().err
    assert b"refused the login of guest" in told
    assert b"hunter2" not in told
