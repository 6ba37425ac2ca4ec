"""Client quotas: whose they are, what they measure, and how a client is made to wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from millpond.base.errors import PreconditionFailed
from millpond.broker.quotas import CONSUMER, PRODUCER, ClientQuotas
from millpond.catalog.catalog import Catalog
from millpond.protocols.kafka import errors
from tests.protocols.kafka.harness import CLIENT_ID, FETCH, METADATA, PRODUCE, Pond, batch_of, fetch_tree, produce_tree
from tests.protocols.kafka.test_acls import code, log_in

DESCRIBE_QUOTAS, ALTER_QUOTAS = 48, 49
SECOND = 1_000


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    made = Catalog(None)
    made.open()
    yield made
    made.close()


@pytest.fixture
def quotas(catalog: Catalog) -> ClientQuotas:
    return ClientQuotas(catalog)


@pytest.fixture
def pond() -> Iterator[Pond]:
    made = Pond()
    yield made
    made.close()


@pytest.mark.parametrize(
    "entities",
    [
        [{"user": "u", "client-id": "c"}, {"user": "u", "client-id": None}],
        [{"user": "u", "client-id": None}, {"user": "u"}],
        [{"user": "u"}, {"user": None, "client-id": "c"}],
        [{"user": None, "client-id": "c"}, {"user": None, "client-id": None}],
        [{"user": None, "client-id": None}, {"user": None}],
        [{"user": None}, {"client-id": "c"}],
        [{"client-id": "c"}, {"client-id": None}],
    ],
)
def test_the_most_special_quota_counts(quotas: ClientQuotas, entities: list[dict[str, str | None]]) -> None:
    first, second = entities
    quotas.alter(second, {CONSUMER: 20})
    assert quotas.fetch_bytes_max("u", "c") == 200
    quotas.alter(first, {CONSUMER: 10})
    assert quotas.fetch_bytes_max("u", "c") == 100
    quotas.alter(first, {CONSUMER: None})
    assert quotas.fetch_bytes_max("u", "c") == 200


def test_who_has_no_quota_never_waits(quotas: ClientQuotas) -> None:
    quotas.alter({"user": "other"}, {PRODUCER: 1})
    assert quotas.produced("u", "c", 1 << 40, 0) == 0
    assert quotas.fetch_bytes_max("u", "c") == -1


def test_a_client_waits_until_its_rate_is_the_quota(quotas: ClientQuotas) -> None:
    quotas.alter({"user": "u"}, {PRODUCER: 100})
    assert quotas.produced("u", "a", 1_000, 0) == 0
    # What connections of a user do is measured together: 1500 bytes take 15 seconds.
    assert quotas.produced("u", "b", 500, 0) == 5 * SECOND
    assert quotas.produced("u", "a", 0, 11 * SECOND) == 0
    assert (quotas.throttled, quotas.throttled_ms) == ({PRODUCER: 1}, {PRODUCER: 5 * SECOND})


def test_what_is_refused_is_not_used(quotas: ClientQuotas) -> None:
    quotas.alter({"client-id": "c"}, {CONSUMER: 100})
    assert quotas.fetching("u", "c", 900, 0) == 0
    assert quotas.fetching("u", "c", 200, 0) == SECOND
    assert quotas.fetching("u", "c", 100, 0) == 0


def test_what_alone_is_more_than_the_quota_comes_through(quotas: ClientQuotas) -> None:
    quotas.alter({"user": "u"}, {CONSUMER: 10})
    assert quotas.fetching("u", "c", 5_000, 0) == 0
    assert quotas.fetching("u", "c", 5_000, SECOND) > 0
    assert quotas.fetching("u", "c", 5_000, 12 * SECOND) == 0


def test_quotas_survive_a_restart(quotas: ClientQuotas, catalog: Catalog) -> None:
    quotas.alter({"user": None, "client-id": "c"}, {PRODUCER: 100, "request_percentage": 12.5})
    again = ClientQuotas(catalog)
    again.load(catalog.load().quotas)
    assert again.is_set
    assert again.items() == [({"client-id": "c", "user": None}, {PRODUCER: 100.0, "request_percentage": 12.5})]


@pytest.mark.parametrize(
    ("entity", "changes"),
    [
        ({}, {PRODUCER: 1.0}),
        ({"ip": "10.0.0.1"}, {PRODUCER: 1.0}),
        ({"user": ""}, {PRODUCER: 1.0}),
        ({"user": "u" * 300}, {PRODUCER: 1.0}),
        ({"user": "u"}, {"speed": 1.0}),
        ({"user": "u"}, {PRODUCER: 0.0}),
        ({"user": "u"}, {PRODUCER: -1.0}),
        ({"user": "u"}, {PRODUCER: 1.5}),
        ({"user": "u"}, {PRODUCER: float("nan")}),
        ({"user": "u"}, {PRODUCER: float("inf")}),
        ({"user": "u"}, {PRODUCER: 1e300}),
    ],
)
def test_quotas_that_cannot_be_are_refused(
    quotas: ClientQuotas, entity: dict[str, str | None], changes: dict[str, float | None]
) -> None:
    with pytest.raises(PreconditionFailed):
        quotas.alter(entity, changes)
    assert quotas.items() == []


def test_a_producer_is_answered_at_once_and_not_read_from_for_as_long_as_it_is_told(pond: Pond) -> None:
    pond.topic("orders")
    pond.broker.quotas.alter({"client-id": CLIENT_ID}, {PRODUCER: 10})
    client = pond.client()
    batch = batch_of(b"x" * 200)
    response = client.call(PRODUCE, 9, **produce_tree({"orders": {0: batch}}))
    wait_ms = response.throttle_time.total_seconds() * 1000
    assert code(response.responses[0].partition_responses[0]) == 0
    assert wait_ms == len(batch) * 100 - 10 * SECOND
    assert not client.transport.is_reading
    client.send(METADATA, 12, topics=None)
    assert client.take_all() == []
    pond.advance(int(wait_ms))
    assert len(client.take_all()) == 1
    assert client.transport.is_reading


@pytest.mark.parametrize("version", [4, 7, 12])
def test_a_consumer_beyond_its_quota_gets_nothing_before_it_has_waited(pond: Pond, version: int) -> None:
    pond.topic("orders")
    client = pond.client()
    for _ in range(2):
        client.produce("orders", batch_of(b"x" * 200))
    pond.broker.quotas.alter({"user": "guest"}, {CONSUMER: 30})
    first = client.fetch("orders", 0, version=version)
    assert first.records
    response = client.call(FETCH, version, **fetch_tree({"orders": {0: 1}}))
    wait_ms = int(response.throttle_time.total_seconds() * 1000)
    assert (response.responses, wait_ms > 0) == ((), True)
    assert not client.transport.is_reading
    pond.advance(11 * SECOND)
    assert client.fetch("orders", 1, version=version).records


def test_quotas_are_described_and_altered_by_administrators(pond: Pond) -> None:
    entry = {
        "entity": [{"entity_type": "user", "entity_name": "alice"}],
        "ops": [{"key": PRODUCER, "value": 1000.0, "remove": False}],
    }
    filters = [{"entity_type": "user", "match_type": 0, "match": "alice"}]
    anonymous, root = pond.client(), pond.client()
    (refused,) = anonymous.call(ALTER_QUOTAS, 1, entries=[entry], validate_only=False).entries
    assert code(refused) == errors.CLUSTER_AUTHORIZATION_FAILED
    refused = anonymous.call(DESCRIBE_QUOTAS, 1, components=filters, strict=False)
    assert code(refused) == errors.CLUSTER_AUTHORIZATION_FAILED
    log_in(root)
    (checked,) = root.call(ALTER_QUOTAS, 1, entries=[entry], validate_only=True).entries
    assert (code(checked), pond.broker.quotas.items()) == (0, [])
    (altered,) = root.call(ALTER_QUOTAS, 1, entries=[entry], validate_only=False).entries
    assert code(altered) == 0
    (told,) = root.call(DESCRIBE_QUOTAS, 1, components=filters, strict=True).entries
    assert [(value.key, value.value) for value in told.values] == [(PRODUCER, 1000.0)]
    nobody = [{"entity_type": "user", "match_type": 1, "match": None}]
    assert root.call(DESCRIBE_QUOTAS, 1, components=nobody, strict=False).entries == ()
