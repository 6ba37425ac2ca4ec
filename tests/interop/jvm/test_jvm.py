"""RabbitMQ's Java client, and PerfTest, the load generator that is built on it.

What is tried out with the client is written in its own language, beside this file.
"""

from __future__ import annotations

import re
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.foreign_client import actions_on, names_in, play
from tests.support.java import compiled, fetched, java
from tests.support.waiting import eventually

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("*.java"))
SCENARIOS = HERE / "Scenarios.java"
PERF_TEST_DEADLINE_S = 90


@pytest.fixture(scope="session")
def jars(packages: Path) -> str:
    """The class path of the client, of PerfTest and of what they need."""
    return fetched(HERE / "pom.xml", packages / "jvm")


@pytest.fixture(scope="session")
def class_path(jars: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The scenarios, compiled."""
    return compiled(SOURCES, jars, tmp_path_factory.mktemp("classes"))


def scenario_command(class_path: str, url: str, name: str) -> list[str]:
    return java(class_path, "Scenarios", url, name)


@pytest.mark.parametrize("name", names_in(SCENARIOS))
def test_scenario(name: str, class_path: str, broker: Endpoint) -> None:
    play(scenario_command(class_path, broker.url, name), {})


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker of the scenario's own, that is short of memory soon."""
    with BrokerProcess(tmp_path / "broker", arguments=["--memory-budget", "1MiB"]) as process:
        yield process


@pytest.mark.millpond_only("a broker with a small memory budget, which can be killed")
@pytest.mark.parametrize("name", names_in(SCENARIOS, "ownBrokerScenario"))
def test_scenario_with_a_broker_of_its_own(name: str, class_path: str, own_broker: BrokerProcess) -> None:
    actions = actions_on(own_broker)
    try:
        play(scenario_command(class_path, own_broker.amqp_url, name), {}, actions)
    finally:
        # A scenario that failed may have left it stopped, deaf to SIGTERM.
        actions["resume"]()


# --- PerfTest ---------------------------------------------------------------------------------------------------------

MESSAGES = 20_000
# The last of them needs queues of another type than the default one.
PERF_TESTS = {
    "one producer and one consumer": ["--pmessages", "20000", "--qos", "500"],
    "confirmed publishes": ["--pmessages", "20000", "--confirm", "200", "--qos", "500"],
    "four producers and four consumers": ["-x", "4", "-y", "4", "--pmessages", "5000", "--qos", "100"],
    "persistent messages, many acknowledged at once": [
        *("--flag", "persistent", "--pmessages", "20000", "--confirm", "500"),
        *("--qos", "500", "--multi-ack-every", "100"),
    ],
    "a quorum queue": [
        "--quorum-queue",
        "--flag",
        "persistent",
        "--pmessages",
        "20000",
        "--confirm",
        "500",
        "-q",
        "200",
    ],
}


@pytest.fixture(scope="module")
def measured_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker whose counters are nobody else's."""
    with BrokerProcess(tmp_path_factory.mktemp("broker"), arguments=["--admin", "127.0.0.1:0"]) as process:
        yield process


def counters(broker: BrokerProcess, *names: str) -> list[int]:
    """The values of metrics that have no labels."""
    request = urllib.request.Request(f"http://{broker.listeners['admin']}/metrics")
    request.add_header("Authorization", "Basic Z3Vlc3Q6Z3Vlc3Q=")
    with urllib.request.urlopen(request, timeout=10) as response:
        text = response.read().decode()
    return [int(float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])) for name in names]


@pytest.mark.millpond_only("the broker's own counters are read")
@pytest.mark.parametrize("options", PERF_TESTS.values(), ids=PERF_TESTS.keys())
def test_perf_test(options: list[str], jars: str, measured_broker: BrokerProcess) -> None:
    """PerfTest ends well, and everything that it has published has been consumed and acknowledged, once."""
    published, settled = "rabbitmq_queue_messages_published_total", "millpond_queue_messages_settled_total"
    before = counters(measured_broker, published, settled)
    queue = f"perf-test-{uuid.uuid4().hex[:8]}"
    perf_test = ["java", "-cp", jars, "com.rabbitmq.perf.PerfTest", "--uri", measured_broker.amqp_url]
    # It stops when its producers are done and its consumers have had nothing to do for a second.
    perf_test += ["--queue", queue, "--auto-delete", "false", "--exit-when", "idle", *options]
    done = subprocess.run(perf_test, capture_output=True, text=True, timeout=PERF_TEST_DEADLINE_S)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "Producer reached message limit" in done.stdout, done.stdout[-4000:]
    [received] = re.findall(r"receiving rate avg: (\d+) msg/s", done.stdout)
    assert int(received) > 0

    def difference() -> bool:
        after = counters(measured_broker, published, settled)
        return [now - then for now, then in zip(after, before, strict=True)] == [MESSAGES, MESSAGES]

    eventually(difference, "as many are settled as were published")
    with pika.BlockingConnection(pika.URLParameters(measured_broker.amqp_url)) as connection:
        assert connection.channel().queue_delete(queue).method.message_count == 0
