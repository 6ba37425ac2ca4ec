"""How far a group has read: committed, read back by anybody, reset, deleted; and groups as admin clients see them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiokafka
import confluent_kafka
import kafka as kafka_python
import pytest
from confluent_kafka import ConsumerGroupState, ConsumerGroupTopicPartitions, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient
from kafka.admin import OffsetTimestamp
from kafka.structs import OffsetAndMetadata

from tests.kafka.conftest import CreateTopic
from tests.support.kafka_client import ConfluentClient, Message, Unique, numbered, poll, quiet
from tests.support.kafka_member import MEMBERS, ConfluentMember, Member
from tests.support.waiting import DEADLINE_S, eventually


@pytest.fixture
def group(unique: Unique) -> str:
    return unique("group")


@pytest.fixture
def produce(kafka: str) -> Callable[..., Any]:
    return ConfluentClient(kafka).produce


def committed(admin: AdminClient, group: str, *topics: str, partitions: int = 1) -> dict[tuple[str, int], int]:
    """The group's offsets, of these topics or of all that it has any of."""
    asked = [TopicPartition(topic, number) for topic in topics for number in range(partitions)] or None
    found = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, asked)])[group].result(DEADLINE_S)
    return {(place.topic, place.partition): place.offset for place in found.topic_partitions}


def commit(admin: AdminClient, group: str, *places: TopicPartition) -> None:
    altered = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, list(places))])[group]
    for place in altered.result(DEADLINE_S).topic_partitions:
        if place.error is not None:
            raise confluent_kafka.KafkaException(place.error)


def read_as(kafka: str, group: str, topic: str, policy: str = "earliest") -> int:
    """The offset of the first record that a new member of the group gets."""
    settings = {"group.id": group, "auto.offset.reset": policy, "enable.auto.commit": False, "session.timeout.ms": 1000}
    consumer = confluent_kafka.Consumer(quiet(kafka) | settings)
    try:
        consumer.subscribe([topic])
        return int(poll(consumer, 1)[0].offset())
    finally:
        consumer.close()


class TestCommitting:
    @pytest.mark.parametrize("member_type", MEMBERS, ids=lambda member: member.client)
    def test_a_group_goes_on_where_it_stopped(
        self,
        member_type: type[Member],
        kafka: str,
        group: str,
        produce: Callable[..., Any],
        admin: AdminClient,
        topic: str,
    ) -> None:
        produce(topic, numbered(10))
        with member_type(kafka, group, topic) as member:
            member.until(lambda: len(member.records) == 10, "all records")
        assert committed(admin, group, topic) == {(topic, 0): 10}
        produce(topic, numbered(5))
        with member_type(kafka, group, topic) as again:
            again.until(lambda: len(again.records) == 5, "the new records")
            assert again.records[0].offset == 10
        assert committed(admin, group) == {(topic, 0): 15}

    def test_without_commits_it_begins_anew(
        self, kafka: str, group: str, produce: Callable[..., Any], topic: str
    ) -> None:
        produce(topic, numbered(3))
        for _ in range(2):
            assert read_as(kafka, group, topic) == 0

    def test_what_one_client_has_committed_all_read_back(self, kafka: str, group: str, topic: str) -> None:
        consumer = kafka_python.KafkaConsumer(bootstrap_servers=kafka, group_id=group, enable_auto_commit=False)
        place = kafka_python.TopicPartition(topic, 0)
        try:
            consumer.assign([place])
            consumer.commit({place: OffsetAndMetadata(7, "nöte", -1)})
            assert consumer.committed(place, metadata=True)[:2] == (7, "nöte")
        finally:
            consumer.close()

        confluent = confluent_kafka.Consumer(quiet(kafka) | {"group.id": group})
        try:
            [found] = confluent.committed([TopicPartition(topic, 0)], DEADLINE_S)
            assert found.offset == 7
            confluent.commit(offsets=[TopicPartition(topic, 0, 8)], asynchronous=False)
        finally:
            confluent.close()

        async def read_back() -> int | None:
            async with aiokafka.AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group) as reader:
                reader.assign([aiokafka.TopicPartition(topic, 0)])
                return await reader.committed(aiokafka.TopicPartition(topic, 0))

        assert asyncio.run(read_back()) == 8

    def test_an_offset_that_was_never_committed_is_none(
        self, kafka: str, group: str, admin: AdminClient, topic: str
    ) -> None:
        assert committed(admin, group, topic) == {(topic, 0): confluent_kafka.OFFSET_INVALID}
        assert committed(admin, group) == {}

    def test_a_member_commits_what_it_says_only(
        self, kafka: str, group: str, produce: Callable[..., Any], admin: AdminClient, topic: str
    ) -> None:
        produce(topic, numbered(10))
        settings = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        consumer = confluent_kafka.Consumer(quiet(kafka) | settings)
        try:
            consumer.subscribe([topic])
            messages = poll(consumer, 10)
            [done] = consumer.commit(messages[3], asynchronous=False)
            assert (done.error, done.offset) == (None, 4)
        finally:
            consumer.close()
        assert committed(admin, group, topic) == {(topic, 0): 4}
        assert read_as(kafka, group, topic) == 4

    def test_offsets_of_many_partitions_and_topics(
        self, group: str, admin: AdminClient, create_topic: CreateTopic
    ) -> None:
        names = [create_topic(partitions=3) for _ in range(2)]
        places = [
            TopicPartition(name, part, 10 * number + part) for number, name in enumerate(names) for part in range(3)
        ]
        commit(admin, group, *places)
        assert committed(admin, group) == {(place.topic, place.partition): place.offset for place in places}


class TestResetPolicies:
    """What a group without an offset reads first is its client's setting."""

    def test_earliest(self, kafka: str, group: str, produce: Callable[..., Any], topic: str) -> None:
        produce(topic, numbered(3))
        assert read_as(kafka, group, topic, "earliest") == 0

    def test_latest(self, kafka: str, group: str, produce: Callable[..., Any], topic: str) -> None:
        produce(topic, numbered(3))
        with ConfluentMember(kafka, group, topic, auto_offset_reset="latest") as member:
            member.wait_for(1)
            # When it has found the end is not seen from here, so there is something new until it has got some of it.
            eventually(lambda: member.records, "a new record", step=lambda: produce(topic, numbered(1)))
            assert member.records[0].offset >= 3

    def test_none(self, kafka: str, group: str, topic: str) -> None:
        with pytest.raises(confluent_kafka.KafkaException) as caught:
            read_as(kafka, group, topic, "error")
        assert caught.value.args[0].code() == KafkaError._AUTO_OFFSET_RESET

    def test_an_offset_whose_record_is_gone_is_reset_too(
        self, kafka: str, group: str, produce: Callable[..., Any], admin: AdminClient, topic: str
    ) -> None:
        produce(topic, numbered(10))
        commit(admin, group, TopicPartition(topic, 0, 2))
        place = TopicPartition(topic, 0, 6)
        admin.delete_records([place])[place].result(DEADLINE_S)
        assert read_as(kafka, group, topic) == 6


class TestAdministration:
    def test_offsets_of_an_empty_group_are_altered(
        self, kafka: str, group: str, produce: Callable[..., Any], admin: AdminClient, topic: str
    ) -> None:
        produce(topic, numbered(10))
        with ConfluentMember(kafka, group, topic) as member:
            member.until(lambda: len(member.records) == 10, "all records")
        commit(admin, group, TopicPartition(topic, 0, 5))
        assert read_as(kafka, group, topic) == 5

    def test_offsets_of_a_group_with_members_are_not(
        self, kafka: str, group: str, admin: AdminClient, topic: str
    ) -> None:
        with ConfluentMember(kafka, group, topic) as member:
            member.wait_for(1)
            with pytest.raises(confluent_kafka.KafkaException) as caught:
                commit(admin, group, TopicPartition(topic, 0, 5))
            assert caught.value.args[0].code() == KafkaError.UNKNOWN_MEMBER_ID

    def test_kafka_python_resets_a_group_to_a_point_in_time(
        self, kafka: str, group: str, produce: Callable[..., Any], topic: str
    ) -> None:
        then_ms = int(time.time() * 1000) - 3_600_000
        produce(topic, [Message(b"m", timestamp_ms=then_ms + number) for number in range(10)])
        place = kafka_python.TopicPartition(topic, 0)
        with kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as admin:
            admin.alter_group_offsets(group, {place: OffsetAndMetadata(9, "", -1)})
            assert admin.list_group_offsets(group)[group][place].offset == 9
            admin.reset_group_offsets(group, {place: OffsetTimestamp(then_ms + 4)})
            assert admin.list_group_offsets(group)[group][place].offset == 4

    def test_an_offset_is_deleted(self, kafka: str, group: str, admin: AdminClient, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=2)
        commit(admin, group, TopicPartition(name, 0, 5), TopicPartition(name, 1, 6))
        with kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as other:
            other.delete_group_offsets(group, [kafka_python.TopicPartition(name, 0)])
        assert committed(admin, group) == {(name, 1): 6}

    def test_an_offset_that_members_use_is_not_deleted(
        self, kafka: str, group: str, admin: AdminClient, topic: str
    ) -> None:
        place = kafka_python.TopicPartition(topic, 0)
        commit(admin, group, TopicPartition(topic, 0, 5))
        with ConfluentMember(kafka, group, topic, auto_commit=False) as member:
            member.wait_for(1)
            with kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as other:
                result = other.delete_group_offsets(group, [place])
            assert "GroupSubscribedToTopic" in str(result[place])
        assert committed(admin, group) == {(topic, 0): 5}

    def test_a_group_with_members_is_described(
        self, kafka: str, group: str, admin: AdminClient, create_topic: CreateTopic
    ) -> None:
        name = create_topic(partitions=4)
        with (
            ConfluentMember(kafka, group, name, client_id="one") as one,
            ConfluentMember(kafka, group, name, client_id="two") as two,
        ):
            one.wait_for(2)
            two.wait_for(2)
            found = admin.describe_consumer_groups([group])[group].result(DEADLINE_S)
            assert (found.group_id, found.state, found.is_simple_consumer_group) == (
                group,
                ConsumerGroupState.STABLE,
                False,
            )
            assert found.partition_assignor == "range"
            assignments = {
                member.client_id: {(place.topic, place.partition) for place in member.assignment.topic_partitions}
                for member in found.members
            }
            assert assignments == {"one": set(one.assignment), "two": set(two.assignment)}
            assert all("127.0.0.1" in member.host for member in found.members)

    def test_groups_are_listed_with_their_state(
        self, kafka: str, unique: Unique, admin: AdminClient, topic: str
    ) -> None:
        empty, stable = unique("empty"), unique("stable")
        commit(admin, empty, TopicPartition(topic, 0, 5))

        def listed(**options: Any) -> dict[str, ConsumerGroupState]:
            found = admin.list_consumer_groups(request_timeout=DEADLINE_S, **options).result(DEADLINE_S)
            return {group.group_id: group.state for group in found.valid if group.group_id in (empty, stable)}

        with ConfluentMember(kafka, stable, topic) as member:
            member.wait_for(1)
            assert listed() == {empty: ConsumerGroupState.EMPTY, stable: ConsumerGroupState.STABLE}
            assert set(listed(states={ConsumerGroupState.STABLE})) == {stable}
            assert set(listed(states={ConsumerGroupState.EMPTY})) == {empty}

    def test_a_group_that_its_members_have_left_is_empty(
        self, kafka: str, group: str, admin: AdminClient, topic: str
    ) -> None:
        with ConfluentMember(kafka, group, topic) as member:
            member.wait_for(1)
        found = admin.describe_consumer_groups([group])[group].result(DEADLINE_S)
        assert (found.state, found.members) == (ConsumerGroupState.EMPTY, [])

    def test_an_unknown_group_is_dead_or_not_found(self, group: str, admin: AdminClient) -> None:
        described = admin.describe_consumer_groups([group])[group]
        failure = described.exception(DEADLINE_S)
        if failure is None:
            assert described.result().state == ConsumerGroupState.DEAD
        else:
            assert isinstance(failure, confluent_kafka.KafkaException)
            assert failure.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND

    def test_an_empty_group_is_deleted_with_its_offsets(self, group: str, admin: AdminClient, topic: str) -> None:
        commit(admin, group, TopicPartition(topic, 0, 5))
        admin.delete_consumer_groups([group])[group].result(DEADLINE_S)
        assert committed(admin, group) == {}
        with pytest.raises(confluent_kafka.KafkaException) as caught:
            admin.delete_consumer_groups([group])[group].result(DEADLINE_S)
        assert caught.value.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND

    def test_a_group_with_members_is_not_deleted(self, kafka: str, group: str, admin: AdminClient, topic: str) -> None:
        with ConfluentMember(kafka, group, topic) as member:
            member.wait_for(1)
            with pytest.raises(confluent_kafka.KafkaException) as caught:
                admin.delete_consumer_groups([group])[group].result(DEADLINE_S)
            assert caught.value.args[0].code() == KafkaError.NON_EMPTY_GROUP

    def test_a_member_is_removed_by_the_admin(self, kafka: str, group: str, topic: str) -> None:
        with (
            ConfluentMember(kafka, group, topic, instance_id="static", session_timeout_ms=20_000) as member,
            kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as admin,
        ):
            member.wait_for(1)
            joined = len(member.gained)
            admin.remove_group_members(group, [kafka_python.admin.MemberToRemove(group_instance_id="static")])
            member.until(lambda: len(member.gained) > joined, "it has joined again")

    def test_offsets_of_a_deleted_topic_are_forgotten(
        self, group: str, admin: AdminClient, create_topic: CreateTopic
    ) -> None:
        kept, gone = create_topic(), create_topic()
        commit(admin, group, TopicPartition(kept, 0, 1), TopicPartition(gone, 0, 2))
        admin.delete_topics([gone])[gone].result(DEADLINE_S)
        eventually(lambda: committed(admin, group) == {(kept, 0): 1}, "the offset went with its topic")
