"""The exchanges that choose one destination for each message: by a hash, and by chance."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.base.errors import PreconditionFailed
from millpond.broker.exchanges.consistent_hash import jump_consistent_hash
from millpond.broker.exchanges.exchange import Destination, Exchange
from millpond.broker.exchanges.registry import create_exchange
from millpond.broker.exchanges.router import Router
from millpond.broker.message import Properties
from millpond.protocols.amqp.properties import encode_properties, parse_properties

Table = dict[str, object]

KEYS = [f"customer-{number}" for number in range(10_000)]


def queue(name: str) -> Destination:
    return Destination(name, "queue")


def hashing(*weights: int, **arguments: object) -> Exchange:
    """A consistent-hash exchange with queues "0", "1", ... of these weights."""
    table = {name.replace("_", "-"): value for name, value in arguments.items()}
    source = create_exchange("x", "x-consistent-hash", True, False, False, table)
    for number, weight in enumerate(weights):
        source.bind(queue(str(number)), str(weight), {})
    return source


def chosen(source: Exchange, routing_key: str = "", headers: Table | None = None) -> str:
    found: list[Destination] = []
    source.match(routing_key, headers, found)
    (destination,) = found
    return destination.name


def placement(source: Exchange) -> dict[str, str]:
    return {key: chosen(source, key) for key in KEYS}


def assert_spread(counts: Counter[str], weights: list[int]) -> None:
    """The counts are those of independent draws: each within five standard deviations."""
    total = sum(counts.values())
    for number, weight in enumerate(weights):
        share = weight / sum(weights)
        deviation = (total * share * (1 - share)) ** 0.5
        assert abs(counts[str(number)] - total * share) < 5 * deviation, counts


# --- Consistent hash: where keys go -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[1, 1], [1, 2, 3], [5, 1, 1, 10], [10_000, 10_000, 5_000]])
def test_keys_are_spread_in_proportion_to_the_weights(weights: list[int]) -> None:
    assert_spread(Counter(placement(hashing(*weights)).values()), weights)


def test_a_key_always_goes_to_the_same_destination() -> None:
    assert placement(hashing(1, 2, 3)) == placement(hashing(1, 2, 3))


def test_where_keys_go_outlives_the_process() -> None:
    # Texts have another hash in every process that runs Python, so constants are what shows it.
    source = hashing(1, 1, 1, 1, 1, 1, 1, 1)
    assert [chosen(source, key) for key in ("", "a", "b", "order.17", "é\udcff")] == ["5", "6", "0", "1", "6"]


def test_one_more_queue_takes_its_share_and_moves_no_other_key() -> None:
    source = hashing(1, 1, 1, 1, 1, 1, 1)
    before = placement(source)
    source.bind(queue("new"), "1", {})
    moved = {key: name for key, name in placement(source).items() if name != before[key]}
    assert set(moved.values()) == {"new"}
    assert len(KEYS) / 8 * 0.85 < len(moved) < len(KEYS) / 8 * 1.15


def test_the_queue_that_was_bound_last_gives_its_share_back() -> None:
    source, new = hashing(1, 2, 3), queue("new")
    before = placement(source)
    source.bind(new, "2", {})
    assert placement(source) != before
    source.unbind(new, "2", {})
    assert placement(source) == before


def test_a_queue_that_goes_leaves_all_keys_to_the_others() -> None:
    source, middle = hashing(1), queue("middle")
    source.bind(middle, "7", {})
    source.bind(queue("1"), "2", {})
    assert Counter(placement(source).values())["middle"] > 6_000
    source.unbind_destination(middle)
    assert_spread(Counter(placement(source).values()), [1, 2])


def test_with_no_queue_there_is_no_destination() -> None:
    found: list[Destination] = []
    hashing().match("k", None, found)
    assert found == []


def test_the_oldest_binding_of_a_queue_is_its_weight() -> None:
    source, other = hashing(1), queue("1")
    source.bind(other, "1", {})
    before = placement(source)
    source.bind(other, "1000", {})
    assert placement(source) == before
    source.unbind(other, "1", {})
    assert_spread(Counter(placement(source).values()), [1, 1000])


@pytest.mark.parametrize(
    ("key", "buckets", "bucket"),
    [(1, 1, 0), (42, 57, 43), (0xDEAD10CC, 1, 0), (0xDEAD10CC, 666, 361), (256, 1024, 520)],
)
def test_a_jump_lands_where_other_implementations_land(key: int, buckets: int, bucket: int) -> None:
    assert jump_consistent_hash(key, buckets) == bucket


@given(st.integers(0, 2**64 - 1), st.integers(1, 100_000))
def test_a_jump_lands_in_a_bucket_that_a_further_bucket_can_only_replace(key: int, buckets: int) -> None:
    bucket = jump_consistent_hash(key, buckets)
    assert 0 <= bucket < buckets
    assert jump_consistent_hash(key, buckets + 1) in (bucket, buckets)


def test_large_weights_take_neither_memory_nor_time() -> None:
    source = hashing(*[10_000] * 5_000)
    start = time.perf_counter()
    assert len({chosen(source, key) for key in KEYS}) > 3_000
    assert time.perf_counter() - start < 5


# --- Consistent hash: what is hashed ----------------------------------------------------------------------------------


def test_a_header_may_stand_for_the_routing_key() -> None:
    source = hashing(1, 2, 3, hash_header="customer")
    assert source.needs_headers
    places = {key: chosen(source, "ignored", {"customer": key}) for key in KEYS}
    assert_spread(Counter(places.values()), [1, 2, 3])
    assert all(chosen(source, key, {"customer": key, "other": 1}) == name for key, name in places.items())


def test_header_values_of_every_kind_are_hashed() -> None:
    source = hashing(*[1] * 50, hash_header="h")
    values = [0, 1, "1", 1.0, True, b"1", ["1"], {"a": "\udcff"}, "\udcff", "", 2**63, [], {}]
    names = [chosen(source, "", {"h": value}) for value in values]
    assert names == [chosen(source, "", {"h": value}) for value in values]
    assert len(set(names)) > 5


def test_messages_without_the_header_go_to_one_queue() -> None:
    source = hashing(1, 1, 1, hash_header="h")
    tables: list[Table | None] = [None, {}, {"other": 1}, {"h": None}]
    assert len({chosen(source, key, headers) for key in KEYS[:50] for headers in tables}) == 1


def host(source: Exchange) -> Router:
    router = Router({})
    router.add(source)
    return router


def properties(**named: object) -> Properties:
    return parse_properties(encode_properties(**named))  # type: ignore[arg-type]


def routed(router: Router, routing_key: str, message: Properties) -> str:
    (found,) = router.route(router.exchanges["x"], routing_key, message.headers(), None, message)
    return found.name


@pytest.mark.parametrize("name", ["message_id", "correlation_id", "timestamp"])
def test_a_property_may_stand_for_the_routing_key(name: str) -> None:
    router = host(hashing(1, 2, 3, hash_property=name))
    values: list[object] = [number if name == "timestamp" else f"id-{number}" for number in range(3_000)]
    places = [routed(router, "ignored", properties(**{name: value, "app_id": "a"})) for value in values]
    assert_spread(Counter(places), [1, 2, 3])
    assert places == [routed(router, "other", properties(**{name: value, "headers": {"a": 1}})) for value in values]


@pytest.mark.parametrize("name", ["message_id", "correlation_id", "timestamp"])
def test_messages_without_the_property_go_to_one_queue(name: str) -> None:
    router = host(hashing(1, 1, 1, hash_property=name))
    others = {"message_id": "m", "correlation_id": "c", "timestamp": 7}
    del others[name]
    names = {routed(router, key, properties(**others)) for key in KEYS[:50]}
    names.update(destination.name for destination in router.route(router.exchanges["x"], "k", None))
    assert len(names) == 1


# --- Consistent hash: what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("0", "The binding key must be greater than 0"),
        ("-1", "The binding key must be greater than 0"),
        ("10001", "The binding key must not exceed 10000"),
        ("9" * 255, "The binding key must not exceed 10000"),
        ("", "The binding key must be an integer: <<>>"),
        ("not-a-number", 'The binding key must be an integer: <<"not-a-number">>'),
        ('"\\', 'The binding key must be an integer: <<"\\"\\\\">>'),
        ("1.5", 'The binding key must be an integer: <<"1.5">>'),
        ("1_0", 'The binding key must be an integer: <<"1_0">>'),
        (" 1", 'The binding key must be an integer: <<" 1">>'),
        ("1\n", "The binding key must be an integer: <<49,10>>"),
        ("\u0663", "The binding key must be an integer: <<217,163>>"),
        ("\udcff", "The binding key must be an integer: <<255>>"),
    ],
)
def test_a_binding_key_that_is_no_weight_is_refused(key: str, text: str) -> None:
    with pytest.raises(PreconditionFailed) as raised:
        hashing().validate(key, {})
    assert str(raised.value) == text


@pytest.mark.parametrize("key", ["1", "10000", "+5", "007"])
def test_a_weight_is_what_erlang_reads_as_an_integer(key: str) -> None:
    hashing().validate(key, {})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"hash_header": "a", "hash_property": "b"}, "hash-header and hash-property are mutually exclusive"),
        ({"hash_property": "app_id"}, "Unsupported property: app_id"),
        ({"hash_property": 1}, "invalid type for arg 'hash-property': it must be a text"),
        ({"hash_header": None}, "invalid type for arg 'hash-header': it must be a text"),
    ],
)
def test_arguments_that_name_nothing_to_hash_are_refused(arguments: Table, text: str) -> None:
    with pytest.raises(PreconditionFailed) as raised:
        hashing(**arguments)
    assert str(raised.value) == text


# --- Random -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawing() -> Exchange:
    random.seed(17)
    return create_exchange("x", "x-random", True, False, False, {})


def test_each_message_is_drawn_anew(drawing: Exchange) -> None:
    for number in range(4):
        drawing.bind(queue(str(number)), "", {})
    assert_spread(Counter(chosen(drawing, "same key") for _ in range(10_000)), [1, 1, 1, 1])


def test_every_binding_is_a_lot(drawing: Exchange) -> None:
    once, twice = queue("0"), queue("1")
    drawing.bind(once, "a", {})
    drawing.bind(twice, "a", {})
    drawing.bind(twice, "b", {})
    assert_spread(Counter(chosen(drawing) for _ in range(10_000)), [1, 2])
    drawing.unbind(twice, "a", {})
    assert_spread(Counter(chosen(drawing) for _ in range(10_000)), [1, 1])


def test_nothing_is_drawn_from_no_bindings(drawing: Exchange) -> None:
    found: list[Destination] = []
    drawing.match("k", None, found)
    assert found == []


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.sampled_from("ab")), max_size=40))
def test_the_lots_are_the_bindings_while_they_come_and_go(changes: list[tuple[bool, int, str]]) -> None:
    source = create_exchange("x", "x-random", True, False, False, {})
    queues = [queue(str(number)) for number in range(6)]
    for binds, number, key in changes:
        if binds:
            source.bind(queues[number], key, {})
        else:
            source.unbind(queues[number], key, {})
        bound = {binding.destination.name for binding in source.bindings()}
        drawn = {chosen(source) for _ in range(10)} if bound else set()
        assert drawn <= bound
    for each in queues:
        source.unbind_destination(each)
    assert source.is_unbound


# --- On the way through the router ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "arguments", "remembered"),
    [
        ("x-consistent-hash", {}, True),
        ("x-consistent-hash", {"hash-header": "h"}, False),
        ("x-consistent-hash", {"hash-property": "message_id"}, False),
        ("x-random", {}, False),
    ],
)
def test_only_a_choice_by_routing_key_is_remembered(type: str, arguments: Table, remembered: bool) -> None:
    router = host(create_exchange("x", type, True, False, False, arguments))
    before = create_exchange("before", "fanout", True, False, False, {})
    before.bind(router.exchanges["x"], "1", {})
    router.add(before)
    for exchange in (before, router.exchanges["x"]):
        assert router.needs_headers(exchange) != remembered
        router.route(exchange, "k", None)
        assert router.cacheable == remembered


@pytest.mark.parametrize("type", ["x-consistent-hash", "x-random"])
def test_further_routing_keys_make_no_further_choice(type: str) -> None:
    source = create_exchange("x", type, True, False, False, {})
    for number in range(10):
        source.bind(queue(str(number)), "1", {})
    router = host(source)
    for _ in range(20):
        assert len(router.route(source, "k", None, KEYS[:50])) == 1


def test_further_routing_keys_do_not_change_what_is_hashed() -> None:
    source = hashing(*[1] * 20)
    # A direct exchange passes the message on for one of its further keys.
    direct = create_exchange("direct", "direct", True, False, False, {})
    direct.bind(source, "copy", {})
    router = host(source)
    router.add(direct)
    for key in KEYS[:50]:
        assert [found.name for found in router.route(direct, key, None, ["copy"])] == [chosen(source, key)]


def test_an_alternate_exchange_gets_what_no_routing_key_leads_anywhere() -> None:
    alternate = create_exchange("alternate", "fanout", True, False, False, {})
    alternate.bind(queue("lost"), "", {})
    direct = create_exchange("x", "direct", True, False, False, {"alternate-exchange": "alternate"})
    direct.bind(queue("found"), "k", {})
    router = host(direct)
    router.add(alternate)
    assert [found.name for found in router.route(direct, "other", None, ["k"])] == ["found"]
    assert [found.name for found in router.route(direct, "other", None, ["another"])] == ["lost"]


@pytest.mark.parametrize("type", ["x-consistent-hash", "x-random"])
def test_with_nothing_bound_the_alternate_exchange_gets_it(type: str) -> None:
    alternate = create_exchange("alternate", "fanout", True, False, False, {})
    alternate.bind(queue("lost"), "", {})
    router = host(create_exchange("x", type, True, False, False, {"alternate-exchange": "alternate"}))
    router.add(alternate)
    assert [found.name for found in router.route(router.exchanges["x"], "k", None)] == ["lost"]
