"""Consumer groups of KIP-848 with a real client: the broker decides who reads what.

Beside what `test_groups.py` shows of classic groups: joining, sharing with others, static members, subscriptions by
regular expressions, stale commits, restarts, and groups whose members speak different protocols.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from kio.schema.offset_commit.v9.request import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)

from tests.kafka.conftest import wait_for_topic
from tests.support.broker_process import BrokerProcess
from tests.support.kafka_client import ConfluentClient, Message, numbered, quiet
from tests.support.kafka_member import Assignment, ConfluentMember, Member
from tests.support.raw_kafka import RawKafka
from tests.support.waiting import DEADLINE_S, eventually

STALE_MEMBER_EPOCH = 113

# Members are heard of this often, and gone after this long.
ARGUMENTS = ("--group-consumer-heartbeat-interval-ms", "150", "--group-consumer-session-timeout-ms", "3000",
             "--group-initial-rebalance-delay-ms", "0", "--group-session-timeout-min-ms", "100")  # fmt: skip


class NewMember(ConfluentMember):
    """A member that speaks the new protocol."""

    def client_settings(self) -> dict[str, Any]:
        of_classic = {"partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"}
        settings = {key: value for key, value in super().client_settings().items() if key not in of_classic}
        return settings | {"group.protocol": "consumer"}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    folder: Path = tmp_path_factory.mktemp("consumer-protocol")
    with BrokerProcess(folder / "broker", kafka=True, arguments=ARGUMENTS) as process:
        yield process


@pytest.fixture
def servers(process: BrokerProcess) -> str:
    return process.kafka_address


@pytest.fixture
def admin(servers: str) -> AdminClient:
    return AdminClient(quiet(servers))


@pytest.fixture
def topic(request: pytest.FixtureRequest, admin: AdminClient) -> str:
    return create(admin, f"t-{abs(hash(request.node.nodeid)):x}", 6)


@pytest.fixture
def group(request: pytest.FixtureRequest) -> str:
    return f"g-{abs(hash(request.node.nodeid)):x}"


def create(admin: AdminClient, name: str, partitions: int) -> str:
    admin.create_topics([NewTopic(name, partitions, 1)])[name].result(DEADLINE_S)
    wait_for_topic(admin, name, partitions)
    return name


def all_of(topic: str, count: int = 6) -> Assignment:
    return frozenset((topic, number) for number in range(count))


def until_shared(members: list[Member], places: Assignment) -> None:
    """Wait until the members have all places, each of them one, and none has two more than another."""

    def shared() -> bool:
        for member in members:
            if member.failure is not None:
                raise member.failure
        sizes = [len(member.assignment) for member in members]
        union = frozenset().union(*[member.assignment for member in members])
        return union == places and sum(sizes) == len(places) and max(sizes) - min(sizes) <= 1

    eventually(shared, f"{len(places)} partitions shared by {len(members)} members")


def committed(admin: AdminClient, group: str) -> dict[tuple[str, int], int]:
    asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
    return {(one.topic, one.partition): one.offset for one in asked[group].result(DEADLINE_S).topic_partitions}


def described(admin: AdminClient, group: str) -> Any:
    return admin.describe_consumer_groups([group])[group].result(DEADLINE_S)


class TestOneMember:
    def test_it_joins_reads_and_commits(self, servers: str, admin: AdminClient, topic: str, group: str) -> None:
        ConfluentClient(servers).produce(topic, numbered(60))
        with NewMember(servers, group, topic) as member:
            assert member.wait_for(6) == all_of(topic)
            member.until(lambda: len(member.records) == 60, "all records")
        assert sum(committed(admin, group).values()) == 60

    def test_new_partitions_are_given_to_it(self, servers: str, admin: AdminClient, topic: str, group: str) -> None:
        with NewMember(servers, group, topic) as member:
            member.wait_for(6)
            admin.create_partitions([NewPartitions(topic, 8)])[topic].result(DEADLINE_S)
            assert member.wait_for(8) == all_of(topic, 8)


class TestSeveralMembers:
    def test_they_share_and_take_over(self, servers: str, admin: AdminClient, topic: str, group: str) -> None:
        with NewMember(servers, group, topic) as first:
            first.wait_for(6)
            with NewMember(servers, group, topic) as second, NewMember(servers, group, topic) as third:
                until_shared([first, second, third], all_of(topic))
                eventually(lambda: described(admin, group).state.name == "STABLE", "a stable group")
                assert {len(one.assignment.topic_partitions) for one in described(admin, group).members} == {2}
                assert described(admin, group).partition_assignor == "uniform"
            assert first.wait_for(6) == all_of(topic)
            assert set().union(*first.lost) <= all_of(topic)
        eventually(lambda: described(admin, group).state.name == "EMPTY", "an empty group")


class TestStaticMembers:
    def test_one_that_comes_back_has_what_it_had(
        self, servers: str, admin: AdminClient, topic: str, group: str
    ) -> None:
        with NewMember(servers, group, topic) as other:
            static = NewMember(servers, group, topic, instance_id="s")
            until_shared([other, static], all_of(topic))
            had = static.assignment
            static.leave()
            with NewMember(servers, group, topic, instance_id="s") as again:
                assert again.wait_for(3) == had
                assert other.assignment == all_of(topic) - had
                assert all(not lost & (all_of(topic) - had) for lost in other.lost)


class TestSubscriptions:
    def test_a_regular_expression_is_matched_by_the_broker_with_topics_that_come_later(
        self, servers: str, admin: AdminClient, topic: str, group: str
    ) -> None:
        with NewMember(servers, group, f"^{topic}.*") as member:
            assert member.wait_for(6) == all_of(topic)
            later = create(admin, f"{topic}-later", 2)
            assert member.wait_for(8) == all_of(topic) | all_of(later, 2)


class TestCommits:
    def test_a_commit_with_an_epoch_that_is_over_is_refused(self, servers: str, topic: str, group: str) -> None:
        with NewMember(servers, group, topic) as member, RawKafka(servers) as raw:
            member.wait_for(6)
            asked = OffsetCommitRequest(
                group_id=group,
                generation_id_or_member_epoch=99,
                member_id=described_member(servers, group),
                topics=(
                    OffsetCommitRequestTopic(
                        name=topic,
                        partitions=(
                            OffsetCommitRequestPartition(
                                partition_index=0, committed_offset=1, committed_metadata=None
                            ),
                        ),
                    ),
                ),
            )
            answer = raw.ask(asked)
        assert [part.error_code for part in answer.topics[0].partitions] == [STALE_MEMBER_EPOCH]


class TestRestarts:
    def test_members_go_on_after_the_broker_was_killed(self, tmp_path: Path) -> None:
        arguments = (*ARGUMENTS[:2], "--group-consumer-session-timeout-ms", "20000")
        with BrokerProcess(tmp_path / "broker", kafka=True, arguments=arguments) as process:
            servers = process.kafka_address
            admin = AdminClient(quiet(servers))
            topic = create(admin, "restarts", 4)
            with NewMember(servers, "crew", topic) as one, NewMember(servers, "crew", topic) as other:
                until_shared([one, other], all_of(topic, 4))
                eventually(lambda: described(admin, "crew").state.name == "STABLE", "a stable group")
                had = one.assignment, other.assignment
                lost = len(one.lost), len(other.lost)
                process.kill()
                process.start()
                ConfluentClient(servers).produce(topic, [Message(b"%d" % n, partition=n) for n in range(4)])
                eventually(lambda: len(one.records) + len(other.records) >= 4, "all records are read")
                assert (one.assignment, other.assignment) == had
                assert (len(one.lost), len(other.lost)) == lost, "nobody has rebalanced"


class TestMigration:
    def test_a_group_changes_to_the_new_protocol_and_back(
        self, servers: str, admin: AdminClient, topic: str, group: str
    ) -> None:
        def type_of() -> str:
            listed = admin.list_consumer_groups().result(DEADLINE_S).valid
            return str(next(one.type.name for one in listed if one.group_id == group)).lower()

        with ConfluentMember(servers, group, topic, session_timeout_ms=6_000) as classic:
            classic.wait_for(6)
            assert type_of() == "classic"
            with NewMember(servers, group, topic) as new:
                until_shared([classic, new], all_of(topic))
                assert type_of() == "consumer"
            assert classic.wait_for(6) == all_of(topic)
            assert type_of() == "classic"
        with NewMember(servers, group, topic) as new:
            assert new.wait_for(6) == all_of(topic)
            assert type_of() == "consumer"


def described_member(servers: str, group: str) -> str:
    """The id of a group's one member."""
    (member,) = described(AdminClient(quiet(servers)), group).members
    return str(member.member_id)
