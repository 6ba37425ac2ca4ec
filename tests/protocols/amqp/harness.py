"""A whole broker without a socket, a thread or a clock: tests push bytes in and look at what comes out.

`Pond` is a broker that keeps nothing, on a clock that stands still; `Client` is one connection to it. What a client
sends takes effect at once, what the broker answers is there after the end of the turn, which `Client.frames` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from millpond.base.clock import ManualClock
from millpond.base.limits import CHANNELS_PER_CONNECTION_MAX, FRAME_BYTES_MAX, HANDSHAKE_TIMEOUT_MS, MESSAGE_BYTES_MAX
from millpond.broker.access import Access
from millpond.broker.broker import DEFAULT_VHOST, Broker
from millpond.broker.commits import Alarms, Commits
from millpond.broker.ledger import Ledger
from millpond.broker.memory import MemoryBudget
from millpond.broker.queues.page_store import PageStore
from millpond.broker.turn import Turn
from millpond.catalog.catalog import Catalog
from millpond.protocols.amqp import methods, registry
from millpond.protocols.amqp.connection import Connection, ConnectionSettings
from millpond.protocols.amqp.methods import Method, decode_method, encode_method
from millpond.protocols.transport import Transport

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"
NO_PROPERTIES = b"\x00\x00"
PLAIN_GUEST = b"\0guest\0guest"
CAPABILITIES: dict[str, object] = {
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
    "publisher_confirms": True,
}
# Turns that a broker may take to come to rest.
TURNS_MAX = 10_000

M = TypeVar("M", bound=Method)


class Frame(NamedTuple):
    kind: int
    channel: int
    payload: bytes

    @property
    def method(self) -> Method:
        assert self.kind == METHOD, f"expected a method, got {self}"
        return decode_method(self.payload)


class Message(NamedTuple):
    """A method with content: a delivery, an answer to basic.get, a returned message."""

    method: Method
    properties: bytes
    body: bytes


class Closed(NamedTuple):
    """A channel.close or connection.close."""

    code: int
    text: str
    method_id: int


class MemoryTransport(Transport):
    """What a client would have received so far, and what was done to its socket."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_closed = False
        self.is_aborted = False
        self.is_reading = True

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "something was written to a closed socket"
        self.sent += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def peer_host(self) -> str | None:
        return "127.0.0.1"

    def peer_port(self) -> int:
        return 40_000

    def local_address(self) -> tuple[str, int]:
        return ("127.0.0.1", 5672)

    def is_tls(self) -> bool:
        return False


class Pond:
    """A broker that keeps nothing. Its time passes and its turns end only when the test says so."""

    def __init__(
        self,
        *,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        memory_budget: int = 1 << 30,
        frame_max: int = FRAME_BYTES_MAX,
        channel_max: int = CHANNELS_PER_CONNECTION_MAX,
        heartbeat_s: int = 60,
    ) -> None:
        self.clock = ManualClock()
        self._due: list[Callable[[], None]] = []
        # What would run on a thread: (task, what to do with its result).
        self.blocking: list[tuple[Callable[[], object], Callable[[object], None]]] = []
        turn = Turn(self._due.append)
        alarms = Alarms()
        catalog = Catalog(None)
        catalog.open()
        self.catalog = catalog
        self.broker = Broker(
            turn,
            self.clock,
            Ledger(),
            MemoryBudget(memory_budget),
            PageStore(None, "", self._due.append),
            catalog,
            Access(catalog),
            alarms,
            Commits(alarms),
            lambda task, done: self.blocking.append((task, done)),
            message_bytes_max,
        )
        self.broker.create_vhost(DEFAULT_VHOST)
        self.broker.access.create_default_user()
        catalog.commit()
        self.handlers = registry.load(10_000)
        self.settings = ConnectionSettings(frame_max, channel_max, heartbeat_s, HANDSHAKE_TIMEOUT_MS)

    def rest(self) -> None:
        """End turns, and do what threads would do, until nothing is due."""
        for _ in range(TURNS_MAX):
            if self._due:
                due, self._due[:] = list(self._due), []
                for callback in due:
                    callback()
            elif self.blocking:
                task, done = self.blocking.pop(0)
                done(task())
            else:
                return
        raise AssertionError(f"the broker does not come to rest in {TURNS_MAX} turns")

    def client(self, **options: Any) -> Client:
        """A client whose connection is open."""
        client = Client(self)
        client.open(**options)
        return client

    def close(self) -> None:
        self.catalog.close()
        self.broker.store.close()


class Client:
    """One connection. It checks that what it receives is well formed, and that the broker never admits to a bug."""

    def __init__(self, pond: Pond) -> None:
        self.pond = pond
        self.transport = MemoryTransport()
        self.connection = Connection(pond.broker, self.transport, pond.settings, pond.handlers)
        self._parsed = 0

    # --- bytes

    def feed(self, data: bytes) -> None:
        """Bytes arrive at the broker. The turn does not end."""
        self.connection.receive(data)

    def output(self) -> bytes:
        """All bytes that were ever sent to this client."""
        self.pond.rest()
        return bytes(self.transport.sent)

    def frames(self) -> list[Frame]:
        """The frames that came since the last call, after the end of the turn."""
        self.pond.rest()
        data = bytes(self.transport.sent[self._parsed :])
        self._parsed = len(self.transport.sent)
        found = list(parse(data))
        for frame in found:
            check_no_bug(frame)
        return found

    # --- methods and messages

    def send(self, channel: int, *sent: Method) -> None:
        self.feed(b"".join([method_frame(channel, method) for method in sent]))

    def publish(self, channel: int, routing_key: str, body: bytes = b"x", **options: Any) -> None:
        self.feed(publish_frames(channel, routing_key, body, **options))

    def methods(self) -> list[Method]:
        return [frame.method for frame in self.frames()]

    def expect(self, kind: type[M], channel: int | None = None) -> M:
        """What has come since is one method of this kind."""
        found = self.frames()
        assert len(found) == 1, f"expected one {kind.__name__}, got {[describe(frame) for frame in found]}"
        assert channel is None or found[0].channel == channel
        method = found[0].method
        assert isinstance(method, kind), f"expected {kind.__name__}, got {method}"
        return method

    def call(self, channel: int, method: Method, answer: type[M]) -> M:
        self.send(channel, method)
        return self.expect(answer, channel)

    def messages(self) -> list[Message]:
        """What has come since is methods with content only."""
        return list(assemble(self.frames()))

    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages()]

    # --- the usual conversation

    def open(
        self,
        *,
        channels: int = 0,
        heartbeat: int = 0,
        frame_max: int | None = None,
        channel_max: int | None = None,
        capabilities: dict[str, object] | None = None,
    ) -> None:
        self.start(capabilities)
        tune = self.expect(methods.ConnectionTune)
        self.send(
            0,
            methods.ConnectionTuneOk(
                channel_max=tune.channel_max if channel_max is None else channel_max,
                frame_max=tune.frame_max if frame_max is None else frame_max,
                heartbeat=heartbeat,
            ),
        )
        self.call(0, methods.ConnectionOpen(virtual_host="/"), methods.ConnectionOpenOk)
        for number in range(1, channels + 1):
            self.open_channel(number)

    def start(
        self, capabilities: dict[str, object] | None = None, mechanism: str = "PLAIN", response: bytes = PLAIN_GUEST
    ) -> None:
        self.feed(PROTOCOL_HEADER)
        self.expect(methods.ConnectionStart)
        self.send(
            0,
            methods.ConnectionStartOk(
                client_properties={"capabilities": CAPABILITIES if capabilities is None else capabilities},
                mechanism=mechanism,
                response=response,
            ),
        )

    def open_channel(self, number: int) -> None:
        self.call(number, methods.ChannelOpen(), methods.ChannelOpenOk)

    def declare(self, channel: int, name: str, **options: Any) -> None:
        self.call(channel, methods.QueueDeclare(queue=name, **options), methods.QueueDeclareOk)

    def ready(self, channel: int, queue: str) -> int:
        """How many messages wait in a queue."""
        return self.call(channel, methods.QueueDeclare(queue=queue, passive=True), methods.QueueDeclareOk).message_count

    def consume(self, channel: int, queue: str, tag: str = "c", **options: Any) -> None:
        """Start to consume. What is delivered at once is there for the next call of `messages`."""
        self.send(channel, methods.BasicConsume(queue=queue, consumer_tag=tag, **options))
        self.pond.rest()
        end = self._parsed + 7 + int.from_bytes(self.transport.sent[self._parsed + 3 : self._parsed + 7], "big") + 1
        (answer,) = parse(bytes(self.transport.sent[self._parsed : end]))
        self._parsed = end
        assert answer == Frame(METHOD, channel, encode_method(methods.BasicConsumeOk(consumer_tag=tag)))

    # --- what ends it

    def expect_channel_closed(self, channel: int) -> Closed:
        """The channel is closed by the broker; the connection lives on, which is tried out. The close is answered."""
        close = self.expect(methods.ChannelClose, channel)
        assert not self.transport.is_closed
        self.send(channel, methods.ChannelCloseOk())
        self.open_channel(channel)
        return _closed(close)

    def expect_closed(self) -> Closed:
        """The connection is closed by the broker, with a reason, which is the last that it says. It is answered."""
        found = self.frames()
        assert found, "the broker says nothing"
        close = found[-1].method
        assert isinstance(close, methods.ConnectionClose), f"expected a close, got {close}"
        assert found[-1].channel == 0
        transport = self.transport
        assert not transport.is_closed, "the reason has no time to arrive"
        self.send(0, methods.ConnectionCloseOk())
        assert self.frames() == []
        assert self.transport.is_closed
        return _closed(close)

    def drop(self) -> None:
        """The socket is gone."""
        self.transport.is_closed = True
        self.connection.lost()
        self.pond.rest()


def _closed(close: methods.ConnectionClose | methods.ChannelClose) -> Closed:
    return Closed(close.reply_code, close.reply_text, close.failing_class_id << 16 | close.failing_method_id)


# --- frames as bytes --------------------------------------------------------------------------------------------------


def frame(kind: int, channel: int, payload: bytes, end: bytes = b"\xce") -> bytes:
    return bytes([kind]) + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big") + payload + end


def method_frame(channel: int, method: Method) -> bytes:
    return frame(METHOD, channel, encode_method(method))


def header_frame(channel: int, body_bytes: int, properties: bytes = NO_PROPERTIES, content_class: int = 60) -> bytes:
    payload = content_class.to_bytes(2, "big") + b"\0\0" + body_bytes.to_bytes(8, "big") + properties
    return frame(HEADER, channel, payload)


def publish_frames(
    channel: int,
    routing_key: str,
    body: bytes = b"x",
    *,
    exchange: str = "",
    mandatory: bool = False,
    immediate: bool = False,
    properties: bytes = NO_PROPERTIES,
    frame_max: int = FRAME_BYTES_MAX,
) -> bytes:
    method = methods.BasicPublish(exchange=exchange, routing_key=routing_key, mandatory=mandatory, immediate=immediate)
    room = frame_max - 8
    parts = [body[start : start + room] for start in range(0, len(body), room)]
    return b"".join(
        [
            method_frame(channel, method),
            header_frame(channel, len(body), properties),
            *[frame(BODY, channel, part) for part in parts],
        ]
    )


def parse(data: bytes) -> Iterator[Frame]:
    """The frames in what the broker sent, which must be whole."""
    position = 0
    while position < len(data):
        kind, channel = data[position], int.from_bytes(data[position + 1 : position + 3], "big")
        end = position + 7 + int.from_bytes(data[position + 3 : position + 7], "big")
        assert kind in (METHOD, HEADER, BODY, HEARTBEAT), f"no frame at {position}: {data[position : position + 32]!r}"
        assert data[end : end + 1] == b"\xce", f"a frame does not end at {end}"
        yield Frame(kind, channel, data[position + 7 : end])
        position = end + 1


def assemble(frames: list[Frame]) -> Iterator[Message]:
    """Methods with their content. Nothing may be between a method and its content, not even of another channel."""
    position = 0
    while position < len(frames):
        method = frames[position].method
        channel = frames[position].channel
        assert method.has_content, f"expected a message, got {method}"
        header = frames[position + 1]
        assert (header.kind, header.channel) == (HEADER, channel)
        size = int.from_bytes(header.payload[4:12], "big")
        position += 2
        body = b""
        while len(body) < size:
            assert (frames[position].kind, frames[position].channel) == (BODY, channel)
            body += frames[position].payload
            position += 1
        assert len(body) == size
        yield Message(method, header.payload[12:], body)


def describe(found: Frame) -> str:
    return str(found.method) if found.kind == METHOD else str(found)


def check_no_bug(found: Frame) -> None:
    """INTERNAL_ERROR is how the broker answers to an exception that it did not expect."""
    if found.kind == METHOD:
        method = found.method
        if isinstance(method, methods.ConnectionClose | methods.ChannelClose):
            assert method.reply_code != 541, f"a bug in the broker: {method}"


@contextmanager
def pond_of(**options: int) -> Iterator[Pond]:
    pond = Pond(**options)
    try:
        yield pond
    finally:
        pond.close()
