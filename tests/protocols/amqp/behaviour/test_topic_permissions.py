"""Topic permissions: which routing keys a user may publish with and bind by at a topic exchange."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from tests.support.broker_process import BrokerProcess, run_operator_command
from tests.support.endpoint import Endpoint
from tests.support.pika_client import channel_refused, drain, wait_ready

pytestmark = pytest.mark.millpond_only("users that the tests manage")

# The user's name has a dot, which in a pattern would stand for any character.
USER, PASSWORD = "topic.user", "secret"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker with a user who may do anything, but at the exchange "guarded" only by some routing keys."""
    with BrokerProcess(tmp_path_factory.mktemp("topics")) as process:
        run_operator_command(process.data, "user", "add", USER, standard_input=f"{PASSWORD}\n")
        run_operator_command(process.data, "permission", "set", USER, ".*", ".*", ".*")
        with BlockingConnection(Endpoint("127.0.0.1", process.port).parameters()) as connection:
            for name in ("guarded", "open", "elsewhere"):
                connection.channel().exchange_declare(name, "topic", durable=True)
            connection.channel().exchange_declare("fan", "fanout", durable=True)
        allow(process, r"^{username}\.", "^(news|own)")
        yield process


def allow(process: BrokerProcess, write: str, read: str, exchange: str = "guarded") -> None:
    run_operator_command(process.data, "permission", "set-topic", USER, exchange, write, read)


@pytest.fixture
def log_in(guarded: BrokerProcess) -> Iterator[Callable[[], BlockingChannel]]:
    opened: list[BlockingConnection] = []

    def open_channel() -> BlockingChannel:
        opened.append(BlockingConnection(Endpoint("127.0.0.1", guarded.port, USER, PASSWORD).parameters()))
        return opened[-1].channel()

    yield open_channel
    for connection in opened:
        if connection.is_open:
            connection.close()


@pytest.fixture
def limited(log_in: Callable[[], BlockingChannel]) -> BlockingChannel:
    return log_in()


@pytest.fixture
def queue(limited: BlockingChannel) -> str:
    name: str = limited.queue_declare("", exclusive=True).method.queue
    return name


def refusal(operation: str, routing_key: str) -> str:
    return (
        f"ACCESS_REFUSED - {operation} access to topic '{routing_key}' in exchange 'guarded' in vhost '/' refused "
        f"for user '{USER}'"
    )


def test_publishing_by_an_allowed_key_works(limited: BlockingChannel, queue: str) -> None:
    limited.queue_bind(queue, "guarded", "own.#")
    limited.queue_bind(queue, "guarded", "news")
    limited.confirm_delivery()
    limited.basic_publish("guarded", f"{USER}.a", b"nowhere")
    # What comes from another exchange was checked there.
    limited.exchange_bind("guarded", "open", "#")
    limited.basic_publish("open", "own.1", b"by way of another exchange")
    assert drain(limited, queue) == [b"by way of another exchange"]


@pytest.mark.parametrize("routing_key", ["news", "topicXuser.a", f"x{USER}.a", ""])
def test_publishing_by_another_key_is_refused(limited: BlockingChannel, routing_key: str) -> None:
    with channel_refused(403, refusal("write", routing_key)):
        limited.basic_publish("guarded", routing_key, b"m")
        limited.basic_qos(prefetch_count=1)


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_further_keys_of_a_message_are_looked_at(limited: BlockingChannel, header: str) -> None:
    properties = pika.BasicProperties(headers={header: [f"{USER}.b", "elsewhere"]})
    with channel_refused(403, refusal("write", "elsewhere")):
        limited.basic_publish("guarded", f"{USER}.a", b"m", properties)
        limited.basic_qos(prefetch_count=1)


def test_other_exchanges_are_not_concerned(limited: BlockingChannel, queue: str) -> None:
    for exchange in ("open", "fan", "amq.direct", "amq.topic"):
        limited.queue_bind(queue, exchange, "anything")
        limited.basic_publish(exchange, "anything", exchange.encode())
    limited.basic_publish("", queue, b"default")
    wait_ready(limited, queue, 5)
    assert drain(limited, queue) == [b"open", b"fan", b"amq.direct", b"amq.topic", b"default"]


def test_binding_by_another_key_is_refused(log_in: Callable[[], BlockingChannel]) -> None:
    channel = log_in()
    name = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(name, "guarded", "news.sport")
    connection = channel.connection
    for key in ("sport", "#", ""):
        with channel_refused(403, refusal("read", key)):
            # An empty key with a named queue stays empty.
            connection.channel().queue_bind(name, "guarded", key)
        with channel_refused(403, refusal("read", key)):
            connection.channel().queue_unbind(name, "guarded", key)
        with channel_refused(403, refusal("read", key)):
            connection.channel().exchange_bind("elsewhere", "guarded", key)
    connection.channel().exchange_bind("elsewhere", "guarded", "news.#")
    connection.channel().exchange_unbind("elsewhere", "guarded", "news.#")


def test_an_administrator_without_topic_permissions_is_free(guarded: BrokerProcess) -> None:
    with BlockingConnection(Endpoint("127.0.0.1", guarded.port).parameters()) as connection:
        channel = connection.channel()
        name = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(name, "guarded", "#")
        channel.basic_publish("guarded", "anything", b"m")
        wait_ready(channel, name, 1)


def test_changes_act_at_once_on_channels_that_have_published_before(
    guarded: BrokerProcess, log_in: Callable[[], BlockingChannel]
) -> None:
    channel = log_in()
    exchange = f"changing-{uuid.uuid4().hex[:12]}"
    channel.exchange_declare(exchange, "topic")
    channel.confirm_delivery()
    channel.basic_publish(exchange, "k", b"m")
    allow(guarded, "^other$", "", exchange)
    with channel_refused(403):
        channel.basic_publish(exchange, "k", b"m")
    run_operator_command(guarded.data, "permission", "clear-topic", USER, exchange)
    channel = channel.connection.channel()
    channel.confirm_delivery()
    channel.basic_publish(exchange, "k", b"m")
    channel.exchange_delete(exchange)


def test_they_survive_a_restart(guarded: BrokerProcess, log_in: Callable[[], BlockingChannel]) -> None:
    guarded.restart()
    test_publishing_by_another_key_is_refused(log_in(), "news")
    listed = run_operator_command(guarded.data, "permission", "list-topic")
    assert f"{USER}\t/\tguarded\t^{{username}}\\.\t^(news|own)\n" in listed
