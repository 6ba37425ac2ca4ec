"""ShareFetch, ShareAcknowledge and the offsets of share groups, message by message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from millpond.broker.broker import DEFAULT_VHOST
from millpond.broker.groups.coordinator import DEFAULT_SETTINGS
from millpond.broker.quotas import CONSUMER
from millpond.broker.shares import coordinator, sessions
from millpond.broker.shares.coordinator import Shares
from millpond.broker.streams.topic import Topic
from millpond.storage.record_batch import BatchBuilder
from tests.protocols.kafka.harness import Client, Pond, batch_of

SHARE_FETCH, SHARE_ACKNOWLEDGE = 78, 79
INCREMENTAL_ALTER_CONFIGS, DESCRIBE_CONFIGS = 44, 32
DESCRIBE_OFFSETS, ALTER_OFFSETS, DELETE_OFFSETS = 90, 91, 92
GROUP_RESOURCE = 32
GAP, ACCEPT, RELEASE, REJECT, RENEW = range(5)
LOCK_MS = 30_000

INVALID_REQUEST = 42
INVALID_GROUP_ID, POLICY_VIOLATION, SHARE_SESSION_LIMIT_REACHED = 24, 44, 133
UNKNOWN_TOPIC_OR_PARTITION = 3
NON_EMPTY_GROUP, GROUP_ID_NOT_FOUND = 68, 69
INVALID_CONFIG = 40
UNKNOWN_TOPIC_ID = 100
INVALID_RECORD_STATE, SESSION_NOT_FOUND, INVALID_SESSION_EPOCH = 121, 122, 123

# Of one partition: (first offset, last offset, acknowledge types) each.
Batches = Sequence[tuple[int, int, Sequence[int]]]


class Member:
    """A member of the share group `g` that reads partition 0 of one topic. It keeps its session's epoch."""

    def __init__(self, pond: Pond, name: str, topic: Topic, *, version: int = 2, group: str = "g") -> None:
        self.client = Client(pond)
        self.name = name
        self.topic = topic
        self.version = version
        self.group = group
        self.epoch = 0

    def tree(self, batches: Batches, *, number: int = 0, named: bool = True, **options: Any) -> dict[str, Any]:
        partition = {
            "partition_index": number,
            "acknowledgement_batches": [
                {"first_offset": first, "last_offset": last, "acknowledge_types": list(types)}
                for first, last, types in batches
            ],
        }
        epoch = options.pop("epoch", self.epoch)
        self.epoch = epoch + 1
        return {
            "group_id": self.group,
            "member_id": self.name,
            "share_session_epoch": epoch,
            "topics": [{"topic_id": self.topic.id, "partitions": [partition]}] if named else [],
            **options,
        }

    def send_fetch(self, batches: Batches = (), **options: Any) -> None:
        settings = {"max_wait": 0, "min_bytes": 1, "max_bytes": 1 << 20, "max_records": 500, "batch_size": 500}
        self.client.send(SHARE_FETCH, self.version, **self.tree(batches, **{**settings, **options}))

    def fetch(self, batches: Batches = (), **options: Any) -> Any:
        self.send_fetch(batches, **options)
        return self.client.take()

    def acquire(self, batches: Batches = (), **options: Any) -> list[tuple[int, int, int]]:
        """Fetch; (first offset, last offset, delivery count) of what was acquired."""
        return acquired(self.fetch(batches, **options))

    def acknowledge(self, batches: Batches, **options: Any) -> int:
        """The error of the partition, or of all."""
        response = self.client.call(SHARE_ACKNOWLEDGE, self.version, **self.tree(batches, **options))
        if response.error_code:
            return int(response.error_code)
        return int(response.responses[0].partitions[0].error_code)


def acquired(response: Any) -> list[tuple[int, int, int]]:
    assert not response.error_code
    return [
        (run.first_offset, run.last_offset, run.delivery_count)
        for topic in response.responses
        for partition in topic.partitions
        for run in partition.acquired_records
    ]


def configure(pond: Pond, group: str = "g", **configs: str) -> list[int]:
    response = pond.client().call(
        INCREMENTAL_ALTER_CONFIGS,
        1,
        resources=[
            {
                "resource_type": GROUP_RESOURCE,
                "resource_name": group,
                "configs": [
                    {"name": "share." + name.replace("_", "."), "config_operation": 0, "value": value}
                    for name, value in configs.items()
                ],
            }
        ],
    )
    return [int(one.error_code) for one in response.responses]


@pytest.fixture
def topic(pond: Pond) -> Topic:
    """With ten records, which groups begin with."""
    topic = pond.topic("t")
    assert configure(pond, auto_offset_reset="earliest") == [0]
    produce(pond, 10)
    return topic


def produce(pond: Pond, count: int) -> None:
    assert not pond.client().produce("t", batch_of(*[b"%d" % number for number in range(count)])).error_code


@pytest.fixture
def member(pond: Pond, topic: Topic) -> Member:
    return Member(pond, "a", topic)


@pytest.fixture
def other(pond: Pond, topic: Topic) -> Member:
    return Member(pond, "b", topic)


class TestFetching:
    @pytest.mark.parametrize("version", [1, 2])
    def test_records_come_with_what_was_acquired_of_them(self, pond: Pond, topic: Topic, version: int) -> None:
        response = Member(pond, "a", topic, version=version).fetch()
        assert acquired(response) == [(0, 9, 1)]
        assert response.responses[0].partitions[0].records
        assert response.acquisition_lock_timeout.total_seconds() * 1000 == LOCK_MS

    def test_what_one_member_has_another_does_not_get(self, pond: Pond, member: Member, other: Member) -> None:
        assert member.acquire(max_records=4) == [(0, 3, 1)]
        assert other.acquire() == [(4, 9, 1)]
        assert member.acquire() == []

    def test_a_group_begins_with_what_comes_unless_it_says_otherwise(self, pond: Pond, topic: Topic) -> None:
        member = Member(pond, "a", topic, group="late")
        assert member.acquire() == []
        produce(pond, 2)
        assert member.acquire() == [(10, 11, 1)]

    def test_a_group_may_begin_some_time_ago(self, pond: Pond, topic: Topic) -> None:
        pond.advance(3_600_000)
        assert configure(pond, auto_offset_reset="by_duration:PT30M") == [0]
        assert Member(pond, "a", topic).acquire() == []

    def test_a_group_that_begins_some_time_ago_passes_over_older_records_of_the_same_batch(self, pond: Pond) -> None:
        aged = pond.topic("aged")
        now_ms = pond.clock.wall_ms()
        builder = BatchBuilder()
        for delta, age_ms in enumerate((7_200_000, 3_700_000, 600_000, 0)):
            builder.append_with_headers(delta, now_ms - age_ms, None, b"record", [])
        aged.partitions[0].append(builder.finish(0, 3))
        pond.rest()
        assert configure(pond, auto_offset_reset="by_duration:PT1H") == [0]
        assert Member(pond, "a", aged).acquire() == [(2, 3, 1)]

    def test_a_request_waits_for_records(self, pond: Pond, topic: Topic) -> None:
        member = Member(pond, "a", topic, group="late")
        member.fetch()
        member.send_fetch(max_wait=500)
        assert member.client.take_all() == []
        produce(pond, 1)
        assert acquired(member.client.take()) == [(10, 10, 1)]

    def test_a_request_waits_no_longer_than_it_says(self, pond: Pond, member: Member) -> None:
        member.fetch()
        member.send_fetch(max_wait=500)
        pond.advance(499)
        assert member.client.take_all() == []
        pond.advance(1)
        assert acquired(member.client.take()) == []

    def test_what_another_gives_back_wakes_a_request_that_waits(
        self, pond: Pond, member: Member, other: Member
    ) -> None:
        member.fetch()
        other.send_fetch(max_wait=500)
        assert member.acknowledge([(2, 3, [RELEASE])]) == 0
        assert acquired(other.client.take()) == [(2, 3, 2)]

    def test_no_more_is_in_hands_than_the_group_may_have(self, pond: Pond, member: Member, other: Member) -> None:
        assert configure(pond, partition_max_record_locks="100") == [0]
        produce(pond, 200)
        assert sum(last - first + 1 for first, last, _ in member.acquire()) == 100
        assert other.acquire() == []
        other.send_fetch(max_wait=500)
        assert member.acknowledge([(0, 9, [ACCEPT])]) == 0
        assert sum(last - first + 1 for first, last, _ in acquired(other.client.take())) == 10

    def test_marks_of_transactions_are_passed_over(self, pond: Pond, member: Member, topic: Topic) -> None:
        topic.partitions[0].append(batch_of(b"mark", attributes=0x30))
        produce(pond, 1)
        assert member.acquire() == [(0, 9, 1), (11, 11, 1)]
        assert member.acknowledge([(0, 9, [ACCEPT]), (11, 11, [ACCEPT])]) == 0
        assert pond.broker.vhost("/").shares.group("g").of_topic("t")[0].start == 12

    def test_a_member_that_has_used_up_its_quota_waits_and_gets_nothing(
        self, pond: Pond, member: Member, other: Member
    ) -> None:
        pond.broker.quotas.alter({"user": "guest"}, {CONSUMER: 10})
        assert member.acquire(max_records=5) == [(0, 4, 1)]
        response = other.fetch()
        assert acquired(response) == []
        assert response.throttle_time.total_seconds() > 0
        assert pond.broker.vhost("/").shares.group("g").ready == 5

    def test_a_partition_that_is_not_there_is_told(self, member: Member) -> None:
        response = member.fetch(number=7)
        assert response.responses[0].partitions[0].error_code == UNKNOWN_TOPIC_OR_PARTITION

    def test_a_topic_that_is_gone_is_told(self, pond: Pond, member: Member, topic: Topic) -> None:
        member.fetch()
        pond.topics.delete(topic)
        response = member.fetch(named=False)
        assert response.responses[0].partitions[0].error_code == UNKNOWN_TOPIC_ID

    def test_a_request_that_waits_on_a_connection_that_is_lost_waits_no_more(
        self, pond: Pond, member: Member, topic: Topic
    ) -> None:
        member.fetch()
        member.send_fetch(max_wait=500)
        member.client.drop()
        assert not topic.partitions[0].is_listened_to
        assert topic.partitions[0].readers_waiting == 0


class TestAcknowledging:
    def test_what_is_accepted_is_done(self, pond: Pond, member: Member, other: Member) -> None:
        member.fetch()
        assert member.acknowledge([(0, 9, [ACCEPT])]) == 0
        pond.advance(LOCK_MS)
        assert other.acquire() == []

    def test_each_record_of_a_batch_may_have_its_own_fate(self, member: Member, other: Member) -> None:
        member.fetch()
        types = [ACCEPT, RELEASE, RELEASE, REJECT, GAP, ACCEPT, RELEASE, ACCEPT, ACCEPT, ACCEPT]
        assert member.acknowledge([(0, 9, types)]) == 0
        assert other.acquire() == [(1, 2, 2), (6, 6, 2)]

    def test_acknowledgements_come_with_a_fetch_as_well(self, member: Member) -> None:
        member.acquire(max_records=5)
        response = member.fetch([(0, 1, [ACCEPT]), (2, 4, [RELEASE])])
        assert response.responses[0].partitions[0].acknowledge_error_code == 0
        assert acquired(response) == [(2, 4, 2), (5, 9, 1)]

    def test_what_is_anothers_cannot_be_acknowledged(self, member: Member, other: Member) -> None:
        member.acquire(max_records=5)
        other.acquire(max_records=2)
        assert other.acknowledge([(0, 4, [ACCEPT])]) == INVALID_RECORD_STATE
        assert other.acknowledge([(4, 5, [ACCEPT])]) == INVALID_RECORD_STATE
        assert other.acknowledge([(5, 6, [ACCEPT])]) == 0

    def test_what_was_held_for_too_long_cannot_be_acknowledged(self, pond: Pond, member: Member, other: Member) -> None:
        member.fetch()
        pond.advance(LOCK_MS)
        assert other.acquire(max_records=3) == [(0, 2, 2)]
        assert member.acknowledge([(0, 2, [ACCEPT])]) == INVALID_RECORD_STATE
        assert member.acknowledge([(3, 9, [ACCEPT])]) == INVALID_RECORD_STATE

    def test_a_lock_can_be_renewed(self, pond: Pond, member: Member, other: Member) -> None:
        member.fetch()
        pond.advance(LOCK_MS - 1_000)
        assert member.acknowledge([(0, 3, [RENEW])], is_renew_ack=True) == 0
        pond.advance(2_000)
        assert other.acquire() == [(4, 9, 2)]
        assert member.acknowledge([(0, 3, [ACCEPT])]) == 0

    @pytest.mark.parametrize(("types", "says_so"), [([RENEW], False), ([ACCEPT], True)])
    def test_a_request_says_whether_it_renews(self, member: Member, types: list[int], says_so: bool) -> None:
        member.fetch()
        assert member.acknowledge([(0, 3, types)], is_renew_ack=says_so) == INVALID_REQUEST

    @pytest.mark.parametrize(
        "batches",
        [
            [(3, 2, [ACCEPT])],
            [(0, 3, [])],
            [(0, 3, [ACCEPT, ACCEPT])],
            [(0, 3, [9])],
            [(0, 3, [-1])],
            [(4, 5, [ACCEPT]), (0, 1, [ACCEPT])],
            [(-1, 1, [ACCEPT])],
        ],
    )
    def test_what_makes_no_sense_is_refused(self, member: Member, other: Member, batches: Batches) -> None:
        member.fetch()
        assert member.acknowledge(batches) == INVALID_REQUEST
        assert member.acknowledge([(0, 9, [RELEASE])]) == 0
        assert other.acquire() == [(0, 9, 2)]

    def test_poison_is_archived(self, pond: Pond, member: Member) -> None:
        assert configure(pond, delivery_count_limit="3") == [0]
        for count in (1, 2, 3):
            assert member.acquire(max_records=1) == [(0, 0, count)]
            assert member.acknowledge([(0, 0, [RELEASE])]) == 0
        assert member.acquire(max_records=1) == [(1, 1, 1)]


class TestSessions:
    def test_partitions_need_not_be_named_again(self, member: Member) -> None:
        member.acquire(max_records=4)
        assert member.acquire(named=False) == [(4, 9, 1)]

    def test_a_partition_can_be_forgotten(self, member: Member, topic: Topic) -> None:
        member.acquire(max_records=4)
        forgotten = [{"topic_id": topic.id, "partitions": [0]}]
        assert member.acquire(named=False, forgotten_topics_data=forgotten) == []

    def test_one_that_is_not_there_is_told(self, member: Member) -> None:
        assert member.fetch(epoch=4).error_code == SESSION_NOT_FOUND
        assert member.acknowledge([(0, 1, [ACCEPT])], epoch=1) == SESSION_NOT_FOUND

    def test_requests_come_in_their_order(self, member: Member) -> None:
        member.fetch()
        assert member.fetch(epoch=2).error_code == INVALID_SESSION_EPOCH
        assert member.acknowledge([(0, 1, [ACCEPT])], epoch=0) == INVALID_SESSION_EPOCH
        assert member.acknowledge([(0, 1, [ACCEPT])], epoch=1) == 0

    def test_the_first_request_has_nothing_to_acknowledge(self, member: Member) -> None:
        assert member.fetch([(0, 1, [ACCEPT])]).error_code == INVALID_REQUEST

    def test_its_end_gives_back_what_is_held(self, member: Member, other: Member) -> None:
        member.fetch()
        assert member.acknowledge([(0, 3, [ACCEPT])], epoch=-1) == 0
        assert other.acquire() == [(4, 9, 2)]
        assert member.fetch(epoch=2).error_code == SESSION_NOT_FOUND

    def test_a_fetch_may_end_it(self, member: Member, other: Member) -> None:
        member.fetch()
        response = member.fetch([(0, 3, [ACCEPT])], epoch=-1)
        assert acquired(response) == []
        assert other.acquire() == [(4, 9, 2)]

    def test_the_loss_of_the_connection_gives_back_what_is_held(self, member: Member, other: Member) -> None:
        member.fetch()
        member.client.drop()
        assert other.acquire() == [(0, 9, 2)]

    def test_a_group_that_asked_for_nothing_leaves_nothing(self, pond: Pond, topic: Topic) -> None:
        member = Member(pond, "a", topic, group="passing")
        member.fetch(named=False)
        member.client.drop()
        assert "passing" not in pond.broker.vhost("/").shares.groups

    def test_another_session_of_a_member_takes_its_place(self, member: Member) -> None:
        member.fetch()
        assert member.acquire(epoch=0) == [(0, 9, 2)]


class TestOffsets:
    def described(self, pond: Pond, group: str = "g") -> Any:
        groups = [{"group_id": group, "topics": None}]
        return pond.client().call(DESCRIBE_OFFSETS, 1, groups=groups).groups[0]

    def test_start_and_lag_are_told(self, pond: Pond, member: Member) -> None:
        member.fetch()
        member.acknowledge([(0, 3, [ACCEPT]), (5, 5, [ACCEPT])])
        partition = self.described(pond).topics[0].partitions[0]
        assert (partition.start_offset, partition.lag) == (4, 5)

    def test_a_group_that_is_not_there_is_told(self, pond: Pond, topic: Topic) -> None:
        assert self.described(pond, "missing").error_code == GROUP_ID_NOT_FOUND

    def test_they_are_not_changed_while_somebody_reads(self, pond: Pond, member: Member) -> None:
        member.fetch()
        topics = [{"topic_name": "t", "partitions": [{"partition_index": 0, "start_offset": 2}]}]
        assert pond.client().call(ALTER_OFFSETS, 0, group_id="g", topics=topics).error_code == NON_EMPTY_GROUP
        answer = pond.client().call(DELETE_OFFSETS, 0, group_id="g", topics=[{"topic_name": "t"}])
        assert answer.error_code == NON_EMPTY_GROUP

    @pytest.mark.parametrize(("offset", "start"), [(2, 2), (8, 8), (99, 10), (-5, 0)])
    def test_they_can_be_set(self, pond: Pond, member: Member, other: Member, offset: int, start: int) -> None:
        member.fetch()
        member.acknowledge([(0, 5, [ACCEPT])], epoch=-1)
        topics = [{"topic_name": "t", "partitions": [{"partition_index": 0, "start_offset": offset}]}]
        answer = pond.client().call(ALTER_OFFSETS, 0, group_id="g", topics=topics)
        assert answer.responses[0].partitions[0].error_code == 0
        assert other.acquire() == ([(start, 9, 1)] if start < 10 else [])

    def test_they_can_be_forgotten(self, pond: Pond, member: Member, other: Member) -> None:
        member.fetch()
        member.acknowledge([(0, 5, [ACCEPT])], epoch=-1)
        answer = pond.client().call(DELETE_OFFSETS, 0, group_id="g", topics=[{"topic_name": "t"}])
        assert answer.responses[0].error_code == 0
        assert not self.described(pond).topics
        assert other.acquire() == [(0, 9, 1)]


class TestConfiguration:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("auto_offset_reset", "somewhere"),
            ("auto_offset_reset", "by_duration:5m"),
            ("isolation_level", "serializable"),
            ("record_lock_duration_ms", "5"),
            ("delivery_count_limit", "many"),
            ("unknown", "1"),
        ],
    )
    def test_what_it_cannot_be_is_refused(self, pond: Pond, name: str, value: str) -> None:
        assert configure(pond, **{name: value}) == [INVALID_CONFIG]

    def test_an_operator_bounds_how_long_a_record_is_in_hands(self) -> None:
        bounds = replace(DEFAULT_SETTINGS, share_lock_duration_min_ms=1_000, share_lock_duration_max_ms=30_000)
        pond = Pond(group_settings=bounds)
        assert configure(pond, record_lock_duration_ms="999") == [INVALID_CONFIG]
        assert configure(pond, record_lock_duration_ms="30001") == [INVALID_CONFIG]
        assert configure(pond, record_lock_duration_ms="1000") == [0]
        member = Member(pond, "a", pond.topic("t"))
        assert member.fetch().acquisition_lock_timeout.total_seconds() == 1
        pond.close()

    def test_it_is_told_with_its_source(self, pond: Pond) -> None:
        configure(pond, delivery_count_limit="7")
        resources = [{"resource_type": GROUP_RESOURCE, "resource_name": "g", "configuration_keys": None}]
        configs = pond.client().call(DESCRIBE_CONFIGS, 4, resources=resources).results[0].configs
        told = {config.name: (config.value, config.config_source) for config in configs}
        assert told["share.delivery.count.limit"] == ("7", 8)
        assert told["share.auto.offset.reset"] == ("latest", 5)


def shares_of(pond: Pond) -> Shares:
    return pond.broker.vhost(DEFAULT_VHOST).shares


class TestHostileClients:
    def test_what_is_asked_of_a_group_without_a_session_leaves_nothing_behind(self, pond: Pond, topic: Topic) -> None:
        for number in range(20):
            member = Member(pond, "a", topic, group=f"group-{number}")
            assert member.fetch(epoch=7).error_code == SESSION_NOT_FOUND
        assert not shares_of(pond).groups

    def test_sessions_that_are_too_many_leave_no_groups_behind(
        self, pond: Pond, topic: Topic, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sessions, "SHARE_SESSIONS_MAX", 0)
        assert Member(pond, "a", topic).fetch().error_code == SHARE_SESSION_LIMIT_REACHED
        assert not shares_of(pond).groups

    def test_partitions_that_sessions_want_are_limited_together(
        self, pond: Pond, topic: Topic, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sessions, "SHARE_SESSION_PARTITIONS_MAX", 2)
        first, second, third = (Member(pond, name, topic) for name in "abc")
        for member in (first, second):
            assert not member.fetch().error_code
        assert third.fetch().error_code == SHARE_SESSION_LIMIT_REACHED
        assert third.fetch().error_code == SESSION_NOT_FOUND
        first.client.drop()
        assert not third.fetch(epoch=0).error_code
        for member in (second, third):
            member.client.drop()
        assert shares_of(pond).sessions.partition_count == 0

    def test_groups_with_a_configuration_are_limited_and_have_names(
        self, pond: Pond, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coordinator, "SHARE_CONFIGURED_GROUPS_MAX", 1)
        assert configure(pond, auto_offset_reset="earliest") == [0]
        assert configure(pond, auto_offset_reset="latest") == [0]
        assert configure(pond, group="another", auto_offset_reset="earliest") == [POLICY_VIOLATION]
        assert configure(pond, group="x" * 1025, auto_offset_reset="earliest") == [INVALID_GROUP_ID]
