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

from tests.kafka.conftest import wait_for_topic
from tests.support.broker_process import BrokerProcess
from tests.support.kafka_client import ConfluentClient, numbered, quiet
from tests.support.kafka_member import Assignment, ConfluentMember, Member
from tests.support.waiting import DEADLINE_S, eventually

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
