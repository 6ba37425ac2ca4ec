"""The APIs of transactions, version by version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from millpond.protocols.kafka import errors
from tests.protocols.kafka.harness import (
    API_VERSIONS,
    INIT_PRODUCER_ID,
    LIST_OFFSETS,
    PRODUCE,
    Client,
    Pond,
    batch_of,
    fetch_tree,
    produce_tree,
    records_of,
)

FETCH, OFFSET_FETCH, FIND_COORDINATOR = 1, 9, 10
ADD_PARTITIONS, ADD_OFFSETS, END_TXN, WRITE_MARKERS, TXN_OFFSET_COMMIT = 24, 25, 26, 27, 28
DESCRIBE_PRODUCERS, DESCRIBE_TRANSACTIONS, LIST_TRANSACTIONS = 61, 65, 66
NEVER = -1
TRANSACTIONAL = 0x10

Identity = tuple[int, int]


def begin(client: Client, name: str = "x", *, version: int = 5, expected: Identity = (-1, -1)) -> Identity:
    tree: dict[str, Any] = {"transactional_id": name, "transaction_timeout": 60_000}
    if version >= 3:
        tree |= {"producer_id": expected[0], "producer_epoch": expected[1]}
    answer = client.call(INIT_PRODUCER_ID, version, **tree)
    assert answer.error_code.value == 0
    return int(answer.producer_id), int(answer.producer_epoch)


def add(client: Client, producer: Identity, *partitions: int, version: int = 3, topic: str = "t") -> list[int]:
    answer = client.call(
        ADD_PARTITIONS,
        version,
        v3_and_below_transactional_id="x",
        v3_and_below_producer_id=producer[0],
        v3_and_below_producer_epoch=producer[1],
        v3_and_below_topics=[{"name": topic, "partitions": list(partitions)}],
    )
    [found] = answer.results_by_topic_v3_and_below
    return [one.partition_error_code.value for one in found.results_by_partition]


def write(client: Client, producer: Identity, sequence: int = 0, *, version: int = 9, name: str | None = "x") -> int:
    batch = batch_of(b"%d" % sequence, producer=(*producer, sequence), attributes=TRANSACTIONAL)
    response = client.call(PRODUCE, version, **produce_tree({"t": {0: batch}}, transactional_id=name))
    code: int = response.responses[0].partition_responses[0].error_code.value
    return code


def end(client: Client, producer: Identity, is_commit: bool = True, *, version: int = 3) -> Any:
    return client.call(
        END_TXN,
        version,
        transactional_id="x",
        producer_id=producer[0],
        producer_epoch=producer[1],
        committed=is_commit,
    )


def fetch(client: Client, isolation_level: int, offset: int = 0) -> Any:
    response = client.call(FETCH, 12, **fetch_tree({"t": {0: offset}}, isolation_level=isolation_level))
    return response.responses[0].partitions[0]


@pytest.fixture(autouse=True)
def topic(pond: Pond) -> None:
    pond.topic("t", 2)


class TestProduce:
    @pytest.mark.parametrize(
        ("version", "code"),
        [(9, errors.INVALID_TXN_STATE), (11, errors.TRANSACTION_ABORTABLE), (12, 0)],
    )
    def test_a_partition_that_was_not_added(self, pond: Pond, client: Client, version: int, code: int) -> None:
        assert write(client, begin(client), version=version) == code
        assert pond.partition("t").end_offset == (1 if code == 0 else 0)

    @pytest.mark.parametrize("version", [9, 12])
    def test_an_old_epoch_is_shut_out(self, client: Client, version: int) -> None:
        old = begin(client)
        assert add(client, old, 0) == [0]
        assert write(client, old, version=version) == 0
        begin(client)
        assert write(client, old, 1, version=version) == errors.INVALID_PRODUCER_EPOCH

    def test_somebody_elses_id(self, client: Client) -> None:
        begin(client)
        assert write(client, (4711, 0), version=12) == errors.INVALID_PRODUCER_ID_MAPPING

    def test_a_plain_batch_within_a_transaction_is_refused(self, client: Client) -> None:
        producer = begin(client)
        add(client, producer, 0)
        assert write(client, producer) == 0
        answer = client.produce("t", batch_of(b"plain", producer=(*producer, 1)))
        assert answer.error_code.value == errors.INVALID_TXN_STATE

    def test_a_batch_that_is_sent_again_is_answered_as_it_was(self, pond: Pond, client: Client) -> None:
        producer = begin(client)
        add(client, producer, 0)
        assert [write(client, producer), write(client, producer)] == [0, 0]
        assert pond.partition("t").end_offset == 1

    def test_numbers_begin_anew_with_the_epoch_that_a_marker_brings(self, client: Client) -> None:
        producer = begin(client)
        assert write(client, producer, version=12) == 0
        answer = end(client, producer, version=5)
        following = (int(answer.producer_id), int(answer.producer_epoch))
        assert following == (producer[0], producer[1] + 1)
        assert write(client, following, 1, version=12) == errors.OUT_OF_ORDER_SEQUENCE_NUMBER
        assert write(client, following, 0, version=12) == 0


class TestFetch:
    def test_read_committed_stops_before_an_open_transaction(self, client: Client) -> None:
        producer = begin(client)
        add(client, producer, 0)
        client.produce("t", batch_of(b"before"))
        write(client, producer)
        client.produce("t", batch_of(b"after"))
        for level, expected in ((0, [b"before", b"0", b"after"]), (1, [b"before"])):
            found = fetch(client, level)
            assert [value for _, value in records_of(found.records)] == expected
            assert (found.high_watermark, found.last_stable_offset) == (3, 1)
        assert fetch(client, 0).aborted_transactions is None
        assert fetch(client, 1).aborted_transactions == ()

    def test_aborted_transactions_are_told_with_what_is_fetched(self, client: Client) -> None:
        producer = begin(client)
        for number in range(3):
            add(client, producer, 0)
            write(client, producer, number)
            end(client, producer, number == 1)
        found = fetch(client, 1)
        assert [(one.producer_id, one.first_offset) for one in found.aborted_transactions] == [
            (producer[0], 0),
            (producer[0], 4),
        ]
        assert [one.first_offset for one in fetch(client, 1, 2).aborted_transactions] == [4]

    def test_a_waiting_fetch_is_answered_by_the_commit(self, pond: Pond, client: Client) -> None:
        producer = begin(client)
        add(client, producer, 0)
        write(client, producer)
        reader = pond.client()
        reader.send(FETCH, 12, **fetch_tree({"t": {0: 0}}, isolation_level=1, max_wait=5000))
        assert reader.take_all() == []
        end(client, producer)
        [found] = reader.take().responses[0].partitions
        assert [offset for offset, _ in records_of(found.records)] == [0, 1]

    def test_the_latest_offset_is_the_last_stable_one(self, client: Client) -> None:
        producer = begin(client)
        add(client, producer, 0)
        write(client, producer)

        def latest(level: int) -> int:
            topics = [{"name": "t", "partitions": [{"partition_index": 0, "timestamp": -1}]}]
            answer = client.call(LIST_OFFSETS, 5, replica_id=-1, isolation_level=level, topics=topics)
            return int(answer.topics[0].partitions[0].offset)

        assert (latest(0), latest(1)) == (1, 0)
        end(client, producer)
        assert (latest(0), latest(1)) == (2, 2)


class TestAddPartitions:
    def test_if_one_cannot_be_added_none_is(self, client: Client) -> None:
        producer = begin(client)
        assert add(client, producer, 0, 5) == [
            errors.OPERATION_NOT_ATTEMPTED,
            errors.UNKNOWN_TOPIC_OR_PARTITION,
        ]
        assert write(client, producer) == errors.INVALID_TXN_STATE

    @pytest.mark.parametrize(("version", "code"), [(1, errors.INVALID_PRODUCER_EPOCH), (2, errors.PRODUCER_FENCED)])
    def test_who_is_shut_out_is_told_in_words_it_knows(self, client: Client, version: int, code: int) -> None:
        old = begin(client)
        begin(client)
        assert add(client, old, 0, version=version) == [code]

    @pytest.mark.parametrize("version", [4, 5])
    def test_brokers_ask_for_several_transactions_and_may_only_look(self, client: Client, version: int) -> None:
        producer = begin(client)

        def ask(verify_only: bool) -> list[int]:
            transaction = {
                "transactional_id": "x", "producer_id": producer[0], "producer_epoch": producer[1],
                "verify_only": verify_only, "topics": [{"name": "t", "partitions": [0, 1]}],
            }  # fmt: skip
            answer = client.call(ADD_PARTITIONS, version, transactions=[transaction])
            [result] = answer.results_by_transaction
            return [one.partition_error_code.value for one in result.topic_results[0].results_by_partition]

        assert ask(True) == [errors.TRANSACTION_ABORTABLE] * 2
        assert ask(False) == [0, 0]
        assert ask(True) == [0, 0]


class TestInitProducerId:
    def test_each_time_the_epoch_is_the_next(self, client: Client) -> None:
        first = begin(client, version=0)
        assert [begin(client, version=version) for version in (1, 2, 3, 4, 5)] == [
            (first[0], first[1] + number) for number in range(1, 6)
        ]

    @pytest.mark.parametrize(("version", "code"), [(3, errors.INVALID_PRODUCER_EPOCH), (4, errors.PRODUCER_FENCED)])
    def test_one_that_has_been_followed_by_another_is_refused(self, client: Client, version: int, code: int) -> None:
        producer = begin(client)
        begin(client)
        answer = client.call(
            INIT_PRODUCER_ID, version, transactional_id="x", transaction_timeout=60_000, producer_id=producer[0],
            producer_epoch=producer[1],
        )  # fmt: skip
        assert answer.error_code.value == code

    @pytest.mark.parametrize(
        ("name", "timeout_ms", "code"),
        [
            ("", 60_000, errors.INVALID_REQUEST),
            ("x" * 256, 60_000, errors.INVALID_REQUEST),
            ("x", 0, errors.INVALID_TRANSACTION_TIMEOUT),
            ("x", 900_001, errors.INVALID_TRANSACTION_TIMEOUT),
        ],
    )
    def test_what_cannot_be(self, client: Client, name: str, timeout_ms: int, code: int) -> None:
        answer = client.call(INIT_PRODUCER_ID, 2, transactional_id=name, transaction_timeout=timeout_ms)
        assert (answer.error_code.value, answer.producer_id) == (code, -1)


class TestEnd:
    @pytest.mark.parametrize(("version", "code"), [(1, errors.INVALID_PRODUCER_EPOCH), (2, errors.PRODUCER_FENCED)])
    def test_who_is_shut_out_is_told_in_words_it_knows(self, client: Client, version: int, code: int) -> None:
        old = begin(client)
        begin(client)
        assert end(client, old, version=version).error_code.value == code

    def test_without_a_transaction(self, client: Client) -> None:
        assert end(client, begin(client)).error_code.value == errors.INVALID_TXN_STATE

    def test_a_transaction_that_takes_too_long_is_aborted(self, pond: Pond, client: Client) -> None:
        producer = begin(client)
        add(client, producer, 0)
        write(client, producer)
        pond.advance(60_001)
        assert end(client, producer).error_code.value == errors.PRODUCER_FENCED
        assert pond.partition("t").stable_end == 2


class TestOffsets:
    def commit(self, client: Client, producer: Identity, offset: int, version: int) -> int:
        topics = [
            {
                "name": "t",
                "partitions": [{"partition_index": 0, "committed_offset": offset, "committed_metadata": None}],
            }
        ]
        tree: dict[str, Any] = {
            "transactional_id": "x", "group_id": "g", "producer_id": producer[0], "producer_epoch": producer[1],
            "topics": topics,
        }  # fmt: skip
        if version >= 3:
            tree |= {"generation_id": -1, "member_id": "", "group_instance_id": None}
        answer = client.call(TXN_OFFSET_COMMIT, version, **tree)
        code: int = answer.topics[0].partitions[0].error_code.value
        return code

    def offset(self, client: Client, require_stable: bool) -> tuple[int, int]:
        group = {"group_id": "g", "topics": [{"name": "t", "partition_indexes": [0]}]}
        answer = client.call(OFFSET_FETCH, 8, groups=[group], require_stable=require_stable)
        [found] = answer.groups[0].topics[0].partitions
        return found.error_code.value, int(found.committed_offset)

    @pytest.mark.parametrize(
        ("version", "code"),
        [(0, errors.INVALID_TXN_STATE), (3, errors.INVALID_TXN_STATE), (4, errors.TRANSACTION_ABORTABLE), (5, 0)],
    )
    def test_a_group_that_was_not_added(self, client: Client, version: int, code: int) -> None:
        assert self.commit(client, begin(client), 7, version) == code

    def test_they_are_there_when_the_transaction_is_committed(self, client: Client) -> None:
        producer = begin(client)
        added = client.call(
            ADD_OFFSETS, 3, transactional_id="x", producer_id=producer[0], producer_epoch=producer[1], group_id="g"
        )
        assert added.error_code.value == 0
        assert self.commit(client, producer, 7, 3) == 0
        assert self.offset(client, False) == (0, -1)
        assert self.offset(client, True) == (errors.UNSTABLE_OFFSET_COMMIT, -1)
        end(client, producer)
        assert self.offset(client, True) == (0, 7)

    def test_who_is_shut_out_commits_none(self, client: Client) -> None:
        old = begin(client)
        begin(client)
        assert self.commit(client, old, 7, 5) == errors.INVALID_PRODUCER_EPOCH


class TestLooking:
    def listed(self, client: Client, states: Sequence[str] = (), duration_ms: int = -1) -> Any:
        return client.call(
            LIST_TRANSACTIONS, 1, state_filters=list(states), producer_id_filters=[], duration_filter=duration_ms
        )

    def test_transactions_are_listed(self, pond: Pond, client: Client) -> None:
        producer = begin(client)
        begin(client, "y")
        add(client, producer, 0)
        found = self.listed(client).transaction_states
        assert {(one.transactional_id, one.transaction_state) for one in found} == {("x", "Ongoing"), ("y", "Empty")}
        answer = self.listed(client, ["Ongoing", "PrepareCommit", "Nonsense"])
        assert [one.transactional_id for one in answer.transaction_states] == ["x"]
        assert answer.unknown_state_filters == ("Nonsense",)
        pond.advance(1000)
        assert self.listed(client, ["Ongoing"], 2000).transaction_states == ()
        assert len(self.listed(client, ["Ongoing"], 500).transaction_states) == 1

    @pytest.mark.parametrize(
        ("pattern", "names"),
        [
            (None, ["x", "xy"]),
            ("", ["x", "xy"]),
            ("x", ["x"]),
            (".*y", ["xy"]),
            ("x.*", ["x", "xy"]),
        ],
    )
    def test_transactions_are_listed_whose_whole_id_matches(
        self, client: Client, pattern: str | None, names: Sequence[str]
    ) -> None:
        begin(client)
        begin(client, "xy")
        answer = self.matched(client, pattern)
        assert [one.transactional_id for one in answer.transaction_states] == names

    @pytest.mark.parametrize("pattern", ["(", "x(?!y)", "x" * 1025])
    def test_a_pattern_that_cannot_be_matched_in_time_is_refused(self, client: Client, pattern: str) -> None:
        begin(client)
        answer = self.matched(client, pattern)
        assert (answer.error_code.value, answer.transaction_states) == (errors.INVALID_REGULAR_EXPRESSION, ())

    @staticmethod
    def matched(client: Client, pattern: str | None) -> Any:
        return client.call(
            LIST_TRANSACTIONS,
            2,
            state_filters=[],
            producer_id_filters=[],
            duration_filter=-1,
            transactional_id_pattern=pattern,
        )

    def test_transactions_are_described(self, client: Client) -> None:
        producer = begin(client)
        add(client, producer, 0, 1)
        answer = client.call(DESCRIBE_TRANSACTIONS, 0, transactional_ids=["x", "unknown"])
        found, unknown = answer.transaction_states
        assert (found.transaction_state, found.producer_id, found.producer_epoch) == ("Ongoing", *producer)
        assert [(topic.topic, topic.partitions) for topic in found.topics] == [("t", (0, 1))]
        assert found.transaction_start_time.timestamp() == 1_700_000_000
        assert unknown.error_code.value == errors.TRANSACTIONAL_ID_NOT_FOUND

    def test_producers_are_described_with_their_open_transactions(self, client: Client) -> None:
        producer = begin(client)
        client.produce("t", batch_of(b"before"))
        add(client, producer, 0)
        write(client, producer)

        def described() -> Any:
            answer = client.call(DESCRIBE_PRODUCERS, 0, topics=[{"name": "t", "partition_indexes": [0]}])
            [found] = answer.topics[0].partitions[0].active_producers
            return found

        assert (described().current_txn_start_offset, described().coordinator_epoch) == (1, -1)
        end(client, producer)
        assert (described().current_txn_start_offset, described().coordinator_epoch) == (-1, 0)

    def test_any_transactional_id_has_its_coordinator_here(self, client: Client) -> None:
        [found] = client.call(FIND_COORDINATOR, 4, key_type=1, coordinator_keys=["x"]).coordinators
        assert (found.error_code.value, found.node_id) == (0, 1)

    def test_an_administrator_ends_a_transaction_by_markers(self, pond: Pond, client: Client) -> None:
        producer = begin(client)
        add(client, producer, 0, 1)
        write(client, producer)

        def mark(epoch: int, is_commit: bool, partition: int = 0) -> int:
            marker = {
                "producer_id": producer[0], "producer_epoch": epoch, "transaction_result": is_commit,
                "topics": [{"name": "t", "partition_indexes": [partition]}], "coordinator_epoch": 0,
            }  # fmt: skip
            answer = client.call(WRITE_MARKERS, 1, markers=[marker])
            code: int = answer.markers[0].topics[0].partitions[0].error_code.value
            return code

        assert mark(producer[1], True) == errors.INVALID_REQUEST
        assert mark(producer[1] - 1, False) == errors.INVALID_PRODUCER_EPOCH
        assert mark(producer[1], False, 9) == errors.UNKNOWN_TOPIC_OR_PARTITION
        assert mark(producer[1], False) == 0
        assert pond.partition("t").stable_end == 2
        assert pond.partition("t", 1).end_offset == 1
        assert end(client, producer).error_code.value == errors.PRODUCER_FENCED

    def test_the_feature_is_told(self, client: Client) -> None:
        answer = client.call(API_VERSIONS, 4, client_software_name="test", client_software_version="1")
        levels = {feature.name: feature.max_version_level for feature in answer.finalized_features}
        assert levels["transaction.version"] == 2
        assert answer.finalized_features_epoch >= 0
