"""Producers that number what they send: the broker keeps each batch once, in order, and says when it cannot."""

from __future__ import annotations

from datetime import timedelta

import aiokafka
import confluent_kafka
import kafka as kafka_python
import pytest
from kio.schema.init_producer_id.v4.request import InitProducerIdRequest

from tests.kafka.conftest import CreateTopic
from tests.support.kafka_client import Client, quiet, read_to_the_end
from tests.support.raw_kafka import RawKafka, batch_of, fetch_batches, produce_batch

OUT_OF_ORDER_SEQUENCE_NUMBER = 45
INVALID_PRODUCER_EPOCH = 47


def new_producer(raw: RawKafka) -> int:
    request = InitProducerIdRequest(transactional_id=None, transaction_timeout=timedelta(seconds=60))
    answer = raw.ask(request)
    assert (answer.error_code, answer.producer_epoch) == (0, 0)
    return int(answer.producer_id)


class NumberedProducer:
    """Sends batches with the numbers it is told, as no client would."""

    def __init__(self, raw: RawKafka, topic: str) -> None:
        self.raw = raw
        self.topic = topic
        self.producer_id = new_producer(raw)

    def send(self, sequence: int, *values: bytes, epoch: int = 0) -> tuple[int, int]:
        """The error code and the base offset that the broker answers with."""
        batch = batch_of(
            *(values or (b"%d" % sequence,)),
            producer_id=self.producer_id,
            producer_epoch=epoch,
            base_sequence=sequence,
        )
        answer = produce_batch(self.raw, self.topic, batch)
        return int(answer.error_code), answer.base_offset


@pytest.fixture
def producer(raw: RawKafka, topic: str) -> NumberedProducer:
    return NumberedProducer(raw, topic)


class TestProducerIds:
    def test_every_producer_has_its_own(self, raw: RawKafka, kafka: str) -> None:
        with RawKafka(kafka) as other:
            ids = [new_producer(connection) for connection in (raw, other) * 5]
        assert len(set(ids)) == 10
        assert min(ids) >= 0


class TestSequences:
    def test_a_batch_that_comes_again_is_kept_once_and_answered_as_before(
        self, producer: NumberedProducer, kafka: str
    ) -> None:
        assert producer.send(0, b"a", b"b") == (0, 0)
        assert producer.send(2, b"c") == (0, 2)
        assert producer.send(0, b"a", b"b") == (0, 0)
        assert producer.send(2, b"c") == (0, 2)
        assert producer.send(3, b"d") == (0, 3)
        values = [record.value for record in read_to_the_end(kafka, producer.topic)]
        assert values == [b"a", b"b", b"c", b"d"]

    def test_the_last_five_batches_are_known(self, producer: NumberedProducer, kafka: str) -> None:
        for sequence in range(6):
            assert producer.send(sequence) == (0, sequence)
        for sequence in range(1, 6):
            assert producer.send(sequence) == (0, sequence)
        assert producer.send(0)[0] == OUT_OF_ORDER_SEQUENCE_NUMBER
        assert len(read_to_the_end(kafka, producer.topic)) == 6

    @pytest.mark.parametrize("sequence", [2, 5, 1000])
    def test_a_gap_is_refused(self, producer: NumberedProducer, sequence: int) -> None:
        assert producer.send(0) == (0, 0)
        assert producer.send(sequence)[0] == OUT_OF_ORDER_SEQUENCE_NUMBER
        assert producer.send(1) == (0, 1)

    def test_a_producer_that_the_partition_does_not_know_may_begin_anywhere(self, producer: NumberedProducer) -> None:
        """Its earlier batches may have gone with the retention."""
        assert producer.send(17) == (0, 0)
        assert producer.send(18) == (0, 1)
        assert producer.send(20)[0] == OUT_OF_ORDER_SEQUENCE_NUMBER

    def test_after_the_greatest_number_comes_zero(self, producer: NumberedProducer) -> None:
        assert producer.send(2**31 - 2, b"a", b"b") == (0, 0)
        assert producer.send(0) == (0, 2)
        assert producer.send(2**31 - 2, b"a", b"b") == (0, 0)
        assert producer.send(1) == (0, 3)

    def test_a_batch_may_itself_pass_the_greatest_number(self, producer: NumberedProducer) -> None:
        assert producer.send(2**31 - 1, b"a", b"b", b"c") == (0, 0)
        assert producer.send(2) == (0, 3)

    def test_each_partition_counts_for_itself(
        self, raw: RawKafka, producer: NumberedProducer, create_topic: CreateTopic
    ) -> None:
        other = NumberedProducer(raw, create_topic())
        other.producer_id = producer.producer_id
        assert producer.send(0) == (0, 0)
        assert other.send(0) == (0, 0)
        assert producer.send(1) == (0, 1)

    def test_batches_without_numbers_are_kept_every_time(self, raw: RawKafka, topic: str) -> None:
        batch = batch_of(b"again")
        assert [produce_batch(raw, topic, batch).base_offset for _ in range(3)] == [0, 1, 2]


class TestEpochs:
    def test_a_newer_epoch_begins_at_zero(self, producer: NumberedProducer) -> None:
        assert producer.send(0) == (0, 0)
        assert producer.send(1) == (0, 1)
        assert producer.send(5, epoch=1)[0] == OUT_OF_ORDER_SEQUENCE_NUMBER
        assert producer.send(0, epoch=1) == (0, 2)
        assert producer.send(1, epoch=1) == (0, 3)

    def test_an_older_epoch_is_refused(self, producer: NumberedProducer) -> None:
        assert producer.send(0, epoch=3) == (0, 0)
        assert producer.send(0, epoch=2)[0] == INVALID_PRODUCER_EPOCH
        assert producer.send(1, epoch=3) == (0, 1)

    def test_the_same_numbers_in_a_newer_epoch_are_other_records(self, producer: NumberedProducer, kafka: str) -> None:
        assert producer.send(0, b"one") == (0, 0)
        assert producer.send(0, b"two", epoch=1) == (0, 1)
        assert [record.value for record in read_to_the_end(kafka, producer.topic)] == [b"one", b"two"]


class TestClients:
    def test_confluent_sends_numbered_batches(self, kafka: str, topic: str) -> None:
        settings = {"enable.idempotence": True, "linger.ms": 0, "batch.num.messages": 10}
        producer = confluent_kafka.Producer(quiet(kafka) | settings)
        failures: list[object] = []
        for number in range(1000):
            producer.produce(
                topic, b"%d" % number, on_delivery=lambda error, _: failures.append(error) if error else None
            )
        assert producer.flush(20) == 0
        assert not failures
        batches = fetch_batches(kafka, topic)
        assert len({batch.producer_id for batch in batches}) == 1
        assert [batch.base_sequence for batch in batches] == [batch.base_offset for batch in batches]
        assert [record.value for record in read_to_the_end(kafka, topic)] == [b"%d" % number for number in range(1000)]

    def test_kafka_python_sends_numbered_batches(self, kafka: str, topic: str, clients: list[Client]) -> None:
        producer = kafka_python.KafkaProducer(bootstrap_servers=kafka, enable_idempotence=True, batch_size=200)
        try:
            sent = [producer.send(topic, b"%d" % number) for number in range(200)]
            assert [future.get(20).offset for future in sent] == list(range(200))
        finally:
            producer.close(20)
        assert fetch_batches(kafka, topic)[0].producer_id >= 0
        assert [record.value for record in clients[0].read(topic, 200)] == [b"%d" % number for number in range(200)]

    async def test_aiokafka_sends_numbered_batches(self, kafka: str, topic: str) -> None:
        settings = {"enable_idempotence": True, "max_batch_size": 200}
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=kafka, **settings) as producer:
            sent = [await producer.send(topic, b"%d" % number) for number in range(200)]
            assert [(await future).offset for future in sent] == list(range(200))
        assert fetch_batches(kafka, topic)[0].producer_id >= 0
        assert [record.value for record in read_to_the_end(kafka, topic)] == [b"%d" % number for number in range(200)]
