"""How partitions are shared out: whatever members there are, whatever they read and had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.broker.groups.assignors import Assignor, Subscriber, assignors, simple
from millpond.broker.groups.assignors.places import Place, places_of
from millpond.broker.groups.modern_records import Assignment

TOPIC_IDS = [bytes([letter]) * 16 for letter in b"abcd"]
TOPICS = st.dictionaries(st.sampled_from(TOPIC_IDS), st.integers(1, 9))
TARGET = st.dictionaries(st.sampled_from(TOPIC_IDS), st.frozensets(st.integers(0, 8), min_size=1))


def members(subscription: st.SearchStrategy[frozenset[bytes]]) -> st.SearchStrategy[dict[str, Subscriber]]:
    name = st.sampled_from([f"m{number}" for number in range(12)])
    one = st.tuples(subscription, TARGET)
    return st.dictionaries(name, one).map(
        lambda found: {name: Subscriber(name, topics, target) for name, (topics, target) in found.items()}
    )


ALIKE = st.frozensets(st.sampled_from(TOPIC_IDS)).flatmap(lambda topics: members(st.just(topics)))
ANY = members(st.frozensets(st.sampled_from(TOPIC_IDS)))


def readable(subscribers: Mapping[str, Subscriber], topics: Mapping[bytes, int]) -> set[Place]:
    """What somebody reads, of what there is."""
    read = frozenset().union(*[one.topics for one in subscribers.values()])
    return {(topic_id, number) for topic_id, count in topics.items() if topic_id in read for number in range(count)}


def given_places(result: Mapping[str, Assignment]) -> Counter[Place]:
    return Counter([place for target in result.values() for place in places_of(target)])


def settled(subscribers: Mapping[str, Subscriber], result: Mapping[str, Assignment]) -> dict[str, Subscriber]:
    return {name: Subscriber(one.name, one.topics, result[name]) for name, one in subscribers.items()}


def moved(before: Mapping[str, Assignment], after: Mapping[str, Assignment]) -> int:
    return sum(len(set(places_of(after[name])) - set(places_of(target))) for name, target in before.items())


@pytest.mark.parametrize("assign", assignors().values(), ids=assignors())
@given(subscribers=ANY, topics=TOPICS)
def test_every_partition_that_is_read_has_one_member_that_reads_its_topic(
    assign: Assignor, subscribers: dict[str, Subscriber], topics: dict[bytes, int]
) -> None:
    result = assign(subscribers, topics)
    assert result.keys() == subscribers.keys()
    assert given_places(result) == Counter(readable(subscribers, topics))
    assert all(result[name].keys() <= one.topics for name, one in subscribers.items())


@pytest.mark.parametrize("assign", [*assignors().values(), simple.assign], ids=[*assignors(), "simple"])
@given(subscribers=ANY, topics=TOPICS)
def test_who_has_what_the_assignor_wants_keeps_it(
    assign: Assignor, subscribers: dict[str, Subscriber], topics: dict[bytes, int]
) -> None:
    result = assign(subscribers, topics)
    assert assign(settled(subscribers, result), topics) == result


@given(subscribers=ALIKE, topics=TOPICS)
def test_uniform_gives_all_equally_many(subscribers: dict[str, Subscriber], topics: dict[bytes, int]) -> None:
    sizes = [len(places_of(target)) for target in assignors()["uniform"](subscribers, topics).values()]
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(subscribers=ANY, topics=TOPICS)
def test_uniform_gives_nobody_two_more_than_another_who_could_have_one_of_them(
    subscribers: dict[str, Subscriber], topics: dict[bytes, int]
) -> None:
    result = assignors()["uniform"](subscribers, topics)
    sizes = {name: len(places_of(target)) for name, target in result.items()}
    for name, target in result.items():
        for other, one in subscribers.items():
            if target.keys() & one.topics:
                assert sizes[name] - sizes[other] < 2


@given(subscribers=ALIKE, topics=TOPICS)
def test_uniform_moves_no_more_than_a_member_that_comes_must_have(
    subscribers: dict[str, Subscriber], topics: dict[bytes, int]
) -> None:
    uniform = assignors()["uniform"]
    if not subscribers:
        return
    result = uniform(subscribers, topics)
    more = settled(subscribers, result) | {"n": Subscriber("n", next(iter(subscribers.values())).topics, {})}
    after = uniform(more, topics)
    assert moved(result, after) == 0, "what moves goes to the new member"


@given(topics=TOPICS, count=st.integers(1, 9))
def test_range_gives_members_the_same_numbers_of_topics_of_one_size(topics: dict[bytes, int], count: int) -> None:
    same = dict.fromkeys(topics, 6)
    subscribers = {f"m{n}": Subscriber(f"m{n}", frozenset(same), {}) for n in range(count)}
    for target in assignors()["range"](subscribers, same).values():
        assert len(set(target.values())) <= 1


@given(subscribers=ALIKE, topics=TOPICS)
def test_simple_leaves_no_partition_without_a_reader_and_no_reader_without_a_partition(
    subscribers: dict[str, Subscriber], topics: dict[bytes, int]
) -> None:
    result = simple.assign(subscribers, topics)
    counts = given_places(result)
    assert set(counts) == readable(subscribers, topics)
    if counts:
        sizes = [len(places_of(target)) for target in result.values()]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert max(counts.values()) - min(counts.values()) <= 1
