"""Fetch: what it finds, what it waits for, and how much it brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from millpond.base.limits import KAFKA_FETCH_BYTES_MAX, KAFKA_FETCH_LOAD_MS, KAFKA_FETCH_WAIT_MS_MAX
from millpond.broker.streams import stream_store
from millpond.protocols.kafka import errors, registry
from tests.protocols.kafka.harness import (
    FETCH,
    PRODUCE,
    UNKNOWN_ID,
    Client,
    DurablePond,
    Pond,
    batch_of,
    encoded_request,
    fetch_tree,
    produce_tree,
    records_of,
    request_bytes,
    split_batches,
)

VERSIONS = range(4, 19)
every_version = pytest.mark.parametrize("version", VERSIONS)
A_DAY_MS = 86_400_000


def fill(client: Client, topic: str, count: int, size: int = 1, partition: int = 0) -> None:
    for number in range(count):
        client.produce(topic, batch_of(b"%d " % number + bytes(size)), partition=partition)


def sizes(found: Any) -> list[int]:
    return [len(batch) for batch in split_batches(found.records)]


# --- The answer, in every version -------------------------------------------------------------------------------------


@every_version
def test_every_field_of_an_answer(pond: Pond, client: Client, version: int) -> None:
    pond.topic("a", 2)
    pond.topic("b")
    fill(client, "a", 3)
    fill(client, "b", 1)
    pond.partition("a").trim_before(1)
    tree = fetch_tree({"a": {1: 0, 0: 2, 7: 0}, "b": {0: 5}, "none": {0: 0}}, session_epoch=0)
    response = client.call(FETCH, version, **tree)
    assert response.throttle_time.total_seconds() == 0
    if version >= 7:
        assert response.error_code.value == 0
        assert response.session_id != 0
    names = {pond.broker.vhosts["/"].topics.by_name[name].id: name for name in ("a", "b")} | {UNKNOWN_ID: "none"}
    unknown = errors.UNKNOWN_TOPIC_ID if version >= 13 else errors.UNKNOWN_TOPIC_OR_PARTITION
    found = [
        (
            names[topic.topic_id.bytes] if version >= 13 else topic.topic,
            part.partition_index,
            part.error_code.value,
            part.high_watermark,
            part.last_stable_offset,
        )
        for topic in response.responses
        for part in topic.partitions
    ]
    assert found == [
        ("a", 1, 0, 0, 0),
        ("a", 0, 0, 3, 3),
        ("a", 7, errors.UNKNOWN_TOPIC_OR_PARTITION, -1, -1),
        ("b", 0, errors.OFFSET_OUT_OF_RANGE, -1, -1),
        ("none", 0, unknown, -1, -1),
    ]
    parts = [part for topic in response.responses for part in topic.partitions]
    assert [records_of(part.records) for part in parts] == [[], [(2, b"2 \0")], [], [], []]
    assert [part.aborted_transactions for part in parts] == [None] * 5
    if version >= 5:
        assert [part.log_start_offset for part in parts] == [0, 1, -1, -1, -1]
    if version >= 11:
        assert {part.preferred_read_replica for part in parts} == {-1}


@every_version
def test_who_reads_what_is_committed_is_told_that_nothing_was_aborted(pond: Pond, client: Client, version: int) -> None:
    pond.topic("t")
    fill(client, "t", 1)
    found = client.fetch("t", 0, version=version, isolation_level=1)
    assert found.aborted_transactions == ()
    assert found.last_stable_offset == 1
    assert sizes(found)


# --- Sessions ---------------------------------------------------------------------------------------------------------


session_versions = pytest.mark.parametrize("version", [7, 12, 13, 18])


class Session:
    """One client's session, as the Java client goes on with it."""

    def __init__(self, client: Client, version: int) -> None:
        self._client = client
        self._version = version
        self.id = 0
        self._epoch = 0

    def fetch(self, topics: dict[str, dict[int, int]], **options: Any) -> dict[tuple[str, int], Any]:
        """The partitions of the answer by their topic and number."""
        tree = fetch_tree(topics, session_id=self.id, session_epoch=self._epoch, **options)
        response = self._client.call(FETCH, self._version, **tree)
        assert response.error_code.value == 0
        assert response.session_id != 0
        assert self.id in {0, response.session_id}
        self.id = response.session_id
        self._epoch += 1
        by_id = {topic.id: topic.name for topic in self._client.pond.broker.vhosts["/"].topics.by_name.values()}
        return {
            (by_id.get(topic.topic_id.bytes, "") if self._version >= 13 else topic.topic, part.partition_index): part
            for topic in response.responses
            for part in topic.partitions
        }


@session_versions
def test_a_session_tells_only_what_is_new(pond: Pond, client: Client, version: int) -> None:
    pond.topic("a", 2)
    pond.topic("b")
    fill(client, "b", 1)
    session = Session(client, version)
    found = session.fetch({"a": {0: 0, 1: 0}, "b": {0: 0}})
    assert set(found) == {("a", 0), ("a", 1), ("b", 0)}
    assert records_of(found["b", 0].records) == [(0, b"0 \0")]
    assert session.fetch({"b": {0: 1}}) == {}
    fill(client, "a", 1, partition=1)
    found = session.fetch({})
    assert set(found) == {("a", 1)}
    assert found["a", 1].high_watermark == 1
    # The client has not said that it has it: it comes again.
    assert set(session.fetch({})) == {("a", 1)}
    assert session.fetch({"a": {1: 1}}) == {}


@session_versions
def test_a_session_s_partitions_come_and_go(pond: Pond, client: Client, version: int) -> None:
    pond.topic("a", 2)
    pond.topic("b")
    session = Session(client, version)
    session.fetch({"a": {0: 0}})
    assert set(session.fetch({"b": {0: 0}})) == {("b", 0)}
    fill(client, "a", 1)
    fill(client, "b", 1)
    assert set(session.fetch({}, forgotten={"a": [0]})) == {("b", 0)}


def test_a_session_tells_that_the_log_begins_later(pond: Pond, client: Client) -> None:
    pond.topic("t")
    fill(client, "t", 3)
    session = Session(client, 12)
    session.fetch({"t": {0: 3}})
    pond.partition("t").trim_before(2)
    assert session.fetch({})["t", 0].log_start_offset == 2


def test_an_error_is_told_in_every_answer_of_a_session(pond: Pond, client: Client) -> None:
    pond.topic("t")
    session = Session(client, 12)
    session.fetch({"t": {0: 5}, "none": {0: 0}})
    for _ in range(2):
        found = session.fetch({})
        assert found["t", 0].error_code.value == errors.OFFSET_OUT_OF_RANGE
        assert found["none", 0].error_code.value == errors.UNKNOWN_TOPIC_OR_PARTITION


def test_a_session_serves_all_of_its_partitions(pond: Pond, client: Client) -> None:
    pond.topic("t", 3)
    offsets = dict.fromkeys(range(3), 0)
    for partition in offsets:
        fill(client, "t", 10, size=500, partition=partition)
    session = Session(client, 12)
    served: set[int] = set()
    news: dict[str, dict[int, int]] = {"t": offsets}
    for _ in range(3):
        found = session.fetch(news, max_bytes=600)
        brought = {number for (_, number), part in found.items() if part.records}
        assert len(brought) == 1
        served |= brought
        news = {"t": dict.fromkeys(brought, 1)}
    assert served == set(offsets), "the first one is not served for ever"


@pytest.mark.parametrize(("shift", "code"), [(1, "INVALID_FETCH_SESSION_EPOCH"), (-1, "INVALID_FETCH_SESSION_EPOCH")])
def test_a_session_s_requests_follow_each_other(pond: Pond, client: Client, shift: int, code: str) -> None:
    pond.topic("t")
    session = Session(client, 12)
    session.fetch({"t": {0: 0}})
    session.fetch({})
    response = client.call(FETCH, 12, **fetch_tree({}, session_id=session.id, session_epoch=2 + shift))
    assert (response.error_code.value, response.responses) == (getattr(errors, code), ())


def test_a_session_goes_on_with_names_or_with_ids_and_not_with_both(pond: Pond, client: Client) -> None:
    pond.topic("t")
    session = Session(client, 12)
    session.fetch({"t": {0: 0}})
    response = client.call(FETCH, 13, **fetch_tree({}, session_id=session.id, session_epoch=1))
    assert response.error_code.value == errors.FETCH_SESSION_TOPIC_ID_ERROR


def test_a_session_that_there_is_not_cannot_be_gone_on_with(pond: Pond, client: Client) -> None:
    pond.topic("t")
    for session_id in (0, 5):
        tree = fetch_tree({"t": {0: 0}}, session_id=session_id, session_epoch=3)
        response = client.call(FETCH, 12, **tree)
        assert (response.error_code.value, response.responses) == (errors.FETCH_SESSION_ID_NOT_FOUND, ())


def test_who_ends_a_session_gets_all_and_has_none_after_that(pond: Pond, client: Client) -> None:
    pond.topic("t")
    fill(client, "t", 1)
    session = Session(client, 12)
    session.fetch({"t": {0: 0}})
    response = client.call(FETCH, 12, **fetch_tree({"t": {0: 0}}, session_id=session.id, session_epoch=-1))
    assert (response.error_code.value, response.session_id) == (0, 0)
    assert response.responses[0].partitions[0].records
    response = client.call(FETCH, 12, **fetch_tree({}, session_id=session.id, session_epoch=1))
    assert response.error_code.value == errors.FETCH_SESSION_ID_NOT_FOUND


def test_a_session_keeps_nothing_of_what_it_brought(pond: Pond, client: Client) -> None:
    pond.topic("t")
    fill(client, "t", 1, size=1000)
    Session(client, 12).fetch({"t": {0: 0}})
    session = client.connection.fetch_session
    assert session is not None
    assert [(wanted.batches, wanted.size) for wanted in session.wanted.values()] == [([], 0)]


def test_sessions_have_so_many_partitions_together_and_no_more(
    pond: Pond, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "KAFKA_FETCH_SESSION_PARTITIONS_MAX", 3)
    pond.topic("t", 4)
    session = Session(client, 12)
    session.fetch({"t": {0: 0, 1: 0}})
    other = pond.client()
    tree = fetch_tree({"t": {0: 0, 1: 0}}, session_epoch=0)
    response = other.call(FETCH, 12, **tree)
    assert (response.error_code.value, response.session_id) == (0, 0)
    session.fetch({"t": {2: 0}})
    tree = fetch_tree({"t": {3: 0}}, session_id=session.id, session_epoch=2)
    assert client.call(FETCH, 12, **tree).error_code.value == errors.FETCH_SESSION_ID_NOT_FOUND
    assert client.connection.apis.session_partitions == 0
    Session(client, 12).fetch({"t": {0: 0, 1: 0}})
    client.drop()
    assert pond.apis.session_partitions == 0


def test_a_topic_of_the_same_name_is_another_one_by_its_id(pond: Pond, client: Client) -> None:
    pond.topic("t")
    session = Session(client, 13)
    session.fetch({"t": {0: 0}})
    topics = pond.broker.vhosts["/"].topics
    topics.delete(topics.topic("t"))
    pond.topic("t")
    [part] = session.fetch({}).values()
    assert part.error_code.value == errors.UNKNOWN_TOPIC_ID


# --- Offsets ----------------------------------------------------------------------------------------------------------


def test_offsets_outside_of_the_log(pond: Pond, client: Client) -> None:
    pond.topic("t")
    fill(client, "t", 3)
    pond.partition("t").trim_before(1)
    codes = [client.fetch("t", offset).error_code.value for offset in (-1, 0, 1, 3, 4, 1 << 62)]
    out = errors.OFFSET_OUT_OF_RANGE
    assert codes == [out, out, 0, 0, out, out]


def test_an_offset_within_a_batch_brings_all_of_it(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.produce("t", batch_of(b"a", b"b", b"c"))
    client.produce("t", batch_of(b"d"))
    assert [offset for offset, _ in records_of(client.fetch("t", 2).records)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("epoch", "code"), [(-1, 0), (0, 0), (1, errors.UNKNOWN_LEADER_EPOCH), (-2, errors.FENCED_LEADER_EPOCH)]
)
def test_leader_epochs(pond: Pond, client: Client, epoch: int, code: int) -> None:
    pond.topic("t")
    assert client.fetch("t", 0, leader_epoch=epoch, max_wait=1000 if code else 0).error_code.value == code


def test_a_topic_that_may_not_be_read(pond: Pond, client: Client) -> None:
    pond.topic("t")
    pond.broker.access.set_permission("guest", "/", ".*", ".*", "mine")
    assert client.fetch("t", 0).error_code.value == errors.TOPIC_AUTHORIZATION_FAILED


# --- How much ---------------------------------------------------------------------------------------------------------


def test_a_partition_brings_no_more_than_it_is_asked_for(pond: Pond, client: Client) -> None:
    pond.topic("t")
    fill(client, "t", 10, 1000)
    size = sizes(client.fetch("t", 0))[0]
    assert len(sizes(client.fetch("t", 0, partition_max_bytes=3 * size))) == 3
    assert len(sizes(client.fetch("t", 0, partition_max_bytes=4 * size - 1))) == 3
    assert len(sizes(client.fetch("t", 0, max_bytes=2 * size))) == 2


@pytest.mark.parametrize("limit", [1, 0, -1, -(1 << 31)])
def test_the_first_batch_comes_however_large_it_is(pond: Pond, client: Client, limit: int) -> None:
    pond.topic("t", 2)
    fill(client, "t", 3, 5000)
    fill(client, "t", 3, 5000, partition=1)
    for options in ({"max_bytes": limit}, {"partition_max_bytes": limit}):
        response = client.call(FETCH, 12, **fetch_tree({"t": {0: 0, 1: 0}}, max_wait=1000, min_bytes=1, **options))
        assert [len(sizes(part)) for part in response.responses[0].partitions] == [1, 0]


def test_partitions_share_what_the_request_may_bring(pond: Pond, client: Client) -> None:
    pond.topic("t", 3)
    for partition in range(3):
        fill(client, "t", 10, 1000, partition=partition)
    size = sizes(client.fetch("t", 0))[0]
    tree = fetch_tree({"t": {2: 0, 0: 0, 1: 0}}, max_bytes=15 * size)
    parts = client.call(FETCH, 12, **tree).responses[0].partitions
    assert [len(sizes(part)) for part in parts] == [10, 5, 0]


def test_no_fetch_brings_more_than_the_limit(pond: Pond, client: Client) -> None:
    pond.topic("t")
    for _ in range(KAFKA_FETCH_BYTES_MAX // 1_000_000 + 3):
        client.produce("t", batch_of(bytes(1_000_000)))
    found = client.fetch("t", 0, max_bytes=(1 << 31) - 1, partition_max_bytes=(1 << 31) - 1)
    assert KAFKA_FETCH_BYTES_MAX - 1_100_000 < sum(sizes(found)) <= KAFKA_FETCH_BYTES_MAX


def test_a_fetch_brings_less_while_memory_is_short() -> None:
    pond = Pond(memory_budget=4_000_000)
    client = pond.client()
    pond.topic("t")
    for _ in range(5):
        client.send(PRODUCE, 9, **produce_tree({"t": {0: batch_of(bytes(1_000_000))}}))
        pond.rest()
    assert pond.broker.alarms.reasons == ["memory"]
    assert len(sizes(pond.client().fetch("t", 0, partition_max_bytes=1 << 30))) == 1
    pond.close()


# --- Waiting ----------------------------------------------------------------------------------------------------------


def test_a_fetch_waits_until_there_is_something(pond: Pond, client: Client) -> None:
    pond.topic("t", 2)
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0, 1: 0}}, max_wait=500))
    assert client.take_all() == []
    fill(pond.client(), "t", 1, partition=1)
    parts = client.take().responses[0].partitions
    assert [len(sizes(part)) for part in parts] == [0, 1]
    assert not pond.partition("t")._listeners


def test_a_fetch_gives_up_when_its_time_is_over(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=500))
    pond.advance(499)
    assert client.take_all() == []
    pond.advance(1)
    assert client.take().responses[0].partitions[0].records == b""
    assert not pond.partition("t")._listeners


def test_a_fetch_waits_for_as_much_as_it_wants(pond: Pond, client: Client) -> None:
    pond.topic("t")
    producer = pond.client()
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=500, min_bytes=250))
    fill(producer, "t", 2, 30)
    assert client.take_all() == []
    fill(producer, "t", 1, 30)
    assert len(sizes(client.take().responses[0].partitions[0])) == 3


def test_what_there_is_comes_when_the_time_is_over(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=500, min_bytes=5000))
    fill(pond.client(), "t", 2)
    pond.advance(500)
    assert len(sizes(client.take().responses[0].partitions[0])) == 2


@pytest.mark.parametrize("min_bytes", [0, -1])
def test_who_wants_nothing_at_least_waits_for_nothing(pond: Pond, client: Client, min_bytes: int) -> None:
    pond.topic("t")
    assert client.fetch("t", 0, max_wait=500, min_bytes=min_bytes).records == b""


@pytest.mark.parametrize("max_wait", [0, -1, -(1 << 31)])
def test_who_has_no_time_waits_for_nothing(pond: Pond, client: Client, max_wait: int) -> None:
    pond.topic("t")
    assert client.fetch("t", 0, max_wait=max_wait).records == b""


def test_more_than_may_be_brought_is_not_waited_for(pond: Pond, client: Client) -> None:
    pond.topic("t")
    fill(client, "t", 2, 1000)
    found = client.fetch("t", 0, max_wait=500, min_bytes=1_000_000, max_bytes=1500)
    assert len(sizes(found)) == 1


def test_no_wait_is_longer_than_the_limit(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=(1 << 31) - 1))
    pond.advance(KAFKA_FETCH_WAIT_MS_MAX)
    assert client.take()


def test_a_fetch_of_nothing_is_answered_at_once(client: Client) -> None:
    assert client.call(FETCH, 12, **fetch_tree({}, max_wait=500)).responses == ()
    assert client.call(FETCH, 12, **fetch_tree({"t": {}}, max_wait=500)).responses == ()
    assert client.fetch("none", 0, max_wait=500).error_code.value == errors.UNKNOWN_TOPIC_OR_PARTITION


def test_an_unknown_topic_does_not_keep_a_fetch_from_waiting(pond: Pond, client: Client) -> None:
    """Who asks for it time and again would not wait at all."""
    pond.topic("t")
    client.send(FETCH, 12, **fetch_tree({"none": {0: 0}, "t": {0: 0}}, max_wait=500))
    assert client.take_all() == []
    pond.advance(500)
    codes = [topic.partitions[0].error_code.value for topic in client.take().responses]
    assert codes == [errors.UNKNOWN_TOPIC_OR_PARTITION, 0]


def test_an_offset_out_of_range_is_told_at_once(pond: Pond, client: Client) -> None:
    pond.topic("t", 2)
    response = client.call(FETCH, 12, **fetch_tree({"t": {0: 0, 1: 9}}, max_wait=500))
    assert [part.error_code.value for part in response.responses[0].partitions] == [0, errors.OFFSET_OUT_OF_RANGE]


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        (lambda pond: pond.topics.delete(pond.topics.by_name["t"]), errors.UNKNOWN_TOPIC_OR_PARTITION),
        (lambda pond: pond.partition("t").trim_before(2), errors.OFFSET_OUT_OF_RANGE),
    ],
)
def test_what_happens_to_the_topic_ends_the_wait(
    pond: Pond, client: Client, happens: Callable[[Pond], None], code: int
) -> None:
    pond.topic("t")
    fill(client, "t", 2)
    client.send(FETCH, 12, **fetch_tree({"t": {0: 1}}, max_wait=500, min_bytes=10_000))
    assert client.take_all() == []
    happens(pond)
    assert client.take().responses[0].partitions[0].error_code.value == code


def test_a_lost_connection_waits_no_more(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=500))
    client.drop()
    assert not pond.partition("t")._listeners
    fill(pond.client(), "t", 1)
    pond.advance(1000)


def test_the_same_partition_twice_in_one_request(pond: Pond, client: Client) -> None:
    pond.topic("t")
    tree = fetch_tree({"t": {0: 0}}, max_wait=500)
    tree["topics"] = [*tree["topics"], *tree["topics"]]  # type: ignore[misc]
    client.send(FETCH, 12, **tree)
    fill(pond.client(), "t", 1)
    assert [len(sizes(part)) for topic in client.take().responses for part in topic.partitions] == [1, 1]


def test_many_wait_for_the_same_partition(pond: Pond) -> None:
    pond.topic("t")
    clients = [pond.client() for _ in range(20)]
    for client in clients:
        client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=500))
    clients[3].drop()
    fill(pond.client(), "t", 1)
    for client in clients:
        assert len(client.take_all()) == (0 if client is clients[3] else 1)


# --- From a disk ------------------------------------------------------------------------------------------------------


def fill_log(pond: DurablePond, topic: str, count: int, size: int = 1) -> None:
    client = pond.client()
    for number in range(count):
        client.send(PRODUCE, 9, **produce_tree({topic: {0: batch_of(b"%d " % number + bytes(size))}}))
        client.connection.turn.end()
    pond.write_out(pond.partition(topic))
    assert len(client.take_all()) == count
    client.drop()


def fetched(pond: DurablePond, client: Client) -> Any:
    taken: list[Any] = []

    def is_there() -> bool:
        taken.extend(client.take_all())
        return bool(taken)

    pond.until(is_there, "the answer")
    return taken[0].responses[0].partitions[0]


@pytest.mark.parametrize("max_wait", [0, 500])
def test_what_is_on_the_disk_only_is_waited_for(durable: DurablePond, max_wait: int) -> None:
    durable.topic("t")
    fill_log(durable, "t", 20)
    client = durable.client()
    client.send(FETCH, 12, **fetch_tree({"t": {0: 5}}, max_wait=max_wait))
    assert [offset for offset, _ in records_of(fetched(durable, client).records)] == list(range(5, 20))


def test_all_of_a_log_is_read_in_order(durable: DurablePond) -> None:
    durable.topic("t")
    fill_log(durable, "t", 30, 100_000)
    client = durable.client()
    seen: list[int] = []
    while len(seen) < 30:
        client.send(FETCH, 12, **fetch_tree({"t": {0: len(seen)}}, max_wait=500))
        seen += [offset for offset, _ in records_of(fetched(durable, client).records)]
    assert seen == list(range(30))


def test_a_disk_that_does_not_answer_is_given_up_on(durable: DurablePond, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.topic("t")
    fill_log(durable, "t", 3)
    monkeypatch.setattr(stream_store.StreamStore, "load", lambda *_: None)
    client = durable.client()
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=500))
    durable.advance(500)
    assert client.take_all() == []
    durable.advance(KAFKA_FETCH_LOAD_MS)
    found = fetched(durable, client)
    assert (found.error_code.value, found.records, found.high_watermark) == (0, b"", 3)


def test_the_loss_of_the_connection_while_the_disk_is_read(durable: DurablePond) -> None:
    durable.topic("t")
    fill_log(durable, "t", 3)
    client = durable.client()
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=500))
    client.drop()
    durable.settle()
    assert not durable.partition("t")._listeners


def test_only_what_is_durable_is_shown(durable: DurablePond) -> None:
    durable.topic("t")
    durable.settle()
    durable.disk.hold_syncs()
    producer, client = durable.client(), durable.client()
    producer.send(PRODUCE, 9, **produce_tree({"t": {0: batch_of(b"a")}}, acks=1))
    assert producer.take().responses[0].partition_responses[0].error_code.value == 0
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=500))
    durable.advance(400)
    assert client.take_all() == []
    # What is appended but not durable is not out of range.
    assert durable.client().fetch("t", 1).error_code.value == 0
    durable.disk.release_syncs()
    assert records_of(fetched(durable, client).records) == [(0, b"a")]


@pytest.mark.parametrize("acks", [0, 1])
def test_what_nobody_waits_for_becomes_visible_too(durable: DurablePond, acks: int) -> None:
    durable.topic("t")
    durable.settle()
    producer, client = durable.client(), durable.client()
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=100_000))
    assert client.take_all() == []
    producer.send(PRODUCE, 9, **produce_tree({"t": {0: batch_of(b"a")}}, acks=acks))
    assert records_of(fetched(durable, client).records) == [(0, b"a")]


# --- Requests that make no sense --------------------------------------------------------------------------------------


@every_version
def test_a_request_that_ends_too_early_closes_its_connection_only(pond: Pond, version: int) -> None:
    tree = fetch_tree({"t": {0: 0}, "u": {0: 0, 1: 1}}, session_epoch=0)
    tree["forgotten_topics_data"] = [{"topic": "v", "partitions": [1, 2]}]
    tree["rack_id"] = "rack"
    body = encoded_request(FETCH, version, tree)
    for size in range(len(body)):
        client = pond.client()
        client.feed(request_bytes(FETCH, version, 1, body[:size]))
        assert client.answers() == [], f"{size} of {len(body)} bytes were enough"
        assert client.transport.is_closed
    client = pond.client()
    client.feed(request_bytes(FETCH, version, 1, body))
    assert len(client.answers()) == 1
    assert client.is_alive()
