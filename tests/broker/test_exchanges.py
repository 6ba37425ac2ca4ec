"""Bindings, and what each exchange type matches: checked against models that say the rule in the plainest way."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.base.errors import PreconditionFailed
from millpond.broker.exchanges.exchange import Destination, Exchange, canonical
from millpond.broker.exchanges.registry import EXCHANGE_TYPES, create_exchange, predeclared_exchanges

Table = dict[str, object]


def queue(name: str = "q") -> Destination:
    return Destination(name, "queue")


def exchange(type: str, name: str = "x") -> Exchange:
    return create_exchange(name, type, True, False, False, {})


def names(source: Exchange, routing_key: str = "", headers: Table | None = None) -> set[str]:
    found: list[Destination] = []
    source.match(routing_key, headers, found)
    return {destination.name for destination in found}


# --- Bindings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=sorted(EXCHANGE_TYPES))
def any_exchange(request: pytest.FixtureRequest) -> Exchange:
    return exchange(request.param)


def test_binding_twice_is_binding_once(any_exchange: Exchange) -> None:
    destination = queue()
    assert any_exchange.bind(destination, "k", {})
    assert not any_exchange.bind(destination, "k", {})
    assert len(any_exchange.bindings()) == 1
    assert any_exchange.unbind(destination, "k", {})
    assert any_exchange.is_unbound
    assert names(any_exchange, "k") == set()


def test_bindings_that_differ_in_key_or_arguments_are_several(any_exchange: Exchange) -> None:
    destination = queue()
    variants: list[tuple[str, Table]] = [("k", {}), ("l", {}), ("k", {"a": 1}), ("k", {"a": True}), ("k", {"a": 1.0})]
    for key, arguments in variants:
        assert any_exchange.bind(destination, key, arguments)
    assert [(binding.routing_key, binding.arguments) for binding in any_exchange.bindings()] == variants
    for key, arguments in variants:
        assert any_exchange.unbind(destination, key, arguments)
        assert not any_exchange.unbind(destination, key, arguments)
    assert any_exchange.is_unbound


def test_the_order_of_arguments_does_not_matter(any_exchange: Exchange) -> None:
    destination = queue()
    assert any_exchange.bind(destination, "k", {"a": 1, "b": {"c": 2, "d": 3}})
    assert not any_exchange.bind(destination, "k", {"b": {"d": 3, "c": 2}, "a": 1})


def test_unbinding_what_is_not_bound_changes_nothing(any_exchange: Exchange) -> None:
    destination = queue()
    assert not any_exchange.unbind(destination, "k", {})
    any_exchange.bind(destination, "k", {})
    assert not any_exchange.unbind(queue("other"), "k", {})
    assert not any_exchange.unbind(destination, "other", {})
    assert names(any_exchange, "k") == {"q"}


def test_a_destination_that_disappears_takes_its_bindings_and_no_others(any_exchange: Exchange) -> None:
    gone, stays = queue("gone"), queue("stays")
    for destination in (gone, stays):
        any_exchange.bind(destination, "k", {})
        any_exchange.bind(destination, "#", {})
        any_exchange.bind(destination, "k", {"x-match": "any", "a": 1})
    removed = any_exchange.unbind_destination(gone)
    assert [(binding.destination, binding.routing_key) for binding in removed] == [
        (gone, "k"),
        (gone, "#"),
        (gone, "k"),
    ]
    assert any_exchange.unbind_destination(gone) == []
    assert names(any_exchange, "k", {"a": 1}) == {"stays"}
    assert len(any_exchange.bindings_to(stays)) == 3


def test_two_bindings_to_one_place_hold_it_until_the_last_is_gone(any_exchange: Exchange) -> None:
    destination = queue()
    first: Table = {"x-one": 1}
    any_exchange.bind(destination, "k", first)
    any_exchange.bind(destination, "k", {"x-two": 2})
    any_exchange.unbind(destination, "k", first)
    assert names(any_exchange, "k") == {"q"}


def test_exchanges_bound_to_an_exchange_are_known() -> None:
    source, target = exchange("direct"), exchange("fanout", "target")
    source.bind(target, "a", {})
    source.bind(target, "b", {})
    source.bind(queue(), "a", {})
    assert source.exchanges_bound() == [target]
    source.unbind(target, "a", {})
    assert source.exchanges_bound() == [target]
    source.unbind(target, "b", {})
    assert source.exchanges_bound() == []


def test_a_binding_is_named_as_the_management_api_names_it() -> None:
    source = exchange("topic")
    variants: list[tuple[str, Table]] = [("", {}), ("a.b", {}), ("a ~b/é\udcff", {}), ("k", {"a": 1}), ("k", {"a": 2})]
    for key, arguments in variants:
        source.bind(queue(), key, arguments)
    keys = [binding.properties_key for binding in source.bindings()]
    assert keys[:3] == ["~", "a.b", "a+%7Eb%2F%C3%A9%FF"]
    assert all(re.fullmatch(r"k~[A-Za-z0-9_-]{12}", key) for key in keys[3:])
    assert len(set(keys)) == 5


def test_values_are_equal_only_with_their_types() -> None:
    values = ["1", 1, 1.0, True, b"1", None, {"a": "1"}, {"a": 1}, ["1"], [1], [], {}, "", "int:1", "'1"]
    assert len({canonical(value) for value in values}) == len(values)


def test_texts_in_tables_cannot_imitate_a_table() -> None:
    assert canonical({"a": "1','b'='2"}) != canonical({"a": "1", "b": "2"})
    assert canonical(["a', 'b"]) != canonical(["a", "b"])


def test_an_unknown_exchange_type_is_refused() -> None:
    with pytest.raises(PreconditionFailed, match="unknown exchange type 'x-nonsense'"):
        create_exchange("x", "x-nonsense", True, False, False, {})


def test_the_predeclared_exchanges_are_amqps() -> None:
    assert {(each.name, each.type) for each in predeclared_exchanges()} == {
        ("", "direct"),
        ("amq.direct", "direct"),
        ("amq.fanout", "fanout"),
        ("amq.topic", "topic"),
        ("amq.headers", "headers"),
        ("amq.match", "headers"),
    }
    assert all(each.durable and not each.auto_delete and not each.internal for each in predeclared_exchanges())


@pytest.mark.parametrize("type", sorted(EXCHANGE_TYPES))
def test_an_exchange_knows_its_type_and_arguments(type: str) -> None:
    arguments: Table = {"alternate-exchange": "spare"}
    each = create_exchange("x", type, False, True, True, arguments)
    assert (each.type, each.kind, each.durable, each.auto_delete, each.internal) == (
        type,
        "exchange",
        False,
        True,
        True,
    )
    assert each.alternate_exchange == "spare"
    assert each.needs_headers == (type == "headers")


# --- Direct and fanout ------------------------------------------------------------------------------------------------


def test_direct_matches_equal_keys_only() -> None:
    source = exchange("direct")
    source.bind(queue("a"), "k", {})
    source.bind(queue("b"), "k", {})
    source.bind(queue("c"), "kk", {})
    source.bind(queue("d"), "", {})
    source.bind(queue("e"), "#", {})
    assert names(source, "k") == {"a", "b"}
    assert names(source, "") == {"d"}
    assert names(source, "nothing") == set()


def test_fanout_matches_whatever_the_key() -> None:
    source = exchange("fanout")
    source.bind(queue("a"), "k", {})
    source.bind(queue("b"), "", {})
    assert names(source, "anything", {"a": 1}) == {"a", "b"}


# --- Topic ------------------------------------------------------------------------------------------------------------


def topic_model(pattern: str, routing_key: str) -> bool:
    """The rule, word by word, trying every length for a #."""

    def matches(pattern: list[str], words: list[str]) -> bool:
        if not pattern:
            return not words
        if pattern[0] == "#":
            return any(matches(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
        return bool(words) and pattern[0] in ("*", words[0]) and matches(pattern[1:], words[1:])

    def split(key: str) -> list[str]:
        return key.split(".") if key else []

    return matches(split(pattern), split(routing_key))


@pytest.mark.parametrize(
    ("pattern", "matched", "unmatched"),
    [
        ("a.b", ["a.b"], ["a", "a.b.c", "a.c", ""]),
        ("*", ["a", "*", "#"], ["", "a.b", "."]),
        ("a.*", ["a.b", "a."], ["a", "a.b.c"]),
        ("*.*", ["a.b", "."], ["a", "a.b.c", ""]),
        ("#", ["", "a", "a.b", ".", "..."], []),
        ("#.#", ["", "a", "a.b"], []),
        ("a.#", ["a", "a.b", "a.b.c", "a."], ["b", "", "b.a"]),
        ("#.a", ["a", "b.a", "b.c.a", ".a"], ["a.b", "", "ab"]),
        ("a.#.b", ["a.b", "a.x.b", "a.x.y.b", "a..b", "a.b.b"], ["a", "b", "a.b.c"]),
        ("#.a.#", ["a", "x.a", "a.x", "x.a.y", "a.a"], ["", "x", "x.y"]),
        ("*.#", ["a", "a.b", "."], [""]),
        ("#.*", ["a", "a.b"], [""]),
        ("*.#.*", ["a.b", "a.b.c", "."], ["", "a"]),
        ("#.*.#.*.#", ["a.b", "a.b.c"], ["", "a"]),
        ("", [""], ["a", "."]),
        ("a..b", ["a..b"], ["a.b", "a.x.b"]),
        (".", ["."], ["", "a", ".."]),
        ("a*.b", ["a*.b"], ["ax.b", "a.b"]),
        ("a#", ["a#"], ["a", "ab"]),
    ],
)
def test_topic_patterns(pattern: str, matched: list[str], unmatched: list[str]) -> None:
    source = exchange("topic")
    source.bind(queue(), pattern, {})
    assert [key for key in matched if not names(source, key)] == []
    assert [key for key in unmatched if names(source, key)] == []
    assert all(topic_model(pattern, key) for key in matched)
    assert not any(topic_model(pattern, key) for key in unmatched)


words = st.sampled_from(["a", "b", "", "*", "#"])
keys = st.lists(words, max_size=6).map(".".join)


@given(st.lists(keys, max_size=12), st.lists(keys, min_size=1, max_size=6), st.data())
def test_topic_agrees_with_the_model_while_bindings_come_and_go(
    patterns: list[str], routing_keys: list[str], data: st.DataObject
) -> None:
    source = exchange("topic")
    bound: dict[Destination, str] = {}
    for pattern in patterns:
        destination = queue(f"{len(bound)} {pattern}")
        bound[destination] = pattern
        source.bind(destination, pattern, {})
    while True:
        for key in routing_keys:
            assert names(source, key) == {
                destination.name for destination, pattern in bound.items() if topic_model(pattern, key)
            }
        if not bound:
            break
        destination = data.draw(st.sampled_from(list(bound)))
        assert source.unbind(destination, bound.pop(destination), {})


def seconds(call: Callable[[], object], repeat: int = 20) -> float:
    """The shortest of several runs: what it takes when nothing else gets in between."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def test_unrelated_topic_bindings_cost_nothing() -> None:
    few, many = exchange("topic"), exchange("topic")
    for source, count in ((few, 10), (many, 10_000)):
        for number in range(count):
            source.bind(queue(), f"stock.{number}.*.#", {})
            source.bind(queue(), f"*.{number}.price", {})
    key = "stock.7.nyse.price"
    assert len(names(many, key)) == 1
    assert seconds(lambda: names(many, key)) < 20 * seconds(lambda: names(few, key)) + 0.001


def test_hostile_topic_patterns_take_no_exponential_time() -> None:
    source = exchange("topic")
    for pattern in ("#.a." * 63 + "b", "#.*." * 63 + "b", "*.#." * 63 + "b", "#." * 127 + "b", "#.a.#.a.*." * 25 + "b"):
        source.bind(queue(), pattern, {})
    key = ".".join(["a"] * 128)
    # Backtracking would not end before the sun does.
    assert seconds(lambda: names(source, key), repeat=3) < 1
    assert names(source, key) == set()
    assert names(source, key + ".b") == {"q"}


# --- Headers ----------------------------------------------------------------------------------------------------------


def headers_model(arguments: Table, headers: Table) -> bool:
    """RabbitMQ's rule, argument by argument."""
    match = arguments.get("x-match", "all")
    results = []
    for name, value in arguments.items():
        if name == "x-match" or (name.startswith("x-") and match in ("all", "any")):
            continue
        same = name in headers and type(headers[name]) is type(value) and headers[name] == value
        results.append(name in headers if value is None else same)
    return any(results) if match in ("any", "any-with-x") else all(results)


header_names = st.sampled_from(["a", "b", "c", "x-a", "x-b"])
header_values: st.SearchStrategy[object] = st.sampled_from(
    ["1", "2", 1, 2, True, False, 1.0, None, b"1", [1], ["1"], {"n": 1}]
)
header_tables = st.dictionaries(header_names, header_values, max_size=4)
x_matches: st.SearchStrategy[Table] = st.sampled_from([None, "all", "any", "all-with-x", "any-with-x"]).map(
    lambda value: {} if value is None else {"x-match": value}
)
binding_arguments = st.builds(lambda match, table: {**match, **table}, x_matches, header_tables)


@given(st.lists(binding_arguments, max_size=12), st.lists(header_tables, min_size=1, max_size=6), st.data())
def test_headers_agrees_with_the_model_while_bindings_come_and_go(
    tables: list[Table], messages: list[Table], data: st.DataObject
) -> None:
    source = exchange("headers")
    bound: dict[Destination, Table] = {}
    for table in tables:
        source.validate("", table)
        destination = queue(str(len(bound)))
        bound[destination] = table
        assert source.bind(destination, "", table)
    while True:
        for headers in [*messages, None]:
            assert names(source, "ignored", headers) == {
                destination.name for destination, table in bound.items() if headers_model(table, headers or {})
            }
        if not bound:
            break
        destination = data.draw(st.sampled_from(list(bound)))
        assert source.unbind(destination, "", bound.pop(destination))


def test_headers_without_x_match_wants_all() -> None:
    source = exchange("headers")
    source.bind(queue(), "", {"a": 1, "b": None})
    assert names(source, "", {"a": 1, "b": "anything", "c": 3}) == {"q"}
    assert names(source, "", {"a": 1}) == set()
    assert names(source, "", {"a": 1, "b": None}) == {"q"}


def test_headers_leaves_x_headers_out_unless_asked() -> None:
    source = exchange("headers")
    source.bind(queue("without"), "", {"x-match": "all", "a": 1, "x-b": 2})
    source.bind(queue("with"), "", {"x-match": "all-with-x", "a": 1, "x-b": 2})
    source.bind(queue("any"), "", {"x-match": "any", "x-b": 2})
    source.bind(queue("any with"), "", {"x-match": "any-with-x", "x-b": 2})
    assert names(source, "", {"a": 1}) == {"without"}
    assert names(source, "", {"a": 1, "x-b": 2}) == {"without", "with", "any with"}


def test_headers_without_arguments_matches_all_or_nothing() -> None:
    source = exchange("headers")
    source.bind(queue("all"), "", {})
    source.bind(queue("any"), "", {"x-match": "any"})
    assert names(source, "", None) == {"all"}
    assert names(source, "", {"a": 1}) == {"all"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("some", 'Invalid x-match field value <<"some">>; expected all, any, all-with-x, or any-with-x'),
        (1, "Invalid x-match field type int (value 1); expected longstr"),
        (None, "Invalid x-match field type NoneType (value None); expected longstr"),
    ],
)
def test_headers_refuses_an_x_match_that_does_not_exist(value: object, text: str) -> None:
    with pytest.raises(PreconditionFailed) as raised:
        exchange("headers").validate("", {"x-match": value})
    assert str(raised.value) == text


@pytest.mark.parametrize("type", ["direct", "fanout", "topic"])
def test_other_types_take_any_arguments(type: str) -> None:
    exchange(type).validate("#.#", {"x-match": "some"})


def test_a_header_that_all_bindings_share_does_not_slow_them_down() -> None:
    few, many = exchange("headers"), exchange("headers")
    for source, count in ((few, 10), (many, 3_000)):
        for number in range(count):
            source.bind(queue(str(number)), "", {"format": "pdf", "customer": number})
    headers: Table = {"format": "pdf", "customer": 7}
    assert names(many, "", headers) == {"7"}
    assert seconds(lambda: names(many, "", headers)) < 20 * seconds(lambda: names(few, "", headers)) + 0.001
