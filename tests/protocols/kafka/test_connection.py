"""A connection: requests in pieces, requests that are none, clients that are silent or do not read, and bugs."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

import pytest

from millpond.base.limits import (
    KAFKA_ANSWERS_BYTES_MAX,
    KAFKA_CALLS_PENDING_MAX,
    KAFKA_CLOSE_TIMEOUT_MS,
    KAFKA_IDLE_CHECK_MS,
    KAFKA_IDLE_MS,
    KAFKA_OTHER_REQUEST_BYTES_MAX,
    KAFKA_REQUEST_BYTES_MAX,
    KAFKA_REQUEST_TIMEOUT_MS,
)
from millpond.protocols.kafka import registry
from millpond.protocols.kafka.connection import Call, Waiting
from tests.protocols.kafka.harness import (
    API_VERSIONS,
    FETCH,
    INIT_PRODUCER_ID,
    LIST_OFFSETS,
    METADATA,
    PRODUCE,
    Client,
    MemoryTransport,
    Pond,
    batch_of,
    encoded_request,
    fetch_tree,
    pond_of,
    produce_tree,
    request_bytes,
)

VERSIONS = request_bytes(API_VERSIONS, 0, 7, b"")


def conversation(client: Client) -> tuple[bytes, int]:
    """Some requests one after the other, and how many they are."""
    parts = [
        client.request(API_VERSIONS, 3, client_software_name="x", client_software_version="1"),
        client.request(METADATA, 12, topics=[{"topic_id": None, "name": "t"}], allow_auto_topic_creation=True),
        client.request(PRODUCE, 9, **produce_tree({"t": {0: batch_of(b"a" * 100)}})),
        client.request(INIT_PRODUCER_ID, 4, producer_id=-1, producer_epoch=-1),
        client.request(FETCH, 12, **fetch_tree({"t": {0: 0}})),
        client.request(LIST_OFFSETS, 7, topics=[]),
        client.request(PRODUCE, 3, **produce_tree({"t": {0: batch_of(b"b")}}, acks=1)),
        client.request(FETCH, 4, **fetch_tree({"t": {0: 1}})),
    ]
    return b"".join([data for data, _ in parts]), len(parts)


# --- In pieces --------------------------------------------------------------------------------------------------------


def test_requests_cut_at_every_byte() -> None:
    with pond_of() as pond:
        expected = pond.client()
        data, count = conversation(expected)
    for cut in range(len(data) + 1):
        with pond_of() as pond:
            client = pond.client()
            _, count = conversation(client)
            for piece in (data[:cut], data[cut:]):
                client.feed(piece)
            assert len(client.take_all()) == count, cut
            assert pond.partition("t").end_offset == 2
            assert client.connection._partial_bytes == 0


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("rests", [True, False])
def test_requests_in_small_pieces(pond: Pond, size: int, rests: bool) -> None:
    client = pond.client()
    data, count = conversation(client)
    taken = 0
    for at in range(0, len(data), size):
        client.feed(data[at : at + size])
        if rests:
            taken += len(client.take_all())
    assert taken + len(client.take_all()) == count


def test_many_requests_at_once(pond: Pond, client: Client) -> None:
    client.feed(b"".join([client.request(API_VERSIONS, 0)[0] for _ in range(1000)]))
    assert len(client.take_all()) == 1000


def test_a_large_request_in_many_pieces_counts_as_used_memory_until_it_is_whole(pond: Pond, client: Client) -> None:
    pond.topic("t", max_message_bytes="20000000")
    data, _ = client.request(PRODUCE, 9, **produce_tree({"t": {0: batch_of(bytes(10_000_000))}}))
    for at in range(0, len(data) - 1, 65536):
        client.feed(data[at : min(at + 65536, len(data) - 1)])
    assert pond.broker.memory.used == len(data) - 1
    assert client.answers() == []
    client.feed(data[-1:])
    assert client.take().responses[0].partition_responses[0].base_offset == 0
    assert pond.broker.memory.used == pond.partition("t").hot[0].memory_bytes


def test_what_comes_byte_by_byte_is_put_together(pond: Pond, client: Client) -> None:
    pond.topic("t")
    data, _ = client.request(PRODUCE, 9, **produce_tree({"t": {0: batch_of(bytes(100_000))}}))
    for at in range(len(data) - 1):
        client.feed(data[at : at + 1])
    assert len(client.connection._partial) < 20
    assert pond.broker.memory.used == len(data) - 1
    client.feed(data[-1:])
    assert client.take()


@pytest.mark.parametrize("size", [1, 3, 4, 5, 6, 20, 70])
def test_a_lost_connection_gives_back_the_memory_of_its_partial_request(pond: Pond, client: Client, size: int) -> None:
    data, _ = client.request(PRODUCE, 9, **produce_tree({"t": {0: batch_of(b"a")}}))
    client.feed(data[:size])
    assert pond.broker.memory.used == size
    client.drop()
    assert pond.broker.memory.used == 0
    assert pond.broker.connections == {}


# --- What is no request -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [-(1 << 31), -1, 0, 1, 9, KAFKA_REQUEST_BYTES_MAX + 1, (1 << 31) - 1])
def test_a_size_that_cannot_be_closes_the_connection(pond: Pond, client: Client, length: int) -> None:
    client.feed(struct.pack(">i", length))
    assert client.transport.is_closed
    assert client.answers() == []
    assert pond.broker.memory.used == 0


def test_the_size_of_requests_may_be_bounded_further() -> None:
    with pond_of(request_bytes_max=1000) as pond:
        pond.topic("t")
        client = pond.client()
        client.send(PRODUCE, 9, **produce_tree({"t": {0: batch_of(bytes(800))}}))
        assert client.take()
        client.send(PRODUCE, 9, **produce_tree({"t": {0: batch_of(bytes(1000))}}))
        assert client.transport.is_closed


def test_only_what_produces_is_large(pond: Pond) -> None:
    length = KAFKA_OTHER_REQUEST_BYTES_MAX + 1
    for api_key in (FETCH, METADATA, API_VERSIONS, 12345, -1):
        client = pond.client()
        client.feed(struct.pack(">i", length))
        client.feed(struct.pack(">h", api_key))
        assert client.transport.is_closed
        client = pond.client()
        client.feed(struct.pack(">ih", length, api_key) + bytes(length))
        assert client.transport.is_closed
    client = pond.client()
    client.feed(struct.pack(">ih", length, PRODUCE))
    assert not client.transport.is_closed
    client.drop()
    assert pond.broker.memory.used == 0


def test_a_large_request_that_never_comes_takes_no_memory(pond: Pond, client: Client) -> None:
    client.feed(struct.pack(">ih", KAFKA_REQUEST_BYTES_MAX, PRODUCE))
    assert pond.broker.memory.used == 6
    client.drop()


@pytest.mark.parametrize(
    ("api_key", "version"),
    [(PRODUCE, 2), (PRODUCE, 14), (PRODUCE, -1), (FETCH, 3), (FETCH, 19), (METADATA, 13), (12345, 0), (-1, 0)],
)
def test_a_version_that_is_not_spoken_closes_the_connection(
    pond: Pond, client: Client, api_key: int, version: int
) -> None:
    body = bytes(100)
    client.feed(struct.pack(">ihhih", 10 + len(body), api_key, version, 1, -1) + body)
    assert client.answers() == []
    assert client.transport.is_closed
    assert not client.transport.is_aborted


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", "speaks TLS"),
        (b"GET / HTTP/1.1\r\n\r\n", "speaks HTTP"),
        (b"AMQP\x00\x00\x09\x01", "speaks AMQP"),
        (struct.pack(">ihhih", 50, FETCH, 99, 7, -1) + bytes(40), "Fetch, version 99"),
        (struct.pack(">ihhih", 50, 999, 3, 7, -1) + bytes(40), "api key 999, version 3"),
    ],
)
def test_the_log_says_what_a_client_speaks_that_is_not_understood(
    client: Client, caplog: pytest.LogCaptureFixture, data: bytes, reason: str
) -> None:
    client.feed(data)
    assert client.transport.is_closed
    assert reason in caplog.text


@pytest.mark.parametrize("version", [-1, 5, 6, 32767])
def test_versions_are_told_in_the_oldest_version_to_who_asks_in_one_that_is_not_known(
    client: Client, version: int
) -> None:
    client.feed(struct.pack(">ihhih", 12, API_VERSIONS, version, 77, -1) + b"\x01\x00")
    [answer] = client.answers()
    assert answer.correlation_id == 77
    assert struct.unpack_from(">hi", answer.payload) == (35, len(registry.APIS))
    assert client.is_alive()


def test_a_client_id_that_is_no_text_closes_the_connection(client: Client) -> None:
    client.feed(struct.pack(">ihhih", 12, API_VERSIONS, 0, 1, 2) + b"\xff\xff")
    assert client.transport.is_closed


@pytest.mark.parametrize("size", [3, 32767, -2])
def test_a_client_id_that_does_not_fit_closes_the_connection(client: Client, size: int) -> None:
    client.feed(struct.pack(">ihhih", 12, API_VERSIONS, 0, 1, size) + b"ab")
    assert client.transport.is_closed


def test_what_came_before_nonsense_is_not_undone(pond: Pond, client: Client) -> None:
    pond.topic("t")
    data, _ = client.request(PRODUCE, 9, **produce_tree({"t": {0: batch_of(b"a")}}))
    client.feed(data + b"\xff" * 4)
    assert client.transport.is_closed
    assert pond.partition("t").end_offset == 1
    # The client takes it that what was not answered may have been lost.
    assert client.answers() == []


def test_after_the_end_nothing_is_looked_at(pond: Pond, client: Client) -> None:
    client.feed(b"\xff" * 4)
    client.feed(VERSIONS)
    client.connection.pause_writing()
    client.connection.resume_writing()
    pond.advance(KAFKA_IDLE_MS)
    assert client.answers() == []
    client.connection.lost()


# --- Silence ----------------------------------------------------------------------------------------------------------


def test_an_idle_connection_is_closed(pond: Pond, client: Client) -> None:
    assert client.is_alive()
    pond.advance(KAFKA_IDLE_MS - 1000)
    assert not client.transport.is_closed
    assert client.is_alive()
    pond.advance(KAFKA_IDLE_MS + KAFKA_IDLE_CHECK_MS)
    assert client.transport.is_closed
    assert pond.broker.connections == {}


def test_a_request_that_does_not_go_on_is_given_up(pond: Pond, client: Client) -> None:
    client.feed(VERSIONS[:10])
    pond.advance(KAFKA_REQUEST_TIMEOUT_MS - 1)
    client.feed(VERSIONS[10:11])
    pond.advance(KAFKA_REQUEST_TIMEOUT_MS - 1)
    assert not client.transport.is_closed
    pond.advance(KAFKA_REQUEST_TIMEOUT_MS)
    assert client.transport.is_closed
    assert pond.broker.memory.used == 0


def test_a_client_whose_request_is_under_way_is_not_idle(pond: Pond, client: Client) -> None:
    pond.topic("t")
    for _ in range(5):
        client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=290_000))
        pond.advance(290_000)
        assert client.take()


def test_a_producer_that_is_held_back_for_long_is_closed(pond: Pond, client: Client) -> None:
    """It has asked again on other connections, and that it has left this one is not noticed while it is not read."""
    pond.topic("t")
    pond.broker.alarms.raise_alarm("disk")
    client.send(PRODUCE, 9, **produce_tree({"t": {0: batch_of(b"v")}}))
    pond.advance(KAFKA_IDLE_MS - KAFKA_IDLE_CHECK_MS)
    assert not client.transport.is_closed
    pond.advance(2 * KAFKA_IDLE_CHECK_MS)
    assert client.transport.is_closed
    assert pond.broker.connections == {}
    pond.broker.alarms.clear_alarm("disk")
    pond.rest()
    assert pond.partition("t").end_offset == 0


# --- Clients that do not read -----------------------------------------------------------------------------------------


def test_a_client_that_does_not_read_is_not_listened_to(pond: Pond, client: Client) -> None:
    client.connection.pause_writing()
    assert not client.transport.is_reading
    client.send(API_VERSIONS, 0)
    assert client.take_all() == []
    client.connection.resume_writing()
    assert len(client.take_all()) == 1
    assert client.transport.is_reading


def test_a_client_that_does_not_read_for_long_is_cut(pond: Pond, client: Client) -> None:
    client.connection.pause_writing()
    pond.advance(KAFKA_IDLE_MS + KAFKA_IDLE_CHECK_MS)
    assert client.transport.is_aborted


def test_a_closed_connection_whose_client_does_not_read_is_cut(pond: Pond, client: Client) -> None:
    client.feed(b"\xff" * 4)
    assert client.transport.is_closed
    assert not client.transport.is_aborted
    pond.advance(KAFKA_CLOSE_TIMEOUT_MS)
    assert client.transport.is_aborted


def test_a_closed_connection_that_is_gone_is_not_cut(pond: Pond, client: Client) -> None:
    client.feed(b"\xff" * 4)
    client.drop()
    pond.advance(KAFKA_CLOSE_TIMEOUT_MS)
    assert not client.transport.is_aborted


def test_what_the_socket_does_not_take_counts_as_used_memory(pond: Pond, client: Client) -> None:
    pond.topic("t")
    client.produce("t", batch_of(bytes(500_000)))
    before = pond.broker.memory.used
    write = client.transport.write

    def full(data: bytes) -> None:
        write(data)
        client.connection.pause_writing()

    client.transport.write = full  # type: ignore[method-assign]
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}))
    client.take()
    assert pond.broker.memory.used >= before + 500_000
    client.connection.resume_writing()
    assert pond.broker.memory.used == before
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}))
    client.take()
    client.drop()
    assert pond.broker.memory.used == before


def test_what_follows_a_fetch_waits_for_its_answer(pond: Pond, client: Client) -> None:
    pond.topic("t")
    pond.topic("u")
    first, _ = client.request(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=500))
    second, _ = client.request(PRODUCE, 9, **produce_tree({"u": {0: batch_of(b"a")}}))
    client.feed(first)
    client.feed(second)
    assert client.take_all() == []
    assert pond.partition("u").end_offset == 0
    assert not client.transport.is_reading
    pond.client().produce("t", batch_of(b"b"))
    assert len(client.take_all()) == 2
    assert pond.partition("u").end_offset == 1
    assert client.transport.is_reading


def test_a_waiting_fetch_alone_does_not_stop_reading(pond: Pond, client: Client) -> None:
    """How else would the loss of the connection be noticed?"""
    pond.topic("t")
    client.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, max_wait=500))
    assert client.transport.is_reading


def test_many_fetches_at_once_are_answered_one_after_the_other(pond: Pond, client: Client) -> None:
    pond.topic("t")
    for _ in range(10):
        client.produce("t", batch_of(bytes(900_000)))
    held: list[int] = []
    write_all = client.transport.write_all

    def write(chunks: list[bytes]) -> None:
        held.append(sum([len(chunk) for chunk in chunks]))
        write_all(chunks)

    client.transport.write_all = write  # type: ignore[method-assign]
    tree = fetch_tree({"t": {0: 0}}, partition_max_bytes=1 << 30)
    client.feed(b"".join([client.request(FETCH, 12, **tree)[0] for _ in range(20)]))
    assert len(client.take_all()) == 20
    assert len(held) == 20


def test_large_answers_do_not_pile_up(pond: Pond, client: Client) -> None:
    for number in range(300):
        pond.topic(f"topic-{number:0200}", 10)
    client.connection.pause_writing()
    client.connection.resume_writing()
    sizes: list[int] = []
    write_all = client.transport.write_all

    def write(chunks: list[bytes]) -> None:
        sizes.append(sum([len(chunk) for chunk in chunks]))
        write_all(chunks)

    client.transport.write_all = write  # type: ignore[method-assign]
    client.feed(b"".join([client.request(METADATA, 12, topics=None)[0] for _ in range(100)]))
    assert len(client.take_all()) == 100
    assert max(sizes) < 2 * KAFKA_ANSWERS_BYTES_MAX
    assert client.connection.unsent_bytes == 0


class Never(Waiting):
    def __init__(self) -> None:
        self.was_called_off = False

    def call_off(self) -> None:
        self.was_called_off = True


@pytest.fixture
def waiting_calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Calls of ListOffsets are not answered, but collected here."""
    calls: list[Call] = []
    api = registry.APIS[LIST_OFFSETS]

    def wait(call: Call, request: object) -> None:
        call.waiting = Never()
        calls.append(call)

    replaced = registry.Api(api.key, api.name, api.least, api.most, api.least, wait, None)
    monkeypatch.setitem(registry.APIS, LIST_OFFSETS, replaced)
    return calls


def test_no_more_requests_are_under_way_than_the_limit(client: Client, waiting_calls: list[Call]) -> None:
    data = [client.request(LIST_OFFSETS, 1, replica_id=-1, topics=[])[0] for _ in range(KAFKA_CALLS_PENDING_MAX + 10)]
    client.feed(b"".join(data))
    client.pond.rest()
    assert len(waiting_calls) == KAFKA_CALLS_PENDING_MAX
    assert not client.transport.is_reading
    for call in list(waiting_calls):
        registry.answer(call, {"topics": []})
    client.take_all()
    assert len(waiting_calls) == KAFKA_CALLS_PENDING_MAX + 10
    assert client.transport.is_reading


def test_answers_keep_the_order_of_the_requests(pond: Pond, client: Client, waiting_calls: list[Call]) -> None:
    for _ in range(10):
        client.send(LIST_OFFSETS, 1, replica_id=-1, topics=[])
        client.send(API_VERSIONS, 0)
    assert client.take_all() == []
    calls = list(waiting_calls)
    Random(5).shuffle(calls)
    taken = 0
    for call in calls:
        registry.answer(call, {"topics": []})
        taken += len(client.take_all())
    assert taken == 20


def test_what_waits_is_called_off_when_the_connection_is_lost(client: Client, waiting_calls: list[Call]) -> None:
    client.send(LIST_OFFSETS, 1, replica_id=-1, topics=[])
    waiting = waiting_calls[0].waiting
    assert isinstance(waiting, Never)
    client.drop()
    assert waiting.was_called_off
    registry.answer(waiting_calls[0], {"topics": []})


def test_a_call_that_waits_keeps_nothing_of_what_it_arrived_with(client: Client, waiting_calls: list[Call]) -> None:
    client.send(LIST_OFFSETS, 1, replica_id=-1, topics=[])
    assert waiting_calls[0].data == b""


# --- Bugs -------------------------------------------------------------------------------------------------------------


def _raise(*_: object) -> None:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda client, patch: patch.setattr(client.connection.apis.__class__, "handle", _raise),
        lambda client, patch: patch.setattr(registry.messages, "encode_response", _raise),
        lambda client, patch: patch.setattr(client.transport, "write_all", _raise),
    ],
)
def test_a_bug_closes_one_connection_only(
    pond: Pond,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[Client, pytest.MonkeyPatch], None],
) -> None:
    other = pond.client()
    with monkeypatch.context() as patch:
        break_it(client, patch)
        client.send(API_VERSIONS, 0)
        pond.rest()
    assert client.transport.is_closed
    assert other.is_alive()
    assert list(pond.broker.connections) == [other.connection]


def test_a_bug_in_what_is_waited_for_closes_the_connection(
    pond: Pond, client: Client, waiting_calls: list[Call]
) -> None:
    client.send(LIST_OFFSETS, 1, replica_id=-1, topics=[])
    waiting = waiting_calls[0].waiting
    assert waiting is not None
    client.connection.wake(waiting)
    pond.rest()
    assert client.transport.is_closed


def test_an_answer_that_cannot_be_written_closes_the_connection_and_harms_nobody_else(
    client: Client, waiting_calls: list[Call]
) -> None:
    client.send(LIST_OFFSETS, 1, replica_id=-1, topics=[])
    registry.answer(waiting_calls[0], {"topics": [{"name": None}]})
    assert client.transport.is_closed


# --- Who may connect --------------------------------------------------------------------------------------------------


def test_no_more_connections_than_the_limit() -> None:
    with pond_of(connections_max=2) as pond:
        clients = [pond.client() for _ in range(3)]
        assert [client.transport.is_aborted for client in clients] == [False, False, True]
        clients[2].feed(VERSIONS)
        clients[0].drop()
        assert pond.client().is_alive()


def test_a_user_who_is_not_there_is_refused() -> None:
    with pond_of(user="nobody") as pond:
        client = pond.client()
        client.send(METADATA, 4, topics=None)
        assert client.transport.is_closed
        assert pond.broker.connections == {}


def test_a_client_that_has_gone_before_it_was_looked_at_is_not_talked_about(
    pond: Pond, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MemoryTransport, "peer_host", lambda self: None)
    assert pond.client().transport.is_aborted
    assert pond.broker.connections == {}
    assert caplog.text == ""


@pytest.mark.parametrize("version", range(5))
def test_every_version_of_api_versions_ends_early(pond: Pond, version: int) -> None:
    body = encoded_request(API_VERSIONS, version, {"client_software_name": "x", "client_software_version": "1"})
    for size in range(len(body)):
        client = pond.client()
        client.feed(request_bytes(API_VERSIONS, version, 1, body[:size]))
        assert client.transport.is_closed
