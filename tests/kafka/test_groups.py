"""Consumer groups: who gets which partitions when members join, leave, die and come back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import confluent_kafka
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.kafka.conftest import CreateTopic, wait_for_topic
from tests.support.kafka_client import ConfluentClient, Message, Unique, numbered
from tests.support.kafka_member import (
    MEMBERS,
    MORTAL_SESSION_TIMEOUT_MS,
    AioKafkaMember,
    Assignment,
    ConfluentMember,
    KafkaPythonMember,
    Member,
    MortalMember,
)
from tests.support.waiting import DEADLINE_S, eventually

Join = Callable[..., Member]


@pytest.fixture(params=MEMBERS, ids=lambda member: member.client)
def join(request: pytest.FixtureRequest, kafka: str, group: str) -> Join:
    """Lets a client join the test's group; each client in turn."""
    return lambda *topics, **settings: request.param(kafka, group, *topics, **settings)


@pytest.fixture
def group(unique: Unique) -> str:
    return unique("group")


def all_of(topic: str, partitions: int) -> Assignment:
    return frozenset((topic, partition) for partition in range(partitions))


def wait_until_shared(members: list[Member], topic: str, partitions: int) -> None:
    """Wait until the members have all partitions, each as many as the others, and none of them twice."""

    def shared() -> bool:
        for member in members:
            if member.failure is not None:
                raise member.failure
        parts = [member.assignment for member in members]
        whole = frozenset.union(*parts) == all_of(topic, partitions)
        return whole and [len(part) for part in parts] == [partitions // len(members)] * len(members)

    eventually(shared, f"{partitions} partitions are shared by {len(members)}")


class TestMembership:
    def test_a_lone_member_has_every_partition(self, join: Join, kafka: str, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=4)
        ConfluentClient(kafka).produce(name, [message for part in range(4) for message in numbered(10, part)])
        with join(name) as member:
            assert member.wait_for(4) == all_of(name, 4)
            member.until(lambda: len(member.records) == 40, "all records")
        places = sorted((record.partition, record.offset) for record in member.records)
        assert places == [(partition, offset) for partition in range(4) for offset in range(10)]

    def test_who_joins_gets_a_share_and_who_leaves_gives_it_back(self, join: Join, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=6)
        with join(name) as first:
            first.wait_for(6)
            second = join(name)
            wait_until_shared([first, second], name, 6)
            third = join(name)
            wait_until_shared([first, second, third], name, 6)
            second.leave()
            wait_until_shared([first, third], name, 6)
            third.leave()
            assert first.wait_for(6) == all_of(name, 6)

    def test_a_member_that_dies_is_replaced_after_its_session(
        self, join: Join, kafka: str, group: str, create_topic: CreateTopic
    ) -> None:
        name = create_topic(partitions=4)
        with join(name) as survivor, MortalMember(survivor.client, kafka, group, name) as mortal:
            mortal.wait_for(2)
            survivor.wait_for(2)
            mortal.kill()
            assert survivor.wait_for(4) == all_of(name, 4)

    def test_every_record_is_read_while_members_come_and_go(
        self, join: Join, kafka: str, create_topic: CreateTopic
    ) -> None:
        name = create_topic(partitions=4)
        producer = ConfluentClient(kafka)
        sent: list[bytes | None] = []

        def produce() -> None:
            messages = [Message(b"%d" % (len(sent) + number), partition=number % 4) for number in range(40)]
            producer.produce(name, messages)
            sent.extend(message.value for message in messages)

        produce()
        with join(name) as first:
            first.until(lambda: len(first.records) >= 40, "the first records")
            second = join(name)
            wait_until_shared([first, second], name, 4)
            produce()
            eventually(lambda: set(first.values) | set(second.values) == set(sent), "all records")
            second.leave()
            produce()
            eventually(lambda: set(first.values) | set(second.values) == set(sent), "all records")
        # Offsets were committed before partitions changed hands.
        assert sorted(first.values + second.values) == sorted(sent)

    def test_more_members_than_partitions_leave_some_without(self, join: Join, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=1)
        with join(name) as first, join(name) as second:
            eventually(lambda: len(first.gained) > 0 and len(second.gained) > 0, "both have joined")
            eventually(lambda: len(first.assignment) + len(second.assignment) == 1, "one has the partition")

    def test_clients_of_three_kinds_share_one_group(self, kafka: str, group: str, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=6)
        members: list[Member] = [
            member(kafka, group, name) for member in (ConfluentMember, KafkaPythonMember, AioKafkaMember)
        ]
        try:
            wait_until_shared(members, name, 6)
            ConfluentClient(kafka).produce(name, [message for part in range(6) for message in numbered(5, part)])
            eventually(lambda: sum(len(member.records) for member in members) == 30, "all records")
            for member in members:
                assert {(name, record.partition) for record in member.records} == set(member.assignment)
        finally:
            for member in members:
                member.leave()

    def test_two_groups_read_everything_independently(self, join: Join, kafka: str, topic: str, unique: Unique) -> None:
        ConfluentClient(kafka).produce(topic, numbered(30))
        with join(topic) as one:
            one.until(lambda: len(one.records) == 30, "all records")
            with type(one)(kafka, unique("other"), topic) as other:
                other.until(lambda: len(other.records) == 30, "all records")
                ConfluentClient(kafka).produce(topic, numbered(5))
                for member in (one, other):
                    member.until(lambda: len(member.records) == 35, "the new records")  # noqa: B023 - called at once

    def test_one_member_reads_several_topics(self, join: Join, kafka: str, create_topic: CreateTopic) -> None:
        names = [create_topic(partitions=2), create_topic(partitions=1)]
        for name in names:
            ConfluentClient(kafka).produce(name, numbered(5, partition=0))
        with join(*names) as member:
            assert member.wait_for(3) == all_of(names[0], 2) | all_of(names[1], 1)
            member.until(lambda: len(member.records) == 10, "the records of both")

    def test_a_pattern_takes_in_topics_that_come_later(
        self, kafka: str, group: str, unique: Unique, create_topic: CreateTopic
    ) -> None:
        stem = unique("pattern")
        with ConfluentMember(kafka, group, f"^{stem}-.*") as member:
            names = [unique(stem) for _ in range(2)]
            for name in names:
                ConfluentClient(kafka).produce(name, numbered(3))
            member.until(lambda: member.assignment == all_of(names[0], 1) | all_of(names[1], 1), "both topics")
            member.until(lambda: len(member.records) == 6, "the records of both")

    def test_new_partitions_are_shared_out(self, kafka: str, group: str, admin: AdminClient, topic: str) -> None:
        with ConfluentMember(kafka, group, topic) as member:
            member.wait_for(1)
            admin.create_partitions([NewPartitions(topic, 3)])[topic].result(DEADLINE_S)
            wait_for_topic(admin, topic, 3)
            assert member.wait_for(3) == all_of(topic, 3)


class TestStaticMembers:
    def test_one_that_comes_back_in_time_has_what_it_had(
        self, kafka: str, group: str, create_topic: CreateTopic
    ) -> None:
        name = create_topic(partitions=4)
        session = {"session_timeout_ms": 30_000}
        with ConfluentMember(kafka, group, name, instance_id="a", **session) as first:
            second = ConfluentMember(kafka, group, name, instance_id="b", **session)
            wait_until_shared([first, second], name, 4)
            had, rebalances = second.assignment, len(first.gained)
            second.leave()
            with ConfluentMember(kafka, group, name, instance_id="b", **session) as again:
                assert again.wait_for(2) == had
            assert len(first.gained) == rebalances, "nobody else has noticed"
            assert first.assignment == all_of(name, 4) - had

    @pytest.mark.parametrize("member_type", MEMBERS, ids=lambda member: member.client)
    def test_every_client_may_be_one(
        self, member_type: type[Member], kafka: str, group: str, admin: AdminClient, topic: str
    ) -> None:
        with member_type(kafka, group, topic, instance_id="me", session_timeout_ms=10_000) as member:
            member.wait_for(1)
            [described] = admin.describe_consumer_groups([group])[group].result(DEADLINE_S).members
            assert described.group_instance_id == "me"
        with member_type(kafka, group, topic, instance_id="me", session_timeout_ms=10_000) as member:
            member.wait_for(1)
            [described] = admin.describe_consumer_groups([group])[group].result(DEADLINE_S).members
            assert described.group_instance_id == "me"

    def test_a_second_one_of_the_same_name_shuts_the_first_out(self, kafka: str, group: str, topic: str) -> None:
        first = ConfluentMember(kafka, group, topic, instance_id="only")
        first.wait_for(1)
        with ConfluentMember(kafka, group, topic, instance_id="only") as second:
            eventually(lambda: first.failure is not None, "the first one is told")
            assert isinstance(first.failure, confluent_kafka.KafkaException)
            assert "fenced" in str(first.failure)
            second.wait_for(1)

    def test_one_that_stays_away_loses_its_place(self, kafka: str, group: str, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=2)
        with ConfluentMember(kafka, group, name, instance_id="a") as first:
            session = {"session_timeout_ms": MORTAL_SESSION_TIMEOUT_MS}
            second = ConfluentMember(kafka, group, name, instance_id="b", **session)
            wait_until_shared([first, second], name, 2)
            second.leave()
            assert first.wait_for(2) == all_of(name, 2)


COOPERATIVE = {"partition_assignment_strategy": "cooperative-sticky"}


class TestCooperativeRebalancing:
    def test_members_keep_what_does_not_move(self, kafka: str, group: str, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=4)
        with ConfluentMember(kafka, group, name, **COOPERATIVE) as first:
            first.wait_for(4)
            with ConfluentMember(kafka, group, name, **COOPERATIVE) as second:
                wait_until_shared([first, second], name, 4)
                # Only what the other one has got was taken away.
                assert [part for part in first.lost if part] == [second.assignment]
            assert first.wait_for(4) == all_of(name, 4)
            assert [part for part in first.lost if part] == [first.gained[-1]]

    def test_consumption_goes_on_while_members_join_and_leave(
        self, kafka: str, group: str, create_topic: CreateTopic
    ) -> None:
        name = create_topic(partitions=6)
        producer = ConfluentClient(kafka)
        members: list[Member] = []
        sent = 0
        try:
            for _ in range(3):
                members.append(ConfluentMember(kafka, group, name, **COOPERATIVE))
                producer.produce(name, [Message(b"%d" % (sent + part), partition=part) for part in range(6)])
                sent += 6
                wait_until_shared(members, name, 6)
            members[0].leave()
            wait_until_shared(members[1:], name, 6)
            eventually(lambda: sum(len(member.records) for member in members) >= sent, "all records")
            values = [int(value or b"") for member in members for value in member.values]
            assert sorted(values) == list(range(sent)), "each once"
        finally:
            for member in members:
                member.leave()
        for member in members:
            for _, partition in all_of(name, 6):
                offsets = [record.offset for record in member.records if record.partition == partition]
                assert all(earlier < later for earlier, later in pairwise(offsets))
