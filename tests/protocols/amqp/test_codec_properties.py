"""Properties: found without decoding, changed without touching what is not meant, refused where they do not decode."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import pamqp.commands
import pamqp.header
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.base.errors import LimitExceeded, PeerError, PreconditionFailed, SyntaxFault
from millpond.base.limits import EXPIRATION_MS_MAX, FIELD_VALUE_DEPTH_MAX
from millpond.broker.message import PROPERTIES_FORMATS
from millpond.protocols.amqp.field_table import decode_table, encode_entry
from millpond.protocols.amqp.properties import (
    EMPTY,
    FORMAT,
    HEADERS,
    BasicProperties,
    encode_properties,
    parse_properties,
)
from tests.protocols.amqp.test_codec_field_table import tables

short_texts = st.text(max_size=60)
octets = st.integers(0, 255)
everything: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "content_type": short_texts,
        "content_encoding": short_texts,
        "headers": tables,
        "delivery_mode": octets,
        "priority": octets,
        "correlation_id": short_texts,
        "reply_to": short_texts,
        "expiration": st.integers(0, EXPIRATION_MS_MAX).map(str),
        "message_id": short_texts,
        "timestamp": st.integers(0, 2**63 - 1),
        "type": short_texts,
        "user_id": short_texts,
        "app_id": short_texts,
        "cluster_id": short_texts,
    },
)
FULL: dict[str, Any] = {
    "content_type": "text/plain",
    "content_encoding": "utf-8",
    "headers": {"a": 100_000_000_000, "b": {"c": ["d", None]}},
    "delivery_mode": 2,
    "priority": 9,
    "correlation_id": "correlation",
    "reply_to": "reply",
    "expiration": "60000",
    "message_id": "message",
    "timestamp": 1_700_000_000,
    "type": "type",
    "user_id": "guest",
    "app_id": "app",
    "cluster_id": "cluster",
}
TEXTS = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "type",
    "user_id",
    "app_id",
)


def check(properties: BasicProperties, given: dict[str, Any]) -> None:
    assert properties.format == FORMAT
    assert properties.persistent == (given.get("delivery_mode") == 2)
    assert properties.priority == given.get("priority", 0)
    assert properties.expiration_ms == int(given.get("expiration", -1))
    assert properties.timestamp_s() == given.get("timestamp")
    assert properties.headers() == given.get("headers", {})
    assert properties.has_headers == bool(given.get("headers"))
    assert {name: getattr(properties, name)() for name in TEXTS} == {name: given.get(name) for name in TEXTS}


@given(everything)
def test_what_was_put_in_is_found(given: dict[str, Any]) -> None:
    raw = encode_properties(**given)
    properties = parse_properties(raw)
    assert properties.raw is raw
    check(properties, given)


def as_pamqp_names_them(given: dict[str, Any]) -> dict[str, Any]:
    return {"message_type" if name == "type" else name: value for name, value in given.items()}


@given(everything)
def test_pamqp_reads_the_same(given: dict[str, Any]) -> None:
    given = {
        # pamqp cannot tell an absent text from an empty one, and reads only the plainer values of a header.
        name: {"a": 1, "b": "é"} if name == "headers" else value
        for name, value in given.items()
        if value != "" and name != "timestamp"
    }
    header = pamqp.header.ContentHeader()
    header.unmarshal(struct.pack(">HHQ", 60, 0, 0) + encode_properties(**given))
    theirs = {name: value for name, value in header.properties if value is not None and value != ""}
    assert theirs == as_pamqp_names_them(given)


def test_pamqp_writes_what_we_read() -> None:
    given = {name: value for name, value in FULL.items() if name != "cluster_id"}
    written = pamqp.commands.Basic.Properties(
        **{**as_pamqp_names_them(given), "timestamp": datetime.fromtimestamp(1_700_000_000, UTC)}
    )
    assert written.marshal() == encode_properties(**given)
    check(parse_properties(written.marshal()), given)


def test_properties_without_any_property() -> None:
    properties = parse_properties(EMPTY)
    check(properties, {})
    assert properties.replaced({}, False) is properties
    assert properties.replaced({"a": None}, False).raw == EMPTY


def test_the_format_is_registered_to_be_read_back() -> None:
    raw = encode_properties(**FULL)
    restored = PROPERTIES_FORMATS[FORMAT](raw)
    assert isinstance(restored, BasicProperties)
    check(restored, FULL)


def test_every_truncated_prefix_is_refused() -> None:
    raw = encode_properties(**FULL)
    for length in range(len(raw)):
        with pytest.raises(PeerError):
            parse_properties(raw[:length])


@pytest.mark.parametrize("name", FULL)
def test_every_property_alone_is_refused_when_cut_or_followed_by_more(name: str) -> None:
    raw = encode_properties(**{name: FULL[name]})
    check(parse_properties(raw), {name: FULL[name]})
    for length in range(len(raw)):
        with pytest.raises(SyntaxFault):
            parse_properties(raw[:length])
    with pytest.raises(SyntaxFault, match="1 bytes after the properties"):
        parse_properties(raw + b"\x00")


@pytest.mark.parametrize("flags", [b"\x00\x01", b"\x00\x02", b"\xff\xff"])
def test_flags_of_properties_that_do_not_exist_are_refused(flags: bytes) -> None:
    with pytest.raises(SyntaxFault, match="properties that do not exist"):
        parse_properties(flags + b"\x00" * 64)


def test_headers_that_no_client_could_decode_are_refused_from_the_publisher() -> None:
    entries = b"\x01aS\x00\x00\x00\x05abc"
    with pytest.raises(SyntaxFault):
        parse_properties(struct.pack(">HI", HEADERS, len(entries)) + entries)
    value = b"V"
    for _ in range(FIELD_VALUE_DEPTH_MAX):
        value = b"A" + struct.pack(">I", len(value)) + value
    with pytest.raises(LimitExceeded):
        parse_properties(struct.pack(">HI", HEADERS, len(value) + 2) + b"\x01a" + value)


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        properties = parse_properties(raw)
    except PeerError:
        return
    properties.headers()
    for name in TEXTS:
        getattr(properties, name)()


@given(everything, st.data())
def test_damaged_properties_are_read_or_refused(given: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(encode_properties(**given))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(octets)
    try:
        properties = parse_properties(bytes(raw))
    except PeerError:
        return
    # What is read can also be changed: dead-lettering does so.
    changed = properties.replaced({"x-death": [{"count": 1}]}, False)
    assert changed.headers() == {**properties.headers(), "x-death": [{"count": 1}]}
    assert changed.expiration() is None


# --- Expiration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("0", 0), ("1", 1), ("+5", 5), ("-0", 0), ("007", 7), (str(EXPIRATION_MS_MAX), EXPIRATION_MS_MAX)],
)
def test_an_expiration_is_a_number_of_milliseconds(text: str, milliseconds: int) -> None:
    assert parse_properties(encode_properties(expiration=text)).expiration_ms == milliseconds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_integer"),
        ("abc", "no_integer"),
        ("-", "no_integer"),
        (" 5", "no_integer"),
        ("٣", "no_integer"),
        ("5 ", '{leftover_string," "}'),
        ("1_000", '{leftover_string,"_000"}'),
        ("1.5", '{leftover_string,".5"}'),
        ("-1", "{value_negative,-1}"),
        (str(EXPIRATION_MS_MAX + 1), f"{{value_too_large,{EXPIRATION_MS_MAX + 1}}}"),
        ("9" * 255, "{value_too_large," + "9" * 255 + "}"),
        ("-" + "9" * 254, "{value_negative,-" + "9" * 254 + "}"),
    ],
)
def test_an_expiration_that_is_none_is_refused_with_rabbitmqs_text(text: str, reason: str) -> None:
    with pytest.raises(PreconditionFailed) as raised:
        parse_properties(encode_properties(expiration=text))
    assert str(raised.value) == f"invalid expiration '{text}': {reason}"


# --- Changed copies ---------------------------------------------------------------------------------------------------


@given(
    everything,
    st.dictionaries(st.sampled_from(["a", "b", "x-death", "new"]), st.none() | st.integers(0, 9)),
    st.booleans(),
)
def test_a_changed_copy_differs_only_in_what_was_asked_for(
    given: dict[str, Any], changes: dict[str, object], keep_expiration: bool
) -> None:
    if "headers" in given:
        given["headers"] = {"a": 1, **given["headers"], "b": 2}
    changed = parse_properties(encode_properties(**given)).replaced(changes, keep_expiration)
    headers = {**given.get("headers", {}), **changes}
    expected = {**given, "headers": {name: headers[name] for name in headers if changes.get(name, 0) is not None}}
    if not keep_expiration:
        expected.pop("expiration", None)
    check(changed, expected)


def test_untouched_headers_stay_byte_for_byte() -> None:
    # Types that decoding and encoding again would not keep: a byte, an unsigned short, a float, an empty name.
    untouched = [b"\x01ab\x07", b"\x01bu\x00\x01", b"\x01cf\x3f\x80\x00\x00", b"\x00V"]
    entries = (
        untouched[0] + encode_entry("old", "value") + untouched[1] + encode_entry("gone", 1) + b"".join(untouched[2:])
    )
    raw = struct.pack(">HI", HEADERS, len(entries)) + entries
    changed = parse_properties(raw).replaced({"gone": None, "old": [1], "new": "n", "absent": None}, True)
    assert changed.headers_raw == (
        untouched[0] + encode_entry("old", [1]) + untouched[1] + b"".join(untouched[2:]) + encode_entry("new", "n")
    )


def test_a_name_that_occurs_twice_is_replaced_once() -> None:
    entries = encode_entry("a", 1) + encode_entry("b", 2) + encode_entry("a", 3)
    properties = parse_properties(struct.pack(">HI", HEADERS, len(entries)) + entries)
    assert properties.replaced({"a": 4}, True).headers_raw == encode_entry("a", 4) + encode_entry("b", 2)
    assert properties.replaced({"a": None}, True).headers_raw == encode_entry("b", 2)


def test_a_header_table_is_created_where_there_was_none() -> None:
    given = {name: value for name, value in FULL.items() if name != "headers"}
    changed = parse_properties(encode_properties(**given)).replaced({"a": "b"}, True)
    check(changed, {**given, "headers": {"a": "b"}})
    assert changed.raw == encode_properties(**{**given, "headers": {"a": "b"}})


def test_removing_the_last_header_leaves_an_empty_table() -> None:
    changed = parse_properties(encode_properties(headers={"a": 1}, expiration="5")).replaced({"a": None}, False)
    assert changed.raw == encode_properties(headers={})


def test_headers_raw_is_the_table_without_its_length() -> None:
    properties = parse_properties(encode_properties(**FULL))
    raw = properties.headers_raw
    assert decode_table(struct.pack(">I", len(raw)) + raw) == FULL["headers"]
    assert parse_properties(EMPTY).headers_raw == b""


def test_texts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="a property of 256 bytes"):
        encode_properties(type="é" * 128)
