"""A consumer of an AMQP channel: turns deliveries into frames.

    method frame   01 | channel u16 | length u32 | 003c 003c | consumer tag | delivery tag i64 | redelivered u8
                   | exchange | routing key | ce
    header frame   02 | channel u16 | length u32 | 003c 0000 | body size i64 | properties | ce
    body frames    03 | channel u16 | length u32 | part of the body | ce

What comes before the delivery tag and after the redelivered flag is the same for all messages of one route, and kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from librt.strings import BytesWriter, write_i16_be, write_i32_be, write_i64_be
from mypy_extensions import i32, i64

from millpond.base.limits import UNSETTLED_WHEN_SHORT_MAX
from millpond.broker.message import Address
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.message_queue import MessageQueue
from millpond.protocols.amqp.content import NumberedHeader, channel_bits, counted_returns, name_bytes, write_content

if TYPE_CHECKING:
    from millpond.protocols.amqp.channel import Channel

BASIC_DELIVER: Final = 0x003C003C


@final
class AmqpConsumer(Consumer):
    """One `basic.consume`."""

    def __init__(
        self,
        channel: Channel,
        queue: MessageQueue,
        tag: str,
        prefetch: i64,
        acknowledges: bool,
        exclusive: bool,
        arguments: dict[str, object],
    ) -> None:
        super().__init__(queue, tag, prefetch, acknowledges, exclusive)
        self.channel: Final = channel
        self.arguments = arguments
        # What a stream delivers says where it was.
        self._numbered = NumberedHeader("x-stream-offset") if queue.partition is not None else None
        self._address: Address | None = None
        self._prefix = b""
        self._suffix = b""

    def can_take(self) -> bool:
        unsettled = self.unsettled
        if self.prefetch > 0 and unsettled >= self.prefetch:
            return False
        if unsettled >= UNSETTLED_WHEN_SHORT_MAX and self.queue.memory.hold(self):
            return False
        return self.channel.can_deliver(self)

    def describe_channel(self) -> dict[str, object]:
        return self.channel.connection.handlers.describe_place(self.channel)

    def described_arguments(self) -> dict[str, object]:
        return self.arguments

    def deliver(self, entry: Entry) -> None:
        channel = self.channel
        message = entry.message
        if self.acknowledges:
            tag = channel.track(entry)
        else:
            tag = channel.skip_delivery_tag()
        if message.address is not self._address:
            self._prepare(message.address)
        connection = channel.connection
        output = connection.output
        output.write(self._prefix)
        write_i64_be(output, tag)
        output.append(1 if entry.redelivered else 0)
        output.write(self._suffix)
        numbered = self._numbered
        if numbered is not None:
            numbered.write_content(output, channel.number, message, entry.offset, connection.body_frame_bytes)
        else:
            returns = counted_returns(entry, self.queue)
            write_content(output, channel.number, message, connection.body_frame_bytes, returns)
        connection.touch()

    def _prepare(self, address: Address) -> None:
        tag = name_bytes(self.tag)
        exchange = name_bytes(address.exchange)
        routing_key = name_bytes(address.routing_key)
        prefix = BytesWriter()
        prefix.append(1)
        write_i16_be(prefix, channel_bits(self.channel.number))
        write_i32_be(prefix, i32(4 + len(tag) + 9 + len(exchange) + len(routing_key)))
        write_i32_be(prefix, BASIC_DELIVER)
        prefix.write(tag)
        self._prefix = prefix.getvalue()
        self._suffix = exchange + routing_key + b"\xce"
        self._address = address

    def queue_deleted(self) -> None:
        self.channel.consumer_cancelled(self)
