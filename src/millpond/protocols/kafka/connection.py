"""A Kafka client's connection: bytes in, calls on the core, bytes out. No socket, no clock, no thread of its own.

    request     size i32 | api key i16 | version i16 | correlation id i32 | client id string | [tagged fields] | body
    response    size i32 | correlation id i32 | [tagged fields] | body

Requests are handled as they arrive and may be answered later, each in its own time: a produce waits for its commit, a
fetch for records, a join for the other members. The answers leave in the order of the requests, at the end of a turn.
What follows a fetch is not looked at before the fetch's answer is sent, and the same holds for what follows answers
that are large together: so a client that asks for much and reads nothing holds no more than one of them.

Source: Apache Kafka, "Protocol"; KIP-482 for the flexible headers.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, final

from librt.strings import BytesWriter, read_i16_be, read_i32_be, write_i32_be
from mypy_extensions import i32, i64, mypyc_attr

from millpond.base.certificate import CertificateLogin
from millpond.base.clock import Timer
from millpond.base.errors import PeerError, SyntaxFault
from millpond.base.limits import (
    HANDSHAKE_TIMEOUT_MS,
    KAFKA_ANSWERS_BYTES_MAX,
    KAFKA_CALLS_PENDING_MAX,
    KAFKA_CLOSE_TIMEOUT_MS,
    KAFKA_IDLE_CHECK_MS,
    KAFKA_IDLE_MS,
    KAFKA_LOGIN_REQUEST_BYTES_MAX,
    KAFKA_OTHER_REQUEST_BYTES_MAX,
    KAFKA_PIECE_BYTES,
    KAFKA_REQUEST_TIMEOUT_MS,
    KAFKA_REQUESTS_PER_TURN,
)
from millpond.broker.broker import Broker, ClientConnection
from millpond.broker.commits import Commits, CommitWaiter
from millpond.broker.ledger import Ledger
from millpond.broker.turn import Turn, TurnTask
from millpond.broker.vhost import VirtualHost
from millpond.protocols.kafka.fetch_session import FetchSession
from millpond.protocols.kafka.wire import WireReader
from millpond.protocols.transport import Transport

if TYPE_CHECKING:
    from millpond.protocols.kafka.login import Login
    from millpond.protocols.kafka.registry import ApiTable

logger = logging.getLogger(__name__)

_HEADER_BYTES: Final = 10

# Why no requests are handled at present: the client does not read its answers; too many of its requests are under way;
# it produces, and an alarm is on; a fetch, or much else, is still to be sent; a login is being looked at; it has
# had more than its quota; it has had its share of this turn.
HOLD_OUTPUT: Final = 1
HOLD_CALLS: Final = 2
HOLD_ALARM: Final = 4
HOLD_ANSWERS: Final = 8
HOLD_LOGIN: Final = 16
HOLD_QUOTA: Final = 32
HOLD_TURN: Final = 64

API_PRODUCE: Final = 0
API_FETCH: Final = 1
API_SASL_HANDSHAKE: Final = 17
API_API_VERSIONS: Final = 18
API_SASL_AUTHENTICATE: Final = 36


@final
class KafkaSettings:
    """What the node's operator has chosen. `advertised` is where clients are told to connect, None for the address that
    they have connected to already. Who does not log in is `user`, unless `login_required`."""

    def __init__(
        self,
        user: str,
        vhost: str,
        request_bytes_max: i64,
        auto_create_topics: bool,
        partitions: i64,
        advertised: tuple[str, int] | None,
        cluster_id: str,
        login_required: bool = False,
        login_timeout_ms: i64 = HANDSHAKE_TIMEOUT_MS,
        certificate_login: CertificateLogin | None = None,
    ) -> None:
        self.user: Final = user
        self.vhost: Final = vhost
        self.request_bytes_max: Final[i64] = request_bytes_max
        self.auto_create_topics: Final = auto_create_topics
        self.partitions: Final[i64] = partitions
        self.advertised: Final = advertised
        self.cluster_id: Final = cluster_id
        self.login_required: Final = login_required
        self.login_timeout_ms: Final[i64] = login_timeout_ms
        self.certificate_login: Final = certificate_login


@mypyc_attr(allow_interpreted_subclasses=True)
class Waiting:
    """What a call waits for, to be called off when the connection is lost."""

    def look(self) -> None:
        """Something has happened that may be what is waited for. Called at the end of the turn."""
        raise NotImplementedError

    def call_off(self) -> None:
        raise NotImplementedError


@final
class Call:
    """One request. Its body is `data` from `position` to `end`."""

    def __init__(
        self,
        connection: Connection,
        api_key: i64,
        version: i64,
        correlation_id: i64,
        client_id: str,
        data: bytes,
        position: i64,
        end: i64,
    ) -> None:
        self.connection: Final = connection
        self.api_key: Final[i64] = api_key
        self.version: Final[i64] = version
        self.correlation_id: Final[i64] = correlation_id
        self.client_id: Final = client_id
        self.data = data
        self.position: i64 = position
        self.end: Final[i64] = end
        self.waiting: Waiting | None = None
        # What is to be sent, without size and header, and whether that is known; the commit that it must wait for.
        self._chunks: list[bytes] = []
        self._body_bytes: i64 = 0
        self.is_answered = False
        self.is_silent = False
        # A step of a login without a header, as old clients take them.
        self.is_bare = False
        self.sequence: i64 = 0
        self._has_tags = False

    def answer(self, chunks: list[bytes], flexible: bool, sequence: i64 = 0) -> None:
        """Answer with a body. `flexible` says that the header has tagged fields, `sequence` is the commit that must be
        durable first."""
        size: i64 = 0
        for chunk in chunks:
            size += len(chunk)
        self._chunks = chunks
        self._body_bytes = size
        self.connection.unsent_bytes += size
        self._has_tags = flexible
        self.sequence = sequence
        self._done()

    def stay_silent(self) -> None:
        """The request wants no answer."""
        self.is_silent = True
        self._done()

    def _done(self) -> None:
        self.is_answered = True
        # The request's bytes are needed no longer.
        self.data = b""
        self.waiting = None
        if self.sequence > 0:
            self.connection.ledger.sync_wanted = True
        self.connection.touch()

    def write_to(self, output: list[bytes]) -> i64:
        """Add the response; how many bytes it has."""
        if self.is_silent:
            return 0
        size: i64 = self._body_bytes + (5 if self._has_tags else 4)
        self.connection.unsent_bytes -= self._body_bytes
        header = BytesWriter()
        if self.is_bare:
            write_i32_be(header, i32(self._body_bytes))
            output.append(header.getvalue())
            output.extend(self._chunks)
            return self._body_bytes + 4
        write_i32_be(header, i32(size))
        write_i32_be(header, i32(self.correlation_id))
        if self._has_tags:
            header.append(0)
        output.append(header.getvalue())
        output.extend(self._chunks)
        return size + 4


@final
class Connection(ClientConnection, TurnTask):
    """One client's connection. `apis` has what to do for each request."""

    def __init__(self, broker: Broker, transport: Transport, settings: KafkaSettings, apis: ApiTable) -> None:
        self.protocol = "Kafka"
        self.turn_pending = False
        self.broker: Final = broker
        self.transport: Final = transport
        self.settings: Final = settings
        self.apis: Final = apis
        self.turn: Final[Turn] = broker.turn
        self.ledger: Final[Ledger] = broker.ledger
        self.commits: Final[Commits] = broker.commits
        # "" for who has not logged in where that is demanded.
        self.user = settings.user
        # How the client has logged in; "" for who has not.
        self.mechanism = ""
        self.login: Login | None = None
        # Nothing but a login is listened to; what follows are its steps, without headers.
        self.must_log_in = False
        self.takes_tokens = False
        self.peer_address: Final = transport.peer_host() or ""
        self.vhost: VirtualHost | None = None
        self.client_id = ""
        self.client_software = ""
        host, port = transport.local_address()
        self.name = f"{transport.peer_host()}:{transport.peer_port()} -> {host}:{port}"
        self.connected_ms: i64 = broker.clock.wall_ms()
        self.received_bytes: i64 = 0
        self.sent_bytes: i64 = 0

        # In the order in which they came; those before `_first` are answered.
        self._calls: list[Call] = []
        self._first: i64 = 0
        # Of the bodies of answers that wait for their turn, or their commit.
        self.unsent_bytes: i64 = 0
        # What waits for something, and that something has happened to.
        self._woken: dict[Waiting, None] = {}
        self._commit: Final = _AwaitedCommit(self)
        # What has arrived of the next requests, how much that is, and how much is needed to go on.
        self._partial: list[bytes] = []
        self._partial_bytes: i64 = 0
        self._wanted: i64 = 0
        # How much of that, and of what the socket has not taken, counts as used memory.
        self._counted_bytes: i64 = 0
        self._output_counted: i64 = 0
        self._holds: i64 = 0
        # Requests that this turn has handled, but for those that produce.
        self._handled: i64 = 0
        self._reading_paused = False
        self.fetch_session: FetchSession | None = None
        # Their ids.
        self.fetch_sessions_begun: i64 = 0
        self._has_produced = False
        # An alarm is over, and what waited for that may be produced, even if others were quicker and it is on again.
        self._may_produce = False
        self._closed = False
        self._active_ms: i64 = broker.clock.monotonic_ms()
        self._timer: Timer | None = None
        self._login_timer: Timer | None = None
        self._ends_when_answered = False
        self._open()

    def _open(self) -> None:
        if self.transport.peer_host() is None:
            # It has gone before it was looked at, as scanners and health checks do.
            self._closed = True
            self.transport.abort()
            return
        try:
            self.apis.open(self)
        except PeerError as error:
            logger.warning("%s: connection refused: %s", self.describe_peer(), error)
            self._closed = True
            self.transport.abort()
            return
        self.broker.connections[self] = None
        self._timer = self.broker.clock.call_later(KAFKA_IDLE_CHECK_MS, self._check_idle)
        if self.must_log_in:
            self._login_timer = self.broker.clock.call_later(int(self.settings.login_timeout_ms), self._check_login)

    # --- Logging in ---------------------------------------------------------------------------------------------

    def logged_in(self, user: str, mechanism: str) -> None:
        """The client has proved to be this user."""
        self.user = user
        self.mechanism = mechanism
        self.login = None
        self.must_log_in = False
        self.takes_tokens = False
        if self._login_timer is not None:
            self._login_timer.cancel()
            self._login_timer = None

    def hold_for_login(self) -> None:
        """Handle nothing before `login_looked_at`."""
        self._hold(HOLD_LOGIN)

    def login_looked_at(self) -> None:
        self._let_go(HOLD_LOGIN)

    def end_when_answered(self) -> None:
        """Close when the answers to all that was asked are sent; nothing more is handled."""
        self._hold(HOLD_LOGIN)
        self._ends_when_answered = True
        self.touch()

    def _check_login(self) -> None:
        self._login_timer = None
        if self.must_log_in and not self._closed:
            logger.info("%s: closed, as it did not log in", self.describe_peer())
            self._end()

    def mute(self, duration_ms: i64) -> None:
        """Handle nothing for so long."""
        self._hold(HOLD_QUOTA)
        self.broker.clock.call_later(int(duration_ms), self._unmute)

    def _unmute(self) -> None:
        self._let_go(HOLD_QUOTA)

    # --- Bytes in -----------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Handle what has arrived. Whatever it is, it raises nothing."""
        if self._closed:
            return
        self.turn.now_ms = self.broker.clock.wall_ms()
        self._active_ms = self.broker.clock.monotonic_ms()
        self.received_bytes += len(data)
        self._handled = 0
        if self._holds != 0:
            self._keep(data)
            self._pause_reading()
        elif self._partial_bytes > 0:
            self._keep(data)
            if self._partial_bytes >= self._wanted:
                self._process(self._take_partial())
        else:
            self._process(data)

    def _keep(self, data: bytes) -> None:
        pieces = self._partial
        last = len(pieces) - 1
        if len(data) < KAFKA_PIECE_BYTES and last >= 0 and len(pieces[last]) < KAFKA_PIECE_BYTES:
            # What comes byte by byte would take many times its size.
            pieces[last] += data
        else:
            pieces.append(data)
        self._partial_bytes += len(data)
        if self._holds & HOLD_ALARM == 0:
            self._count(len(data))

    def _count(self, size: i64) -> None:
        """Have so much more of what has arrived count as used memory."""
        self._counted_bytes += size
        self.broker.memory.used += size

    def _take_partial(self) -> bytes:
        data = b"".join(self._partial) if len(self._partial) != 1 else self._partial[0]
        self._partial = []
        self._partial_bytes = 0
        self._count(-self._counted_bytes)
        return data

    def _process(self, data: bytes) -> None:
        """Handle the whole requests in `data`, and keep the rest."""
        position: i64 = 0
        size: i64 = len(data)
        self._wanted = 4
        try:
            while self._holds == 0 and not self._closed and size - position >= 4:
                length = i64(read_i32_be(data, position))
                if self.must_log_in:
                    if length < (0 if self.takes_tokens else _HEADER_BYTES) or length > KAFKA_LOGIN_REQUEST_BYTES_MAX:
                        raise SyntaxFault(_what_it_is(data, position, length))
                elif length < _HEADER_BYTES or length > self.settings.request_bytes_max:
                    raise SyntaxFault(_what_it_is(data, position, length))
                if size - position - 4 < length:
                    self._wanted = 4 + length if self.must_log_in else self._wanted_for(data, position, length)
                    break
                if length > KAFKA_OTHER_REQUEST_BYTES_MAX and read_i16_be(data, position + 4) != API_PRODUCE:
                    raise SyntaxFault(f"a request of {length} bytes that produces nothing")
                end = position + 4 + length
                if self.takes_tokens:
                    self._token(data, position + 4, end)
                elif not self._request(data, position + 4, end):
                    break
                position = end
        except PeerError as error:
            self.close_for(str(error))
            return
        except Exception:
            # A bug of ours must not take others down with it.
            logger.exception("a bug closed the connection of %s", self.describe_peer())
            self._end()
            return
        if position < size and not self._closed:
            self._keep(data[position:] if position > 0 else data)
        self.ledger.flush_large()

    def _wanted_for(self, data: bytes, position: i64, length: i64) -> i64:
        """How much there must be of a request that is not complete before anything can be done about it."""
        if len(data) - position < 6:
            return 6
        if read_i16_be(data, position + 4) == API_PRODUCE:
            # Not to take up memory by what must then wait.
            self._is_held_back(False)
        elif length > KAFKA_OTHER_REQUEST_BYTES_MAX:
            raise SyntaxFault(f"a request of {length} bytes that produces nothing")
        return 4 + length

    def _is_held_back(self, is_complete: bool) -> bool:
        """Whether an alarm forbids to produce, or to wait for the rest of what is to be produced; the connection is
        then held until it is over."""
        if not self._has_produced:
            self._has_produced = True
            self.broker.alarms.add(self)
        if not self.broker.alarms.reasons or (is_complete and self._may_produce):
            if is_complete:
                self._may_produce = False
            return False
        self._hold(HOLD_ALARM)
        # What waits for an alarm to be over must not be why it is not.
        self._count(-self._counted_bytes)
        return True

    def _token(self, data: bytes, position: i64, end: i64) -> None:
        """Handle one step of a login that comes without a header."""
        call = Call(self, API_SASL_AUTHENTICATE, 0, 0, self.client_id, data, position, end)
        call.is_bare = True
        self._calls.append(call)
        self.apis.handle_token(call)

    def _request(self, data: bytes, position: i64, end: i64) -> bool:
        """Handle one request; False where it must wait."""
        api_key = i64(read_i16_be(data, position))
        version = i64(read_i16_be(data, position + 2))
        correlation_id = i64(read_i32_be(data, position + 4))
        if self.must_log_in and api_key not in (API_SASL_HANDSHAKE, API_API_VERSIONS, API_SASL_AUTHENTICATE):
            raise SyntaxFault(f"a request of api key {api_key} from a client that has not logged in")
        if api_key == API_PRODUCE and self._is_held_back(True):
            return False
        # Its own length is a plain i16 in all versions, so that any broker can read it.
        reader = WireReader(data, position + 8, end, False)
        client_id = reader.text() or ""
        if client_id != self.client_id:
            self.client_id = client_id
        call = Call(self, api_key, version, correlation_id, client_id, data, reader.position, end)
        self._calls.append(call)
        if len(self._calls) - self._first >= KAFKA_CALLS_PENDING_MAX:
            self._hold(HOLD_CALLS)
        self.apis.handle(call)
        if api_key != API_PRODUCE:
            self._handled += 1
            if self._handled >= KAFKA_REQUESTS_PER_TURN and self._holds & HOLD_TURN == 0:
                self._hold(HOLD_TURN)
                self.turn.soon(self._next_turn)
        if api_key == API_FETCH or self.unsent_bytes > KAFKA_ANSWERS_BYTES_MAX:
            # Reading goes on until there is something to be kept, so that the loss of the connection is noticed.
            self._holds |= HOLD_ANSWERS
        return True

    def answer_takes_long(self) -> None:
        """What is being answered goes on in further turns, or on a thread: nothing else is handled meanwhile."""
        self._holds |= HOLD_ANSWERS

    def _next_turn(self) -> None:
        self._handled = 0
        self._let_go(HOLD_TURN)

    # --- Holding back -------------------------------------------------------------------------------------------

    def _hold(self, reason: i64) -> None:
        self._holds |= reason
        self._pause_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _let_go(self, reason: i64) -> None:
        if self._holds & reason == 0:
            return
        self._holds &= ~reason
        if self._holds == 0 and (self._reading_paused or self._partial_bytes > 0):
            # Not from here: this may be the end of a turn, whose changes have been handed over.
            self.broker.clock.call_later(0, self._go_on)

    def _go_on(self) -> None:
        if self._holds != 0 or self._closed:
            return
        self.turn.now_ms = self.broker.clock.wall_ms()
        if self._partial_bytes >= 4 and self._partial_bytes >= self._wanted:
            self._process(self._take_partial())
        elif self._partial_bytes > self._counted_bytes:
            self._count(self._partial_bytes - self._counted_bytes)
        if self._holds == 0 and self._reading_paused and not self._closed:
            self._reading_paused = False
            self._active_ms = self.broker.clock.monotonic_ms()
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The socket has enough to do."""
        self._active_ms = self.broker.clock.monotonic_ms()
        self._hold(HOLD_OUTPUT)

    def resume_writing(self) -> None:
        self._active_ms = self.broker.clock.monotonic_ms()
        self._count_output(0)
        self._let_go(HOLD_OUTPUT)

    def _count_output(self, size: i64) -> None:
        """So much is with the socket, which counts as used memory."""
        self.broker.memory.used += size - self._output_counted
        self._output_counted = size

    def alarms_changed(self, reasons: list[str]) -> None:
        if not reasons and self._holds & HOLD_ALARM != 0:
            self._may_produce = True
            self._let_go(HOLD_ALARM)

    # --- Bytes out ----------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Something is to be done at the end of the turn."""
        if not self._closed:
            self.turn.touch_output(self)

    def wake(self, waiting: Waiting) -> None:
        """Look at this at the end of the turn."""
        self._woken[waiting] = None
        self.touch()

    def run_turn(self) -> None:
        try:
            self._look()
            if not self._closed:
                self._answer()
        except Exception:
            # A bug of ours must not leave a client without answers for good.
            logger.exception("a bug closed the connection of %s", self.describe_peer())
            self._end()

    def _look(self) -> None:
        """See what became of what was waited for."""
        if self._woken:
            woken, self._woken = self._woken, {}
            for waiting in woken:
                waiting.look()

    def _answer(self) -> None:
        """Send what is known, and durable."""
        calls = self._calls
        count: i64 = len(calls)
        first = self._first
        durable = self.ledger.durable()
        output: list[bytes] = []
        size: i64 = 0
        is_waiting = False
        while first < count and calls[first].is_answered:
            if calls[first].sequence > durable:
                is_waiting = True
                break
            size += calls[first].write_to(output)
            first += 1
        self._first = first
        if first == count:
            self._calls = []
            self._first = 0
        elif first >= 64:
            del calls[:first]
            self._first = 0
        if output:
            self.sent_bytes += size
            self.transport.write_all(output)
            if self._holds & HOLD_OUTPUT != 0:
                self._count_output(self._output_counted + size)
        if is_waiting:
            self._wait_for_commit()
            return
        if self._ends_when_answered and not self._calls:
            self._end()
            return
        if self._holds != 0:
            pending = len(self._calls) - self._first
            if pending < KAFKA_CALLS_PENDING_MAX:
                self._let_go(HOLD_CALLS)
            if pending == 0:
                self._let_go(HOLD_ANSWERS)

    def _wait_for_commit(self) -> None:
        if not self._commit.is_waiting:
            self._commit.is_waiting = True
            self.commits.wait(self._commit)

    def abandon_turn(self) -> None:
        if self._first < len(self._calls):
            self._abort()

    # --- Closing ------------------------------------------------------------------------------------------------

    def _check_idle(self) -> None:
        """Close what has been silent for long, and at once where a request has been begun and is not ended."""
        self._timer = None
        if self._closed:
            return
        idle_ms = self.broker.clock.monotonic_ms() - self._active_ms
        if idle_ms >= KAFKA_IDLE_MS and self._holds & HOLD_OUTPUT != 0:
            logger.info("%s: closed, as it does not read", self.describe_peer())
            self._abort()
            return
        if idle_ms >= KAFKA_IDLE_MS and self._holds & HOLD_ALARM != 0:
            # It is not read from, so nobody notices that the client has given up long ago, and come again.
            logger.info("%s: closed, as it has been held back for long", self.describe_peer())
            self._end()
            return
        is_stuck = self._partial_bytes > 0 and self._holds == 0 and idle_ms >= KAFKA_REQUEST_TIMEOUT_MS
        if is_stuck or (idle_ms >= KAFKA_IDLE_MS and self._holds == 0 and self._first == len(self._calls)):
            logger.info("%s: closed, as it was idle", self.describe_peer())
            self._end()
            return
        self._timer = self.broker.clock.call_later(KAFKA_IDLE_CHECK_MS, self._check_idle)

    def close_by_operator(self, reason: str) -> None:
        # There is no way to tell a client why.
        logger.info("%s: closed: %s", self.describe_peer(), reason)
        self._end()

    def close_for(self, reason: str) -> None:
        """Close, because of what the client has sent."""
        logger.warning("%s: connection closed: %s", self.describe_peer(), reason)
        self._end()

    def _end(self) -> None:
        """Close when what has been written is sent. What is not answered by now is lost, and the client knows that."""
        if not self._closed:
            self._release()
            self.transport.close()
            # Who does not read would keep the socket for good.
            self._timer = self.broker.clock.call_later(KAFKA_CLOSE_TIMEOUT_MS, self.transport.abort)

    def _abort(self) -> None:
        if not self._closed:
            self._release()
            self.transport.abort()

    def lost(self) -> None:
        """The socket is gone."""
        if not self._closed:
            self.turn.now_ms = self.broker.clock.wall_ms()
            self._release()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _release(self) -> None:
        self._closed = True
        self._take_partial()
        self._count_output(0)
        for call in self._calls:
            waiting = call.waiting
            if waiting is not None:
                call.waiting = None
                waiting.call_off()
        self._calls = []
        self._first = 0
        self.unsent_bytes = 0
        self._woken = {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._login_timer is not None:
            self._login_timer.cancel()
            self._login_timer = None
        self.broker.alarms.remove(self)
        self.broker.connections.pop(self, None)
        self.apis.closed(self)
        self.turn.touch()

    # --- For operators ------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def is_blocked(self) -> bool:
        """Whether producing is held back by an alarm."""
        return self._holds & HOLD_ALARM != 0

    def describe_peer(self) -> str:
        """Who this is, for the log."""
        return f"{self.transport.peer_host()}:{self.transport.peer_port()} ({self.client_id or 'no client id'})"

    def vhost_name(self) -> str:
        vhost = self.vhost
        return "" if vhost is None else vhost.name

    def channel_count(self) -> int:
        return 0

    def describe(self) -> dict[str, object]:
        return self.apis.describe(self)

    def check_deliveries(self, now_ms: int, timeout_ms: int) -> None:
        """There are none: a reader's place in a topic is its own affair."""


@final
class _AwaitedCommit(CommitWaiter):
    """What a connection waits for before it can go on answering."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection
        self.is_waiting = False

    def committed(self, durable_sequence: i64) -> bool:
        self.is_waiting = False
        # Whether there is more to wait for turns out at the end of the turn.
        self._connection.touch()
        return False

    def commit_failed(self) -> None:
        self.is_waiting = False
        self._connection.abandon_turn()


def _what_it_is(data: bytes, position: i64, length: i64) -> str:
    """What cannot be a request, in words that help who looks for the mistake in a client's settings."""
    start = data[position : position + 4]
    if start.startswith(b"\x16\x03"):
        return "the client speaks TLS, which is spoken on another listener"
    if start == b"AMQP":
        return "the client speaks AMQP, not Kafka's protocol"
    if start in (b"GET ", b"HEAD", b"POST", b"PUT "):
        return "the client speaks HTTP, not Kafka's protocol"
    return f"a request of {length} bytes"
