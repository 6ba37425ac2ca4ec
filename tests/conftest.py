"""The broker that the tests with real clients talk to, and the clients' connections.

One broker process serves the whole session; every test works on names of its own and removes them afterwards. With
`MILLPOND_TEST_AMQP_URL` the same tests run against a broker that is already there, RabbitMQ for example; with
`MILLPOND_TEST_KAFKA_URL`, which is HOST:PORT, those of Kafka's protocol do, against Apache Kafka for example.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from tests.support.broker_process import COMMAND_VARIABLE, KAFKA_ARGUMENTS, BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import Connect, Unique
from tests.support.raw_amqp import RawConnection

EXTERNAL_VARIABLE = "MILLPOND_TEST_AMQP_URL"
EXTERNAL_KAFKA_VARIABLE = "MILLPOND_TEST_KAFKA_URL"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "millpond_only(reason): not run against another broker, which lacks what the test needs"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        variable = EXTERNAL_KAFKA_VARIABLE if "kafka" in getattr(item, "fixturenames", ()) else EXTERNAL_VARIABLE
        marker = item.get_closest_marker("millpond_only")
        if marker is not None and variable in os.environ:
            why = marker.args[0]
            item.add_marker(pytest.mark.skip(reason=f"{variable} names a broker that is not Millpond: {why}"))


@pytest.fixture(scope="session")
def session_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess | None]:
    """The session's broker, or None when the environment names another one."""
    if EXTERNAL_VARIABLE in os.environ:
        yield None
        return
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as process:
        yield process


@pytest.fixture(scope="session")
def session_endpoint(session_broker: BrokerProcess | None) -> Endpoint:
    """Where to connect to, for what is shared by several tests."""
    return Endpoint.of_url(os.environ[EXTERNAL_VARIABLE] if session_broker is None else session_broker.amqp_url)


@pytest.fixture
def broker(session_broker: BrokerProcess | None, session_endpoint: Endpoint) -> Iterator[Endpoint]:
    """Where to connect to. A test after which the broker no longer runs has failed."""
    if session_broker is None:
        yield session_endpoint
        return
    if not session_broker.running:
        session_broker.start()
    yield session_endpoint
    assert session_broker.running, f"the broker ended during this test:\n{session_broker.log[-4000:]}"


@pytest.fixture
def broker_process(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker of the test's own, started, that it may kill and restart."""
    if EXTERNAL_VARIABLE in os.environ and COMMAND_VARIABLE not in os.environ:
        pytest.skip(f"{EXTERNAL_VARIABLE} names a broker that the tests may not kill, and {COMMAND_VARIABLE} none")
    with BrokerProcess(tmp_path / "broker") as process:
        yield process


@pytest.fixture
def connect(broker: Endpoint) -> Iterator[Connect]:
    """Opens pika connections with pika's own keywords, and closes them after the test."""
    opened: list[BlockingConnection] = []

    def open_connection(**overrides: object) -> BlockingConnection:
        connection = BlockingConnection(broker.parameters(**overrides))
        opened.append(connection)
        return connection

    yield open_connection
    for connection in opened:
        if connection.is_open:
            # The broker may have closed it and pika not noticed yet.
            with suppress(pika.exceptions.AMQPError):
                connection.close()


@pytest.fixture
def channel(connect: Connect) -> BlockingChannel:
    return connect().channel()


@pytest.fixture
def unique(broker: Endpoint) -> Iterator[Unique]:
    """Makes names that no other test has. Queues and exchanges of these names are deleted after the test."""
    names: list[str] = []

    def make(stem: str) -> str:
        names.append(f"{stem}-{uuid.uuid4().hex[:12]}")
        return names[-1]

    yield make
    with BlockingConnection(broker.parameters()) as connection:
        for name in names:
            for delete in (BlockingChannel.queue_delete, BlockingChannel.exchange_delete):
                with suppress(pika.exceptions.ChannelClosedByBroker):
                    delete(connection.channel(), name)


@pytest.fixture
def queue(channel: BlockingChannel, unique: Unique) -> str:
    """A classic queue with no arguments."""
    name = unique("queue")
    channel.queue_declare(name)
    return name


@pytest.fixture
def raw(broker: Endpoint) -> Iterator[Callable[..., RawConnection]]:
    """Opens sockets that speak AMQP frame by frame."""
    opened: list[RawConnection] = []

    def open_socket(**options: int) -> RawConnection:
        opened.append(RawConnection(broker, **options))
        return opened[-1]

    yield open_socket
    for connection in opened:
        connection.socket.close()


# --- Kafka's protocol -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def session_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess | None]:
    """The session's broker for Kafka's clients, or None when the environment names another one."""
    if EXTERNAL_KAFKA_VARIABLE in os.environ:
        yield None
        return
    with BrokerProcess(tmp_path_factory.mktemp("kafka"), kafka=True, arguments=KAFKA_ARGUMENTS) as process:
        yield process


@pytest.fixture
def kafka(session_kafka: BrokerProcess | None) -> Iterator[str]:
    """HOST:PORT for Kafka's clients. A test after which the broker no longer runs has failed."""
    if session_kafka is None:
        yield os.environ[EXTERNAL_KAFKA_VARIABLE]
        return
    if not session_kafka.running:
        session_kafka.start()
    yield session_kafka.kafka_address
    assert session_kafka.running, f"the broker ended during this test:\n{session_kafka.log[-4000:]}"


@pytest.fixture
def kafka_process(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker of the test's own, started, with a listener for Kafka's protocol; the test may kill and restart it."""
    if EXTERNAL_KAFKA_VARIABLE in os.environ:
        pytest.skip(f"{EXTERNAL_KAFKA_VARIABLE} names a broker that the tests may not kill")
    with BrokerProcess(tmp_path / "broker", kafka=True, arguments=KAFKA_ARGUMENTS) as process:
        yield process
