"""An AMQP 0-9-1 connection: bytes in, calls on the core, bytes out. No socket, no clock, no thread of its own.

    AWAIT_HEADER -> AWAIT_START_OK -> (AUTHENTICATING) -> AWAIT_TUNE_OK -> AWAIT_OPEN -> OPEN -> CLOSING -> CLOSED

`receive` takes whatever has arrived, handles every whole frame, and keeps the rest. What the connection has to say
collects in `output` and is written once, at the end of the turn. A peer's mistake closes its channel or the
connection, as AMQP says; it reaches nobody else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, final

from librt.strings import BytesWriter, read_i16_be, read_i32_be, read_i64_be
from mypy_extensions import i64

from millpond.base.certificate import CertificateLogin
from millpond.base.errors import (
    ChannelFault,
    CommandInvalid,
    FrameFault,
    LimitExceeded,
    NotAllowed,
    PeerError,
    PreconditionFailed,
    UnexpectedFrame,
)
from millpond.base.limits import BUFFERED_BYTES_MAX, OUTPUT_BYTES_MAX
from millpond.broker.broker import Broker, ClientConnection
from millpond.broker.commits import FLOW, Commits
from millpond.broker.ledger import Ledger
from millpond.broker.message import Message
from millpond.broker.queues.message_queue import MessageQueue
from millpond.broker.turn import Turn, TurnTask
from millpond.broker.vhost import VirtualHost
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.channel import Channel
from millpond.protocols.amqp.consumer import AmqpConsumer
from millpond.protocols.amqp.content import (
    FRAME_BODY,
    FRAME_END,
    FRAME_HEAD_BYTES,
    FRAME_HEADER,
    FRAME_HEARTBEAT,
    FRAME_METHOD,
    FRAME_OVERHEAD_BYTES,
    write_confirm,
    write_method,
    write_return,
)
from millpond.protocols.amqp.liveness import HEARTBEAT_FRAME, Liveness
from millpond.protocols.amqp.methods import Method, decode_method, encode_method
from millpond.protocols.amqp.replies import CONNECTION_FORCED, INTERNAL_ERROR, Reply, reply_for
from millpond.protocols.transport import Transport

if TYPE_CHECKING:
    from millpond.broker.access import Access
    from millpond.protocols.amqp.registry import MethodTable

logger = logging.getLogger(__name__)

AWAIT_HEADER: Final = 0
AWAIT_START_OK: Final = 1
AUTHENTICATING: Final = 2
AWAIT_TUNE_OK: Final = 3
AWAIT_OPEN: Final = 4
OPEN: Final = 5
CLOSING: Final = 6
CLOSED: Final = 7

# By the numbers above.
_STATE_NAMES: Final = (
    "handshake", "starting", "securing", "tuning", "opening", "running", "closing", "closed",
)  # fmt: skip

PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"

BASIC_PUBLISH: Final = 0x003C0028
BASIC_ACK: Final = 0x003C0050
BASIC_NACK: Final = 0x003C0078
CHANNEL_OPEN: Final = 0x0014000A
CHANNEL_CLOSE: Final = 0x00140028
CHANNEL_CLOSE_OK: Final = 0x00140029
CONNECTION_CLOSE: Final = 0x000A0032
CONNECTION_CLOSE_OK: Final = 0x000A0033

# After our connection.close the peer has this long to answer it, and after the last byte as long to read it.
CLOSE_TIMEOUT_MS: Final = 5_000

# Why no frames are handled at present: what the next ones depend on is being done elsewhere; or the client asks for
# more than it reads, and its answers must not fill the memory.
HOLD_ANSWER: Final = 1
HOLD_OUTPUT: Final = 2


@final
class ConnectionSettings:
    """What the server grants a connection."""

    def __init__(
        self,
        frame_bytes_max: i64,
        channels_max: i64,
        heartbeat_s: i64,
        handshake_timeout_ms: i64,
        certificate_login: CertificateLogin | None = None,
    ) -> None:
        self.frame_bytes_max: Final[i64] = frame_bytes_max
        self.channels_max: Final[i64] = channels_max
        self.heartbeat_s: Final[i64] = heartbeat_s
        self.handshake_timeout_ms: Final[i64] = handshake_timeout_ms
        # How a client's certificate names its user; None where clients do not log in by certificates.
        self.certificate_login: Final = certificate_login


@final
class Connection(ClientConnection, TurnTask):
    """One client's connection. `handlers` has what to do for each method that is not handled here."""

    def __init__(
        self, broker: Broker, transport: Transport, settings: ConnectionSettings, handlers: MethodTable
    ) -> None:
        self.protocol = "AMQP 0-9-1"
        self.turn_pending = False
        self.broker: Final = broker
        self.transport: Final = transport
        self.settings: Final = settings
        self.handlers: Final = handlers
        self.turn: Final[Turn] = broker.turn
        self.ledger: Final[Ledger] = broker.ledger
        self.commits: Final[Commits] = broker.commits
        self.access: Final[Access] = broker.access
        self.message_bytes_max: Final[i64] = broker.message_bytes_max

        self.state: i64 = AWAIT_HEADER
        self.user = ""
        self.vhost: VirtualHost | None = None
        self.client_properties: dict[str, object] = {}
        self.capabilities: dict[str, object] = {}
        self.mechanism = ""
        self.frame_bytes_max: i64 = settings.frame_bytes_max
        self.body_frame_bytes: i64 = settings.frame_bytes_max - FRAME_OVERHEAD_BYTES
        self.channels_max: i64 = settings.channels_max
        self.heartbeat_s: i64 = 0
        self.connected_ms: i64 = broker.clock.wall_ms()

        # By number, which a client chooses freely. The one used last is also kept here: most clients use only one.
        self.channels: dict[int, Channel] = {}
        self._channel: Channel | None = None
        self._channel_number: i64 = 0
        # Channels that we have closed, whose frames are ignored until the client agrees.
        self._closing_channels: set[int] = set()

        self.exclusive_queues: list[MessageQueue] = []
        # Consumers lost while cancels are held: their channels and tags. None while they are not.
        self._held_cancels: list[tuple[int, str]] | None = None

        self.output = BytesWriter()
        self.paused = False
        # How much has been written since the socket stopped taking it.
        self._unsent_bytes: i64 = 0
        # Consumers that wait for room, in the order in which they came.
        self._stalled: dict[AmqpConsumer, None] = {}
        self._confirms: list[Channel] = []
        self._partial = b""
        self._buffered_bytes: i64 = 0
        # About the frame that is being handled: where the next one begins, its channel, its method.
        self._next: i64 = 0
        self._number: i64 = 0
        self._method_id: i64 = 0
        self._holds: i64 = 0
        self._reading_paused = False
        self._has_published = False
        self._told_blocked = False

        self._liveness: Final = Liveness(broker.clock)
        self._liveness.expect_within(settings.handshake_timeout_ms, self._timed_out)
        self.received_bytes: i64 = 0
        self.sent_bytes: i64 = 0

    # --- Bytes in -----------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Handle what has arrived. Whatever it is, it raises nothing."""
        self.turn.now_ms = self.broker.clock.wall_ms()
        self._liveness.heard = True
        self.received_bytes += len(data)
        if self.state == CLOSED:
            return
        if self._partial:
            data = self._partial + data
            self._partial = b""
        if self._holds != 0:
            self._partial = data
            return
        self._process(data)

    def _process(self, data: bytes) -> None:
        position: i64 = 0
        while True:
            try:
                position = self._frames(data, position)
                break
            except PeerError as error:
                position = self._next
                self._refused(error)
            except Exception:
                # A bug of ours must not take others down with it; the client is told, and the log has it all.
                logger.exception("a bug closed the connection of %s", self.describe_peer())
                position = self._next
                self.close_with(INTERNAL_ERROR, "internal error")
        if self.state != CLOSED and position < len(data):
            self._partial = data[position:]
        self.ledger.flush_large()

    def _frames(self, data: bytes, position: i64) -> i64:
        """Handle the whole frames of `data` from `position`; where the first that is not whole begins."""
        size: i64 = len(data)
        if self.state == AWAIT_HEADER:
            position = self._protocol_header(data)
            if self.state == AWAIT_HEADER:
                return 0
        while size - position >= FRAME_HEAD_BYTES:
            if self._holds != 0 or self.state == CLOSED:
                break
            kind = i64(data[position])
            number = i64(read_i16_be(data, position + 1)) & 0xFFFF
            length = i64(read_i32_be(data, position + 3)) & 0xFFFFFFFF
            start = position + FRAME_HEAD_BYTES
            end = start + length
            # RabbitMQ forgives the overhead, which some clients forget.
            if length > self.frame_bytes_max:
                self._next = size
                self._method_id = 0
                raise FrameFault(
                    f"type {kind}, all octets = <<>>: {{frame_too_large,{length},"
                    f"{self.frame_bytes_max - FRAME_OVERHEAD_BYTES}}}"
                )
            if end >= size:
                break
            self._next = end + 1
            if data[end] != FRAME_END:
                self._next = size
                self._method_id = 0
                raise FrameFault(f"{_described(kind, data, start, end)}: {{invalid_frame_end_marker,{data[end]}}}")
            position = end + 1
            self._number = number
            if number == 0:
                self._method_id = i64(read_i32_be(data, start)) if kind == FRAME_METHOD and length >= 4 else 0
                self._connection_frame(kind, data, start, end)
                continue
            if number != self._channel_number:
                self._channel = self.channels.get(int(number))
                self._channel_number = number
            channel = self._channel
            if channel is None:
                self._stray_frame(kind, number, data, start, end)
            elif kind == FRAME_METHOD:
                if length < 4:
                    self._method_id = 0
                    raise _unknown_frame(kind, data, start, end)
                method_id = i64(read_i32_be(data, start))
                self._method_id = method_id
                if method_id == BASIC_PUBLISH:
                    channel.begin_publish(data[start + 4 : end])
                    if not self._has_published:
                        self._first_publish()
                elif channel.expects_content:
                    raise channel.unexpected_frame()
                elif method_id == BASIC_ACK and length == 13:
                    channel.acknowledge(read_i64_be(data, start + 4), data[start + 12] & 1 != 0)
                else:
                    self.handlers.handle(self, channel, data[start:end])
            elif kind == FRAME_HEADER:
                self._method_id = BASIC_PUBLISH
                channel.content_header(data, start, end)
            elif kind == FRAME_BODY:
                self._method_id = BASIC_PUBLISH
                channel.content_body(data, start, end)
            elif kind == FRAME_HEARTBEAT and length == 0:
                self._method_id = 0
                raise UnexpectedFrame(_described(kind, data, start, end))
            else:
                self._method_id = 0
                raise _unknown_frame(kind, data, start, end)
        return position

    def _protocol_header(self, data: bytes) -> i64:
        size = min(len(data), 8)
        if data[:size] != PROTOCOL_HEADER[:size]:
            # AMQP 0-9-1, 4.2.2: tell what is spoken here, and close.
            self.transport.write(PROTOCOL_HEADER)
            self._end()
            return len(data)
        if size < 8:
            return 0
        self.state = AWAIT_START_OK
        self.handlers.greet(self)
        return 8

    def _connection_frame(self, kind: i64, data: bytes, start: i64, end: i64) -> None:
        if kind == FRAME_HEARTBEAT and end == start:
            return
        if kind != FRAME_METHOD or end - start < 4:
            if self.state == CLOSING:
                return
            if kind in (FRAME_HEADER, FRAME_BODY):
                raise UnexpectedFrame(_described(kind, data, start, end))
            raise _unknown_frame(kind, data, start, end)
        payload = data[start:end]
        if self.state == CLOSING:
            method_id = read_i32_be(payload, 0)
            if method_id == CONNECTION_CLOSE_OK:
                self._end()
            elif method_id == CONNECTION_CLOSE:
                self.send(0, methods.ConnectionCloseOk())
            return
        self.handlers.handle_connection(self, decode_method(payload))

    def _stray_frame(self, kind: i64, number: i64, data: bytes, start: i64, end: i64) -> None:
        """A frame of a channel that is not open."""
        if self.state == CLOSING:
            return
        if self.state != OPEN:
            raise UnexpectedFrame(_described(kind, data, start, end))
        method_id = read_i32_be(data, start) if kind == FRAME_METHOD and end - start >= 4 else 0
        if int(number) in self._closing_channels:
            if method_id == CHANNEL_CLOSE_OK:
                self._closing_channels.discard(int(number))
            elif method_id == CHANNEL_CLOSE:
                self.send(number, methods.ChannelCloseOk())
                self._closing_channels.discard(int(number))
            return
        if method_id != CHANNEL_OPEN:
            raise ChannelFault("expected 'channel.open'")
        decode_method(data[start:end])
        self._open_channel(number)

    def _open_channel(self, number: i64) -> None:
        vhost = self.vhost
        if len(self.channels) >= self.channels_max:
            raise NotAllowed(
                f"number of channels opened ({len(self.channels)}) has reached the negotiated channel_max "
                f"({self.channels_max})"
            )
        if vhost is None:
            raise CommandInvalid("channel.open before connection.open")
        self.broker.parameters.check_channel(self.broker.connections, self.user)
        channel = Channel(self, number, vhost)
        self.channels[int(number)] = channel
        self._channel = channel
        self._channel_number = number
        self.send(number, methods.ChannelOpenOk())

    # --- Bytes out ----------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """There is output to be written at the end of the turn."""
        if not self.turn_pending:
            self.turn.touch_output(self)

    def run_turn(self) -> None:
        """Write what has collected, then let the consumers that waited for room go on."""
        confirms = self._confirms
        if confirms:
            self._confirms = []
            for channel in confirms:
                if not channel.closing:
                    channel.write_confirms()
        output = self.output
        size: i64 = len(output)
        if size > 0:
            data = output.getvalue()
            if size > 65536:
                self.output = BytesWriter()
            else:
                output.truncate(0)
            self._liveness.sent = True
            self.sent_bytes += size
            self.transport.write(data)
            if self.paused:
                self._unsent_bytes += size
                if self._unsent_bytes >= OUTPUT_BYTES_MAX:
                    self._hold(HOLD_OUTPUT)
        if not self.paused:
            self._let_go(HOLD_OUTPUT)
            if self._stalled:
                self._resume_stalled()

    def confirms_due(self, channel: Channel) -> None:
        """The channel has confirms for the end of the turn."""
        confirms = self._confirms
        if not confirms or confirms[len(confirms) - 1] is not channel:
            confirms.append(channel)

    def can_write(self, consumer: AmqpConsumer) -> bool:
        """Whether there is room for another delivery. If not, the consumer is woken when there is."""
        if self.paused or len(self.output) >= OUTPUT_BYTES_MAX:
            self._stalled[consumer] = None
            return False
        return True

    def consumer_gone(self, consumer: AmqpConsumer) -> None:
        """The consumer waits for nothing any more."""
        if self._stalled:
            self._stalled.pop(consumer, None)
        self.broker.memory.let_go(consumer)

    def _resume_stalled(self) -> None:
        stalled = self._stalled
        self._stalled = {}
        for consumer in stalled:
            consumer.queue.wake(consumer)

    def pause_writing(self) -> None:
        """The socket does not take any more for now."""
        self.paused = True

    def resume_writing(self) -> None:
        """The socket takes output again."""
        self.paused = False
        self._unsent_bytes = 0
        self._let_go(HOLD_OUTPUT)
        self._resume_stalled()

    def send(self, number: i64, method: Method) -> None:
        """Send a method on channel `number`."""
        write_method(self.output, number, encode_method(method))
        self._output_grew()

    def _output_grew(self) -> None:
        """A peer that asks without reading the answers is not asked for more."""
        self.touch()
        if len(self.output) >= OUTPUT_BYTES_MAX:
            self._hold(HOLD_OUTPUT)

    def write_ack(self, number: i64, tag: i64, multiple: bool) -> None:
        """Write a `basic.ack` to a publisher."""
        write_confirm(self.output, number, BASIC_ACK, tag, multiple)

    def write_nack(self, number: i64, tag: i64, multiple: bool) -> None:
        """Write a `basic.nack` to a publisher."""
        write_confirm(self.output, number, BASIC_NACK, tag, multiple)
        self.touch()

    def write_return(self, number: i64, message: Message) -> None:
        """Write a `basic.return` for a message that reached no queue."""
        write_return(self.output, number, message, self.body_frame_bytes)
        self._output_grew()

    def notify_cancel(self, number: i64, tag: str) -> None:
        """Tell a client that can be told that its consumer is gone."""
        if self._held_cancels is not None:
            self._held_cancels.append((int(number), tag))
        elif self.state == OPEN and self.capabilities.get("consumer_cancel_notify") is True:
            self.send(number, methods.BasicCancel(consumer_tag=tag, nowait=True))

    def hold_cancels(self) -> None:
        """Until `send_cancels`: what a method costs its own connection's consumers is told after its answer."""
        self._held_cancels = []

    def send_cancels(self) -> None:
        held, self._held_cancels = self._held_cancels, None
        for number, tag in held or []:
            self.notify_cancel(number, tag)

    # --- The handshake's results --------------------------------------------------------------------------------

    def suspend(self) -> None:
        """Handle no further frames until `go_on`: something they depend on is being done elsewhere."""
        self._hold(HOLD_ANSWER)

    def go_on(self) -> None:
        """Handle the frames that have arrived meanwhile."""
        self._let_go(HOLD_ANSWER)

    def _hold(self, reason: i64) -> None:
        if self.state == CLOSING or self.state == CLOSED:
            return
        if self._holds == 0:
            self.transport.pause_reading()
        self._holds |= reason

    def _let_go(self, reason: i64) -> None:
        if self._holds & reason == 0:
            return
        self._holds &= ~reason
        if self._holds != 0:
            return
        if not self._reading_paused:
            self.transport.resume_reading()
        data = self._partial
        self._partial = b""
        if data and self.state != CLOSED:
            self._process(data)
        self.turn.touch()

    def tuned(self, frame_bytes_max: i64, channels_max: i64, heartbeat_s: i64) -> None:
        """The client has chosen."""
        self.frame_bytes_max = frame_bytes_max
        self.body_frame_bytes = frame_bytes_max - FRAME_OVERHEAD_BYTES
        self.channels_max = channels_max
        self.heartbeat_s = heartbeat_s
        self.state = AWAIT_OPEN

    def opened(self, vhost: VirtualHost) -> None:
        """The client has chosen its virtual host: it may open channels."""
        self.vhost = vhost
        host, port = self.transport.local_address()
        self.name = f"{self.transport.peer_host()}:{self.transport.peer_port()} -> {host}:{port}"
        self.state = OPEN
        self.broker.connections[self] = None
        self.broker.alarms.add(self)
        self._start_heartbeats()
        self.alarms_changed(self.broker.alarms.reasons)

    def check_write(self, kind: str, name: str) -> None:
        self.handlers.check_write(self, kind, name)

    def check_topics(self, exchange: str, routing_keys: list[str]) -> None:
        """AccessRefused where the user's topic permissions forbid one of the routing keys."""
        self.handlers.check_topics(self, exchange, routing_keys)

    def may_impersonate(self) -> bool:
        """Whether the user may publish in another user's name (RabbitMQ's tag impersonator)."""
        return self.handlers.may_impersonate(self)

    # --- Alarms -------------------------------------------------------------------------------------------------

    def _first_publish(self) -> None:
        self._has_published = True
        self.alarms_changed(self.broker.alarms.reasons)

    def vhost_name(self) -> str:
        vhost = self.vhost
        return "" if vhost is None else vhost.name

    def channel_count(self) -> int:
        return len(self.channels)

    def alarms_changed(self, reasons: list[str]) -> None:
        if self.state != OPEN or not self._has_published:
            return
        told = [reason for reason in reasons if reason != FLOW]
        if reasons:
            if told and not self._told_blocked and self.capabilities.get("connection.blocked") is True:
                self._told_blocked = True
                self.send(0, methods.ConnectionBlocked(reason="low on " + " & ".join(told)))
            if not self._reading_paused:
                self._reading_paused = True
                self.transport.pause_reading()
        if self._told_blocked and not told:
            self._told_blocked = False
            self.send(0, methods.ConnectionUnblocked())
        if not reasons and self._reading_paused:
            self._reading_paused = False
            self._liveness.heard = True
            if self._holds == 0:
                self.transport.resume_reading()

    @property
    def is_blocked(self) -> bool:
        """Whether publishing is held back by an alarm."""
        return self._reading_paused

    # --- Timers -------------------------------------------------------------------------------------------------

    def _timed_out(self) -> None:
        """The handshake, or the peer's answer to our close, took too long."""
        if self.state != CLOSED:
            if self.state != CLOSING:
                logger.warning("%s did not finish the handshake in time", self.describe_peer())
            self._end()

    def _send_heartbeat(self) -> None:
        self.transport.write(HEARTBEAT_FRAME)

    def _silent(self) -> None:
        if self._reading_paused or self._holds != 0:
            # We do not read, so the silence is our doing.
            self._start_heartbeats()
            return
        logger.warning("%s missed its heartbeats", self.describe_peer())
        self.transport.abort()
        self.lost()

    def _start_heartbeats(self) -> None:
        self._liveness.keep_beating(self.heartbeat_s, self._send_heartbeat, self._silent)

    # --- Transactions -------------------------------------------------------------------------------------------

    def transaction_committed(self, channel: Channel) -> None:
        self.send(channel.number, methods.TxCommitOk())
        self.go_on()

    def transaction_failed(self, channel: Channel) -> None:
        self.close_with(INTERNAL_ERROR, "the transaction could not be made durable")
        self.go_on()

    # --- Closing ------------------------------------------------------------------------------------------------

    def _refused(self, error: PeerError) -> None:
        """The frame that ends at `_next` could not be handled."""
        if self.state == CLOSING or self.state == CLOSED:
            return
        reply = reply_for(error)
        number = int(self._number)
        method_id = int(self._method_id) & 0xFFFFFFFF
        if self.state != OPEN:
            self.handlers.handshake_failed(self, error, method_id if number == 0 else 0)
            return
        channel = self.channels.get(number)
        if reply.hard or channel is None:
            logger.warning("%s: connection closed: %s", self.describe_peer(), error)
            self.close_with(reply, str(error), method_id)
            return
        self._fail_channel(channel, reply, str(error), method_id)

    def _fail_channel(self, channel: Channel, reply: Reply, text: str, method_id: int) -> None:
        """Close a channel, telling the client why."""
        number = int(channel.number)
        logger.info("%s: channel %d closed: %s", self.describe_peer(), number, text)
        self._remove_channel(channel, True)
        self._closing_channels.add(number)
        # Confirms of what was done before go first.
        channel.write_confirms()
        self.send(
            number,
            methods.ChannelClose(
                reply_code=reply.code,
                reply_text=reply.text(text),
                failing_class_id=method_id >> 16,
                failing_method_id=method_id & 0xFFFF,
            ),
        )

    def close_channel(self, channel: Channel) -> None:
        """The client closes a channel."""
        channel.write_confirms()
        self._remove_channel(channel, False)
        self.send(channel.number, methods.ChannelCloseOk())

    def check_deliveries(self, now_ms: int, timeout_ms: int) -> None:
        for channel in list(self.channels.values()):
            exceeded = channel.overdue(now_ms, timeout_ms)
            if exceeded >= 0:
                error = PreconditionFailed(
                    f"delivery acknowledgement on channel {channel.number} timed out. Timeout value used: {exceeded} "
                    "ms. This timeout value can be configured, see consumers doc guide to learn more"
                )
                self._fail_channel(channel, reply_for(error), str(error), 0)

    def _remove_channel(self, channel: Channel, failed: bool) -> None:
        del self.channels[int(channel.number)]
        self._channel_number = 0
        channel.shut(failed)

    def close_with(self, reply: Reply, text: str, method_id: int = 0) -> None:
        """Close the connection, telling the client why."""
        if self.state == CLOSING or self.state == CLOSED:
            return
        self._release(True)
        self.state = CLOSING
        self.send(
            0,
            methods.ConnectionClose(
                reply_code=reply.code,
                reply_text=reply.text(text),
                failing_class_id=method_id >> 16,
                failing_method_id=method_id & 0xFFFF,
            ),
        )
        self._liveness.expect_within(CLOSE_TIMEOUT_MS, self._timed_out)

    def closed_by_client(self) -> None:
        """The client has asked to close. The socket is the client's to close: amqplib still has publishes of other
        channels on the way, and a socket closed before they are read is reset, close-ok and all."""
        self._release(False)
        self.state = CLOSED
        self.send(0, methods.ConnectionCloseOk())
        self._write_output()
        self._liveness.expect_within(CLOSE_TIMEOUT_MS, self.transport.abort)

    def close_by_operator(self, reason: str) -> None:
        if self.state == CLOSED:
            self.transport.close()
        self.close_with(CONNECTION_FORCED, reason)

    def abandon_turn(self) -> None:
        if len(self.output) > 0:
            self.output = BytesWriter()
            self.transport.abort()
            self.lost()

    def _end(self) -> None:
        """Write what is left, and close the socket."""
        if self.state != CLOSED:
            self._release(True)
            self.state = CLOSED
            self._write_output()
            self.transport.close()
            # A client that does not read would keep the socket open for ever.
            self._liveness.expect_within(CLOSE_TIMEOUT_MS, self.transport.abort)

    def _write_output(self) -> None:
        if len(self.output) > 0:
            self.transport.write(self.output.getvalue())
            self.output = BytesWriter()

    def lost(self) -> None:
        """The socket is gone."""
        self.turn.now_ms = self.broker.clock.wall_ms()
        self._release(True)
        self.state = CLOSED
        self._liveness.stop()
        self._partial = b""
        self._stalled = {}

    def _release(self, failed: bool) -> None:
        """Give everything back to the core: deliveries, consumers, exclusive queues. `failed` says that this was not
        the client's wish."""
        if self.state == CLOSING or self.state == CLOSED:
            return
        self._channel_number = 0
        self._channel = None
        for channel in list(self.channels.values()):
            channel.shut(failed)
        self.channels = {}
        self._stalled = {}
        vhost = self.vhost
        if vhost is not None:
            self.broker.alarms.remove(self)
            self.broker.connections.pop(self, None)
            for queue in self.exclusive_queues:
                vhost.remove_queue(queue)
            self.exclusive_queues = []
        if self._reading_paused or self._holds != 0:
            self._reading_paused = False
            self._holds = 0
            self.transport.resume_reading()
        self.turn.touch()

    def buffer(self, size: i64) -> None:
        """A channel keeps `size` bytes of what is not complete yet; a negative size says that it no longer does."""
        memory = self.broker.memory
        self._buffered_bytes += size
        memory.buffered += size
        if size <= 0:
            return
        if self._buffered_bytes > BUFFERED_BYTES_MAX:
            raise LimitExceeded(f"more than {BUFFERED_BYTES_MAX} bytes of incomplete messages and open transactions")
        if memory.buffered > memory.buffered_bytes_max:
            raise LimitExceeded("too much in incomplete messages and open transactions of all connections")

    def state_name(self) -> str:
        """The state as RabbitMQ calls it."""
        return _STATE_NAMES[self.state]

    # --- For operators ------------------------------------------------------------------------------------------

    def describe_peer(self) -> str:
        """Who this is, for the log."""
        return f"{self.transport.peer_host()}:{self.transport.peer_port()} ({self.user or 'not authenticated'})"

    def describe(self) -> dict[str, object]:
        return self.handlers.describe(self)

    def describe_channels(self) -> list[dict[str, object]]:
        return self.handlers.describe_channels(self)


def _described(kind: i64, data: bytes, start: i64, end: i64) -> str:
    """A frame as RabbitMQ describes it: its type, and the first of its octets."""
    shown = "all" if end - start <= 16 else "first 16"
    octets = ",".join([str(octet) for octet in data[start : min(end, start + 16)]])
    return f"type {kind}, {shown} octets = <<{octets}>>"


def _unknown_frame(kind: i64, data: bytes, start: i64, end: i64) -> FrameFault:
    return FrameFault(f"{_described(kind, data, start, end)}: unknown_frame")
