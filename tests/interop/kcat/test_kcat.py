"""kcat, the command line client that is built on librdkafka."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka.admin import AdminClient

from tests.support.kafka_client import CODECS, ConfluentClient, Message, numbered, quiet, read_to_the_end
from tests.support.raw_kafka import fetch_batches
from tests.support.waiting import DEADLINE_S, eventually

Kcat = Callable[..., str]


@pytest.fixture(scope="session")
def program() -> str:
    found = shutil.which("kcat") or shutil.which("kafkacat")
    if found is None:
        pytest.skip("kcat is not on the PATH: install it (Debian: apt install kcat)")
    return found


@pytest.fixture
def kcat(program: str, kafka: str) -> Kcat:
    """Runs kcat against the broker and returns what it has printed."""

    def run(*arguments: str, standard_input: str = "") -> str:
        done = subprocess.run(
            [program, "-b", kafka, "-q", *arguments],
            input=standard_input,
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_S,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture
def topic(kafka: str) -> Iterator[str]:
    name = f"kcat-{uuid.uuid4().hex[:12]}"
    yield name
    AdminClient(quiet(kafka)).delete_topics([name])[name].exception(DEADLINE_S)


@pytest.mark.parametrize("codec", CODECS)
def test_what_it_produces_it_consumes(kcat: Kcat, topic: str, kafka: str, codec: str) -> None:
    lines = [f"key-{number}:value {number} {'x' * 50}" for number in range(200)]
    kcat("-P", "-t", topic, "-K", ":", "-z", codec, "-H", "header=text", standard_input="\n".join(lines) + "\n")
    assert {batch.codec for batch in fetch_batches(kafka, topic)} == {codec}
    output = kcat("-C", "-t", topic, "-o", "beginning", "-e", "-f", "%p %o %h %k:%s\\n")
    assert output.splitlines() == [f"0 {number} header=text {line}" for number, line in enumerate(lines)]


def test_it_lists_brokers_and_topics(kcat: Kcat, topic: str, kafka: str) -> None:
    ConfluentClient(kafka).produce(topic, numbered(1))
    listed = json.loads(kcat("-L", "-J", "-t", topic))
    [broker] = listed["brokers"]
    assert broker["name"] == kafka
    [found] = listed["topics"]
    assert (found["topic"], len(found["partitions"])) == (topic, 1)
    assert found["partitions"][0]["leader"] == broker["id"]


def test_it_reads_the_last_records_and_from_a_time_on(kcat: Kcat, topic: str, kafka: str) -> None:
    then_ms = int(time.time() * 1000) - 3_600_000
    messages = [Message(b"%d" % number, timestamp_ms=then_ms + number * 1000) for number in range(20)]
    ConfluentClient(kafka).produce(topic, messages, codec="zstd")
    assert kcat("-C", "-t", topic, "-o", "-3", "-e", "-p", "0").split() == ["17", "18", "19"]
    assert kcat("-C", "-t", topic, "-o", f"s@{then_ms + 15_000}", "-e").split() == ["15", "16", "17", "18", "19"]
    between = ["-o", f"s@{then_ms + 5_000}", "-o", f"e@{then_ms + 8_000}"]
    assert kcat("-C", "-t", topic, *between).split() == ["5", "6", "7"]
    assert re.search(rf"{topic} \[0\] offset 7$", kcat("-Q", "-t", f"{topic}:0:{then_ms + 7_000}"), re.MULTILINE)


def test_a_group_of_it_goes_on_where_it_stopped(kcat: Kcat, topic: str, kafka: str) -> None:
    group = f"kcat-group-{uuid.uuid4().hex[:12]}"
    client = ConfluentClient(kafka)
    consume = ["-G", group, "-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=6000", "-c", "10", topic]
    client.produce(topic, [Message(b"%d" % number) for number in range(20)])
    assert kcat(*consume).split() == [str(number) for number in range(10)]
    assert kcat(*consume).split() == [str(number) for number in range(10, 20)]


def test_an_idempotent_producer_of_it(kcat: Kcat, topic: str, kafka: str) -> None:
    lines = "".join(f"{number}\n" for number in range(1000))
    kcat("-P", "-t", topic, "-X", "enable.idempotence=true", standard_input=lines)
    eventually(lambda: len(read_to_the_end(kafka, topic)) == 1000, "all records")
    assert fetch_batches(kafka, topic)[0].producer_id >= 0
