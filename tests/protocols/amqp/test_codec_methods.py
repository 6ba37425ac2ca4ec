"""Methods: every one there and back, pamqp agrees byte for byte, and nothing hostile gets through."""

from __future__ import annotations

import inspect
import struct
from typing import Any

import pamqp.commands
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.base.errors import FrameFault, LimitExceeded, NotImplementedHere, PeerError, SyntaxFault
from millpond.base.limits import FIELD_VALUE_DEPTH_MAX
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.methods import METHODS, Method, decode_method, encode_method
from tests.protocols.amqp.test_codec_field_table import nested, table_of, tables

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "Octet": st.integers(0, 2**8 - 1),
    "Short": st.integers(0, 2**16 - 1),
    "Long": st.integers(0, 2**32 - 1),
    "LongLong": st.integers(0, 2**64 - 1),
    "Bit": st.booleans(),
    "ShortString": st.text(max_size=60),
    "LongString": st.binary(max_size=100),
    "Table": tables,
}
# The class of AMQP 0-8 that RabbitMQ still answers, and that pamqp leaves out.
ACCESS = 30
# One value of each type, none of them what a decoder would make up.
SAMPLES: dict[str, Any] = {
    "Octet": 0xA1,
    "Short": 0xA1A2,
    "Long": 0xA1A2A3A4,
    "LongLong": 0x71A2A3A4A5A6A7A8,
    "Bit": True,
    "ShortString": "sample",
    "LongString": b"sample",
    "Table": {"sample": [100_000_000_000, "two", {"three": None}]},
}
ALL = sorted(METHODS.values(), key=lambda each: each.method_id)
every_method = pytest.mark.parametrize("method_class", ALL, ids=[each.name for each in ALL])


def sample(method_class: type[Method]) -> Method:
    return method_class(*[SAMPLES[kind] for _, kind in method_class.layout])


def arbitrary_methods() -> st.SearchStrategy[Method]:
    return st.sampled_from(ALL).flatmap(
        lambda method_class: st.builds(method_class, *[FIELDS[kind] for _, kind in method_class.layout])
    )


@given(arbitrary_methods())
def test_a_method_comes_back_as_it_was(method: Method) -> None:
    payload = encode_method(method)
    decoded = decode_method(payload)
    assert decoded == method
    assert encode_method(decoded) == payload


@every_method
def test_every_truncated_prefix_is_refused(method_class: type[Method]) -> None:
    payload = encode_method(sample(method_class))
    assert decode_method(payload) == sample(method_class)
    for length in range(len(payload)):
        with pytest.raises(SyntaxFault):
            decode_method(payload[:length])
    with pytest.raises(SyntaxFault, match="1 bytes after"):
        decode_method(payload + b"\x00")


def pamqp_classes() -> dict[int, Any]:
    groups = [group for _, group in inspect.getmembers(pamqp.commands, inspect.isclass)]
    commands: list[Any] = [each for group in groups for _, each in inspect.getmembers(group, inspect.isclass)]
    return {command.index: command for command in commands if hasattr(command, "synchronous")}


def test_no_method_that_pamqp_knows_is_missing() -> None:
    assert set(pamqp_classes()) - set(METHODS) == set()
    assert set(METHODS) - set(pamqp_classes()) == {ACCESS << 16 | 10, ACCESS << 16 | 11}


@pytest.mark.filterwarnings("ignore:This command is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "method_class", [each for each in ALL if each.method_id >> 16 != ACCESS], ids=lambda each: each.name
)
def test_pamqp_reads_and_writes_the_same_bytes(method_class: type[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    method = sample(method_class)
    command = pamqp_classes()[method_class.method_id]
    theirs = command()
    theirs.unmarshal(encode_method(method)[4:])
    # pamqp reads long strings as text.
    ours = [getattr(method, name) for name, _ in method_class.layout]
    assert [value for _, value in theirs] == [value.decode() if isinstance(value, bytes) else value for value in ours]
    # It refuses to write into what AMQP reserves.
    monkeypatch.setattr(command, "validate", lambda self: None)
    assert struct.pack(">I", method_class.method_id) + theirs.marshal() == encode_method(method)


def test_bits_share_an_octet_and_the_first_is_the_lowest() -> None:
    payload = encode_method(methods.QueueDeclare(queue="q", durable=True, nowait=True))
    assert payload == b"\x00\x32\x00\x0a" + b"\x00\x00" + b"\x01q" + b"\x12" + b"\x00\x00\x00\x00"


def test_defaults_are_rabbitmqs() -> None:
    method = methods.ExchangeDeclare()
    assert (method.exchange, method.type, method.durable, method.arguments) == ("", "direct", False, {})
    method.arguments["a"] = 1
    assert methods.ExchangeDeclare().arguments == {}


def test_methods_are_named_as_rabbitmq_names_them() -> None:
    assert methods.QueueDeclareOk.name == "queue.declare_ok"
    assert methods.BasicRecoverAsync.name == "basic.recover_async"
    assert methods.ConnectionUpdateSecretOk.name == "connection.update_secret_ok"
    assert {each.name for each in ALL if each.has_content} == {
        "basic.publish",
        "basic.return",
        "basic.deliver",
        "basic.get_ok",
    }


def test_secrets_do_not_show() -> None:
    shown = repr(methods.ConnectionStartOk(response=b"\x00guest\x00secret", mechanism="PLAIN"))
    assert "PLAIN" in shown
    assert "secret" not in shown
    assert "secret'" not in repr(methods.ConnectionUpdateSecret(new_secret=b"secret'"))


def test_a_field_that_does_not_exist_is_our_mistake() -> None:
    with pytest.raises(TypeError, match="has no field colour"):
        methods.QueueDeclareOk(colour=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="has 3 fields"):
        methods.QueueDeclareOk("q", 1, 2, 3)  # type: ignore[call-arg]


@pytest.mark.parametrize("method_id", [(0, 0), (60, 999), (61, 10), (10, 12), (0xFFFF, 0xFFFF)])
def test_methods_that_do_not_exist_are_not_implemented(method_id: tuple[int, int]) -> None:
    with pytest.raises(NotImplementedHere, match=f"no method {method_id[0]}, {method_id[1]}"):
        decode_method(struct.pack(">HH", *method_id) + b"\x00" * 20)


def test_names_that_are_not_utf_8_are_refused_but_routing_keys_are_not() -> None:
    declare = encode_method(methods.QueueDeclare(queue="\udcff"))
    with pytest.raises(FrameFault, match="Malformed UTF-8 in shortstr"):
        decode_method(declare)
    publish = encode_method(methods.BasicPublish(routing_key="\udcff"))
    decoded = decode_method(publish)
    assert isinstance(decoded, methods.BasicPublish)
    assert decoded.routing_key == "\udcff"
    assert encode_method(decoded) == publish


def test_tables_nested_too_deep_are_refused() -> None:
    empty = encode_method(methods.QueueUnbind())
    payload = empty[:-4] + table_of(b"\x01a" + nested(b"F", FIELD_VALUE_DEPTH_MAX))
    with pytest.raises(LimitExceeded):
        decode_method(payload)


@pytest.mark.parametrize(
    "method",
    [
        methods.ConnectionTune(channel_max=2**16),
        methods.ConnectionTune(frame_max=-1),
        methods.BasicAck(delivery_tag=2**64),
        methods.ConnectionStart(version_major=256),
        methods.QueueDeclareOk(queue="é" * 128),
    ],
)
def test_values_that_do_not_fit_are_refused(method: Method) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (each has a text of its own)
        encode_method(method)


@given(st.sampled_from(ALL), st.binary(max_size=100))
def test_random_fields_are_read_or_refused(method_class: type[Method], fields: bytes) -> None:
    try:
        decoded = decode_method(struct.pack(">I", method_class.method_id) + fields)
    except PeerError:
        return
    assert type(decoded) is method_class


@given(arbitrary_methods(), st.data())
def test_damaged_methods_are_read_or_refused(method: Method, data: st.DataObject) -> None:
    payload = bytearray(encode_method(method))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_method(bytes(payload))
    except PeerError:
        return
