"""Alarms, and clients that ask for more than they read: nobody takes memory without bound, nobody else waits."""

from __future__ import annotations

from millpond.base.limits import OUTPUT_BYTES_MAX, UNSETTLED_WHEN_SHORT_MAX
from millpond.broker.message import Address, Message
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.properties import EMPTY, parse_properties
from tests.protocols.amqp.harness import Client, Pond, header_frame, method_frame, pond_of


class TestAlarms:
    def test_only_publishers_with_the_capability_are_told_and_once(self, pond: Pond) -> None:
        publisher = pond.client(channels=1)
        consumer = pond.client(channels=1)
        plain = pond.client(channels=1, capabilities={})
        publisher.declare(1, "q")
        consumer.consume(1, "q")
        publisher.publish(1, "q")
        plain.publish(1, "q")
        assert len(consumer.messages()) == 2
        pond.broker.alarms.raise_alarm("disk")
        assert publisher.expect(methods.ConnectionBlocked).reason == "low on disk"
        assert consumer.frames() == []
        assert plain.frames() == []
        assert (publisher.transport.is_reading, plain.transport.is_reading) == (False, False)
        assert consumer.transport.is_reading
        pond.broker.alarms.raise_alarm("storage")
        pond.broker.alarms.clear_alarm("disk")
        assert publisher.frames() == []
        assert not publisher.transport.is_reading
        pond.broker.alarms.clear_alarm("storage")
        publisher.expect(methods.ConnectionUnblocked)
        assert plain.frames() == []
        assert (publisher.transport.is_reading, plain.transport.is_reading) == (True, True)

    def test_a_client_is_told_when_it_publishes_for_the_first_time(self, pond: Pond) -> None:
        pond.broker.alarms.raise_alarm("disk")
        client = pond.client(channels=1)
        client.declare(1, "q")
        client.publish(1, "q")
        client.expect(methods.ConnectionBlocked)
        assert not client.transport.is_reading
        pond.broker.alarms.clear_alarm("disk")
        client.expect(methods.ConnectionUnblocked)
        assert client.ready(1, "q") == 1

    def test_memory_blocks_publishers_until_consumers_have_made_room(self) -> None:
        with pond_of(memory_budget=100_000) as pond:
            publisher = pond.client(channels=1)
            publisher.declare(1, "q")
            publisher.publish(1, "q", bytes(120_000))
            publisher.expect(methods.ConnectionBlocked)
            consumer = pond.client(channels=1)
            consumer.consume(1, "q", no_ack=True)
            assert len(consumer.messages()) == 1
            pond.broker.turn.touch()
            publisher.expect(methods.ConnectionUnblocked)

    def test_a_blocked_client_may_leave(self, pond: Pond) -> None:
        client = pond.client(channels=1)
        client.publish(1, "q")
        pond.broker.alarms.raise_alarm("disk")
        client.frames()
        client.connection.close_by_operator("bye")
        assert client.expect_closed()[:2] == (320, "CONNECTION_FORCED - bye")
        pond.broker.alarms.clear_alarm("disk")
        assert client.frames() == []

    def test_the_end_of_an_alarm_does_not_resume_a_connection_that_waits_for_another_reason(self, pond: Pond) -> None:
        client = pond.client(channels=1)
        client.publish(1, "q")
        pond.broker.alarms.raise_alarm("disk")
        client.connection.suspend()
        pond.broker.alarms.clear_alarm("disk")
        pond.rest()
        assert not client.transport.is_reading
        client.connection.go_on()
        assert client.transport.is_reading


class TestSlowReaders:
    def test_deliveries_stop_when_the_output_is_full_and_go_on_when_it_is_read(self, pond: Pond) -> None:
        publisher = pond.client(channels=1)
        publisher.declare(1, "q")
        for _ in range(100):
            publisher.publish(1, "q", bytes(100_000))
        slow = pond.client(channels=1)
        slow.connection.pause_writing()
        slow.send(1, methods.BasicConsume(queue="q", consumer_tag="c", no_ack=True))
        before = len(slow.output())
        assert before < 2 * OUTPUT_BYTES_MAX
        assert publisher.ready(1, "q") == 100
        slow.connection.resume_writing()
        # Everything is written at once here, in pieces of what may wait at a time.
        assert len(slow.output()) > 100 * 100_000
        assert publisher.ready(1, "q") == 0

    def test_a_client_that_asks_but_does_not_read_is_not_read_from(self, pond: Pond) -> None:
        client = pond.client(channels=1)
        client.declare(1, "q")
        client.publish(1, "q", bytes(500_000))
        pond.rest()
        client.connection.pause_writing()
        sent = len(client.transport.sent)
        get = method_frame(1, methods.BasicGet(queue="q")) + method_frame(
            1, methods.BasicNack(delivery_tag=0, multiple=True)
        )
        fed = 0
        transport = client.transport
        while transport.is_reading:
            client.feed(get * 50)
            pond.rest()
            fed += 50
            assert fed < 10_000, "it is still read from"
        assert len(client.transport.sent) - sent < 4 * OUTPUT_BYTES_MAX
        client.connection.resume_writing()
        pond.rest()
        assert client.transport.is_reading
        found = [frame for frame in client.frames() if frame.kind == 1]
        assert sum(isinstance(frame.method, methods.BasicGetOk) for frame in found) == fed

    def test_answers_that_nobody_reads_are_bounded(self, pond: Pond) -> None:
        client = pond.client(channels=1)
        client.connection.pause_writing()
        sent = len(client.transport.sent)
        qos = method_frame(1, methods.BasicQos(prefetch_count=1)) * 5000
        for _ in range(200):
            if client.transport.is_reading:
                client.feed(qos)
                pond.rest()
        assert not client.transport.is_reading
        assert len(client.transport.sent) - sent < 2 * OUTPUT_BYTES_MAX

    def test_returned_messages_that_nobody_reads_are_bounded(self, pond: Pond) -> None:
        client = pond.client(channels=1)
        client.connection.pause_writing()
        sent = len(client.transport.sent)
        for _ in range(100):
            if client.transport.is_reading:
                client.publish(1, "nowhere", bytes(200_000), mandatory=True)
                pond.rest()
        assert not client.transport.is_reading
        assert len(client.transport.sent) - sent < 2 * OUTPUT_BYTES_MAX

    def test_one_chunk_that_asks_for_much_is_answered_in_pieces(self, pond: Pond) -> None:
        client = pond.client(channels=1)
        client.declare(1, "q")
        for _ in range(40):
            client.publish(1, "q", bytes(400_000))
        pond.rest()
        largest = 0
        write = client.transport.write

        def measure(data: bytes) -> None:
            nonlocal largest
            largest = max(largest, len(data))
            write(data)

        client.transport.write = measure  # type: ignore[method-assign]
        client.feed(method_frame(1, methods.BasicGet(queue="q", no_ack=True)) * 40)
        assert len(client.messages()) == 40
        assert largest < 2 * OUTPUT_BYTES_MAX

    def test_consumers_that_come_and_go_while_nothing_is_read_leave_nothing_behind(self, pond: Pond) -> None:
        client = pond.client(channels=1)
        client.declare(1, "q")
        client.publish(1, "q")
        pond.rest()
        client.connection.pause_writing()
        for number in range(200):
            client.send(1, methods.BasicConsume(queue="q", consumer_tag=f"c{number % 3}", nowait=True))
            pond.rest()
            client.send(1, methods.BasicCancel(consumer_tag=f"c{number % 3}", nowait=True))
            pond.rest()
        assert len(client.connection._stalled) == 0
        client.send(1, methods.BasicConsume(queue="q", consumer_tag="last", nowait=True))
        for _ in range(100):
            client.send(1, methods.BasicQos(prefetch_count=0, global_=True))
            pond.rest()
        assert len(client.connection._stalled) == 1
        client.connection.resume_writing()
        assert [type(frame.method) for frame in client.frames() if frame.kind == 1][-1] is methods.BasicDeliver

    def test_a_slow_reader_may_close(self, pond: Pond) -> None:
        client = pond.client(channels=1)
        client.connection.pause_writing()
        client.feed(method_frame(1, methods.BasicQos()) * 120_000 + method_frame(0, methods.ConnectionClose()))
        pond.rest()
        assert not client.transport.is_closed
        client.connection.resume_writing()
        assert client.methods()[-1] == methods.ConnectionCloseOk()
        assert client.transport.is_reading


class TestPartialInput:
    def test_a_frame_that_does_not_come_to_its_end_takes_no_more_than_frame_max(self, client: Client) -> None:
        client.feed(b"\x01\x00\x01" + (131_064).to_bytes(4, "big"))
        for _ in range(131_064 // 1024 - 1):
            client.feed(bytes(1024))
        assert len(client.connection._partial) <= 131_072

    def test_many_half_messages_do_not_disturb_each_other(self, pond: Pond) -> None:
        client = pond.client()
        for number in range(1, 101):
            client.open_channel(number)
            client.feed(method_frame(number, methods.BasicPublish(routing_key="q")) + header_frame(number, 1 << 20))
        other = pond.client(channels=1)
        other.declare(1, "q")
        other.publish(1, "q")
        assert other.ready(1, "q") == 1
        client.drop()
        assert other.ready(1, "q") == 1


NOTHING = parse_properties(EMPTY)


class TestConsumersThatSettleNothing:
    """Above the budget a consumer without a prefetch limit is given no more than so many messages at a time."""

    def test_they_are_held_while_memory_is_short_and_granted_more_from_time_to_time(self, pond: Pond) -> None:
        client, memory = pond.client(channels=1), pond.broker.memory
        client.declare(1, "work")
        client.consume(1, "work")
        taken = 0
        memory.used += memory.budget_bytes * 2
        for expected in (UNSETTLED_WHEN_SHORT_MAX, UNSETTLED_WHEN_SHORT_MAX, UNSETTLED_WHEN_SHORT_MAX):
            queue = pond.broker.vhosts["/"].queues["work"]
            for _ in range(UNSETTLED_WHEN_SHORT_MAX + 1):
                queue.publish(Message(Address("", "work"), NOTHING, b"m", 0))
            pond.rest()
            assert len(client.bodies()) == expected
            taken += expected
            memory.grant()
            pond.rest()
        assert len(client.bodies()) == 3, "what is left, as it was granted"
        memory.used -= memory.budget_bytes * 2

    def test_they_go_on_when_memory_is_free_again(self, pond: Pond) -> None:
        client, memory = pond.client(channels=1), pond.broker.memory
        client.declare(1, "work")
        client.consume(1, "work")
        memory.used += memory.budget_bytes * 2
        queue = pond.broker.vhosts["/"].queues["work"]
        for _ in range(UNSETTLED_WHEN_SHORT_MAX + 10):
            queue.publish(Message(Address("", "work"), NOTHING, b"m", 0))
        pond.rest()
        assert len(client.bodies()) == UNSETTLED_WHEN_SHORT_MAX
        memory.used -= memory.budget_bytes * 2
        pond.broker.turn.touch()
        pond.rest()
        assert len(client.bodies()) == 10
