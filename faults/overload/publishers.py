"""Who publishes without end: each keeps what it was told of every message, and nothing of the message itself."""

from __future__ import annotations

import select
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import confluent_kafka
import pamqp.commands as commands

from tests.support.endpoint import Endpoint
from tests.support.raw_amqp import RawConnection

# What was told of a message.
NOTHING, CONFIRMED, REFUSED = 0, 1, 2
# The head of a body: who published it, and which of theirs it is.
HEAD: Final = struct.Struct(">IQ")
BODY_BYTES_MIN, BODY_BYTES_MAX = 200, 8_000
FILLING: Final = bytes(range(256)) * (BODY_BYTES_MAX // 256 + 1)
MESSAGES_AT_ONCE: Final = 16
RECONNECT_S: Final = 0.05
# Of so many messages one is timed.
TIMED_EVERY: Final = 16
KAFKA_QUEUE_KIB: Final = 16 * 1024
PERSISTENT: Final = commands.Basic.Properties(delivery_mode=2)

_FRAME_HEAD: Final = struct.Struct(">BHI")
_METHOD: Final = struct.Struct(">HH")
_TAG: Final = struct.Struct(">QB")
_ACK, _NACK, _BLOCKED, _UNBLOCKED = (60, 80), (60, 120), (10, 60), (10, 61)
_CLOSES: Final = {(10, 50), (20, 40)}


def body_of(publisher: int, number: int) -> bytes:
    """The message itself, the same whenever it is asked for."""
    size = BODY_BYTES_MIN + (number * 2_654_435_761 + publisher) % (BODY_BYTES_MAX - BODY_BYTES_MIN)
    return HEAD.pack(publisher, number) + FILLING[: size - HEAD.size]


class Publisher(threading.Thread):
    """One producer. `told` has a place for each message that was sent."""

    def __init__(self, number: int, places: Sequence[str], say: Callable[[str], None]) -> None:
        super().__init__(name=f"publisher-{number}", daemon=True)
        self.number: Final = number
        self.places: Final = list(places)
        self.told = bytearray()
        self.confirmed = 0
        self.refused = 0
        self.cut = 0
        # Reasons of connection.blocked, in their order.
        self.blocked: list[str] = []
        self.is_blocked = False
        self.blocked_s = 0.0
        self.confirm_s: Final[list[float]] = []
        self.wrong: list[str] = []
        self._blocked_since = 0.0
        self._sent_at: Final[dict[int, float]] = {}
        # While it is set, connections may be lost and messages refused.
        self.forgives: Final = threading.Event()
        # Send no more, wait for what was sent; then end whatever was told.
        self.enough: Final = threading.Event()
        self.over: Final = threading.Event()
        self._say: Final = say

    @property
    def sent(self) -> int:
        return len(self.told)

    def sending(self) -> int:
        """The number of the message that is sent now."""
        number = self.sent
        if number % TIMED_EVERY == 0:
            self._sent_at[number] = time.monotonic()
        self.told.append(NOTHING)
        return number

    def is_told(self, number: int, told: int) -> None:
        """A message was confirmed or refused."""
        self.told[number] = told
        if told == CONFIRMED:
            self.confirmed += 1
        else:
            self.refused += 1
        if number % TIMED_EVERY == 0:
            sent_at = self._sent_at.pop(number)
            if told == CONFIRMED:
                self.confirm_s.append(time.monotonic() - sent_at)

    def become_blocked(self, is_blocked: bool) -> None:
        """Told to wait, or to go on; or the connection that was told is gone."""
        if self.is_blocked:
            self.blocked_s += time.monotonic() - self._blocked_since
        self.is_blocked = is_blocked
        self._blocked_since = time.monotonic()

    def place_of(self, number: int) -> str:
        """The queue, or the partition, that a message goes to."""
        return self.places[number % len(self.places)]

    def tell(self, what: str) -> None:
        """Something is wrong."""
        if len(self.wrong) < 20:
            self.wrong.append(f"{self.name}: {what}")
            self._say(self.wrong[-1])


class AmqpPublisher(Publisher):
    """Persistent messages with confirms. An obedient one stops when it is told that the connection is blocked; another
    goes on writing for as long as its socket takes it, which is what many clients do."""

    def __init__(
        self, number: int, places: Sequence[str], port: int, is_obedient: bool, say: Callable[[str], None]
    ) -> None:
        super().__init__(number, places, say)
        self._endpoint: Final = Endpoint("127.0.0.1", port)
        self._is_obedient: Final = is_obedient
        # The first message of this connection, and the first of which nothing was told.
        self._base = 0
        self._unresolved = 0
        self._output = bytearray()
        self._input = bytearray()

    def run(self) -> None:
        while not self.over.is_set() and not self._is_done():
            try:
                with RawConnection(self._endpoint) as connection:
                    connection.handshake(capabilities={"connection.blocked": True, "publisher_confirms": True})
                    connection.open_channel()
                    connection.rpc(commands.Confirm.Select(), commands.Confirm.SelectOk)
                    self._publish(connection)
            except (OSError, EOFError, AssertionError) as error:
                if not self.forgives.is_set():
                    self.tell(f"the connection was lost: {error!r}")
                self.cut += 1
                time.sleep(RECONNECT_S)

    def _is_done(self) -> bool:
        return self.enough.is_set() and self._unresolved == self.sent

    def _publish(self, connection: RawConnection) -> None:
        # Nothing more will be told of what was on the way when the last connection ended.
        self._base = self._unresolved = self.sent
        self.become_blocked(False)
        self._output.clear()
        self._input[:] = connection._buffer
        sock = connection.socket
        sock.setblocking(False)
        while not self.over.is_set() and not self._is_done():
            if not self._output and not self.enough.is_set() and not (self.is_blocked and self._is_obedient):
                for _ in range(MESSAGES_AT_ONCE):
                    number = self.sending()
                    body = body_of(self.number, number)
                    self._output += connection.encode_publish(
                        1, self.place_of(number), body, properties=PERSISTENT
                    )  # fmt: skip
            readable, writable, _ = select.select([sock], [sock] if self._output else [], [], 0.1)
            if writable:
                with suppress(BlockingIOError):
                    del self._output[: sock.send(self._output)]
            if readable:
                data = sock.recv(1 << 18)
                if not data:
                    raise EOFError("the broker hung up")
                self._input += data
                self._read()
        sock.setblocking(True)

    def _read(self) -> None:
        data, position = self._input, 0
        while len(data) - position >= _FRAME_HEAD.size:
            kind, _, size = _FRAME_HEAD.unpack_from(data, position)
            start = position + _FRAME_HEAD.size
            if len(data) < start + size + 1:
                break
            if kind == 1:
                self._take(_METHOD.unpack_from(data, start), bytes(data[start + _METHOD.size : start + size]))
            position = start + size + 1
        del data[:position]

    def _take(self, method: tuple[int, ...], arguments: bytes) -> None:
        if method in (_ACK, _NACK):
            tag, bits = _TAG.unpack_from(arguments)
            last = self._base + tag - 1
            self._resolve(self._unresolved if bits & 1 else last, last, CONFIRMED if method == _ACK else REFUSED)
        elif method == _BLOCKED:
            self.become_blocked(True)
            self.blocked.append(arguments[1:].decode())
        elif method == _UNBLOCKED:
            self.become_blocked(False)
        elif method in _CLOSES:
            raise EOFError(f"the broker closed: {arguments!r}")

    def _resolve(self, first: int, last: int, told: int) -> None:
        if last >= self.sent:
            self.tell(f"message {last} is told of, and {self.sent} were sent")
            return
        if told == REFUSED and not self.forgives.is_set():
            self.tell(f"messages {first} to {last} were refused")
        for number in range(first, last + 1):
            if self.told[number] != NOTHING:
                self.tell(f"message {number} was told of twice")
                continue
            self.is_told(number, told)
        while self._unresolved < self.sent and self.told[self._unresolved] != NOTHING:
            self._unresolved += 1


class KafkaPublisher(Publisher):
    """An idempotent producer with acks=all, which tries for as long as it must. Places are partitions."""

    def __init__(
        self, number: int, topic: str, partitions: int, address: str, say: Callable[[str], None]
    ) -> None:  # fmt: skip
        super().__init__(number, [str(partition) for partition in range(partitions)], say)
        self._topic: Final = topic
        self._producer: Final = confluent_kafka.Producer(
            {
                "bootstrap.servers": address,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "queue.buffering.max.kbytes": KAFKA_QUEUE_KIB,
                "queue.buffering.max.messages": 20_000,
                "message.timeout.ms": 3_600_000,
                "retry.backoff.ms": 100,
                "retry.backoff.max.ms": 500,
                "reconnect.backoff.max.ms": 500,
                "socket.timeout.ms": 60_000,
                "log_level": 0,
            },
            # Otherwise every reconnection is told on standard error.
            logger=None,
            error_cb=self._failed,
        )

    def run(self) -> None:
        while not self.over.is_set() and not (self.enough.is_set() and self.confirmed + self.refused == self.sent):
            if self.enough.is_set():
                self._producer.poll(0.1)
                continue
            number = self.sent
            try:
                self._producer.produce(
                    self._topic,
                    body_of(self.number, number),
                    partition=int(self.place_of(number)),
                    on_delivery=lambda error, _, number=number: self._delivered(number, error),
                )
                self.sending()
                self._producer.poll(0)
            except BufferError:
                self._producer.poll(0.05)
        self._producer.purge()
        self._producer.flush(1)

    def _delivered(self, number: int, error: confluent_kafka.KafkaError | None) -> None:
        if self.over.is_set():
            return
        self.is_told(number, CONFIRMED if error is None else REFUSED)
        if error is not None:
            # It is to be tried until it succeeds: no error of a full or a broken disk is the last word.
            self.tell(f"record {number} was given up: {error}")

    def _failed(self, error: confluent_kafka.KafkaError) -> None:
        if error.fatal():
            self.tell(f"a fatal error: {error}")
