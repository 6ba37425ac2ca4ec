"""When answers leave: after their commit, in their order, not at all where storage has failed; and what alarms hold."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from millpond.base.errors import StorageFailed
from millpond.base.limits import KAFKA_IDLE_CHECK_MS, KAFKA_REQUEST_TIMEOUT_MS
from millpond.protocols.kafka import errors
from tests.protocols.kafka.harness import (
    API_VERSIONS,
    FETCH,
    INIT_PRODUCER_ID,
    METADATA,
    PRODUCE,
    Client,
    DurablePond,
    Pond,
    batch_of,
    fetch_tree,
    produce_tree,
    records_of,
)

ALARMS = pytest.mark.parametrize("reason", ["memory", "disk", "flow"])


def send(client: Client, *values: bytes, acks: int = -1, topic: str = "t", **options: tuple[int, int, int]) -> None:
    client.send(PRODUCE, 9, **produce_tree({topic: {0: batch_of(*values, **options)}}, acks=acks))  # type: ignore[arg-type]


def held(pond: DurablePond) -> Client:
    """A client of a broker that has a topic, and on which nothing more becomes durable."""
    pond.topic("t")
    pond.settle()
    pond.disk.hold_syncs()
    return pond.client()


def taken(pond: DurablePond, client: Client, count: int) -> list[object]:
    """So many answers, as soon as they are there."""
    found: list[object] = []

    def are_there() -> bool:
        found.extend(client.take_all())
        return len(found) >= count

    pond.until(are_there, f"{count} answers")
    assert len(found) == count
    return found


# --- Commits ----------------------------------------------------------------------------------------------------------


def test_all_acknowledgements_come_after_the_commit(durable: DurablePond) -> None:
    client = held(durable)
    send(client, b"a")
    durable.until(lambda: durable.disk.syncs_started > 0, "the sync")
    durable.advance(1000)
    assert client.take_all() == []
    durable.disk.release_syncs()
    taken(durable, client, 1)


def test_the_leaders_acknowledgement_does_not_wait_for_the_commit(durable: DurablePond) -> None:
    client = held(durable)
    send(client, b"a", acks=1)
    assert len(client.take_all()) == 1


def test_nothing_overtakes_what_waits_for_its_commit(durable: DurablePond) -> None:
    client = held(durable)
    send(client, b"a")
    send(client, b"b", acks=1)
    client.send(API_VERSIONS, 0)
    send(client, b"c", acks=0)
    client.send(METADATA, 12, topics=None)
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}))
    assert client.take_all() == []
    assert durable.client().is_alive()
    durable.disk.release_syncs()
    assert len(taken(durable, client, 5)) == 5
    assert durable.partition("t").end_offset == 3


def test_what_comes_before_leaves_before(durable: DurablePond) -> None:
    client = held(durable)
    client.send(API_VERSIONS, 0)
    send(client, b"a", acks=1)
    send(client, b"b")
    assert len(client.take_all()) == 2
    durable.disk.release_syncs()
    taken(durable, client, 1)


def test_a_refused_batch_waits_for_no_commit(durable: DurablePond) -> None:
    client = held(durable)
    send(client, b"a", topic="none")
    assert len(client.take_all()) == 1


def test_what_is_sent_again_is_answered_when_the_first_is_durable(durable: DurablePond) -> None:
    first = held(durable)
    send(first, b"a", producer=(5, 0, 0))
    first.drop()
    second = durable.client()
    send(second, b"a", producer=(5, 0, 0))
    durable.until(lambda: durable.disk.syncs_started > 0, "the sync")
    assert second.take_all() == []
    durable.disk.release_syncs()
    taken(durable, second, 1)
    assert durable.partition("t").end_offset == 1
    send(second, b"a", producer=(5, 0, 0))
    assert len(second.take_all()) == 1


def test_the_id_of_a_producer_is_told_when_it_is_durable(durable: DurablePond) -> None:
    client = held(durable)
    client.send(INIT_PRODUCER_ID, 4, producer_id=-1, producer_epoch=-1)
    assert client.take_all() == []
    durable.disk.release_syncs()
    taken(durable, client, 1)


def test_a_producer_that_names_an_id_gets_another_one(pond: Pond, client: Client) -> None:
    one = client.call(INIT_PRODUCER_ID, 4, producer_id=-1, producer_epoch=-1)
    two = client.call(INIT_PRODUCER_ID, 4, producer_id=one.producer_id, producer_epoch=0)
    assert (two.error_code.value, two.producer_epoch) == (0, 0)
    assert two.producer_id != one.producer_id
    for producer_id, epoch in ((-1, 0), (5, -1)):
        answer = client.call(INIT_PRODUCER_ID, 4, producer_id=producer_id, producer_epoch=epoch)
        assert answer.error_code.value == errors.INVALID_REQUEST


def test_a_connection_that_is_lost_while_its_commit_is_under_way(durable: DurablePond) -> None:
    client = held(durable)
    send(client, b"a")
    durable.rest()
    client.drop()
    durable.disk.release_syncs()
    durable.settle()
    assert durable.partition("t").durable_end == 1


def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path) -> None:
    pond = DurablePond(tmp_path)
    pond.topic("t")
    client = pond.client()
    for number in range(20):
        send(client, b"%d" % number, producer=(5, 0, number))
    taken(pond, client, 20)
    disk = pond.disk.copy_for_crash()
    pond.life.copy_durable_catalog(tmp_path / "after")
    pond.close()
    again = DurablePond(tmp_path, disk=disk, catalog=tmp_path / "after")
    client = again.client()
    found = client.fetch("t", 0)
    assert records_of(found.records) == [(number, b"%d" % number) for number in range(20)]
    # And so do the producers.
    assert client.produce("t", batch_of(b"19", producer=(5, 0, 19))).base_offset == 19
    again.close()


# --- Storage that fails -----------------------------------------------------------------------------------------------


def test_nothing_is_acknowledged_when_storage_has_failed(durable: DurablePond) -> None:
    durable.topic("t")
    durable.settle()
    client, other = durable.client(), durable.client()
    durable.disk.fail("sync", errno.EIO)
    send(client, b"a")
    durable.until(lambda: client.transport.is_closed, "the end")
    assert client.transport.is_aborted
    assert client.answers() == []
    # Nobody is shown what will never be durable, and producers wait, as they do for every alarm.
    assert other.fetch("t", 0).high_watermark == 0
    send(other, b"b")
    assert other.take_all() == []
    assert not other.transport.is_reading
    assert durable.partition("t").end_offset == 1
    reader = durable.client()
    assert reader.is_alive()


def test_what_came_before_the_failure_is_sent_before_the_connection_is_cut(durable: DurablePond) -> None:
    """Answers that are known leave together with the end of their turn, also where the next one never will."""
    durable.topic("t")
    durable.settle()
    client = durable.client()
    durable.broker.commits.failed(StorageFailed("a test"))
    durable.broker.alarms.clear_alarm("storage")
    client.send(API_VERSIONS, 0)
    send(client, b"a")
    found = client.take_all()
    assert found[1].responses[0].partition_responses[0].error_code.value == errors.KAFKA_STORAGE_ERROR
    assert durable.partition("t").end_offset == 0


# --- Alarms -----------------------------------------------------------------------------------------------------------


def alarm(pond: Pond, reason: str, is_on: bool) -> None:
    """Raise an alarm, or have it be over. That of memory goes with what is used."""
    if reason == "memory":
        pond.broker.memory.used += pond.broker.memory.budget_bytes * (2 if is_on else -2)
        pond.broker.turn.touch()
        pond.rest()
    elif is_on:
        pond.broker.alarms.raise_alarm(reason)
    else:
        pond.broker.alarms.clear_alarm(reason)


@ALARMS
def test_a_produce_waits_for_an_alarm_to_be_over(pond: Pond, client: Client, reason: str) -> None:
    pond.topic("t")
    alarm(pond, reason, True)
    client.send(API_VERSIONS, 0)
    send(client, b"a")
    send(client, b"b")
    client.send(API_VERSIONS, 0)
    # What comes before is done, what comes after is not.
    assert len(client.take_all()) == 1
    assert not client.transport.is_reading
    assert client.connection.is_blocked
    pond.advance(1000)
    assert pond.partition("t").end_offset == 0
    assert pond.client().fetch("t", 0).high_watermark == 0
    alarm(pond, reason, False)
    assert len(client.take_all()) == 3
    assert pond.partition("t").end_offset == 2
    assert client.transport.is_reading
    assert pond.broker.memory.used == sum(batch.memory_bytes for batch in pond.partition("t").hot)


@pytest.mark.parametrize("reason", ["flow", "disk"])
def test_an_alarm_that_comes_back_at_once_lets_one_request_through(pond: Pond, client: Client, reason: str) -> None:
    """Publishers of AMQP go on at once and may take all the memory that has become free: nobody is to starve then, and
    nobody is to get more than that."""
    pond.topic("t")
    pond.broker.alarms.raise_alarm(reason)
    for value in (b"a", b"b", b"c"):
        send(client, value)
    for produced in (1, 2):
        pond.broker.alarms.clear_alarm(reason)
        pond.broker.alarms.raise_alarm(reason)
        assert len(client.take_all()) == 1
        assert pond.partition("t").end_offset == produced
        assert not client.transport.is_reading
    pond.broker.alarms.clear_alarm(reason)
    assert len(client.take_all()) == 1
    assert pond.partition("t").end_offset == 3
    assert client.transport.is_reading


@ALARMS
def test_others_go_on_while_an_alarm_is_on(pond: Pond, client: Client, reason: str) -> None:
    pond.topic("t")
    client.produce("t", batch_of(b"a"))
    waiting = pond.client()
    waiting.send(FETCH, 12, **fetch_tree({"t": {0: 1}}, max_wait=500))
    alarm(pond, reason, True)
    send(client, b"b")
    assert records_of(pond.client().fetch("t", 0).records) == [(0, b"a")]
    pond.advance(500)
    assert len(waiting.take_all()) == 1
    alarm(pond, reason, False)
    pond.rest()
    assert pond.partition("t").end_offset == 2


def test_two_alarms_must_both_be_over(pond: Pond, client: Client) -> None:
    pond.topic("t")
    pond.broker.alarms.raise_alarm("disk")
    pond.broker.alarms.raise_alarm("flow")
    send(client, b"a")
    pond.broker.alarms.clear_alarm("disk")
    assert client.take_all() == []
    pond.broker.alarms.clear_alarm("flow")
    assert len(client.take_all()) == 1


@pytest.mark.parametrize("happens", [Client.drop, lambda client: client.connection.close_by_operator("a test")])
def test_a_connection_that_ends_while_it_is_held(pond: Pond, client: Client, happens: object) -> None:
    pond.topic("t")
    pond.broker.alarms.raise_alarm("disk")
    send(client, b"a")
    happens(client)  # type: ignore[operator]
    pond.broker.alarms.clear_alarm("disk")
    pond.rest()
    assert pond.partition("t").end_offset == 0
    assert pond.broker.memory.used == 0


def test_a_large_request_does_not_arrive_while_an_alarm_is_on(pond: Pond, client: Client) -> None:
    pond.topic("t", max_message_bytes="2000000")
    pond.broker.alarms.raise_alarm("disk")
    data, _ = client.request(PRODUCE, 9, **produce_tree({"t": {0: batch_of(bytes(1_000_000))}}))
    client.feed(data[:1000])
    assert not client.transport.is_reading
    # Nor is it given up meanwhile.
    pond.advance(KAFKA_REQUEST_TIMEOUT_MS + KAFKA_IDLE_CHECK_MS)
    assert not client.transport.is_closed
    pond.broker.alarms.clear_alarm("disk")
    pond.rest()
    assert client.transport.is_reading
    client.feed(data[1000:])
    assert len(client.take_all()) == 1


def test_what_waits_for_memory_is_not_what_keeps_it_short() -> None:
    """Many requests that are held together take more than there is to be, and none of them can go on."""
    pond = Pond(memory_budget=1_000_000)
    pond.topic("t")
    clients = [pond.client() for _ in range(10)]
    requests = [
        client.request(PRODUCE, 9, **produce_tree({"t": {0: batch_of(bytes(200_000))}}))[0] for client in clients
    ]
    for client, data in zip(clients, requests, strict=True):
        client.feed(data[:-1])
    pond.broker.turn.touch()
    pond.rest()
    assert pond.broker.alarms.reasons == ["memory"]
    for client, data in zip(clients, requests, strict=True):
        client.feed(data[-1:])
    # Retention makes room for what comes.
    pond.topics.configure(pond.topics.by_name["t"], {"retention.bytes": "1"})
    pond.broker.turn.touch()
    pond.rest()
    assert pond.broker.alarms.reasons == []
    assert [len(client.take_all()) for client in clients] == [1] * 10
    assert pond.partition("t").end_offset == 10
    pond.close()


def test_memory_that_is_short_while_requests_arrive_is_counted_again_afterwards(pond: Pond, client: Client) -> None:
    pond.topic("t")
    data, _ = client.request(PRODUCE, 9, **produce_tree({"t": {0: batch_of(bytes(1000))}}))
    pond.broker.alarms.raise_alarm("disk")
    client.feed(data[:500])
    assert pond.broker.memory.used == 0
    pond.broker.alarms.clear_alarm("disk")
    pond.rest()
    assert pond.broker.memory.used == 500
    client.feed(data[500:])
    assert len(client.take_all()) == 1


def test_what_a_fetch_waits_for_is_made_durable_at_once(durable: DurablePond) -> None:
    durable.topic("t")
    reader, writer = durable.client(), durable.client()
    reader.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=60_000))
    durable.settle()
    writer.produce("t", batch_of(b"v"), acks=1)
    durable.until(lambda: len(reader.transport.sent) > 0, "the answer")
    assert records_of(reader.take().responses[0].partitions[0].records) == [(0, b"v")]
    assert durable.partition("t").readers_waiting == 0
