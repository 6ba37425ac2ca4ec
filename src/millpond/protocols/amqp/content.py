"""Content frames: a message's header and body as they go to a client."""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter, write_i16_be, write_i32_be, write_i64_be
from mypy_extensions import i16, i32, i64

from millpond.broker.message import Message, Properties
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.message_queue import MessageQueue
from millpond.protocols.amqp.properties import FORMAT, BasicProperties, fitting_properties

FRAME_METHOD: Final = 1
FRAME_HEADER: Final = 2
FRAME_BODY: Final = 3
FRAME_HEARTBEAT: Final = 8
FRAME_END: Final = 0xCE
# Type, channel and length.
FRAME_HEAD_BYTES: Final = 7
# Type, channel and length before a frame's payload, and the end octet after it.
FRAME_OVERHEAD_BYTES: Final = 8

_CLASS_BASIC: Final = 60 << 16
# Class, weight and body size in a header frame.
_BEFORE_PROPERTIES_BYTES: Final[i64] = 12
# What a number among the headers takes besides its name: lengths, type letter, flags that were not there.
_NUMBER_BYTES: Final[i64] = 16


def name_bytes(name: str) -> bytes:
    """A name as a short string: its length in one byte, then its bytes."""
    encoded = name.encode("utf-8", "surrogateescape")
    return bytes((len(encoded),)) + encoded


def channel_bits(number: i64) -> i16:
    """A channel's number, which is unsigned, as `write_i16_be` takes it."""
    return i16(number - (number >> 15 << 16))


def counted_returns(entry: Entry, queue: MessageQueue) -> i64:
    """How often a message has come back, where its queue wants the consumer to know."""
    return entry.returns if entry.returns > 0 and queue.settings.counts_returns else 0


def write_content(output: BytesWriter, channel: i64, message: Message, body_frame_bytes: i64, returns: i64 = 0) -> None:
    """Append the header frame of `message` and its body in frames of at most `body_frame_bytes` payload. A number of
    `returns` goes along as RabbitMQ's header x-delivery-count."""
    properties = message.properties
    if returns > 0:
        properties = properties.replaced({"x-delivery-count": int(returns)}, True)
    raw = properties.raw
    if properties.format != FORMAT or len(raw) > body_frame_bytes - _BEFORE_PROPERTIES_BYTES:
        raw = fitting_properties(properties, body_frame_bytes - _BEFORE_PROPERTIES_BYTES).raw
    body = message.body
    output.append(FRAME_HEADER)
    write_i16_be(output, channel_bits(channel))
    write_i32_be(output, i32(12 + len(raw)))
    write_i32_be(output, _CLASS_BASIC)
    write_i64_be(output, len(body))
    output.write(raw)
    output.append(FRAME_END)
    _write_body(output, channel, body, body_frame_bytes)


@final
class NumberedHeader:
    """Writes content whose headers have a number that no two messages share, as deliveries of a stream have their
    offset. The rest of the header frame is kept for the messages that share their properties."""

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._properties: Properties | None = None
        self._before = b""
        self._after = b""

    def write_content(
        self, output: BytesWriter, channel: i64, message: Message, number: i64, body_frame_bytes: i64
    ) -> None:
        """As `write_content`, with the header set to `number`."""
        if message.properties is not self._properties:
            self._prepare(message.properties, body_frame_bytes)
        size: i64 = 20 + len(self._before) + len(self._after)
        if size > body_frame_bytes:
            # The publisher's own properties fill the frame, and a header cannot be split: the number is left out.
            write_content(output, channel, message, body_frame_bytes)
            return
        body = message.body
        output.append(FRAME_HEADER)
        write_i16_be(output, channel_bits(channel))
        write_i32_be(output, i32(size))
        write_i32_be(output, _CLASS_BASIC)
        write_i64_be(output, len(body))
        output.write(self._before)
        write_i64_be(output, number)
        output.write(self._after)
        output.append(FRAME_END)
        _write_body(output, channel, body, body_frame_bytes)

    def _prepare(self, properties: Properties, body_frame_bytes: i64) -> None:
        if isinstance(properties, BasicProperties):
            basic = properties
        else:
            taken: i64 = _BEFORE_PROPERTIES_BYTES + _NUMBER_BYTES + len(self._name)
            basic = fitting_properties(properties, body_frame_bytes - taken)
        self._before, self._after = basic.around_number(self._name)
        self._properties = properties


def _write_body(output: BytesWriter, channel: i64, body: bytes, body_frame_bytes: i64) -> None:
    size: i64 = len(body)
    if size == 0:
        return
    if size <= body_frame_bytes:
        output.append(FRAME_BODY)
        write_i16_be(output, channel_bits(channel))
        write_i32_be(output, i32(size))
        output.write(body)
        output.append(FRAME_END)
        return
    position: i64 = 0
    while position < size:
        end = position + body_frame_bytes
        if end > size:
            end = size
        output.append(FRAME_BODY)
        write_i16_be(output, channel_bits(channel))
        write_i32_be(output, i32(end - position))
        output.write(body[position:end])
        output.append(FRAME_END)
        position = end


def write_method(output: BytesWriter, channel: i64, payload: bytes) -> None:
    """Append a method frame."""
    output.append(FRAME_METHOD)
    write_i16_be(output, channel_bits(channel))
    write_i32_be(output, i32(len(payload)))
    output.write(payload)
    output.append(FRAME_END)


def write_confirm(output: BytesWriter, channel: i64, method_id: i32, tag: i64, multiple: bool) -> None:
    """Append a `basic.ack` or `basic.nack`."""
    output.append(FRAME_METHOD)
    write_i16_be(output, channel_bits(channel))
    write_i32_be(output, 13)
    write_i32_be(output, method_id)
    write_i64_be(output, tag)
    output.append(1 if multiple else 0)
    output.append(FRAME_END)


def write_return(output: BytesWriter, channel: i64, message: Message, body_frame_bytes: i64) -> None:
    """Append a `basic.return` because no queue was reached, with its content."""
    address = message.address
    # Method id, then reply code 312 and its name.
    reply = b"\x00\x3c\x00\x32\x01\x38\x08NO_ROUTE"
    write_method(output, channel, reply + name_bytes(address.exchange) + name_bytes(address.routing_key))
    write_content(output, channel, message, body_frame_bytes)
