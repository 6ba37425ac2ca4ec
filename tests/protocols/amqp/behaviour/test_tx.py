"""Transactions: publishes and acknowledgements of a channel take effect at the commit, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pamqp.commands as commands
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.pika_client import (
    Connect,
    Inbox,
    Unique,
    channel_refused,
    drain,
    get,
    numbered,
    publish,
    ready_count,
    wait_ready,
)
from tests.support.raw_amqp import RawConnection


@pytest.fixture
def transactional(channel: BlockingChannel) -> BlockingChannel:
    channel.tx_select()
    return channel


class TestPublishes:
    def test_are_seen_by_nobody_before_the_commit(
        self, connect: Connect, transactional: BlockingChannel, queue: str
    ) -> None:
        observer = connect().channel()
        publish(transactional, queue, *numbered(3))
        # An answered method on the same channel: the broker has handled the publishes by now.
        assert ready_count(transactional, queue) == 0
        transactional.tx_commit()
        assert drain(observer, queue) == numbered(3)

    def test_are_gone_after_a_rollback(self, connect: Connect, transactional: BlockingChannel, queue: str) -> None:
        publish(transactional, queue, b"rolled back")
        transactional.tx_rollback()
        publish(transactional, queue, b"committed")
        transactional.tx_commit()
        assert drain(connect().channel(), queue) == [b"committed"]

    def test_are_gone_when_the_channel_closes(
        self, connect: Connect, transactional: BlockingChannel, queue: str
    ) -> None:
        publish(transactional, queue, b"never committed")
        transactional.close()
        assert drain(connect().channel(), queue) == []

    def test_a_committed_persistent_message_is_fetched_at_once(
        self, connect: Connect, transactional: BlockingChannel, queue: str
    ) -> None:
        reader = connect().channel()
        for body in numbered(10):
            publish(transactional, queue, body, delivery_mode=2)
            transactional.tx_commit()
            assert get(reader, queue).body == body

    def test_one_that_a_full_queue_refuses_is_406_at_the_commit(
        self, connect: Connect, transactional: BlockingChannel, queue: str, unique: Unique
    ) -> None:
        full = unique("full")
        transactional.queue_declare(full, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        publish(transactional, full, b"first", b"refused")
        publish(transactional, queue, b"other")
        with channel_refused(406, "PRECONDITION_FAILED - partial tx completion"):
            transactional.tx_commit()
        reader = connect().channel()
        assert drain(reader, full) == [b"first"]
        assert drain(reader, queue) == [b"other"]

    def test_an_unroutable_mandatory_message_is_returned_at_the_commit(self, raw: Callable[..., RawConnection]) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        connection.rpc(commands.Tx.Select(), commands.Tx.SelectOk)
        connection.publish(1, "no-such-queue", b"m", mandatory=True)
        connection.send(commands.Tx.Commit(), 1)
        frames = connection.read_until(lambda frame: isinstance(frame, commands.Tx.CommitOk))
        assert isinstance(frames[0], commands.Basic.Return)


class TestAcknowledgements:
    def test_take_effect_at_the_commit(self, connect: Connect, transactional: BlockingChannel, queue: str) -> None:
        publish(connect().channel(), queue, *numbered(4))
        wait_ready(transactional, queue, 4)
        Inbox(transactional, queue).wait(4)
        transactional.basic_ack(2, multiple=True)
        transactional.tx_commit()
        transactional.basic_ack(4)
        transactional.close()
        observer = connect().channel()
        wait_ready(observer, queue, 2)
        # Only the committed acknowledgements counted.
        assert drain(observer, queue) == [b"2", b"3"]

    def test_may_be_given_again_after_a_rollback(
        self, connect: Connect, transactional: BlockingChannel, queue: str
    ) -> None:
        publish(connect().channel(), queue, b"m")
        wait_ready(transactional, queue, 1)
        Inbox(transactional, queue).wait(1)
        transactional.basic_ack(1)
        transactional.tx_rollback()
        transactional.basic_ack(1)
        transactional.tx_commit()
        transactional.close()
        assert ready_count(connect().channel(), queue) == 0

    def test_a_rejection_requeues_at_the_commit(
        self, connect: Connect, transactional: BlockingChannel, queue: str
    ) -> None:
        observer = connect().channel()
        publish(observer, queue, b"m")
        wait_ready(observer, queue, 1)
        tag = get(transactional, queue, auto_ack=False).tag
        transactional.basic_reject(tag, requeue=True)
        assert ready_count(transactional, queue) == 0
        transactional.tx_commit()
        wait_ready(observer, queue, 1)
        assert get(observer, queue).redelivered

    def test_move_a_message_from_queue_to_queue_as_one(
        self, connect: Connect, transactional: BlockingChannel, queue: str
    ) -> None:
        observer = connect().channel()
        target = str(transactional.queue_declare("", exclusive=True).method.queue)
        publish(observer, queue, b"work")
        wait_ready(observer, queue, 1)
        delivery = get(transactional, queue, auto_ack=False)
        publish(transactional, target, delivery.body + b" done")
        transactional.basic_ack(delivery.tag)
        assert (ready_count(transactional, queue), ready_count(transactional, target)) == (0, 0)
        transactional.tx_commit()
        assert drain(transactional, target) == [b"work done"]
        assert drain(transactional, queue) == []


class TestState:
    @pytest.mark.parametrize("operation", ["commit", "rollback"])
    def test_without_a_select_is_406(self, channel: BlockingChannel, operation: str) -> None:
        with channel_refused(406, "PRECONDITION_FAILED - channel is not transactional"):
            if operation == "commit":
                channel.tx_commit()
            else:
                channel.tx_rollback()

    def test_an_empty_commit_and_a_second_select_are_fine(self, channel: BlockingChannel) -> None:
        channel.tx_select()
        channel.tx_select()
        channel.tx_commit()
        channel.tx_rollback()

    def test_a_publish_to_a_missing_exchange_closes_the_channel(self, transactional: BlockingChannel) -> None:
        with channel_refused(404):
            transactional.basic_publish("no-such-exchange", "", b"m")
            transactional.tx_commit()
