"""The way of a message through several exchanges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.base.limits import EXCHANGE_HOPS_MAX
from millpond.broker.exchanges.exchange import Destination, Exchange
from millpond.broker.exchanges.registry import create_exchange
from millpond.broker.exchanges.router import Router


class VirtualHost:
    """A router and its queues."""

    def __init__(self) -> None:
        self.queues: dict[str, Destination] = {}
        self.router = Router(self.queues)

    def queue(self, name: str) -> Destination:
        self.queues[name] = Destination(name, "queue")
        return self.queues[name]

    def exchange(self, name: str, type: str = "fanout", **arguments: object) -> Exchange:
        table = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.router.add(create_exchange(name, type, True, False, False, table))
        return self.router.exchanges[name]

    def route(self, exchange: str, routing_key: str = "", headers: dict[str, object] | None = None) -> list[str]:
        return [queue.name for queue in self.router.route(self.router.exchanges[exchange], routing_key, headers)]


@pytest.fixture
def host() -> VirtualHost:
    return VirtualHost()


def test_the_default_exchange_reaches_every_queue_by_name(host: VirtualHost) -> None:
    host.queue("q")
    assert host.route("", "q") == ["q"]
    assert host.route("", "other") == []
    del host.queues["q"]
    assert host.route("", "q") == []


def test_a_queue_that_is_reached_twice_gets_one_copy(host: VirtualHost) -> None:
    queue = host.queue("q")
    source, other = host.exchange("source"), host.exchange("other")
    source.bind(queue, "a", {})
    source.bind(queue, "b", {})
    source.bind(other, "", {})
    other.bind(queue, "", {})
    assert host.route("source") == ["q"]


def test_exchanges_pass_on_to_exchanges(host: VirtualHost) -> None:
    source, topic, direct = host.exchange("source"), host.exchange("topic", "topic"), host.exchange("direct", "direct")
    source.bind(topic, "", {})
    source.bind(direct, "", {})
    topic.bind(host.queue("t"), "a.*", {})
    direct.bind(host.queue("d"), "a.b", {})
    direct.bind(host.queue("no"), "a", {})
    assert sorted(host.route("source", "a.b")) == ["d", "t"]


def test_a_cycle_of_exchanges_is_harmless(host: VirtualHost) -> None:
    a, b = host.exchange("a"), host.exchange("b")
    a.bind(b, "", {})
    b.bind(a, "", {})
    a.bind(a, "", {})
    b.bind(host.queue("q"), "", {})
    assert host.route("a") == ["q"]
    assert not host.router.needs_headers(a)


def test_a_chain_of_exchanges_is_followed_up_to_the_limit(host: VirtualHost) -> None:
    previous = host.exchange("0")
    for number in range(1, EXCHANGE_HOPS_MAX + 10):
        following = host.exchange(str(number))
        previous.bind(following, "", {})
        following.bind(host.queue(str(number)), "", {})
        previous = following
    assert len(host.route("0")) == EXCHANGE_HOPS_MAX - 1


def test_what_is_routed_nowhere_goes_to_the_alternate_exchange(host: VirtualHost) -> None:
    source = host.exchange("source", "direct", alternate_exchange="spare")
    source.bind(host.queue("q"), "k", {})
    assert host.route("source", "other") == []
    host.exchange("spare").bind(host.queue("lost"), "", {})
    assert host.route("source", "k") == ["q"]
    assert host.route("source", "other") == ["lost"]


def test_alternate_exchanges_may_form_a_chain_and_a_cycle(host: VirtualHost) -> None:
    host.exchange("a", "direct", alternate_exchange="b")
    host.exchange("b", "direct", alternate_exchange="c")
    host.exchange("c", "direct", alternate_exchange="a").bind(host.queue("q"), "k", {})
    assert host.route("a", "k") == ["q"]
    assert host.route("a", "other") == []


def test_an_exchange_with_a_matching_exchange_needs_no_alternate(host: VirtualHost) -> None:
    source = host.exchange("source", alternate_exchange="spare")
    source.bind(host.exchange("empty"), "", {})
    host.exchange("spare").bind(host.queue("lost"), "", {})
    assert host.route("source") == []


def test_the_alternate_of_an_exchange_on_the_way_is_used(host: VirtualHost) -> None:
    source, inner = host.exchange("source"), host.exchange("inner", "direct", alternate_exchange="spare")
    source.bind(host.queue("q"), "", {})
    source.bind(inner, "", {})
    host.exchange("spare").bind(host.queue("lost"), "", {})
    assert host.route("source", "k") == ["q", "lost"]


def test_the_default_exchange_can_be_an_alternate(host: VirtualHost) -> None:
    host.exchange("source", "direct", alternate_exchange="")
    host.queue("q")
    assert host.route("source", "q") == ["q"]


def test_routes_through_a_headers_exchange_are_not_to_be_remembered(host: VirtualHost) -> None:
    source, headers = host.exchange("source", "direct"), host.exchange("headers", "headers")
    source.bind(headers, "h", {})
    source.bind(host.queue("q"), "k", {})
    headers.bind(host.queue("red"), "", {"colour": "red"})
    assert host.router.needs_headers(source)
    assert host.route("source", "h", {"colour": "red"}) == ["red"]
    assert not host.router.cacheable
    assert host.route("source", "h", {"colour": "blue"}) == []
    assert not host.router.cacheable
    assert host.route("source", "k") == ["q"]
    assert host.router.cacheable


def test_a_headers_exchange_behind_an_alternate_needs_headers(host: VirtualHost) -> None:
    source = host.exchange("source", "direct", alternate_exchange="headers")
    assert not host.router.needs_headers(source)
    headers = host.exchange("headers", "headers")
    assert host.router.needs_headers(source)
    host.router.remove(headers)
    assert not host.router.needs_headers(source)


def test_removing_an_exchange_removes_the_bindings_to_it(host: VirtualHost) -> None:
    source, inner = host.exchange("source"), host.exchange("inner")
    source.bind(inner, "a", {})
    inner.bind(host.queue("q"), "", {})
    removed = host.router.remove(inner)
    assert [(binding.source, binding.destination) for binding in removed] == [(source, inner)]
    assert source.is_unbound
    assert "inner" not in host.router.exchanges
    assert host.route("source") == []


def test_a_queue_that_disappears_is_unbound_everywhere(host: VirtualHost) -> None:
    queue = host.queue("q")
    for name in ("a", "b"):
        host.exchange(name).bind(queue, "k", {})
    assert [binding.source.name for binding in host.router.bindings_to(queue)] == ["a", "b"]
    assert [binding.source.name for binding in host.router.unbind_destination(queue)] == ["a", "b"]
    assert host.router.bindings_to(queue) == []


def test_every_change_of_the_topology_is_a_new_version(host: VirtualHost) -> None:
    versions = [host.router.version]
    source = host.exchange("source")
    versions.append(host.router.version)
    host.router.changed()
    versions.append(host.router.version)
    host.router.unbind_destination(host.queue("q"))
    versions.append(host.router.version)
    host.router.remove(source)
    versions.append(host.router.version)
    assert versions == sorted(set(versions))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11)), max_size=25),
    st.dictionaries(st.integers(0, 5), st.integers(0, 7), max_size=6),
)
def test_routes_agree_with_a_walk_over_the_graph(edges: list[tuple[int, int]], alternates: dict[int, int]) -> None:
    """Exchanges 0 to 5 and queues 6 to 11, any of them bound to any exchange; alternates 6 and 7 do not exist."""
    host = VirtualHost()
    exchanges = {
        number: host.exchange(
            f"x{number}", **({"alternate_exchange": f"x{alternates[number]}"} if number in alternates else {})
        )
        for number in range(6)
    }
    queues = {number: host.queue(f"q{number}") for number in range(6, 12)}
    for source, target in edges:
        exchanges[source].bind(exchanges[target] if target in exchanges else queues[target], "", {})
    for start in exchanges:
        reached, ahead = set(), {start}
        while ahead:
            current = ahead.pop()
            reached.add(current)
            targets = {target for source, target in edges if source == current}
            if not targets and alternates.get(current, 6) in exchanges:
                targets = {alternates[current]}
            reached |= targets & set(queues)
            ahead |= (targets & set(exchanges)) - reached
        expected = sorted(f"q{number}" for number in reached & set(queues))
        assert sorted(host.route(f"x{start}")) == expected
