"""The embedded broker and the pytest plugin: a real broker inside the caller's program."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import aio_pika
import pika
import pytest

import millpond
from millpond.base.errors import ConfigurationError, DataDirectoryInUse, NotRunning
from millpond.pytest_plugin import BackgroundBroker, millpond_broker  # noqa: F401  (a source tree has no entry points)


@pytest.fixture
def millpond_settings() -> Mapping[str, Any]:
    return {}


async def test_a_message_goes_through_a_broker_in_the_callers_loop() -> None:
    async with millpond.Broker() as broker, await aio_pika.connect(broker.amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("work")
        await channel.default_exchange.publish(aio_pika.Message(b"hello"), routing_key="work")
        message = await queue.get(timeout=10)
        await message.ack()
        assert message.body == b"hello"


async def test_a_data_directory_keeps_what_was_confirmed(tmp_path: Path) -> None:
    for expected in (0, 1):
        async with millpond.Broker(tmp_path) as broker, await aio_pika.connect(broker.amqp_url) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue("work", durable=True)
            assert queue.declaration_result.message_count == expected
            message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, routing_key="work")


async def test_a_data_directory_has_one_broker(tmp_path: Path) -> None:
    async with millpond.Broker(tmp_path):
        with pytest.raises(DataDirectoryInUse):
            await millpond.Broker(tmp_path).start()


async def test_kafkas_protocol_listens_where_it_is_asked_for() -> None:
    async with millpond.Broker() as broker:
        with pytest.raises(NotRunning):
            _ = broker.kafka_address
    async with millpond.Broker(kafka="127.0.0.1:0") as broker:
        reader, writer = await asyncio.open_connection(*broker.address("kafka"))
        assert broker.kafka_address == "{}:{}".format(*broker.address("kafka"))
        # ApiVersions, version 0, correlation id 7, without a client id.
        writer.write(bytes.fromhex("0000000a 0012 0000 00000007 ffff"))
        size = int.from_bytes(await reader.readexactly(4), "big")
        answer = await reader.readexactly(size)
        assert answer[:6] == bytes.fromhex("00000007 0000")
        writer.close()


def test_a_broker_on_a_thread_keeps_its_kafka_address_over_a_restart() -> None:
    broker = BackgroundBroker(kafka="127.0.0.1:0")
    broker.start()
    address = broker.kafka_address
    broker.restart()
    assert broker.kafka_address == address
    broker.stop()


async def test_brokers_in_memory_share_nothing() -> None:
    async with millpond.Broker() as one, millpond.Broker() as other:
        assert one.address() != other.address()


async def test_what_does_not_run_has_no_address() -> None:
    broker = millpond.Broker()
    await broker.stop()
    with pytest.raises(NotRunning):
        broker.address()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kafka": "127.0.0.1:0"}, None),
        ({"kafka": "127.0.0.1:0", "kafka_user": "bob"}, "access to vhost '/' refused for user 'bob'"),
        ({"kafka": "127.0.0.1:0", "kafka_vhost": "shop"}, "access to vhost 'shop' refused for user 'guest'"),
        ({"kafka": "0.0.0.0:0"}, "on other machines are refused unless they log in: user 'guest'"),
        ({"kafka": "0.0.0.0:0", "default_user": "bob", "kafka_user": "bob"}, None),
    ],
)
def test_a_broker_says_at_its_start_where_it_will_refuse_clients_of_kafka(
    caplog: pytest.LogCaptureFixture, settings: dict[str, str], reason: str | None
) -> None:
    broker = BackgroundBroker(**settings)
    broker.start()
    broker.stop()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (0 if reason is None else 1)
    assert reason is None or reason in warnings[0]


def test_a_wrong_setting_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown setting hartbeat_s, did you mean heartbeat_s\?"):
        millpond.Broker(hartbeat_s=3)


def test_importing_millpond_imports_nothing_else() -> None:
    script = (
        "import sys; import millpond; print(sorted(m for m in sys.modules if m in ('asyncio', 'pydantic', 'typer')))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"


def test_the_fixture_serves_a_blocking_client(millpond_broker: BackgroundBroker) -> None:  # noqa: F811
    with pika.BlockingConnection(pika.URLParameters(millpond_broker.amqp_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("work")
        channel.basic_publish("", "work", b"hello")
        assert channel.basic_get("work", auto_ack=True)[2] == b"hello"
    assert millpond_broker.amqp_host == "127.0.0.1"


def test_a_restarted_broker_is_found_where_it_was(millpond_broker: BackgroundBroker) -> None:  # noqa: F811
    url, port = millpond_broker.amqp_url, millpond_broker.amqp_port
    millpond_broker.restart()
    assert millpond_broker.amqp_port == port
    pika.BlockingConnection(pika.URLParameters(url)).close()


def test_a_broker_that_cannot_start_leaves_no_thread_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broker = BackgroundBroker(data_dir=tmp_path / "file" / "pond")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        broker.start()
    assert broker._thread is None
    broker.stop()


def test_the_plugin_is_announced_to_pytest() -> None:
    installed = list(distributions(name="millpond"))
    if not installed:
        pytest.skip("millpond is not installed here: the tests run on its source")
    [entry] = [entry for entry in installed[0].entry_points if entry.group == "pytest11"]
    assert entry.value == "millpond.pytest_plugin"


def test_a_stream_in_memory_keeps_what_its_arguments_allow(millpond_broker: BackgroundBroker) -> None:  # noqa: F811
    arguments = {"x-queue-type": "stream", "x-max-length-bytes": 1000}
    with pika.BlockingConnection(pika.URLParameters(millpond_broker.amqp_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("history", durable=True, arguments=arguments)
        channel.confirm_delivery()
        for number in range(100):
            channel.basic_publish("", "history", b"%d" % number)
        channel.basic_qos(prefetch_count=100)
        for _ in range(2):
            consumed = channel.consume("history", arguments={"x-stream-offset": "first"}, inactivity_timeout=10)
            offsets = []
            for method, properties, body in consumed:
                offsets.append(properties.headers["x-stream-offset"])
                assert offsets[-1] == int(body)
                channel.basic_ack(method.delivery_tag)
                if body == b"99":
                    break
            channel.cancel()
            assert offsets == list(range(offsets[0], 100))
            assert 0 < offsets[0] < 99
        count = channel.queue_declare("history", passive=True).method.message_count
        assert count == len(offsets)
