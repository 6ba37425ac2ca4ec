"""A broker that is killed, and one that is stopped, seen by Kafka's clients.

What is guaranteed: what was acknowledged with acks=all is there after SIGKILL, once, at its offset; so are topics and
their configuration, committed offsets, members and generations of groups, and what idempotent producers have sent. What
was not acknowledged may be there as well. A clean stop forgets nothing.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any

import aiokafka
import confluent_kafka
import kafka as kafka_python
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from tests.kafka.conftest import wait_for_topic
from tests.kafka.test_group_protocol import UNKNOWN_MEMBER_ID, RawMember
from tests.kafka.test_idempotence import NumberedProducer
from tests.support.broker_process import BrokerProcess
from tests.support.kafka_client import ConfluentClient, Message, numbered, quiet, read_to_the_end
from tests.support.kafka_member import ConfluentMember
from tests.support.raw_kafka import RawKafka
from tests.support.waiting import DEADLINE_S, eventually

MESSAGES = 20_000


@pytest.fixture
def servers(kafka_process: BrokerProcess) -> str:
    return kafka_process.kafka_address


@pytest.fixture
def admin(servers: str) -> AdminClient:
    return AdminClient(quiet(servers))


def create(admin: AdminClient, name: str, partitions: int = 1, **configuration: str) -> None:
    created = admin.create_topics([NewTopic(name, partitions, 1, config=configuration)])
    created[name].result(DEADLINE_S)
    wait_for_topic(admin, name, partitions)


def kill_and_start(process: BrokerProcess) -> None:
    process.kill()
    process.start()


class TestKilledWhileProducing:
    def test_everything_acknowledged_is_there_at_its_offset(
        self, kafka_process: BrokerProcess, servers: str, admin: AdminClient
    ) -> None:
        create(admin, "orders", 3)
        # Without retries no message is sent twice, whatever the producer hears.
        settings = {"acks": "all", "retries": 0, "linger.ms": 0, "batch.num.messages": 50}
        producer = confluent_kafka.Producer(quiet(servers) | settings)
        acknowledged: dict[bytes, tuple[int, int]] = {}

        def delivered(error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
            if error is None:
                acknowledged[message.value()] = (message.partition(), message.offset())

        killed = False
        for number in range(MESSAGES):
            producer.produce("orders", b"%d" % number, partition=number % 3, on_delivery=delivered)
            # So few are on their way that most have not been produced yet when it is killed.
            while not killed and len(producer) > 500:
                producer.poll(0.01)
            if not killed and len(acknowledged) >= 2_000:
                kafka_process.kill()
                killed = True
        assert killed
        producer.purge()
        producer.flush(DEADLINE_S)
        assert 2_000 <= len(acknowledged) < MESSAGES, "the kill was in the middle"

        kafka_process.start()
        records = read_to_the_end(servers, "orders", partitions=range(3))
        found = {record.value: (record.partition, record.offset) for record in records}
        assert len(found) == len(records), "none twice"
        assert {value: found.get(value) for value in acknowledged} == acknowledged
        for partition in range(3):
            of_partition = [record for record in records if record.partition == partition]
            assert [record.offset for record in of_partition] == list(range(len(of_partition))), "no gaps"
            values = [int(record.value or b"") for record in of_partition]
            assert values == sorted(values), "in the order of the producer"

    def test_killed_again_and_again_nothing_acknowledged_is_lost(
        self, kafka_process: BrokerProcess, servers: str
    ) -> None:
        client = ConfluentClient(servers)
        for round_number in range(4):
            places = client.produce("survivor", numbered(100), codec="lz4")
            assert places == [(0, round_number * 100 + number) for number in range(100)]
            kill_and_start(kafka_process)
        assert [record.value for record in read_to_the_end(servers, "survivor")] == 4 * [
            message.value for message in numbered(100)
        ]

    def test_what_was_not_waited_for_survives_a_clean_stop(self, kafka_process: BrokerProcess, servers: str) -> None:
        client = ConfluentClient(servers)
        client.produce("survivor", numbered(100), acks=1)
        client.produce("survivor", numbered(100), acks=0)
        eventually(lambda: client.bounds("survivor") == (0, 200), "all have arrived")
        kafka_process.restart()
        assert len(read_to_the_end(servers, "survivor")) == 200


class TestIdempotentProducers:
    """They go on through a kill and a start on the same port, and neither lose nor duplicate."""

    def test_confluent(self, kafka_process: BrokerProcess, servers: str, admin: AdminClient) -> None:
        create(admin, "orders", 3)
        producer = confluent_kafka.Producer(
            quiet(servers)
            | {"enable.idempotence": True, "linger.ms": 0, "batch.num.messages": 50, "reconnect.backoff.max.ms": 200}
        )
        acknowledged = 0
        failures: list[confluent_kafka.KafkaError] = []

        def delivered(error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
            nonlocal acknowledged
            acknowledged += 1
            if error is not None:
                failures.append(error)

        kills = [MESSAGES // 10, MESSAGES // 2]
        restarts: list[threading.Thread] = []
        for number in range(MESSAGES):
            producer.produce("orders", b"%d" % number, partition=number % 3, on_delivery=delivered)
            producer.poll(0)
            if kills and acknowledged >= kills[0] and not any(thread.is_alive() for thread in restarts):
                del kills[0]
                kafka_process.kill()
                restarts.append(threading.Thread(target=kafka_process.start))
                restarts[-1].start()
            while len(producer) > 3_000:
                producer.poll(0.01)
        assert producer.flush(3 * DEADLINE_S) == 0
        for thread in restarts:
            thread.join()
        assert not kills, "it was killed twice in the middle"
        assert failures == []
        records = read_to_the_end(servers, "orders", partitions=range(3))
        for partition in range(3):
            values = [int(record.value or b"") for record in records if record.partition == partition]
            assert values == list(range(partition, MESSAGES, 3))

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_kafka_python(self, kafka_process: BrokerProcess, servers: str, caplog: pytest.LogCaptureFixture) -> None:
        # What it logs would keep alive what it leaves behind.
        caplog.set_level(logging.CRITICAL + 1, logger="kafka")
        ConfluentClient(servers).produce("orders", [Message(b"first")])
        assert self.produce_by_kafka_python(kafka_process, servers) == list(range(1, 3_001))
        # It leaves the sockets of its failed attempts to connect to the garbage collector, which says so.
        gc.collect()
        values = [record.value for record in read_to_the_end(servers, "orders")]
        assert values == [b"first", *(b"%d" % number for number in range(3_000))]

    def produce_by_kafka_python(self, kafka_process: BrokerProcess, servers: str) -> list[int]:
        producer = kafka_python.KafkaProducer(
            bootstrap_servers=servers, enable_idempotence=True, batch_size=500, retry_backoff_ms=50
        )
        try:
            sent = []
            for number in range(3_000):
                sent.append(producer.send("orders", b"%d" % number))
                if number == 1_500:
                    sent[500].get(DEADLINE_S)
                    kill_and_start(kafka_process)
            return [future.get(DEADLINE_S).offset for future in sent]
        finally:
            producer.close(DEADLINE_S)

    async def test_aiokafka(self, kafka_process: BrokerProcess, servers: str) -> None:
        ConfluentClient(servers).produce("orders", [Message(b"first")])
        async with aiokafka.AIOKafkaProducer(
            bootstrap_servers=servers, enable_idempotence=True, max_batch_size=500, retry_backoff_ms=50
        ) as producer:
            sent = []
            for number in range(3_000):
                sent.append(await producer.send("orders", b"%d" % number))
                if number == 1_500:
                    await sent[500]
                    kill_and_start(kafka_process)
            offsets = [(await future).offset for future in sent]
        assert offsets == list(range(1, 3_001))
        values = [record.value for record in read_to_the_end(servers, "orders")]
        assert values == [b"first", *(b"%d" % number for number in range(3_000))]

    @pytest.mark.parametrize("clean", [False, True], ids=["killed", "stopped"])
    def test_a_batch_that_comes_again_after_the_start_is_known(
        self, kafka_process: BrokerProcess, servers: str, admin: AdminClient, clean: bool
    ) -> None:
        create(admin, "orders")
        with RawKafka(servers) as before:
            producer = NumberedProducer(before, "orders")
            for sequence in range(3):
                assert producer.send(sequence) == (0, sequence)
        if clean:
            kafka_process.restart()
        else:
            kill_and_start(kafka_process)
        with RawKafka(servers) as after:
            producer.raw = after
            for sequence in range(4):
                assert producer.send(sequence) == (0, sequence)
            out_of_order = 45
            assert producer.send(7)[0] == out_of_order
            assert NumberedProducer(after, "orders").producer_id != producer.producer_id, "ids are given out once"
        assert len(read_to_the_end(servers, "orders")) == 4


class TestGroups:
    @pytest.fixture
    def member(self, servers: str, admin: AdminClient) -> Iterator[RawMember]:
        """The one member of a group that is stable."""
        create(admin, "orders")
        with RawMember(servers, "workers") as member:
            assert member.join(session_timeout_s=30, rebalance_timeout_s=30).error_code == 0
            assert member.sync({member.member_id: b"mine"}) == (0, b"mine")
            yield member

    def reconnect(self, member: RawMember, servers: str) -> None:
        member.connection.socket.close()
        member.connection = RawKafka(servers)

    @pytest.mark.parametrize("clean", [False, True], ids=["killed", "stopped"])
    def test_members_generations_and_offsets_survive(
        self, kafka_process: BrokerProcess, servers: str, member: RawMember, clean: bool
    ) -> None:
        assert member.commit("orders", 42, metadata="note") == 0
        if clean:
            kafka_process.restart()
        else:
            kill_and_start(kafka_process)
        self.reconnect(member, servers)
        assert member.heartbeat() == 0
        assert member.sync() == (0, b"mine")
        assert member.committed("orders") == 42
        assert member.commit("orders", 43) == 0
        assert member.leave() == 0
        kill_and_start(kafka_process)
        self.reconnect(member, servers)
        assert member.heartbeat() == UNKNOWN_MEMBER_ID, "that it has left is known as well"
        assert member.committed("orders") == 43

    def test_a_rebalance_that_was_interrupted_is_held_again(
        self, kafka_process: BrokerProcess, servers: str, member: RawMember
    ) -> None:
        with RawMember(servers, "workers") as second:
            second.begin_join(session_timeout_s=30, rebalance_timeout_s=30)
            member.wait_for_rebalance()
            kill_and_start(kafka_process)
            for each in (member, second):
                self.reconnect(each, servers)
            if second.heartbeat() == UNKNOWN_MEMBER_ID:
                # It had not been answered yet, so it need not be known.
                second.member_id = ""
            joining = second.begin_join(("range", b"second"), session_timeout_s=30)
            member.wait_for_rebalance()
            first_answer = member.join(("range", b"first"), session_timeout_s=30)
            second_answer = second.end_join(joining)
            assert (first_answer.error_code, second_answer.error_code) == (0, 0)
            assert first_answer.generation_id == second_answer.generation_id > 1
            leader = member if first_answer.leader == member.member_id else second
            assignments = {member.member_id: b"A", second.member_id: b"B"}
            assert leader.sync(assignments)[0] == 0
            assert member.sync()[1] + second.sync()[1] == b"AB"

    def test_a_static_member_is_known_after_the_start(
        self, kafka_process: BrokerProcess, servers: str, admin: AdminClient
    ) -> None:
        with RawMember(servers, "workers", instance_id="me") as before:
            before.join(session_timeout_s=30)
            assert before.sync({before.member_id: b"mine"}) == (0, b"mine")
        kill_and_start(kafka_process)
        with RawMember(servers, "workers", instance_id="me") as after:
            assert after.join(session_timeout_s=30).generation_id == before.generation
            assert after.sync() == (0, b"mine")

    def test_consumers_go_on_where_they_were(
        self, kafka_process: BrokerProcess, servers: str, admin: AdminClient
    ) -> None:
        create(admin, "orders", 4)
        client = ConfluentClient(servers)
        settings: dict[str, Any] = {"session_timeout_ms": 30_000, "reconnect_backoff_max_ms": 200}
        one = ConfluentMember(servers, "workers", "orders", **settings)
        with one, ConfluentMember(servers, "workers", "orders", **settings) as two:
            for member in (one, two):
                member.wait_for(2)
            for round_number in range(3):
                messages = [Message(b"%d" % (40 * round_number + number), partition=number % 4) for number in range(40)]
                client.produce("orders", messages)
                expected = 40 * (round_number + 1)
                eventually(lambda: len(one.records) + len(two.records) >= expected, "all records")  # noqa: B023
                if round_number < 2:
                    kill_and_start(kafka_process)
            values = sorted(int(value or b"") for value in one.values + two.values)
            assert values == list(range(120)), "each once: nobody had to begin anew"
            assert len(one.assignment) == len(two.assignment) == 2
        asked = [ConsumerGroupTopicPartitions("workers")]
        found = admin.list_consumer_group_offsets(asked)["workers"].result(DEADLINE_S).topic_partitions
        assert {place.partition: place.offset for place in found} == dict.fromkeys(range(4), 30)


class TestAdministration:
    def test_topics_and_their_configuration_survive(
        self, kafka_process: BrokerProcess, servers: str, admin: AdminClient
    ) -> None:
        create(admin, "kept", 3, **{"retention.ms": "123456", "cleanup.policy": "compact"})
        create(admin, "deleted")
        create(admin, "trimmed")
        client = ConfluentClient(servers)
        client.produce("trimmed", numbered(10))
        place = TopicPartition("trimmed", 0, 6)
        admin.delete_records([place])[place].result(DEADLINE_S)
        admin.delete_topics(["deleted"])["deleted"].result(DEADLINE_S)
        before = admin.describe_topics(confluent_kafka.TopicCollection(["kept"]))["kept"].result(DEADLINE_S)
        cluster_id = admin.list_topics(timeout=DEADLINE_S).cluster_id
        kill_and_start(kafka_process)

        again = AdminClient(quiet(servers))
        topics = again.list_topics(timeout=DEADLINE_S)
        assert set(topics.topics) == {"kept", "trimmed"}
        assert topics.cluster_id == cluster_id
        after = again.describe_topics(confluent_kafka.TopicCollection(["kept"]))["kept"].result(DEADLINE_S)
        assert str(after.topic_id) == str(before.topic_id)
        assert len(after.partitions) == 3
        resource = ConfigResource(ResourceType.TOPIC, "kept")
        found = again.describe_configs([resource])[resource].result(DEADLINE_S)
        assert (found["retention.ms"].value, found["cleanup.policy"].value) == ("123456", "compact")
        assert client.bounds("trimmed") == (6, 10)

    def test_deleted_groups_and_offsets_stay_deleted(
        self, kafka_process: BrokerProcess, servers: str, admin: AdminClient
    ) -> None:
        create(admin, "orders")
        for group in ("kept", "deleted"):
            wanted = [ConsumerGroupTopicPartitions(group, [TopicPartition("orders", 0, 5)])]
            admin.alter_consumer_group_offsets(wanted)[group].result(DEADLINE_S)
        admin.delete_consumer_groups(["deleted"])["deleted"].result(DEADLINE_S)
        kill_and_start(kafka_process)
        again = AdminClient(quiet(servers))
        found = again.list_consumer_groups(request_timeout=DEADLINE_S).result(DEADLINE_S)
        assert found.errors == []
        assert [group.group_id for group in found.valid] == ["kept"]
