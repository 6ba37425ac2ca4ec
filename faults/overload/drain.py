"""What is there when it is over: everything is taken, and compared with what the publishers were told."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Final

import confluent_kafka
import pamqp.commands as commands

from faults.overload.publishers import CONFIRMED, HEAD, Publisher, body_of
from tests.support.endpoint import Endpoint
from tests.support.raw_amqp import RawConnection

PREFETCH: Final = 2_000
ACKNOWLEDGED_AT_ONCE: Final = 500
SILENCE_S: Final = 30.0
CONSUME_S: Final = 0.2

_FRAME_HEAD: Final = struct.Struct(">BHI")
_METHOD, _BODY = 1, 3
_DELIVERY_TAG_AT: Final = 4


class Tally:
    """What has come of each publisher, and in which order of each place."""

    def __init__(self, publishers: Sequence[Publisher]) -> None:
        self.received = 0
        self.wrong: list[str] = []
        self._publishers: Final = {publisher.number: publisher for publisher in publishers}
        self._seen: Final = {number: bytearray(one.sent) for number, one in self._publishers.items()}
        self._last: Final[dict[tuple[str, int], int]] = {}

    def take(self, place: str, body: bytes) -> None:
        """A message has come."""
        who, number = HEAD.unpack_from(body)
        publisher = self._publishers.get(who)
        self.received += 1
        if publisher is None or number >= publisher.sent or body != body_of(who, number):
            self._tell(f"what nobody published came from {place}: {body[:32]!r}")
            return
        if publisher.place_of(number) != place:
            self._tell(f"message {number} of {who} came from {place}")
        if self._seen[who][number]:
            self._tell(f"message {number} of {who} came twice from {place}")
        self._seen[who][number] = 1
        last = self._last.get((place, who), -1)
        if number <= last:
            self._tell(f"message {number} of {who} came after {last} from {place}")
        self._last[place, who] = number

    def finish(self) -> None:
        """All has come: what is missing of what was confirmed?"""
        for who, publisher in self._publishers.items():
            pairs = zip(publisher.told, self._seen[who], strict=False)
            lost = [number for number, (told, seen) in enumerate(pairs) if told == CONFIRMED and not seen]
            if lost:
                self._tell(
                    f"{len(lost):,} confirmed messages of {publisher.name} are lost, from {lost[0]} to {lost[-1]}"
                )

    def _tell(self, what: str) -> None:
        if len(self.wrong) < 50:
            self.wrong.append(what)


def drain_queue(port: int, queue: str, tally: Tally) -> None:
    """Take all messages of a queue, as many as it says that it has."""
    with RawConnection(Endpoint("127.0.0.1", port)) as connection:
        connection.handshake()
        connection.open_channel()
        declared = connection.rpc(commands.Queue.Declare(0, queue, passive=True), commands.Queue.DeclareOk)
        if declared.message_count:
            connection.rpc(commands.Basic.Qos(0, PREFETCH), commands.Basic.QosOk)
            connection.rpc(commands.Basic.Consume(0, queue, "drain"), commands.Basic.ConsumeOk)
            _take(connection, queue, declared.message_count, tally)
        # The channel's end has the acknowledgements behind it.
        connection.rpc(commands.Channel.Close(200, "done", 0, 0), commands.Channel.CloseOk)
        connection.open_channel(2)
        left = connection.rpc(commands.Queue.Declare(0, queue, passive=True), commands.Queue.DeclareOk, 2)
        if left.message_count:
            tally.wrong.append(f"{queue} has {left.message_count} messages when all it had were taken")


def _take(connection: RawConnection, queue: str, count: int, tally: Tally) -> None:
    sock = connection.socket
    sock.settimeout(SILENCE_S)
    data = bytearray(connection._buffer)
    connection._buffer = b""
    taken = tag = 0
    while True:
        position = 0
        while taken < count and len(data) - position >= _FRAME_HEAD.size:
            kind, _, size = _FRAME_HEAD.unpack_from(data, position)
            start = position + _FRAME_HEAD.size
            if len(data) < start + size + 1:
                break
            if kind == _METHOD:
                tag_at = start + _DELIVERY_TAG_AT
                (tag,) = struct.unpack_from(">Q", data, tag_at + 1 + data[tag_at])
            elif kind == _BODY:
                taken += 1
                tally.take(queue, bytes(data[start : start + size]))
                if taken % ACKNOWLEDGED_AT_ONCE == 0 or taken == count:
                    connection.send(commands.Basic.Ack(tag, True), 1)
            position = start + size + 1
        del data[:position]
        if taken == count:
            # What comes beyond it would be found by the next declaration, or twice by nobody: keep it for `rpc`.
            connection._buffer = bytes(data)
            return
        try:
            piece = sock.recv(1 << 18)
        except TimeoutError:
            piece = b""
        if not piece:
            tally.wrong.append(f"{queue} gave {taken} of the {count} messages that it says it has")
            return
        data += piece


def drain_topic(address: str, topic: str, partitions: int, tally: Tally) -> None:
    """Read all records of a topic."""
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "drain",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    try:
        ends, at = {}, {}
        for number in range(partitions):
            at[number], ends[number] = consumer.get_watermark_offsets(
                confluent_kafka.TopicPartition(topic, number), timeout=SILENCE_S
            )
        consumer.assign([confluent_kafka.TopicPartition(topic, number, start) for number, start in at.items()])
        last_came = time.monotonic()
        while any(at[number] < ends[number] for number in ends):
            # It comes back when it has all of so many, or when the time is over.
            records = consumer.consume(1_000, timeout=CONSUME_S)
            if records:
                last_came = time.monotonic()
            elif time.monotonic() - last_came > SILENCE_S:
                tally.wrong.append(f"{topic} gave records up to {at}, and it says that it has them up to {ends}")
                return
            for record in records:
                if record.error() is not None:
                    tally.wrong.append(f"{topic}: {record.error()}")
                    return
                if record.offset() != at[record.partition()]:
                    tally.wrong.append(f"offset {record.offset()} came in place of {at[record.partition()]}")
                tally.take(str(record.partition()), record.value())
                at[record.partition()] = record.offset() + 1
    finally:
        consumer.close()
