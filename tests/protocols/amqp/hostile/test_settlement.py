"""Delivery tags, acknowledgements, prefetch, transactions and confirms, used as no sane client would."""

from __future__ import annotations

import pytest

from millpond.protocols.amqp import methods
from millpond.protocols.amqp.methods import Method
from tests.protocols.amqp.harness import Client, Message, Pond, assemble, header_frame, method_frame


def tags(messages: list[Message]) -> list[int]:
    return [int(message.method.delivery_tag) for message in messages]  # type: ignore[attr-defined]


def redelivered(messages: list[Message]) -> list[bool]:
    return [bool(message.method.redelivered) for message in messages]  # type: ignore[attr-defined]


@pytest.fixture
def queue(client: Client) -> str:
    """A queue with the messages 0 to 9."""
    client.declare(1, "q")
    for number in range(10):
        client.publish(1, "q", b"%d" % number)
    client.pond.rest()
    return "q"


class TestTags:
    @pytest.mark.parametrize("tag", [0, 11, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 1])
    @pytest.mark.parametrize(
        "settle",
        [
            lambda tag: methods.BasicAck(delivery_tag=tag),
            lambda tag: methods.BasicNack(delivery_tag=tag),
            lambda tag: methods.BasicReject(delivery_tag=tag),
            lambda tag: methods.BasicAck(delivery_tag=tag or 11, multiple=True),
            lambda tag: methods.BasicNack(delivery_tag=tag or 11, multiple=True),
        ],
    )
    def test_a_tag_that_was_never_given_closes_the_channel_and_settles_nothing(
        self, client: Client, queue: str, tag: int, settle: object
    ) -> None:
        client.consume(1, queue)
        assert tags(client.messages()) == list(range(1, 11))
        method = settle(tag)  # type: ignore[operator]
        client.send(1, method)
        assert client.expect_channel_closed(1)[:2] == (
            406,
            f"PRECONDITION_FAILED - unknown delivery tag {method.delivery_tag}",
        )
        assert client.ready(2, queue) == 10

    @pytest.mark.parametrize(
        "again",
        [
            methods.BasicAck(delivery_tag=3),
            methods.BasicReject(delivery_tag=3),
            methods.BasicNack(delivery_tag=3),
            methods.BasicAck(delivery_tag=3, multiple=True),
        ],
    )
    def test_a_tag_is_good_once(self, client: Client, queue: str, again: Method) -> None:
        client.consume(1, queue)
        client.messages()
        client.send(1, methods.BasicAck(delivery_tag=3), again)
        assert client.expect_channel_closed(1).text == "PRECONDITION_FAILED - unknown delivery tag 3"
        assert client.ready(2, queue) == 9

    def test_tags_belong_to_their_channel(self, client: Client, queue: str) -> None:
        client.consume(1, queue)
        client.messages()
        client.send(2, methods.BasicAck(delivery_tag=1))
        assert client.expect_channel_closed(2).code == 406

    def test_tags_begin_again_on_a_channel_that_is_opened_again(self, client: Client, queue: str) -> None:
        client.consume(1, queue)
        client.messages()
        client.call(1, methods.ChannelClose(), methods.ChannelCloseOk)
        client.open_channel(1)
        client.consume(1, queue)
        found = client.messages()
        assert tags(found) == list(range(1, 11))
        assert all(redelivered(found))

    @pytest.mark.parametrize("kind", [methods.BasicAck, methods.BasicNack])
    def test_zero_with_multiple_settles_all_and_nothing_is_no_error(
        self, client: Client, queue: str, kind: type[methods.BasicAck]
    ) -> None:
        client.consume(1, queue)
        client.messages()
        client.call(1, methods.BasicCancel(consumer_tag="c"), methods.BasicCancelOk)
        client.send(1, kind(delivery_tag=0, multiple=True), kind(delivery_tag=0, multiple=True))
        assert client.frames() == []
        assert client.ready(2, queue) == (0 if kind is methods.BasicAck else 10)

    def test_deliveries_without_acknowledgement_use_up_tags_that_cannot_be_settled(
        self, client: Client, queue: str
    ) -> None:
        client.consume(1, queue, "a", no_ack=True)
        assert tags(client.messages()) == list(range(1, 11))
        client.publish(1, queue)
        assert tags(client.messages()) == [11]
        client.send(1, methods.BasicAck(delivery_tag=11))
        assert client.expect_channel_closed(1).code == 406

    def test_acknowledged_and_unacknowledged_deliveries_share_a_channel(self, client: Client, queue: str) -> None:
        client.declare(1, "other")
        client.consume(1, queue, "keeps")
        client.messages()
        client.consume(1, "other", "forgets", no_ack=True)
        client.frames()
        for round_ in range(3):
            client.publish(2, "other")
            client.publish(2, queue)
            found = client.messages()
            assert len(found) == 2
            by_tag = {message.method.consumer_tag: message.method.delivery_tag for message in found}  # type: ignore[attr-defined]
            client.send(1, methods.BasicAck(delivery_tag=by_tag["keeps"]))
            assert client.frames() == [], round_
        client.send(1, methods.BasicAck(delivery_tag=10, multiple=True))
        assert client.frames() == []
        client.call(1, methods.ChannelClose(), methods.ChannelCloseOk)
        assert client.ready(2, queue) == 0

    def test_recover_gives_everything_back_in_order(self, client: Client, queue: str) -> None:
        client.consume(1, queue)
        client.messages()
        client.send(1, methods.BasicAck(delivery_tag=5), methods.BasicRecover(requeue=True))
        found = client.frames()
        assert found[0].method == methods.BasicRecoverOk()
        messages = list(assemble(found[1:]))
        assert [message.body for message in messages] == [b"%d" % number for number in range(10) if number != 4]
        assert tags(messages) == list(range(11, 20))
        assert all(redelivered(messages))

    def test_one_stuck_delivery_does_not_keep_the_memory_of_all_after_it(self, client: Client) -> None:
        client.declare(1, "q")
        client.consume(1, "q")
        client.publish(2, "q", b"stuck")
        assert tags(client.messages()) == [1]
        for start in range(2, 60_002, 1000):
            client.feed(b"".join([_publish("q") for _ in range(1000)]))
            client.pond.rest()
            client.send(1, *[methods.BasicAck(delivery_tag=tag) for tag in range(start, start + 1000)])
        channel = client.connection.channels[1]
        assert channel is not None
        assert len(channel.unsettled) < 20_000
        client.transport.sent.clear()
        client._parsed = 0
        client.publish(2, "q", b"next")
        assert tags(client.messages()) == [60_002]
        client.send(1, methods.BasicAck(delivery_tag=2))
        assert client.expect(methods.ChannelClose, 1).reply_text.endswith("unknown delivery tag 2")
        assert client.ready(2, "q") == 2

    @pytest.mark.parametrize("multiple", [False, True])
    def test_a_delivery_that_was_stuck_for_long_can_still_be_settled(self, client: Client, multiple: bool) -> None:
        client.declare(1, "q")
        client.consume(1, "q")
        for start in range(1, 60_001, 1000):
            client.feed(b"".join([_publish("q") for _ in range(1000)]))
            client.pond.rest()
            # One of each thousand stays.
            client.send(1, *[methods.BasicAck(delivery_tag=tag) for tag in range(start + 1, start + 1000)])
        client.transport.sent.clear()
        client._parsed = 0
        if multiple:
            client.send(1, methods.BasicAck(delivery_tag=30_001, multiple=True))
            left = 29
        else:
            client.send(1, methods.BasicAck(delivery_tag=1001), methods.BasicNack(delivery_tag=1, requeue=False))
            left = 58
        assert client.frames() == []
        client.call(1, methods.ChannelClose(), methods.ChannelCloseOk)
        assert client.ready(2, "q") == left


def _publish(queue: str) -> bytes:
    return method_frame(2, methods.BasicPublish(routing_key=queue)) + header_frame(2, 0)


class TestPrefetch:
    def test_room_comes_back_with_every_way_to_settle(self, client: Client, queue: str) -> None:
        client.call(1, methods.BasicQos(prefetch_count=2), methods.BasicQosOk)
        client.consume(1, queue)
        assert client.bodies() == [b"0", b"1"]
        client.send(1, methods.BasicAck(delivery_tag=1))
        assert client.bodies() == [b"2"]
        client.send(1, methods.BasicReject(delivery_tag=2, requeue=False))
        assert client.bodies() == [b"3"]
        client.send(1, methods.BasicNack(delivery_tag=4, multiple=True, requeue=False))
        assert client.bodies() == [b"4", b"5"]
        client.send(1, methods.BasicNack(delivery_tag=0, multiple=True, requeue=True))
        found = client.messages()
        assert [message.body for message in found] == [b"4", b"5"]
        assert redelivered(found) == [True, True]
        client.send(1, methods.BasicRecoverAsync(requeue=True))
        assert client.bodies() == [b"4", b"5"]

    def test_a_limit_of_the_channel_counts_all_of_its_consumers(self, client: Client, queue: str) -> None:
        client.call(1, methods.BasicQos(prefetch_count=3, global_=True), methods.BasicQosOk)
        client.consume(1, queue, "a")
        client.frames()
        client.send(1, methods.BasicConsume(queue=queue, consumer_tag="b"))
        client.expect(methods.BasicConsumeOk)
        client.send(1, methods.BasicCancel(consumer_tag="a"))
        client.expect(methods.BasicCancelOk)
        # What the cancelled consumer holds still counts.
        assert client.ready(2, queue) == 7
        client.send(1, methods.BasicAck(delivery_tag=2))
        assert client.bodies() == [b"3"]
        client.send(1, methods.BasicNack(delivery_tag=0, multiple=True))
        assert len(client.messages()) == 3

    def test_a_higher_limit_takes_effect_at_once(self, client: Client, queue: str) -> None:
        client.call(1, methods.BasicQos(prefetch_count=1, global_=True), methods.BasicQosOk)
        client.consume(1, queue)
        assert len(client.messages()) == 1
        client.send(1, methods.BasicQos(prefetch_count=0, global_=True))
        found = client.frames()
        assert found[0].method == methods.BasicQosOk()
        assert len(found) == 1 + 9 * 3

    def test_closing_a_channel_lets_others_have_its_messages(self, client: Client, queue: str) -> None:
        client.call(2, methods.BasicQos(prefetch_count=4), methods.BasicQosOk)
        client.consume(1, queue, "greedy")
        assert len(client.messages()) == 10
        client.consume(2, queue, "modest")
        assert client.messages() == []
        client.send(1, methods.ChannelClose())
        found = client.frames()
        assert found[0].method == methods.ChannelCloseOk()
        assert len(found) == 1 + 4 * 3
        assert client.ready(2, queue) == 6

    @pytest.mark.parametrize("end", [methods.TxCommit(), methods.TxRollback()])
    def test_what_a_transaction_has_acknowledged_counts_until_it_is_committed(
        self, client: Client, queue: str, end: Method
    ) -> None:
        client.call(1, methods.BasicQos(prefetch_count=2, global_=True), methods.BasicQosOk)
        client.call(1, methods.TxSelect(), methods.TxSelectOk)
        client.consume(1, queue)
        assert len(client.messages()) == 2
        client.send(1, methods.BasicAck(delivery_tag=2, multiple=True))
        assert client.frames() == []
        client.send(1, end)
        found = client.frames()
        delivered = [frame for frame in found if frame.kind == 1 and isinstance(frame.method, methods.BasicDeliver)]
        assert len(delivered) == (2 if isinstance(end, methods.TxCommit) else 0)
        client.send(1, methods.BasicAck(delivery_tag=0, multiple=True))
        client.send(1, methods.TxCommit())
        assert len(client.frames()) == 1 + 2 * 3


class TestCancelling:
    def test_a_deleted_queue_cancels_its_consumers_and_says_so(self, client: Client, queue: str) -> None:
        client.consume(1, queue)
        client.messages()
        client.send(2, methods.QueueDelete(queue=queue))
        assert {type(method) for method in client.methods()} == {methods.BasicCancel, methods.QueueDeleteOk}
        # What was delivered of it can be settled to no effect.
        client.send(1, methods.BasicAck(delivery_tag=1), methods.BasicNack(delivery_tag=0, multiple=True))
        client.send(1, methods.BasicCancelOk(consumer_tag="c"))
        assert client.frames() == []
        client.declare(1, queue)
        assert client.ready(1, queue) == 0
        client.consume(1, queue)

    def test_a_client_without_the_capability_is_not_told(self, pond: Pond) -> None:
        client = Client(pond)
        client.open(channels=1, capabilities={})
        client.declare(1, "q")
        client.consume(1, "q")
        client.call(1, methods.QueueDelete(queue="q"), methods.QueueDeleteOk)

    def test_an_unknown_consumer_is_cancelled_already(self, client: Client) -> None:
        for tag in ("", "none", "x" * 255):
            assert client.call(1, methods.BasicCancel(consumer_tag=tag), methods.BasicCancelOk).consumer_tag == tag
        client.send(1, methods.BasicCancel(consumer_tag="none", nowait=True), methods.BasicCancelOk(consumer_tag="x"))
        assert client.frames() == []

    def test_a_cancelled_consumer_gets_nothing_more_and_its_tag_is_free(self, client: Client, queue: str) -> None:
        client.send(
            1,
            methods.BasicConsume(queue=queue, consumer_tag="c"),
            methods.BasicCancel(consumer_tag="c"),
            methods.BasicConsume(queue=queue, consumer_tag="c", no_ack=True),
        )
        found = client.frames()
        answers = [type(frame.method) for frame in found[:3]]
        assert answers == [methods.BasicConsumeOk, methods.BasicCancelOk, methods.BasicConsumeOk]
        assert len(found) == 3 + 10 * 3

    def test_an_auto_delete_queue_goes_with_the_connection(self, pond: Pond, client: Client) -> None:
        client.declare(1, "gone", auto_delete=True)
        client.declare(1, "mine", exclusive=True)
        client.consume(1, "gone")
        client.publish(1, "gone")
        client.drop()
        other = pond.client(channels=1)
        for name in ("gone", "mine"):
            other.send(1, methods.QueueDeclare(queue=name, passive=True))
            assert other.expect_channel_closed(1).code == 404
        assert pond.broker.memory.used == 0


class TestTransactions:
    @pytest.fixture
    def tx(self, client: Client, queue: str) -> Client:
        client.call(1, methods.TxSelect(), methods.TxSelectOk)
        return client

    def test_publishes_wait_for_the_commit(self, tx: Client) -> None:
        tx.publish(1, "q")
        tx.publish(1, "nowhere", mandatory=True)
        assert tx.frames() == []
        assert tx.ready(2, "q") == 10
        tx.send(1, methods.TxCommit())
        found = tx.frames()
        assert isinstance(found[0].method, methods.BasicReturn)
        assert found[-1].method == methods.TxCommitOk()
        assert tx.ready(2, "q") == 11
        tx.call(1, methods.TxCommit(), methods.TxCommitOk)
        assert tx.ready(2, "q") == 11

    def test_a_rollback_forgets_the_publishes(self, tx: Client) -> None:
        tx.publish(1, "q")
        tx.call(1, methods.TxRollback(), methods.TxRollbackOk)
        tx.call(1, methods.TxCommit(), methods.TxCommitOk)
        assert tx.ready(2, "q") == 10

    def test_after_a_rollback_what_was_settled_is_unsettled_under_its_old_tag(self, tx: Client) -> None:
        tx.consume(1, "q")
        tx.messages()
        settled = [
            methods.BasicAck(delivery_tag=3, multiple=True),
            methods.BasicNack(delivery_tag=6, requeue=True),
            methods.BasicReject(delivery_tag=10, requeue=False),
        ]
        tx.send(1, *settled)
        tx.call(1, methods.TxRollback(), methods.TxRollbackOk)
        tx.send(1, *settled)
        assert tx.frames() == []
        tx.send(1, methods.TxCommit())
        found = tx.frames()
        assert {type(frame.method) for frame in found if frame.kind == 1} == {methods.TxCommitOk, methods.BasicDeliver}
        tx.call(1, methods.ChannelClose(), methods.ChannelCloseOk)
        assert tx.ready(2, "q") == 6

    def test_a_tag_is_good_once_within_a_transaction(self, tx: Client) -> None:
        tx.consume(1, "q")
        tx.messages()
        tx.send(1, methods.BasicAck(delivery_tag=1), methods.BasicAck(delivery_tag=1))
        assert tx.expect_channel_closed(1).code == 406
        assert tx.ready(2, "q") == 10

    @pytest.mark.parametrize("end", ["close", "drop", "mistake"])
    def test_an_open_transaction_leaves_nothing_but_its_messages_in_their_queue(self, tx: Client, end: str) -> None:
        tx.consume(1, "q")
        tx.messages()
        tx.publish(1, "q")
        tx.send(1, methods.BasicAck(delivery_tag=4, multiple=True), methods.BasicNack(delivery_tag=9))
        if end == "close":
            tx.call(1, methods.ChannelClose(), methods.ChannelCloseOk)
        elif end == "mistake":
            tx.send(1, methods.QueuePurge(queue="none"))
            tx.expect_channel_closed(1)
        else:
            tx.drop()
        other = tx.pond.client(channels=1)
        assert other.ready(1, "q") == 10
        other.consume(1, "q")
        assert other.bodies() == [b"%d" % number for number in range(10)]

    def test_recover_leaves_alone_what_the_transaction_has_settled(self, tx: Client) -> None:
        tx.consume(1, "q")
        tx.messages()
        tx.send(1, methods.BasicAck(delivery_tag=8, multiple=True), methods.BasicRecoverAsync(requeue=True))
        assert tx.bodies() == [b"8", b"9"]
        tx.call(1, methods.TxRollback(), methods.TxRollbackOk)
        tx.send(1, methods.BasicNack(delivery_tag=1, requeue=True))
        tx.send(1, methods.TxCommit())
        assert len(tx.frames()) == 1 + 3

    def test_a_queue_deleted_in_between_does_not_stop_a_commit(self, tx: Client) -> None:
        tx.consume(1, "q")
        tx.messages()
        tx.send(1, methods.BasicAck(delivery_tag=1), methods.BasicNack(delivery_tag=2), methods.BasicReject(3, False))
        tx.publish(1, "q")
        tx.send(2, methods.QueueDelete(queue="q"))
        tx.frames()
        tx.call(1, methods.TxCommit(), methods.TxCommitOk)

    def test_an_exchange_deleted_in_between_does_not_stop_a_commit(self, tx: Client) -> None:
        tx.call(1, methods.ExchangeDeclare(exchange="e", type="fanout"), methods.ExchangeDeclareOk)
        tx.call(1, methods.QueueBind(queue="q", exchange="e"), methods.QueueBindOk)
        tx.publish(1, "", exchange="e")
        tx.call(2, methods.ExchangeDelete(exchange="e"), methods.ExchangeDeleteOk)
        tx.call(1, methods.TxCommit(), methods.TxCommitOk)
        # Where it goes was decided when it was published, as in RabbitMQ.
        assert tx.ready(2, "q") == 11


class TestConfirms:
    @pytest.fixture
    def confirming(self, client: Client) -> Client:
        client.call(1, methods.ConfirmSelect(), methods.ConfirmSelectOk)
        client.declare(2, "q")
        client.declare(2, "full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        client.publish(2, "full")
        client.pond.rest()
        return client

    @staticmethod
    def outcomes(found: list[Method]) -> dict[int, str]:
        """Tag -> ack or nack. Each tag must be answered once, counting those that `multiple` covers."""
        answers: dict[int, str] = {}
        answered_to = 0
        for method in found:
            assert isinstance(method, methods.BasicAck | methods.BasicNack)
            word = "ack" if isinstance(method, methods.BasicAck) else "nack"
            assert method.delivery_tag not in answers, f"tag {method.delivery_tag} is answered twice"
            first = answered_to + 1 if method.multiple else method.delivery_tag
            for tag in range(first, method.delivery_tag + 1):
                answers.setdefault(tag, word)
            answered_to = max(answered_to, method.delivery_tag)
        return answers

    @pytest.mark.parametrize(
        "targets",
        [
            ["full"],
            ["full", "full"],
            ["q", "full"],
            ["full", "q"],
            ["q", "q", "full", "q", "full", "full", "q"],
            ["full", "q", "q", "nowhere", "full"],
        ],
    )
    @pytest.mark.parametrize("turn_each", [False, True])
    def test_each_publish_is_answered_once_whether_taken_or_refused(
        self, confirming: Client, targets: list[str], turn_each: bool
    ) -> None:
        found: list[Method] = []
        for target in targets:
            confirming.publish(1, target)
            if turn_each:
                found += confirming.methods()
        found += confirming.methods()
        expected = {tag: "nack" if target == "full" else "ack" for tag, target in enumerate(targets, 1)}
        assert self.outcomes(found) == expected

    def test_a_returned_message_comes_before_its_confirm(self, confirming: Client) -> None:
        confirming.publish(1, "nowhere", mandatory=True)
        found = confirming.frames()
        assert [type(frame.method) for frame in found if frame.kind == 1] == [methods.BasicReturn, methods.BasicAck]

    def test_confirms_that_are_due_come_before_the_channels_end(self, confirming: Client) -> None:
        confirming.publish(1, "q")
        confirming.send(1, methods.QueuePurge(queue="none"))
        assert [type(method) for method in confirming.methods()] == [methods.BasicAck, methods.ChannelClose]
        confirming.send(1, methods.ChannelCloseOk(), methods.ChannelOpen(), methods.ConfirmSelect())
        confirming.publish(1, "q")
        confirming.publish(1, "q")
        confirming.send(1, methods.ChannelClose())
        found = confirming.methods()
        assert found[2:] == [methods.BasicAck(delivery_tag=2, multiple=True), methods.ChannelCloseOk()]

    def test_a_publish_that_breaks_off_is_not_confirmed(self, confirming: Client) -> None:
        confirming.feed(method_frame(1, methods.BasicPublish(routing_key="q")) + header_frame(1, 5))
        assert confirming.frames() == []
        confirming.drop()
        assert confirming.pond.client(channels=1).ready(1, "q") == 0

    def test_a_client_sends_no_confirms(self, confirming: Client) -> None:
        confirming.publish(1, "q")
        confirming.frames()
        confirming.send(1, methods.BasicAck(delivery_tag=1))
        assert confirming.expect_channel_closed(1).code == 406
