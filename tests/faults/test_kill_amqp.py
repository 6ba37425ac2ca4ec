"""A broker that is killed, and one that is stopped, seen by its AMQP clients.

What is guaranteed, and what is not:

- A persistent message in a durable queue whose publish was confirmed, or whose transaction was committed, is there
  after SIGKILL, in the order of its publisher. One that was not confirmed may be there as well, in order too.
- A message that was delivered and not acknowledged comes back with the redelivered flag. One that was never delivered
  may have the flag too, after a kill: it says that a message may have been seen.
- An acknowledgement is durable when a transaction committed it, or when something that the broker did after it was
  confirmed. One that was only sent may be lost, and its message is then delivered again: at least once, never less.
- A clean stop forgets nothing durable, and keeps nothing transient.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pamqp.commands as commands
import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import (
    Inbox,
    channel_refused,
    drain,
    get,
    numbered,
    publish,
    ready_count,
    wait_ready,
)
from tests.support.raw_amqp import RawConnection

MESSAGES = 10_000
QUEUES = 5
PERSISTENT = commands.Basic.Properties(delivery_mode=2)


@pytest.fixture
def connect(broker_process: BrokerProcess) -> Iterator[Callable[[], BlockingConnection]]:
    """Connections to the test's own broker. A broker that was killed has lost those made before."""
    opened: list[BlockingConnection] = []

    def open_connection() -> BlockingConnection:
        opened.append(BlockingConnection(Endpoint.of_url(broker_process.amqp_url).parameters()))
        return opened[-1]

    yield open_connection
    for connection in opened:
        if connection.is_open:
            try:
                connection.close()
            except pika.exceptions.AMQPError:
                # Its broker is gone.
                continue


Connect = Callable[[], BlockingConnection]


def declare_durable(channel: BlockingChannel, *names: str) -> None:
    for name in names:
        channel.queue_declare(name, durable=True)


def take_all(channel: BlockingChannel, queue: str) -> list[tuple[int, bool]]:
    """Every message's number and redelivered flag, in the queue's order."""
    waiting = ready_count(channel, queue)
    inbox = Inbox(channel, queue, auto_ack=True)
    inbox.wait(waiting)
    inbox.cancel()
    return [(int(delivery.body.split(b" ")[0]), delivery.redelivered) for delivery in inbox.deliveries]


class TestKilledWhilePublishing:
    """10,000 persistent messages to several queues, SIGKILL in the middle of them."""

    @staticmethod
    def publish_until_killed(broker: BrokerProcess, names: list[str]) -> tuple[int, set[int]]:
        """Publish as fast as the socket takes it and kill the broker in the middle.

        Returns how many were sent, and the numbers of those that were confirmed. Message n goes to queue n mod QUEUES.
        """
        confirmed: set[int] = set()
        sent = 0
        with RawConnection(Endpoint.of_url(broker.amqp_url)) as connection:
            connection.handshake()
            connection.open_channel()
            connection.rpc(commands.Confirm.Select(), commands.Confirm.SelectOk)

            def read_confirms() -> None:
                _, frame = connection.read_frame()
                assert isinstance(frame, commands.Basic.Ack)
                first = 1 if frame.multiple else frame.delivery_tag
                # Delivery tags count from one, the messages from zero.
                confirmed.update(range(first - 1, frame.delivery_tag))

            batch = 50
            killed = False
            try:
                while sent < MESSAGES:
                    connection.send_bytes(
                        b"".join(
                            connection.encode_publish(
                                1, names[number % QUEUES], b"%d " % number + b"x" * 200, properties=PERSISTENT
                            )
                            for number in range(sent, sent + batch)
                        )
                    )
                    sent += batch
                    # At most a thousand are under way, so that the kill finds work in every stage.
                    while not killed and sent - len(confirmed) > 1000:
                        read_confirms()
                    if not killed and len(confirmed) >= MESSAGES // 2:
                        broker.kill()
                        killed = True
            except (BrokenPipeError, ConnectionResetError):
                pass
            # What the broker had sent before it died still counts.
            try:
                while True:
                    read_confirms()
            except EOFError:
                pass
        assert not broker.running
        return sent, confirmed

    def test_every_confirmed_message_is_there_in_order(self, broker_process: BrokerProcess, connect: Connect) -> None:
        names = [f"orders-{number}" for number in range(QUEUES)]
        declare_durable(connect().channel(), *names)
        sent, confirmed = self.publish_until_killed(broker_process, names)
        assert len(confirmed) >= MESSAGES // 2
        assert len(confirmed) < MESSAGES, "the kill came too late to be in the middle"

        broker_process.start()
        channel = connect().channel()
        for position, name in enumerate(names):
            recovered = [number for number, _ in take_all(channel, name)]
            assert recovered == sorted(set(recovered)), "in order, and none twice"
            lost = {number for number in confirmed if number % QUEUES == position} - set(recovered)
            assert not lost, f"{len(lost)} confirmed messages of {name} are lost, the first is {min(lost)}"
            assert set(recovered) <= set(range(position, sent, QUEUES)), "none that was never sent"

    def test_killed_again_and_again_nothing_confirmed_is_lost(
        self, broker_process: BrokerProcess, connect: Connect
    ) -> None:
        declare_durable(connect().channel(), "survivor")
        confirmed: list[int] = []
        for round_number in range(3):
            channel = connect().channel()
            channel.confirm_delivery()
            for number in range(round_number * 100, round_number * 100 + 100):
                publish(channel, "survivor", b"%d" % number, delivery_mode=2)
                confirmed.append(number)
            broker_process.kill()
            broker_process.start()
        assert [number for number, _ in take_all(connect().channel(), "survivor")] == confirmed


class TestKilledWhileConsuming:
    def test_what_was_delivered_comes_back_flagged_redelivered(
        self, broker_process: BrokerProcess, connect: Connect
    ) -> None:
        publisher = connect().channel()
        declare_durable(publisher, "work")
        publisher.confirm_delivery()
        publish(publisher, "work", *numbered(100), delivery_mode=2)
        consumer = connect().channel()
        consumer.basic_qos(prefetch_count=40)
        Inbox(consumer, "work").wait(40)
        # The deliveries are known to have happened before this publish was made durable.
        publish(publisher, "work", b"100", delivery_mode=2)
        broker_process.kill()
        broker_process.start()
        recovered = take_all(connect().channel(), "work")
        assert [number for number, _ in recovered] == list(range(101))
        flagged = {number for number, redelivered in recovered if redelivered}
        assert flagged >= set(range(40)), "all that was delivered is flagged"

    @pytest.mark.millpond_only("RabbitMQ writes a transaction's acknowledgements some time after its commit")
    def test_committed_acknowledgements_do_not_come_back(self, broker_process: BrokerProcess, connect: Connect) -> None:
        channel = connect().channel()
        declare_durable(channel, "work", "done")
        channel.tx_select()
        publish(channel, "work", *numbered(100), delivery_mode=2)
        channel.tx_commit()
        channel.basic_qos(prefetch_count=100)
        inbox = Inbox(channel, "work")
        inbox.wait(100)
        for delivery in inbox.deliveries[:60]:
            publish(channel, "done", delivery.body, delivery_mode=2)
            delivery.ack()
        channel.tx_commit()
        broker_process.kill()
        broker_process.start()
        channel = connect().channel()
        # Each message is in one of the two, and in one only.
        assert [number for number, _ in take_all(channel, "done")] == list(range(60))
        assert take_all(channel, "work") == [(number, True) for number in range(60, 100)]

    def test_acknowledgements_before_a_confirmed_publish_do_not_come_back(
        self, broker_process: BrokerProcess, connect: Connect
    ) -> None:
        channel = connect().channel()
        declare_durable(channel, "work")
        channel.confirm_delivery()
        publish(channel, "work", *numbered(50), delivery_mode=2)
        inbox = Inbox(channel, "work")
        for delivery in inbox.wait(50)[::2]:
            delivery.ack()
        # One journal: what is durable now includes what came before.
        publish(channel, "work", b"50", delivery_mode=2)
        broker_process.kill()
        broker_process.start()
        recovered = [number for number, _ in take_all(connect().channel(), "work")]
        assert recovered == [*range(1, 50, 2), 50]

    def test_uncommitted_publishes_and_acknowledgements_never_happened(
        self, broker_process: BrokerProcess, connect: Connect
    ) -> None:
        setup = connect().channel()
        declare_durable(setup, "work", "done")
        setup.confirm_delivery()
        publish(setup, "work", *numbered(10), delivery_mode=2)
        channel = connect().channel()
        channel.tx_select()
        inbox = Inbox(channel, "work")
        for delivery in inbox.wait(10):
            publish(channel, "done", delivery.body, delivery_mode=2)
            delivery.ack()
        # Answered, so the broker has read all of the above.
        assert ready_count(channel, "done") == 0
        broker_process.kill()
        broker_process.start()
        after = connect().channel()
        assert ready_count(after, "done") == 0
        assert [number for number, _ in take_all(after, "work")] == list(range(10))


class TestKilledAfterAdministration:
    def test_what_was_declared_deleted_bound_and_purged_stays_so(
        self, broker_process: BrokerProcess, connect: Connect
    ) -> None:
        channel = connect().channel()
        channel.exchange_declare("kept-exchange", "topic", durable=True)
        channel.exchange_declare("deleted-exchange", "topic", durable=True)
        declare_durable(channel, "kept", "deleted", "purged")
        channel.queue_bind("kept", "kept-exchange", "a.#")
        channel.queue_bind("kept", "kept-exchange", "b.#")
        channel.confirm_delivery()
        publish(channel, "purged", *numbered(5), delivery_mode=2)
        channel.queue_unbind("kept", "kept-exchange", "b.#")
        channel.queue_delete("deleted")
        channel.exchange_delete("deleted-exchange")
        channel.queue_purge("purged")
        publish(channel, "purged", b"5", delivery_mode=2)
        broker_process.kill()
        broker_process.start()

        connection = connect()
        channel = connection.channel()
        channel.exchange_declare("kept-exchange", "topic", durable=True)
        declare_durable(channel, "kept")
        channel.basic_publish("kept-exchange", "a.x", b"bound")
        channel.basic_publish("kept-exchange", "b.x", b"unbound")
        wait_ready(channel, "kept", 1)
        assert drain(channel, "kept") == [b"bound"]
        assert drain(channel, "purged") == [b"5"]
        with channel_refused(404):
            connection.channel().queue_declare("deleted", passive=True)
        with channel_refused(404):
            connection.channel().exchange_declare("deleted-exchange", passive=True)


class TestCleanRestart:
    def test_keeps_what_is_durable_and_drops_what_is_transient(
        self, broker_process: BrokerProcess, connect: Connect
    ) -> None:
        channel = connect().channel()
        channel.exchange_declare("durable-exchange", "direct", durable=True)
        channel.exchange_declare("transient-exchange", "direct")
        channel.exchange_declare("durable-target", "fanout", durable=True)
        channel.queue_declare(
            "durable-queue", durable=True, arguments={"x-max-length": 100, "x-dead-letter-exchange": "durable-target"}
        )
        channel.queue_declare("transient-queue")
        channel.queue_bind("durable-queue", "durable-exchange", "key")
        channel.queue_bind("durable-queue", "transient-exchange", "key")
        channel.exchange_bind("durable-target", "durable-exchange", "copy")
        channel.queue_bind("durable-queue", "durable-target")
        headers = {"nested": {"a": [1, "two"]}}
        for number in range(10):
            persistence = 2 if number % 2 == 0 else 1
            properties = pika.BasicProperties(delivery_mode=persistence, headers=headers, message_id=str(number))
            channel.basic_publish("", "durable-queue", b"%d" % number, properties)
        publish(channel, "transient-queue", b"persistent in a transient queue", delivery_mode=2)
        wait_ready(channel, "durable-queue", 10)

        broker_process.restart()

        connection = connect()
        channel = connection.channel()
        # The same declarations are equivalent: nothing was forgotten of them.
        channel.exchange_declare("durable-exchange", "direct", durable=True)
        channel.queue_declare(
            "durable-queue", durable=True, arguments={"x-max-length": 100, "x-dead-letter-exchange": "durable-target"}
        )
        for kind in ("queue", "exchange"):
            with channel_refused(404):
                other = connection.channel()
                declare = other.queue_declare if kind == "queue" else other.exchange_declare
                declare(f"transient-{kind}", passive=True)
        assert ready_count(channel, "durable-queue") == 5
        for number in range(0, 10, 2):
            delivery = get(channel, "durable-queue")
            assert (delivery.body, delivery.redelivered) == (b"%d" % number, False)
            assert (delivery.properties.message_id, delivery.headers) == (str(number), headers)
        channel.basic_publish("durable-exchange", "key", b"by queue binding")
        channel.basic_publish("durable-exchange", "copy", b"by exchange binding")
        wait_ready(channel, "durable-queue", 2)
        assert drain(channel, "durable-queue") == [b"by queue binding", b"by exchange binding"]

    def test_acknowledged_messages_do_not_come_back(self, broker_process: BrokerProcess, connect: Connect) -> None:
        channel = connect().channel()
        declare_durable(channel, "work")
        publish(channel, "work", *numbered(30), delivery_mode=2)
        inbox = Inbox(channel, "work")
        for delivery in inbox.wait(30)[:10]:
            delivery.ack()
        assert ready_count(channel, "work") == 0
        broker_process.restart()
        recovered = take_all(connect().channel(), "work")
        assert recovered == [(number, True) for number in range(10, 30)]

    def test_positions_in_the_queue_are_kept(self, broker_process: BrokerProcess, connect: Connect) -> None:
        channel = connect().channel()
        declare_durable(channel, "work")
        publish(channel, "work", *numbered(10), delivery_mode=2)
        wait_ready(channel, "work", 10)
        tags = [get(channel, "work", auto_ack=False).tag for _ in range(5)]
        channel.basic_ack(tags[1])
        channel.basic_nack(tags[3], requeue=True)
        wait_ready(channel, "work", 6)
        broker_process.restart()
        recovered = take_all(connect().channel(), "work")
        assert [number for number, _ in recovered] == [0, 2, 3, 4, 5, 6, 7, 8, 9]

    def test_clients_are_told_and_the_port_is_taken_again(
        self, broker_process: BrokerProcess, connect: Connect
    ) -> None:
        connection = connect()
        connection.channel()
        assert broker_process.terminate() == 0
        with pytest.raises(pika.exceptions.AMQPConnectionError) as lost:
            connection.process_data_events(time_limit=10)
        assert "320" in str(lost.value), "CONNECTION_FORCED tells a shutdown from a crash"
        broker_process.start()
        assert connect().is_open

    def test_time_to_live_runs_on_over_a_restart(self, broker_process: BrokerProcess, connect: Connect) -> None:
        channel = connect().channel()
        declare_durable(channel, "expired")
        channel.queue_declare(
            "expiring",
            durable=True,
            arguments={"x-message-ttl": 2000, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "expired"},
        )
        channel.confirm_delivery()
        publish(channel, "expiring", b"m", delivery_mode=2)
        broker_process.restart()
        channel = connect().channel()
        wait_ready(channel, "expired", 1)
        assert get(channel, "expired").headers["x-death"][0]["reason"] == "expired"


@pytest.mark.millpond_only("its own command line")
def test_a_second_broker_on_the_same_data_is_refused(broker_process: BrokerProcess, tmp_path: Path) -> None:
    second = BrokerProcess(tmp_path / "second")
    second.data = broker_process.data
    with pytest.raises(AssertionError, match="75"):
        second.start()
    second.stop()
    assert broker_process.running


@pytest.mark.millpond_only("its own command line")
def test_a_broker_in_memory_leaves_nothing_on_disk(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "broker", arguments=["--memory"]) as process:
        with BlockingConnection(Endpoint.of_url(process.amqp_url).parameters()) as connection:
            channel = connection.channel()
            declare_durable(channel, "work")
            channel.confirm_delivery()
            publish(channel, "work", *numbered(10), delivery_mode=2)
            assert drain(channel, "work") == numbered(10)
        assert process.terminate() == 0
    assert not process.data.exists()


@pytest.mark.millpond_only("its own contract of signals")
def test_interrupt_stops_as_cleanly_as_terminate(broker_process: BrokerProcess, connect: Connect) -> None:
    channel = connect().channel()
    declare_durable(channel, "work")
    publish(channel, "work", *numbered(10), delivery_mode=2)
    wait_ready(channel, "work", 10)
    assert broker_process.end(signal.SIGINT) in (0, 130)
    broker_process.start()
    assert [number for number, _ in take_all(connect().channel(), "work")] == list(range(10))
