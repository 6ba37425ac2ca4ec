"""What the clients' admin parts ask for: topics, partitions, configurations, the cluster."""

from __future__ import annotations

import asyncio

import confluent_kafka
import kafka as kafka_python
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin import NewTopic as AioNewTopic
from confluent_kafka import KafkaError, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    ResourceType,
)
from kafka.errors import KafkaError as KafkaPythonError
from kio.schema.alter_configs.v2 import request as alter_configs
from kio.schema.api_versions.v0.request import ApiVersionsRequest
from kio.schema.describe_topic_partitions.v0 import request as describe_topic_partitions
from kio.schema.metadata.v12 import request as metadata

from tests.kafka.conftest import CreateTopic, wait_for_topic
from tests.support.kafka_client import ConfluentClient, Message, Unique, numbered
from tests.support.raw_kafka import RawKafka
from tests.support.waiting import DEADLINE_S, eventually

NOWHERE = bytes(16)
UNKNOWN_TOPIC_OR_PARTITION = 3
UNSUPPORTED_VERSION = 35
UNKNOWN_TOPIC_ID = 100


def refusal(future: object) -> int:
    """The code that the broker refused with."""
    with pytest.raises(confluent_kafka.KafkaException) as caught:
        future.result(DEADLINE_S)  # type: ignore[attr-defined]
    return int(caught.value.args[0].code())


def configuration(admin: AdminClient, topic: str) -> dict[str, ConfigEntry]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    found: dict[str, ConfigEntry] = admin.describe_configs([resource])[resource].result(DEADLINE_S)
    return found


def own_settings(admin: AdminClient, topic: str) -> dict[str, str]:
    """What the topic itself has been given."""
    found = configuration(admin, topic).values()
    own = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
    return {entry.name: entry.value for entry in found if ConfigSource(entry.source).value == own}


class TestCreatingTopics:
    def test_is_seen_by_every_client(self, kafka: str, admin: AdminClient, unique: Unique) -> None:
        name = unique("new")
        created = admin.create_topics([NewTopic(name, 3, 1, config={"retention.ms": "123456"})])[name]
        created.result(DEADLINE_S)
        wait_for_topic(admin, name, 3)
        assert own_settings(admin, name) == {"retention.ms": "123456"}
        with kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as other:
            [described] = other.describe_topics([name])
            assert sorted(part["partition_index"] for part in described["partitions"]) == [0, 1, 2]
            assert name in other.list_topics()

        async def partitions() -> int:
            client = AIOKafkaAdminClient(bootstrap_servers=kafka)
            await client.start()
            try:
                [found] = await client.describe_topics([name])
                return len(found["partitions"])
            finally:
                await client.close()

        assert asyncio.run(partitions()) == 3

    def test_by_kafka_python_and_aiokafka(self, kafka: str, admin: AdminClient, unique: Unique) -> None:
        by_kafka_python, by_aiokafka = unique("kafka-python"), unique("aiokafka")
        with kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as client:
            client.create_topics({by_kafka_python: {"num_partitions": 2, "replication_factor": 1}})

        async def create() -> None:
            client = AIOKafkaAdminClient(bootstrap_servers=kafka)
            await client.start()
            try:
                await client.create_topics([AioNewTopic(by_aiokafka, 2, 1)])
            finally:
                await client.close()

        asyncio.run(create())
        for name in (by_kafka_python, by_aiokafka):
            wait_for_topic(admin, name, 2)

    def test_the_same_again_is_refused(self, admin: AdminClient, topic: str) -> None:
        again = admin.create_topics([NewTopic(topic, 1, 1)])[topic]
        assert refusal(again) == KafkaError.TOPIC_ALREADY_EXISTS

    def test_one_that_is_refused_does_not_stop_the_others(self, admin: AdminClient, topic: str, unique: Unique) -> None:
        name = unique("good")
        created = admin.create_topics([NewTopic(topic, 1, 1), NewTopic(name, 1, 1), NewTopic("not/good", 1, 1)])
        assert refusal(created[topic]) == KafkaError.TOPIC_ALREADY_EXISTS
        assert refusal(created["not/good"]) == KafkaError.TOPIC_EXCEPTION
        created[name].result(DEADLINE_S)
        wait_for_topic(admin, name)

    def test_only_checked_it_is_not_there(self, admin: AdminClient, unique: Unique, topic: str) -> None:
        name = unique("checked")
        admin.create_topics([NewTopic(name, 1, 1)], validate_only=True)[name].result(DEADLINE_S)
        assert name not in admin.list_topics(timeout=DEADLINE_S).topics
        again = admin.create_topics([NewTopic(topic, 1, 1)], validate_only=True)[topic]
        assert refusal(again) == KafkaError.TOPIC_ALREADY_EXISTS

    def test_without_numbers_it_has_the_broker_s_defaults(self, admin: AdminClient, unique: Unique) -> None:
        name = unique("default")
        admin.create_topics([NewTopic(name)])[name].result(DEADLINE_S)
        eventually(lambda: name in admin.list_topics(timeout=DEADLINE_S).topics, "the topic")
        found = admin.list_topics(name, timeout=DEADLINE_S).topics[name]
        assert [len(partition.replicas) for partition in found.partitions.values()] == [1] * len(found.partitions)

    @pytest.mark.parametrize(
        ("partitions", "replicas", "settings", "code"),
        [
            (0, 1, {}, KafkaError.INVALID_PARTITIONS),
            (-5, 1, {}, KafkaError.INVALID_PARTITIONS),
            (1, 2, {}, KafkaError.INVALID_REPLICATION_FACTOR),
            (1, 0, {}, KafkaError.INVALID_REPLICATION_FACTOR),
            (1, 1, {"no.such.setting": "1"}, KafkaError.INVALID_CONFIG),
            (1, 1, {"retention.ms": "soon"}, KafkaError.INVALID_CONFIG),
            (1, 1, {"retention.ms": "-2"}, KafkaError.INVALID_CONFIG),
            (1, 1, {"cleanup.policy": "shred"}, KafkaError.INVALID_CONFIG),
            (1, 1, {"compression.type": "rar"}, KafkaError.INVALID_CONFIG),
            (1, 1, {"segment.bytes": "1"}, KafkaError.INVALID_CONFIG),
            (1, 1, {"min.cleanable.dirty.ratio": "2"}, KafkaError.INVALID_CONFIG),
            (1, 1, {"message.timestamp.type": "Never"}, KafkaError.INVALID_CONFIG),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, kafka: str, unique: Unique, partitions: int, replicas: int, settings: dict[str, str], code: int
    ) -> None:
        # librdkafka checks some of it itself, kafka-python sends what it is given.
        name = unique("bad")
        wanted = {name: {"num_partitions": partitions, "replication_factor": replicas, "configs": settings}}
        with kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as admin:
            with pytest.raises(KafkaPythonError) as caught:
                admin.create_topics(wanted)
            assert getattr(caught.value, "errno", None) == code, caught.value
            assert name not in admin.list_topics()


class TestDeletingTopics:
    def test_it_is_gone_with_its_records(self, kafka: str, admin: AdminClient, create_topic: CreateTopic) -> None:
        name = create_topic()
        client = ConfluentClient(kafka)
        client.produce(name, numbered(10))
        admin.delete_topics([name])[name].result(DEADLINE_S)
        eventually(lambda: name not in admin.list_topics(timeout=DEADLINE_S).topics, "the topic is gone")

        def created() -> bool:
            # Apache Kafka removes the old one's logs after it has answered.
            return admin.create_topics([NewTopic(name, 1, 1)])[name].exception(DEADLINE_S) is None

        eventually(created, "a new topic of the same name")
        wait_for_topic(admin, name)
        assert client.bounds(name) == (0, 0)
        assert client.produce(name, [Message(b"new")]) == [(0, 0)]
        assert [record.value for record in client.read(name, 1)] == [b"new"]

    def test_one_that_is_not_there_is_refused(self, admin: AdminClient, unique: Unique) -> None:
        name = unique("missing")
        assert refusal(admin.delete_topics([name])[name]) == KafkaError.UNKNOWN_TOPIC_OR_PART

    def test_several_at_once(self, admin: AdminClient, unique: Unique, create_topic: CreateTopic) -> None:
        names, missing = [create_topic() for _ in range(3)], unique("missing")
        deleted = admin.delete_topics([*names, missing])
        for name in names:
            deleted[name].result(DEADLINE_S)
        assert refusal(deleted[missing]) == KafkaError.UNKNOWN_TOPIC_OR_PART
        eventually(lambda: not set(names) & set(admin.list_topics(timeout=DEADLINE_S).topics), "they are gone")


class TestPartitions:
    def test_are_added(self, kafka: str, admin: AdminClient, topic: str) -> None:
        ConfluentClient(kafka).produce(topic, numbered(5))
        admin.create_partitions([NewPartitions(topic, 4)])[topic].result(DEADLINE_S)
        wait_for_topic(admin, topic, 4)
        client = ConfluentClient(kafka)
        assert client.produce(topic, [Message(b"there", partition=3)]) == [(3, 0)]
        assert client.bounds(topic, 0) == (0, 5), "what was there stays"

    @pytest.mark.parametrize("count", [1, 2])
    def test_do_not_become_fewer_or_stay_as_many(
        self, admin: AdminClient, create_topic: CreateTopic, count: int
    ) -> None:
        name = create_topic(partitions=2)
        assert refusal(admin.create_partitions([NewPartitions(name, count)])[name]) == KafkaError.INVALID_PARTITIONS

    def test_of_an_unknown_topic_are_refused(self, admin: AdminClient, unique: Unique) -> None:
        name = unique("missing")
        code = refusal(admin.create_partitions([NewPartitions(name, 3)])[name])
        assert code == KafkaError.UNKNOWN_TOPIC_OR_PART

    def test_are_only_checked_when_asked_to(self, admin: AdminClient, topic: str) -> None:
        admin.create_partitions([NewPartitions(topic, 4)], validate_only=True)[topic].result(DEADLINE_S)
        assert len(admin.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions) == 1


class TestConfigurations:
    # Apache Kafka's defaults; those that its operator is most likely to change are left out.
    DEFAULTS = (
        ("cleanup.policy", "delete"),
        ("compression.type", "producer"),
        ("delete.retention.ms", "86400000"),
        ("max.message.bytes", "1048588"),
        ("message.timestamp.type", "CreateTime"),
        ("min.cleanable.dirty.ratio", "0.5"),
        ("min.compaction.lag.ms", "0"),
        ("retention.bytes", "-1"),
        ("retention.ms", "604800000"),
        ("segment.ms", "604800000"),
    )

    def test_the_defaults_are_shown_as_such(self, admin: AdminClient, topic: str) -> None:
        found = configuration(admin, topic)
        assert {name: found[name].value for name, _ in self.DEFAULTS} == dict(self.DEFAULTS)
        for name, _ in self.DEFAULTS:
            assert found[name].is_default, name
            assert not found[name].is_read_only
            assert not found[name].is_sensitive

    def test_a_setting_is_changed_and_taken_back(self, admin: AdminClient, topic: str) -> None:
        def alter(*changes: tuple[str, str | None, AlterConfigOpType]) -> None:
            entries = [ConfigEntry(name, value, incremental_operation=how) for name, value, how in changes]
            resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
            admin.incremental_alter_configs([resource])[resource].result(DEADLINE_S)

        def wait(expected: dict[str, str]) -> None:
            eventually(lambda: own_settings(admin, topic) == expected, f"{expected}")

        alter(("retention.ms", "1000000", AlterConfigOpType.SET), ("segment.ms", "5000", AlterConfigOpType.SET))
        wait({"retention.ms": "1000000", "segment.ms": "5000"})
        alter(("retention.ms", "2000000", AlterConfigOpType.SET))
        wait({"retention.ms": "2000000", "segment.ms": "5000"})
        alter(("segment.ms", None, AlterConfigOpType.DELETE))
        wait({"retention.ms": "2000000"})
        alter(("cleanup.policy", "compact", AlterConfigOpType.APPEND))
        wait({"retention.ms": "2000000", "cleanup.policy": "delete,compact"})
        alter(("cleanup.policy", "delete", AlterConfigOpType.SUBTRACT))
        wait({"retention.ms": "2000000", "cleanup.policy": "compact"})

    def test_the_old_way_replaces_all(self, raw: RawKafka, admin: AdminClient, create_topic: CreateTopic) -> None:
        name = create_topic(retention_ms=5_000_000, segment_ms=70_000)
        entry = alter_configs.AlterableConfig(name="retention.bytes", value="1000000")
        resource = alter_configs.AlterConfigsResource(resource_type=2, resource_name=name, configs=(entry,))
        answer = raw.ask(alter_configs.AlterConfigsRequest(resources=(resource,), validate_only=False))
        assert answer.responses[0].error_code == 0
        eventually(
            lambda: own_settings(admin, name) == {"retention.bytes": "1000000"}, "the others are back to default"
        )

    @pytest.mark.parametrize(
        ("name", "value"), [("retention.ms", "soon"), ("no.such.setting", "1"), ("max.message.bytes", "-1")]
    )
    def test_what_makes_no_sense_is_refused_and_changes_nothing(
        self, admin: AdminClient, topic: str, name: str, value: str
    ) -> None:
        entries = [ConfigEntry("segment.ms", "5000", incremental_operation=AlterConfigOpType.SET)]
        entries += [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        assert refusal(admin.incremental_alter_configs([resource])[resource]) == KafkaError.INVALID_CONFIG
        assert own_settings(admin, topic) == {}

    def test_of_an_unknown_topic_are_refused(self, admin: AdminClient, unique: Unique) -> None:
        name = unique("missing")
        resource = ConfigResource(ResourceType.TOPIC, name)
        assert refusal(admin.describe_configs([resource])[resource]) == KafkaError.UNKNOWN_TOPIC_OR_PART
        entries = [ConfigEntry("retention.ms", "1", incremental_operation=AlterConfigOpType.SET)]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        assert refusal(admin.incremental_alter_configs([resource])[resource]) == KafkaError.UNKNOWN_TOPIC_OR_PART

    def test_of_the_broker_are_described(self, admin: AdminClient) -> None:
        [broker] = admin.list_topics(timeout=DEADLINE_S).brokers
        resource = ConfigResource(ResourceType.BROKER, str(broker))
        found = admin.describe_configs([resource])[resource].result(DEADLINE_S)
        assert {"auto.create.topics.enable", "num.partitions", "message.max.bytes"} <= set(found)

    def test_of_a_broker_that_is_not_there_are_refused(self, kafka: str) -> None:
        with (
            kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as admin,
            pytest.raises((ValueError, KafkaPythonError)),
        ):
            admin.describe_configs([kafka_python.admin.ConfigResource("BROKER", "not a number")])


class TestCluster:
    def test_is_one_broker_that_is_its_controller(self, kafka: str, admin: AdminClient) -> None:
        found = admin.describe_cluster().result(DEADLINE_S)
        [node] = found.nodes
        assert f"{node.host}:{node.port}" == kafka
        assert found.controller.id == node.id
        assert found.cluster_id
        assert found.cluster_id == admin.list_topics(timeout=DEADLINE_S).cluster_id
        with kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as other:
            described = other.describe_cluster()
            assert described["cluster_id"] == found.cluster_id
            assert [each["broker_id"] for each in described["brokers"]] == [node.id]

    def test_topics_are_described_with_their_ids(self, admin: AdminClient, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=3)
        found = admin.describe_topics(TopicCollection([name]))[name].result(DEADLINE_S)
        assert (found.name, found.is_internal, len(found.partitions)) == (name, False, 3)
        assert str(found.topic_id)
        for partition in found.partitions:
            assert [replica.id for replica in partition.replicas] == [partition.leader.id]
            assert [replica.id for replica in partition.isr] == [partition.leader.id]

    def test_a_topic_is_found_by_its_id(self, raw: RawKafka, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=2)
        by_name = metadata.MetadataRequest(
            topics=(metadata.MetadataRequestTopic(topic_id=None, name=name),),
            allow_auto_topic_creation=False,
            include_topic_authorized_operations=False,
        )
        [first] = raw.ask(by_name).topics
        by_id = metadata.MetadataRequest(
            topics=(metadata.MetadataRequestTopic(topic_id=first.topic_id, name=None),),
            allow_auto_topic_creation=False,
            include_topic_authorized_operations=False,
        )
        [second] = raw.ask(by_id).topics
        assert (second.error_code, second.name, second.topic_id) == (0, name, first.topic_id)
        assert len(second.partitions) == 2

    def test_an_unknown_topic_is_said_to_be(self, raw: RawKafka, unique: Unique) -> None:
        name = unique("missing")
        request = metadata.MetadataRequest(
            topics=(metadata.MetadataRequestTopic(topic_id=None, name=name),),
            allow_auto_topic_creation=False,
            include_topic_authorized_operations=False,
        )
        [found] = raw.ask(request).topics
        assert (found.error_code, found.name) == (UNKNOWN_TOPIC_OR_PARTITION, name)

    def test_the_partitions_of_a_topic_are_described_in_parts(self, raw: RawKafka, create_topic: CreateTopic) -> None:
        name = create_topic(partitions=5)
        seen: list[int] = []
        cursor = None
        while True:
            request = describe_topic_partitions.DescribeTopicPartitionsRequest(
                topics=(describe_topic_partitions.TopicRequest(name=name),), response_partition_limit=2, cursor=cursor
            )
            answer = raw.ask(request)
            assert answer.topics[0].error_code == 0
            seen += [partition.partition_index for partition in answer.topics[0].partitions]
            if answer.next_cursor is None:
                break
            following = answer.next_cursor
            assert following.topic_name == name
            cursor = describe_topic_partitions.Cursor(topic_name=name, partition_index=following.partition_index)
        assert seen == [0, 1, 2, 3, 4]

    def test_log_dirs_show_how_large_partitions_are(self, kafka: str, topic: str) -> None:
        ConfluentClient(kafka).produce(topic, [Message(b"x" * 10_000)])
        with kafka_python.KafkaAdminClient(bootstrap_servers=kafka) as admin:
            [size] = [
                partition["partition_size"]
                for broker in admin.describe_log_dirs()
                for log_dir in broker["log_dirs"]
                for found in log_dir["topics"]
                if found["name"] == topic
                for partition in found["partitions"]
            ]
        assert size > 10_000


class TestVersions:
    def test_a_version_that_is_too_new_is_answered_with_all_that_there_are(self, raw: RawKafka) -> None:
        # ApiVersions version 99, correlation id 7, client id "raw": answered in version 0, whoever asks.
        raw.send_frame(bytes.fromhex("0012 0063 00000007 0003") + b"raw" + b"\0")
        payload = raw.receive_frame()
        assert payload[:4] == bytes.fromhex("00000007")
        assert int.from_bytes(payload[4:6]) == UNSUPPORTED_VERSION

        found = {each.api_key: (each.min_version, each.max_version) for each in raw.ask(ApiVersionsRequest()).api_keys}
        assert {0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 22, 32, 33, 37, 42, 44, 47, 60} <= set(found)
        assert found[0][0] == 0, "librdkafka would drop lz4"

    def test_a_request_that_is_not_understood_ends_the_connection(self, raw: RawKafka) -> None:
        raw.send_frame(bytes.fromhex("7fff 0000 00000007 0003") + b"raw")
        assert raw.closed_by_broker()
