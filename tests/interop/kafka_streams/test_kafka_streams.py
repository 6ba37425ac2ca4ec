"""Kafka Streams with exactly-once processing: a word count that is killed again and again, and so is the broker.

What is shown: a count is right when everything that belongs to it happens together or not at all, which is the words
that were read (an offset of a group), the count that was kept (a record of a changelog) and the count that was told (a
record of the output). There is no cache in the program, so for each word the output must be 1, 2, 3 and so on, without
a gap and without a number twice, whatever was killed when; and the last number must be how often the word went in.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tests.support.broker_process import BrokerProcess
from tests.support.java import FETCH_DEADLINE_S, compiled, fetched, java

HERE = Path(__file__).parent
DEADLINE_S = 60.0
WORDS = [f"word-{number}" for number in range(40)]
WORDS_PER_LINE = 10
PARTITIONS = 2

pytestmark = pytest.mark.timeout(FETCH_DEADLINE_S + 300)


@pytest.fixture(scope="session")
def class_path(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    jars = fetched(HERE / "pom.xml", packages / "kafka_streams")
    return compiled([HERE / "WordCount.java"], jars, tmp_path_factory.mktemp("classes"))


class WordCount:
    """The application in a process of its own, and the topics that it works on."""

    def __init__(self, class_path: str, server: str, folder: Path) -> None:
        self.server = server
        self.application = f"count-{uuid.uuid4()}"
        self.input, self.output = f"lines-{uuid.uuid4()}", f"counts-{uuid.uuid4()}"
        self._folder = folder
        self._command = java(
            class_path, "WordCount", server, self.application, str(folder / "state"), self.input, self.output
        )
        self._process: subprocess.Popen[bytes] | None = None
        admin = AdminClient({"bootstrap.servers": server})
        for created in admin.create_topics([NewTopic(name, PARTITIONS) for name in (self.input, self.output)]).values():
            created.result(DEADLINE_S)

    @property
    def changelog(self) -> str:
        return f"{self.application}-counts-changelog"

    @property
    def repartition(self) -> str:
        return f"{self.application}-words-repartition"

    @property
    def log(self) -> str:
        return (self._folder / "application.log").read_text(errors="replace")

    def start(self) -> None:
        with (self._folder / "application.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def word_count(class_path: str, kafka: str, tmp_path: Path) -> Iterator[WordCount]:
    application = WordCount(class_path, kafka, tmp_path)
    yield application
    application.kill()


class Lines(threading.Thread):
    """Produces lines of random words until it is told to stop, and counts their words."""

    def __init__(self, server: str, topic: str, seed: int) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._random = random.Random(seed)
        self._topic = topic
        self._producer = confluent_kafka.Producer(
            {"bootstrap.servers": server, "enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        )
        self._refused: list[object] = []

    def run(self) -> None:
        while not self._stopping.wait(0.01):
            self.produce(10)

    def produce(self, lines: int) -> None:
        for _ in range(lines):
            words = self._random.choices(WORDS, k=WORDS_PER_LINE)
            self.counts.update(words)
            self._producer.produce(self._topic, " ".join(words), on_delivery=self._delivered)
        self._producer.poll(0)

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            self._refused.append(error)

    def stop(self) -> Counter[str]:
        """Every word that went in, once all of them are there."""
        self._stopping.set()
        self.join()
        assert self._producer.flush(DEADLINE_S) == 0
        assert not self._refused
        return self.counts


class Committed:
    """Reads what is committed in a topic: the values of each key, in their order."""

    def __init__(self, server: str, topic: str, decode: Callable[[bytes], int]) -> None:
        self.values: defaultdict[str, list[int]] = defaultdict(list)
        self._decode = decode
        self._consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": server,
                "group.id": f"reader-{uuid.uuid4()}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )
        first = confluent_kafka.OFFSET_BEGINNING
        self._consumer.assign([confluent_kafka.TopicPartition(topic, number, first) for number in range(PARTITIONS)])

    @property
    def total(self) -> int:
        """How many words are counted so far."""
        return sum(values[-1] for values in self.values.values())

    def poll(self) -> None:
        for message in self._consumer.consume(500, timeout=0.05):
            if message.error() is None:
                key, value = message.key(), message.value()
                assert key is not None
                assert value is not None
                self.values[key.decode()].append(self._decode(value))

    def until_counted(self, words: int, application: WordCount) -> None:
        give_up_at = time.monotonic() + DEADLINE_S
        while self.total < words:
            assert time.monotonic() < give_up_at, f"{self.total} of {words} words:\n{application.log[-4000:]}"
            self.poll()

    def close(self) -> None:
        self._consumer.close()


def count_while_it_is_killed(application: WordCount, seed: int, kill: Callable[[int], None], rounds: int) -> None:
    """Counts words, with something killed in each round as soon as counts have come since the last time."""
    print(f"seed {seed}")
    lines = Lines(application.server, application.input, seed)
    output = Committed(application.server, application.output, int)
    changelog = Committed(application.server, application.changelog, lambda value: int.from_bytes(value, "big"))
    application.start()
    lines.start()
    try:
        moment = random.Random(seed)
        for number in range(rounds):
            # Not at the first sign of life, but at any point of what goes on then.
            output.until_counted(output.total + moment.randrange(1, 3_000), application)
            kill(number)
        counts = lines.stop()
        output.until_counted(sum(counts.values()), application)
        for word in WORDS:
            assert output.values[word] == list(range(1, counts[word] + 1)), f"{word}: {output.values[word]}"
        changelog.until_counted(sum(counts.values()), application)
        for word in WORDS:
            kept = changelog.values[word]
            # What is compacted has gaps, but no number twice and none out of order.
            assert kept == sorted(set(kept)), f"{word}: {kept}"
            assert kept[-1] == counts[word]
        assert_purged(application)
    finally:
        lines.stop()
        output.close()
        changelog.close()


def assert_purged(application: WordCount) -> None:
    """The application deletes the words that it has counted from the topic that only it reads."""
    reader = confluent_kafka.Consumer({"bootstrap.servers": application.server, "group.id": "nobody", "log_level": 0})
    places = [confluent_kafka.TopicPartition(application.repartition, number) for number in range(PARTITIONS)]
    give_up_at = time.monotonic() + DEADLINE_S
    while any(reader.get_watermark_offsets(place, timeout=DEADLINE_S)[0] == 0 for place in places):
        assert time.monotonic() < give_up_at, "nothing was deleted from the repartition topic"
    reader.close()


def test_counts_are_right_when_the_application_is_killed(word_count: WordCount) -> None:
    def kill(_: int) -> None:
        word_count.kill()
        word_count.start()

    count_while_it_is_killed(word_count, random.randrange(1_000_000), kill, rounds=4)


def test_counts_are_right_when_the_state_is_lost(word_count: WordCount, tmp_path: Path) -> None:
    """The application comes up on another machine: it makes its counts again from the changelog."""

    def kill(_: int) -> None:
        word_count.kill()
        shutil.rmtree(tmp_path / "state")
        word_count.start()

    count_while_it_is_killed(word_count, random.randrange(1_000_000), kill, rounds=1)


def test_counts_are_right_when_the_broker_is_killed(
    class_path: str, kafka_process: BrokerProcess, tmp_path: Path
) -> None:
    application = WordCount(class_path, kafka_process.kafka_address, tmp_path)

    def kill(number: int) -> None:
        if number == 2:
            # Both at once, and the broker first.
            kafka_process.kill()
            application.kill()
            application.start()
        else:
            kafka_process.kill()
        kafka_process.start()

    try:
        count_while_it_is_killed(application, random.randrange(1_000_000), kill, rounds=3)
    finally:
        application.kill()
