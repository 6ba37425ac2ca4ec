"""The methods of AMQP 0-9-1 with RabbitMQ's extensions, as objects, and their bytes.

    payload of a method frame    class (16 bits), method (16 bits), then the fields in their order

    Octet Short Long LongLong    8, 16, 32, 64 bits, unsigned
    Bit                          one bit; up to eight that follow one another share an octet, the first is the lowest
    ShortString                  length (8), UTF-8
    LongString                   length (32), bytes
    Table                        a field table, see `field_table`

A class below is one method and its annotations are the layout; there is no other description of it. They follow
RabbitMQ's grammar (amqp-rabbitmq-0.9.1.json), with the fields that AMQP reserves: who handles a method ignores those.

Decoding is strict: all of the payload must be used and nothing beyond. pamqp's commands are not used: 4.0.1 does not
check that a string is as long as it says, nor that all bytes were used, and refuses to write names that RabbitMQ
allows. `basic.publish`, `deliver`, `ack` and their like also have faster ways of their own elsewhere; what is here is
the rule they must agree with.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeAlias, dataclass_transform

from librt.strings import BytesWriter, read_i16_be, read_i32_be, read_i64_be, write_i16_be, write_i32_be, write_i64_be

from millpond.base.errors import FrameFault, NotImplementedHere, SyntaxFault
from millpond.base.limits import NAME_BYTES_MAX
from millpond.protocols.amqp import field_table

Octet: TypeAlias = int
Short: TypeAlias = int
Long: TypeAlias = int
LongLong: TypeAlias = int
Bit: TypeAlias = bool
ShortString: TypeAlias = str
LongString: TypeAlias = bytes
Table: TypeAlias = dict[str, object]

# The default of a table: every method gets one of its own.
EMPTY: Final[Table] = {}

# Class and method, as 32 bits -> the method. Filled by the classes below.
METHODS: Final[dict[int, type[Method]]] = {}


@dataclass_transform()
class Method:
    """Base of all methods. Its subclasses take their fields as arguments, in their order or by name.

    `method_id` is class << 16 | method; `name` is as RabbitMQ writes it, "queue.declare_ok"; `has_content` says that a
    content header and body follow; `layout` holds names and types of the fields.
    """

    method_id: ClassVar[int]
    name: ClassVar[str]
    has_content: ClassVar[bool]
    layout: ClassVar[tuple[tuple[str, str], ...]]

    def __init_subclass__(cls, id: tuple[int, int], has_content: bool = False) -> None:
        class_name, *words = re.findall("[A-Z][a-z]*", cls.__name__)
        cls.method_id = id[0] << 16 | id[1]
        cls.name = f"{class_name}.{'_'.join(words)}".lower()
        cls.has_content = has_content
        cls.layout = tuple(cls.__annotations__.items())
        METHODS[cls.method_id] = cls

    def __init__(self, *values: Any, **named: Any) -> None:
        if len(values) > len(self.layout):
            raise TypeError(f"{self.name} has {len(self.layout)} fields, not {len(values)}")
        for index, (field, kind) in enumerate(self.layout):
            if index < len(values):
                value = values[index]
            elif field in named:
                value = named.pop(field)
            else:
                value = {} if kind == "Table" else getattr(type(self), field)
            setattr(self, field, value)
        if named:
            raise TypeError(f"{self.name} has no field {next(iter(named))}, or it is given twice")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join([f"{field}={getattr(self, field)!r}" for field, _ in self.layout if field not in _SECRETS])
        return f"<{self.name} {fields}>" if fields else f"<{self.name}>"


# What must not come into a log.
_SECRETS: Final = frozenset({"response", "new_secret"})


def decode_method(payload: bytes) -> Method:
    """The method in the payload of a method frame.

    Raises SyntaxFault where the fields do not fill the payload exactly, FrameFault for a text that is not UTF-8,
    NotImplementedHere for a method that does not exist, LimitExceeded for tables nested too deep.
    """
    end = len(payload)
    if end < 4:
        raise SyntaxFault("a method frame without a method")
    method_id = read_i32_be(payload, 0)
    method_class = METHODS.get(method_id)
    if method_class is None:
        raise NotImplementedHere(f"no method {(method_id >> 16) & 0xFFFF}, {method_id & 0xFFFF}")
    method = method_class.__new__(method_class)
    position = 4
    bits = mask = 0
    for field, kind in method_class.layout:
        if kind == "Bit":
            if mask in (0, 0x80):
                bits, position = _read_octet(payload, position, end)
                mask = 1
            else:
                mask <<= 1
            setattr(method, field, bits & mask != 0)
        else:
            mask = 0
            value, position = _READERS[kind](payload, position, end)
            # Routing keys may be any bytes, and RabbitMQ lets them: elsewhere a text that is none is an error.
            if kind == "ShortString" and not method_class.has_content:
                _check_text(value)
            setattr(method, field, value)
    if position != end:
        raise SyntaxFault(f"{end - position} bytes after {method_class.name}")
    return method


def encode_method(method: Method) -> bytes:
    """The payload of a method frame. Raises ValueError or TypeError for a field that its type does not hold."""
    writer = BytesWriter()
    write_i32_be(writer, method.method_id)
    bits = mask = 0
    for field, kind in method.layout:
        if kind == "Bit":
            if mask == 0x80:
                writer.append(bits)
                bits = mask = 0
            mask = mask << 1 or 1
            if getattr(method, field):
                bits |= mask
        else:
            if mask:
                writer.append(bits)
                bits = mask = 0
            _WRITERS[kind](writer, getattr(method, field))
    if mask:
        writer.append(bits)
    return writer.getvalue()


# --- Fields -----------------------------------------------------------------------------------------------------------


def _require(length: int, position: int, end: int) -> None:
    if length > end - position:
        raise SyntaxFault(f"a field of {length} bytes where {end - position} are left")


def _read_octet(payload: bytes, position: int, end: int) -> tuple[int, int]:
    _require(1, position, end)
    return payload[position], position + 1


def _read_short(payload: bytes, position: int, end: int) -> tuple[int, int]:
    _require(2, position, end)
    return read_i16_be(payload, position) & 0xFFFF, position + 2


def _read_long(payload: bytes, position: int, end: int) -> tuple[int, int]:
    _require(4, position, end)
    return read_i32_be(payload, position) & 0xFFFFFFFF, position + 4


def _read_long_long(payload: bytes, position: int, end: int) -> tuple[int, int]:
    _require(8, position, end)
    return read_i64_be(payload, position) & 0xFFFFFFFFFFFFFFFF, position + 8


def _read_short_string(payload: bytes, position: int, end: int) -> tuple[str, int]:
    after = field_table.name_end(payload, position, end)
    return field_table.decode_text(payload, position + 1, after), after


def _read_long_string(payload: bytes, position: int, end: int) -> tuple[bytes, int]:
    after = field_table.content_end(payload, position, end)
    return payload[position + 4 : after], after


def _read_table(payload: bytes, position: int, end: int) -> tuple[Table, int]:
    after = field_table.content_end(payload, position, end)
    return field_table.decode_entries(payload, position + 4, after, 0), after


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FrameFault("Malformed UTF-8 in shortstr") from None


def _check_range(value: int, bits: int) -> None:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{value} does not fit {bits} bits")


def _write_octet(writer: BytesWriter, value: int) -> None:
    _check_range(value, 8)
    writer.append(value)


def _write_short(writer: BytesWriter, value: int) -> None:
    _check_range(value, 16)
    write_i16_be(writer, value - (value >> 15 << 16))


def _write_long(writer: BytesWriter, value: int) -> None:
    _check_range(value, 32)
    write_i32_be(writer, value - (value >> 31 << 32))


def _write_long_long(writer: BytesWriter, value: int) -> None:
    _check_range(value, 64)
    write_i64_be(writer, value - (value >> 63 << 64))


def _write_short_string(writer: BytesWriter, value: str) -> None:
    encoded = value.encode("utf-8", "surrogateescape")
    if len(encoded) > NAME_BYTES_MAX:
        raise ValueError(f"a short string of {len(encoded)} bytes")
    writer.append(len(encoded))
    writer.write(encoded)


def _write_long_string(writer: BytesWriter, value: bytes) -> None:
    write_i32_be(writer, len(value))
    writer.write(value)


def _write_table(writer: BytesWriter, value: Table) -> None:
    field_table.write_table(writer, value, 0)


# By the name of the type in a method's annotations. Bits are packed by the loops above.
_READERS: Final[dict[str, Callable[[bytes, int, int], tuple[Any, int]]]] = {
    "Octet": _read_octet,
    "Short": _read_short,
    "Long": _read_long,
    "LongLong": _read_long_long,
    "ShortString": _read_short_string,
    "LongString": _read_long_string,
    "Table": _read_table,
}

_WRITERS: Final[dict[str, Callable[[BytesWriter, Any], None]]] = {
    "Octet": _write_octet,
    "Short": _write_short,
    "Long": _write_long,
    "LongLong": _write_long_long,
    "ShortString": _write_short_string,
    "LongString": _write_long_string,
    "Table": _write_table,
}


# --- connection -------------------------------------------------------------------------------------------------------


class ConnectionStart(Method, id=(10, 10)):
    version_major: Octet = 0
    version_minor: Octet = 9
    server_properties: Table = EMPTY
    mechanisms: LongString = b"PLAIN"
    locales: LongString = b"en_US"


class ConnectionStartOk(Method, id=(10, 11)):
    client_properties: Table = EMPTY
    mechanism: ShortString = "PLAIN"
    response: LongString = b""
    locale: ShortString = "en_US"


class ConnectionSecure(Method, id=(10, 20)):
    challenge: LongString = b""


class ConnectionSecureOk(Method, id=(10, 21)):
    response: LongString = b""


class ConnectionTune(Method, id=(10, 30)):
    channel_max: Short = 0
    frame_max: Long = 0
    heartbeat: Short = 0


class ConnectionTuneOk(Method, id=(10, 31)):
    channel_max: Short = 0
    frame_max: Long = 0
    heartbeat: Short = 0


class ConnectionOpen(Method, id=(10, 40)):
    virtual_host: ShortString = "/"
    capabilities: ShortString = ""
    insist: Bit = False


class ConnectionOpenOk(Method, id=(10, 41)):
    known_hosts: ShortString = ""


class ConnectionClose(Method, id=(10, 50)):
    reply_code: Short = 0
    reply_text: ShortString = ""
    failing_class_id: Short = 0
    failing_method_id: Short = 0


class ConnectionCloseOk(Method, id=(10, 51)):
    pass


class ConnectionBlocked(Method, id=(10, 60)):
    reason: ShortString = ""


class ConnectionUnblocked(Method, id=(10, 61)):
    pass


class ConnectionUpdateSecret(Method, id=(10, 70)):
    new_secret: LongString = b""
    reason: ShortString = ""


class ConnectionUpdateSecretOk(Method, id=(10, 71)):
    pass


# --- channel ----------------------------------------------------------------------------------------------------------


class ChannelOpen(Method, id=(20, 10)):
    out_of_band: ShortString = ""


class ChannelOpenOk(Method, id=(20, 11)):
    channel_id: LongString = b""


class ChannelFlow(Method, id=(20, 20)):
    active: Bit = False


class ChannelFlowOk(Method, id=(20, 21)):
    active: Bit = False


class ChannelClose(Method, id=(20, 40)):
    reply_code: Short = 0
    reply_text: ShortString = ""
    failing_class_id: Short = 0
    failing_method_id: Short = 0


class ChannelCloseOk(Method, id=(20, 41)):
    pass


# --- access -----------------------------------------------------------------------------------------------------------


class AccessRequest(Method, id=(30, 10)):
    realm: ShortString = "/data"
    exclusive: Bit = False
    passive: Bit = True
    active: Bit = True
    write: Bit = True
    read: Bit = True


class AccessRequestOk(Method, id=(30, 11)):
    ticket: Short = 1


# --- exchange ---------------------------------------------------------------------------------------------------------


class ExchangeDeclare(Method, id=(40, 10)):
    ticket: Short = 0
    exchange: ShortString = ""
    type: ShortString = "direct"
    passive: Bit = False
    durable: Bit = False
    auto_delete: Bit = False
    internal: Bit = False
    nowait: Bit = False
    arguments: Table = EMPTY


class ExchangeDeclareOk(Method, id=(40, 11)):
    pass


class ExchangeDelete(Method, id=(40, 20)):
    ticket: Short = 0
    exchange: ShortString = ""
    if_unused: Bit = False
    nowait: Bit = False


class ExchangeDeleteOk(Method, id=(40, 21)):
    pass


class ExchangeBind(Method, id=(40, 30)):
    ticket: Short = 0
    destination: ShortString = ""
    source: ShortString = ""
    routing_key: ShortString = ""
    nowait: Bit = False
    arguments: Table = EMPTY


class ExchangeBindOk(Method, id=(40, 31)):
    pass


class ExchangeUnbind(Method, id=(40, 40)):
    ticket: Short = 0
    destination: ShortString = ""
    source: ShortString = ""
    routing_key: ShortString = ""
    nowait: Bit = False
    arguments: Table = EMPTY


class ExchangeUnbindOk(Method, id=(40, 51)):
    pass


# --- queue ------------------------------------------------------------------------------------------------------------


class QueueDeclare(Method, id=(50, 10)):
    ticket: Short = 0
    queue: ShortString = ""
    passive: Bit = False
    durable: Bit = False
    exclusive: Bit = False
    auto_delete: Bit = False
    nowait: Bit = False
    arguments: Table = EMPTY


class QueueDeclareOk(Method, id=(50, 11)):
    queue: ShortString = ""
    message_count: Long = 0
    consumer_count: Long = 0


class QueueBind(Method, id=(50, 20)):
    ticket: Short = 0
    queue: ShortString = ""
    exchange: ShortString = ""
    routing_key: ShortString = ""
    nowait: Bit = False
    arguments: Table = EMPTY


class QueueBindOk(Method, id=(50, 21)):
    pass


class QueuePurge(Method, id=(50, 30)):
    ticket: Short = 0
    queue: ShortString = ""
    nowait: Bit = False


class QueuePurgeOk(Method, id=(50, 31)):
    message_count: Long = 0


class QueueDelete(Method, id=(50, 40)):
    ticket: Short = 0
    queue: ShortString = ""
    if_unused: Bit = False
    if_empty: Bit = False
    nowait: Bit = False


class QueueDeleteOk(Method, id=(50, 41)):
    message_count: Long = 0


class QueueUnbind(Method, id=(50, 50)):
    ticket: Short = 0
    queue: ShortString = ""
    exchange: ShortString = ""
    routing_key: ShortString = ""
    arguments: Table = EMPTY


class QueueUnbindOk(Method, id=(50, 51)):
    pass


# --- basic ------------------------------------------------------------------------------------------------------------


class BasicQos(Method, id=(60, 10)):
    prefetch_size: Long = 0
    prefetch_count: Short = 0
    global_: Bit = False


class BasicQosOk(Method, id=(60, 11)):
    pass


class BasicConsume(Method, id=(60, 20)):
    ticket: Short = 0
    queue: ShortString = ""
    consumer_tag: ShortString = ""
    no_local: Bit = False
    no_ack: Bit = False
    exclusive: Bit = False
    nowait: Bit = False
    arguments: Table = EMPTY


class BasicConsumeOk(Method, id=(60, 21)):
    consumer_tag: ShortString = ""


class BasicCancel(Method, id=(60, 30)):
    consumer_tag: ShortString = ""
    nowait: Bit = False


class BasicCancelOk(Method, id=(60, 31)):
    consumer_tag: ShortString = ""


class BasicPublish(Method, id=(60, 40), has_content=True):
    ticket: Short = 0
    exchange: ShortString = ""
    routing_key: ShortString = ""
    mandatory: Bit = False
    immediate: Bit = False


class BasicReturn(Method, id=(60, 50), has_content=True):
    reply_code: Short = 0
    reply_text: ShortString = ""
    exchange: ShortString = ""
    routing_key: ShortString = ""


class BasicDeliver(Method, id=(60, 60), has_content=True):
    consumer_tag: ShortString = ""
    delivery_tag: LongLong = 0
    redelivered: Bit = False
    exchange: ShortString = ""
    routing_key: ShortString = ""


class BasicGet(Method, id=(60, 70)):
    ticket: Short = 0
    queue: ShortString = ""
    no_ack: Bit = False


class BasicGetOk(Method, id=(60, 71), has_content=True):
    delivery_tag: LongLong = 0
    redelivered: Bit = False
    exchange: ShortString = ""
    routing_key: ShortString = ""
    message_count: Long = 0


class BasicGetEmpty(Method, id=(60, 72)):
    cluster_id: ShortString = ""


class BasicAck(Method, id=(60, 80)):
    delivery_tag: LongLong = 0
    multiple: Bit = False


class BasicReject(Method, id=(60, 90)):
    delivery_tag: LongLong = 0
    requeue: Bit = True


class BasicRecoverAsync(Method, id=(60, 100)):
    requeue: Bit = False


class BasicRecover(Method, id=(60, 110)):
    requeue: Bit = False


class BasicRecoverOk(Method, id=(60, 111)):
    pass


class BasicNack(Method, id=(60, 120)):
    delivery_tag: LongLong = 0
    multiple: Bit = False
    requeue: Bit = True


# --- confirm ----------------------------------------------------------------------------------------------------------


class ConfirmSelect(Method, id=(85, 10)):
    nowait: Bit = False


class ConfirmSelectOk(Method, id=(85, 11)):
    pass


# --- tx ---------------------------------------------------------------------------------------------------------------


class TxSelect(Method, id=(90, 10)):
    pass


class TxSelectOk(Method, id=(90, 11)):
    pass


class TxCommit(Method, id=(90, 20)):
    pass


class TxCommitOk(Method, id=(90, 21)):
    pass


class TxRollback(Method, id=(90, 30)):
    pass


class TxRollbackOk(Method, id=(90, 31)):
    pass
