"""Every method of AMQP 0-9-1 that a client may send, against every right that it asks for.

A line of the matrix is what a client sends and what RabbitMQ asks of its user. For each right that is missing the
channel is closed with 403 in RabbitMQ's words and nothing has changed; with exactly the rights listed it is done.

Source: RabbitMQ, "Access Control" and rabbit_channel.erl.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from millpond.catalog.rows import RuleRow
from millpond.protocols.amqp import methods, registry
from millpond.protocols.amqp.methods import METHODS, Method
from millpond.protocols.amqp.properties import encode_properties
from tests.protocols.amqp.harness import Client, Closed, publish_frames
from tests.security.world import (
    ANN,
    DEAD_QUEUE,
    DIRECT,
    ELSEWHERE,
    EMPTY_QUEUE,
    FANOUT,
    HOME,
    QUEUE,
    ROOT,
    SECRET_VALUE,
    STREAM,
    TOPIC,
    TOPICAL,
    World,
    differences,
    world_of,
)

registry.load(1)

ACCESS_REFUSED, NOT_ALLOWED = 403, 530
DEFAULT_EXCHANGE = "amq.default"
Arguments = dict[str, object]


class Need(NamedTuple):
    operation: str
    kind: str
    name: str

    def refusal(self, user: str = ANN) -> str:
        return (
            f"ACCESS_REFUSED - {self.operation} access to {self.kind} '{self.name}' in vhost '{HOME}' "
            f"refused for user '{user}'"
        )


def configure(kind: str, name: str) -> Need:
    return Need("configure", kind, name)


def write(kind: str, name: str) -> Need:
    return Need("write", kind, name)


def read(kind: str, name: str) -> Need:
    return Need("read", kind, name)


@dataclass(frozen=True)
class Line:
    """What a client sends on channel 1; `answer` is None where RabbitMQ has none."""

    method: type[Method]
    what: str
    send: Callable[[Client], object]
    needs: tuple[Need, ...]
    answer: type[Method] | None
    changes: bool

    def __str__(self) -> str:
        return f"{self.method.__name__}-{self.what}" if self.what else self.method.__name__


def line(sent: Method, *needs: Need, answer: type[Method] | None = None, what: str = "", changes: bool = True) -> Line:
    return Line(type(sent), what, lambda client: client.send(1, sent), needs, answer, changes)


def publishing(exchange: str, key: str, *needs: Need, what: str, properties: bytes = b"\0\0") -> Line:
    def send(client: Client) -> None:
        client.feed(publish_frames(1, key, exchange=exchange, properties=properties))

    return Line(methods.BasicPublish, what, send, needs, None, True)


def declared(name: str, **arguments: object) -> methods.QueueDeclare:
    named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    return methods.QueueDeclare(queue=name, durable=True, arguments=named)


def exchange(name: str, **arguments: object) -> methods.ExchangeDeclare:
    named = {key.replace("_", "-"): value for key, value in arguments.items()}
    return methods.ExchangeDeclare(exchange=name, type="direct", durable=True, arguments=named)


BINDS = (write("queue", EMPTY_QUEUE), read("exchange", DIRECT))
UNBINDS = (write("queue", QUEUE), read("exchange", DIRECT))
TO_DIRECT, TO_QUEUE = write("exchange", DIRECT), write("exchange", DEFAULT_EXCHANGE)

MATRIX: tuple[Line, ...] = (
    line(exchange("new"), configure("exchange", "new"), answer=methods.ExchangeDeclareOk),
    line(exchange(DIRECT), configure("exchange", DIRECT), answer=methods.ExchangeDeclareOk, what="again",
         changes=False),
    line(exchange("new", alternate_exchange=FANOUT), configure("exchange", "new"), read("exchange", "new"),
         write("exchange", FANOUT), answer=methods.ExchangeDeclareOk, what="alternate"),
    line(methods.ExchangeDeclare(exchange="new", type="direct", durable=True, nowait=True),
         configure("exchange", "new"), what="nowait"),
    line(methods.ExchangeDelete(exchange=FANOUT), configure("exchange", FANOUT), answer=methods.ExchangeDeleteOk),
    line(methods.ExchangeBind(destination=FANOUT, source=TOPICAL, routing_key="k"), write("exchange", FANOUT),
         read("exchange", TOPICAL), answer=methods.ExchangeBindOk),
    line(methods.ExchangeBind(destination=FANOUT, source=STREAM, routing_key="k"), write("exchange", FANOUT),
         read("topic", STREAM), answer=methods.ExchangeBindOk, what="from-a-topic"),
    line(methods.ExchangeUnbind(destination=FANOUT, source=DIRECT, routing_key="k"), write("exchange", FANOUT),
         read("exchange", DIRECT), answer=methods.ExchangeUnbindOk),
    line(declared("new"), configure("queue", "new"), answer=methods.QueueDeclareOk),
    line(declared(QUEUE), configure("queue", QUEUE), answer=methods.QueueDeclareOk, what="again", changes=False),
    line(declared("new", queue_type="stream"), configure("queue", "new"), answer=methods.QueueDeclareOk,
         what="stream"),
    line(declared("new", queue_type="quorum"), configure("queue", "new"), answer=methods.QueueDeclareOk,
         what="quorum"),
    line(declared("new", retention_ms=1_000), configure("queue", "new"), answer=methods.QueueDeclareOk,
         what="history"),
    line(declared("new", dead_letter_exchange=DIRECT), configure("queue", "new"), read("queue", "new"), TO_DIRECT,
         answer=methods.QueueDeclareOk, what="dead-letters"),
    line(declared("new", dead_letter_exchange=""), configure("queue", "new"), read("queue", "new"), TO_QUEUE,
         answer=methods.QueueDeclareOk, what="dead-letters-to-the-default-exchange"),
    line(declared("new", queue_type="share", source_topic=TOPIC), configure("queue", "new"), read("topic", TOPIC),
         answer=methods.QueueDeclareOk, what="over-a-topic"),
    line(methods.QueueDeclare(queue="new", durable=True, nowait=True), configure("queue", "new"), what="nowait"),
    line(methods.QueueBind(queue=EMPTY_QUEUE, exchange=DIRECT, routing_key="k"), *BINDS, answer=methods.QueueBindOk),
    line(methods.QueueBind(queue=EMPTY_QUEUE, exchange=DIRECT, routing_key="k", nowait=True), *BINDS, what="nowait"),
    line(methods.QueueBind(queue=EMPTY_QUEUE, exchange=TOPIC, routing_key="k"), write("queue", EMPTY_QUEUE),
         read("topic", TOPIC), answer=methods.QueueBindOk, what="from-a-topic"),
    line(methods.QueueBind(queue=STREAM, exchange=DIRECT, routing_key="k"), write("queue", STREAM),
         read("exchange", DIRECT), answer=methods.QueueBindOk, what="a-stream"),
    line(methods.QueueUnbind(queue=QUEUE, exchange=DIRECT, routing_key="k"), *UNBINDS, answer=methods.QueueUnbindOk),
    line(methods.QueuePurge(queue=QUEUE), read("queue", QUEUE), answer=methods.QueuePurgeOk),
    line(methods.QueuePurge(queue=QUEUE, nowait=True), read("queue", QUEUE), what="nowait"),
    line(methods.QueueDelete(queue=DEAD_QUEUE), configure("queue", DEAD_QUEUE), answer=methods.QueueDeleteOk),
    line(methods.QueueDelete(queue=DEAD_QUEUE, nowait=True), configure("queue", DEAD_QUEUE), what="nowait"),
    line(methods.QueueDelete(queue=STREAM), configure("queue", STREAM), answer=methods.QueueDeleteOk, what="stream"),
    line(methods.BasicConsume(queue=EMPTY_QUEUE, consumer_tag="t"), read("queue", EMPTY_QUEUE),
         answer=methods.BasicConsumeOk),
    line(methods.BasicConsume(queue=EMPTY_QUEUE, consumer_tag="t", nowait=True), read("queue", EMPTY_QUEUE),
         what="nowait"),
    line(methods.BasicGet(queue=EMPTY_QUEUE), read("queue", EMPTY_QUEUE), answer=methods.BasicGetEmpty,
         changes=False),
    publishing(DIRECT, "k", TO_DIRECT, what="exchange"),
    publishing("", QUEUE, TO_QUEUE, what="default-exchange"),
    publishing("", TOPIC, TO_QUEUE, what="topic-by-the-default-exchange"),
    publishing(TOPICAL, "a.b", write("exchange", TOPICAL), what="topic-exchange"),
    publishing(DIRECT, "x", TO_DIRECT, what="copies",
               properties=encode_properties(headers={"CC": ["k"], "BCC": ["k"]})),
)  # fmt: skip

# What needs any right at all on the thing, and gives nothing away without one, whether it is there or not.
PASSIVE: tuple[tuple[Method, Need], ...] = (
    (methods.QueueDeclare(queue=QUEUE, passive=True), configure("queue", QUEUE)),
    (methods.QueueDeclare(queue="absent", passive=True), configure("queue", "absent")),
    (methods.ExchangeDeclare(exchange=DIRECT, passive=True), configure("exchange", DIRECT)),
    (methods.ExchangeDeclare(exchange="absent", passive=True), configure("exchange", "absent")),
)

# Methods that ask for no right, since they concern only the client's own channel and what it has been given already.
FREE: tuple[tuple[Method, type[Method] | None], ...] = (
    (methods.ChannelFlow(active=True), methods.ChannelFlowOk),
    (methods.AccessRequest(), methods.AccessRequestOk),
    (methods.BasicQos(prefetch_count=1), methods.BasicQosOk),
    (methods.BasicCancel(consumer_tag="none"), methods.BasicCancelOk),
    (methods.BasicCancelOk(consumer_tag="none"), None),
    (methods.BasicRecover(requeue=True), methods.BasicRecoverOk),
    (methods.BasicRecoverAsync(requeue=True), None),
    (methods.ConfirmSelect(), methods.ConfirmSelectOk),
    (methods.TxSelect(), methods.TxSelectOk),
    (methods.ChannelClose(reply_code=200, reply_text="", failing_class_id=0, failing_method_id=0),
     methods.ChannelCloseOk),
)  # fmt: skip
# Tested below: they need a delivery, a transaction, a connection that is not open.
ELSEWHERE_HERE: tuple[type[Method], ...] = (
    methods.BasicAck, methods.BasicNack, methods.BasicReject, methods.TxCommit, methods.TxRollback,
    methods.ConnectionOpen, methods.ConnectionUpdateSecret, methods.ChannelOpen, methods.ConnectionClose,
)  # fmt: skip
# The handshake, and answers to what only the broker asks.
HANDSHAKE: tuple[type[Method], ...] = (
    methods.ConnectionStartOk, methods.ConnectionSecureOk, methods.ConnectionTuneOk, methods.ConnectionCloseOk,
    methods.ChannelCloseOk, methods.ChannelFlowOk,
)  # fmt: skip
# What only a broker sends.
FROM_THE_BROKER: tuple[type[Method], ...] = (
    methods.ConnectionStart, methods.ConnectionSecure, methods.ConnectionTune, methods.ConnectionOpenOk,
    methods.ConnectionBlocked, methods.ConnectionUnblocked, methods.ConnectionUpdateSecretOk, methods.ChannelOpenOk,
    methods.AccessRequestOk, methods.ExchangeDeclareOk, methods.ExchangeDeleteOk, methods.ExchangeBindOk,
    methods.ExchangeUnbindOk, methods.QueueDeclareOk, methods.QueueBindOk, methods.QueuePurgeOk,
    methods.QueueDeleteOk, methods.QueueUnbindOk, methods.BasicQosOk, methods.BasicConsumeOk, methods.BasicReturn,
    methods.BasicDeliver, methods.BasicGetOk, methods.BasicGetEmpty, methods.BasicRecoverOk,
    methods.ConfirmSelectOk, methods.TxSelectOk, methods.TxCommitOk, methods.TxRollbackOk,
)  # fmt: skip


def test_the_matrix_has_every_method() -> None:
    asked = {one.method for one in MATRIX} | {type(method) for method, _ in (*PASSIVE, *FREE)}
    assert asked | {*ELSEWHERE_HERE, *HANDSHAKE, *FROM_THE_BROKER} == set(METHODS.values())
    handled = {METHODS[number] for number in {**registry.CHANNEL_HANDLERS, **registry.CONNECTION_HANDLERS}}
    assert handled.isdisjoint(FROM_THE_BROKER)


@pytest.fixture(scope="module")
def standing() -> Iterator[World]:
    """What nobody without a right may change: so one is enough for all who try."""
    with world_of() as made:
        yield made


@pytest.fixture(scope="module")
def untouched(standing: World) -> Any:
    return standing.snapshot()


@pytest.fixture(autouse=True)
def without_rights(standing: World) -> Iterator[None]:
    yield
    standing.revoke_all()


def permit(world: World, needs: tuple[Need, ...], *, but: Need | None = None) -> None:
    """Exactly what is needed; or, where something is to be missing, everything but that."""
    patterns: dict[str, str] = {}
    for operation in ("configure", "write", "read"):
        if but is None:
            names = [re.escape(need.name) for need in needs if need.operation == operation]
            patterns[operation] = f"^({'|'.join(names)})$" if names else ""
        else:
            patterns[operation] = f"^(?!{re.escape(but.name)}$)" if operation == but.operation else ".*"
    world.access.set_permission(ANN, HOME, patterns["configure"], patterns["write"], patterns["read"])


def refused(world: World, one: Line) -> Closed:
    client = world.amqp_client()
    one.send(client)
    closed = client.expect_channel_closed(1)
    client.drop()
    return closed


def check_refused(world: World, one: Line, need: Need) -> None:
    closed = refused(world, one)
    assert (closed.code, closed.text, closed.method_id) == (ACCESS_REFUSED, need.refusal(), one.method.method_id)


def check_nothing_changed(world: World, before: Any, what: object) -> None:
    world.revoke_all()
    changed = differences(before, world.snapshot())
    assert not changed, f"{what} was refused, and has changed something: {changed}"


@pytest.mark.parametrize("one", MATRIX, ids=str)
def test_a_missing_right_is_refused_and_nothing_changes(standing: World, untouched: Any, one: Line) -> None:
    standing.access.set_permission(ANN, HOME, "", "", "")
    check_refused(standing, one, one.needs[0])
    for kind in ("configure", "write", "read"):
        patterns = {name: ".*" if name == kind else "" for name in ("configure", "write", "read")}
        standing.access.set_permission(ANN, HOME, patterns["configure"], patterns["write"], patterns["read"])
        missing = next((need for need in one.needs if need.operation != kind), None)
        if missing is not None:
            check_refused(standing, one, missing)
    for need in one.needs:
        permit(standing, one.needs, but=need)
        check_refused(standing, one, need)
    check_nothing_changed(standing, untouched, one)


@pytest.mark.parametrize("one", MATRIX, ids=str)
def test_exactly_the_rights_are_enough(one: Line, standing: World, untouched: Any) -> None:
    if not one.changes:
        permit(standing, one.needs)
        check_done(standing, one)
        check_nothing_changed(standing, untouched, one)
        return
    with world_of() as world:
        permit(world, one.needs)
        check_done(world, one)


def check_done(world: World, one: Line) -> None:
    client = world.amqp_client()
    one.send(client)
    if one.answer is None:
        assert client.frames() == []
    else:
        client.expect(one.answer, 1)
    client.drop()


@pytest.mark.parametrize(("method", "need"), PASSIVE, ids=lambda item: str(getattr(item, "name", item)))
def test_who_has_no_right_is_not_told_whether_a_thing_is_there(
    standing: World, untouched: Any, method: Method, need: Need
) -> None:
    one = line(method, need)
    standing.access.set_permission(ANN, HOME, "", "", "")
    check_refused(standing, one, need)
    standing.access.set_permission(ANN, HOME, *[f"^(?!{need.name}$)"] * 3)
    check_refused(standing, one, need)
    for place in range(3):
        patterns = ["", "", ""]
        patterns[place] = f"^{need.name}$"
        standing.access.set_permission(ANN, HOME, *patterns)
        client = standing.amqp_client()
        client.send(1, method)
        if need.name == "absent":
            assert client.expect_channel_closed(1).code == 404
        else:
            assert client.methods()[0].name.endswith("declare_ok")
        client.drop()
    check_nothing_changed(standing, untouched, one)


@pytest.mark.parametrize(("method", "answer"), FREE, ids=lambda item: getattr(item, "name", ""))
def test_what_concerns_only_the_channel_needs_no_right(
    standing: World, untouched: Any, method: Method, answer: type[Method] | None
) -> None:
    standing.access.set_permission(ANN, HOME, "", "", "")
    client = standing.amqp_client()
    client.send(1, method)
    assert [type(one) for one in client.methods()] == ([] if answer is None else [answer])
    client.drop()
    check_nothing_changed(standing, untouched, method)


@pytest.mark.parametrize("vhost", [HOME, ELSEWHERE, "absent"])
def test_without_permissions_in_a_virtual_host_nothing_in_it_is_reached(
    standing: World, untouched: Any, vhost: str
) -> None:
    other = ELSEWHERE if vhost == HOME else HOME
    standing.access.set_permission(ANN, other, ".*", ".*", ".*")
    client = standing.amqp_client(opens=False)
    client.send(0, methods.ConnectionOpen(virtual_host=vhost))
    closed = client.expect_closed()
    text = f"vhost {vhost} not found" if vhost == "absent" else f"access to vhost '{vhost}' refused for user '{ANN}'"
    assert (closed.code, closed.text) == (NOT_ALLOWED, f"NOT_ALLOWED - {text}")
    # Who goes on as if nothing had been said has no connection to go on with.
    late = standing.amqp_client(opens=False)
    late.send(1, methods.ChannelOpen())
    assert late.frames()[-1].method.name in {"connection.close", "channel.close"}
    check_nothing_changed(standing, untouched, vhost)


@pytest.mark.parametrize("settle", [methods.BasicAck, methods.BasicNack, methods.BasicReject])
def test_what_was_delivered_may_be_settled_when_the_right_to_read_is_gone(settle: type[Method]) -> None:
    """As in RabbitMQ: the right was looked at when it was delivered. No other channel has it to settle."""
    with world_of() as world:
        world.access.set_permission(ANN, HOME, "", "", f"^{QUEUE}$")
        client = world.amqp_client()
        client.send(1, methods.BasicGet(queue=QUEUE))
        [message] = client.messages()
        assert message.body == SECRET_VALUE
        world.access.set_permission(ANN, HOME, "", "", "")
        stranger = world.amqp_client()
        stranger.send(1, settle(delivery_tag=1))
        assert stranger.expect_channel_closed(1).code == 406
        client.send(1, settle(delivery_tag=1))
        assert client.frames() == []


@pytest.mark.parametrize("end", [methods.TxCommit, methods.TxRollback])
def test_within_a_transaction_each_publish_is_looked_at(standing: World, untouched: Any, end: type[Method]) -> None:
    standing.access.set_permission(ANN, HOME, "", f"^{DIRECT}$", "")
    client = standing.amqp_client()
    client.call(1, methods.TxSelect(), methods.TxSelectOk)
    client.publish(1, "k", exchange=DIRECT)
    client.publish(1, QUEUE)
    assert client.expect_channel_closed(1).text == TO_QUEUE.refusal()
    client.call(1, methods.TxSelect(), methods.TxSelectOk)
    client.send(1, end())
    assert client.methods()[0].name in {"tx.commit_ok", "tx.rollback_ok"}
    client.drop()
    check_nothing_changed(standing, untouched, end)


def test_a_right_that_is_taken_away_ends_with_the_next_operation(standing: World, untouched: Any) -> None:
    """What a channel remembers of its publishes and what the broker remembers of decisions does not outlive it."""
    standing.access.set_permission(ANN, HOME, "", ".*", "^empty$")
    client = standing.amqp_client()
    client.publish(1, "nowhere", exchange=FANOUT)
    client.call(1, methods.BasicGet(queue=EMPTY_QUEUE), methods.BasicGetEmpty)
    standing.access.set_permission(ANN, HOME, "", "", "")
    client.publish(1, "nowhere", exchange=FANOUT)
    assert client.expect_channel_closed(1).text == write("exchange", FANOUT).refusal()
    client.send(1, methods.BasicGet(queue=EMPTY_QUEUE))
    assert client.expect_channel_closed(1).text == read("queue", EMPTY_QUEUE).refusal()
    standing.access.clear_permission(ANN, HOME)
    client.send(0, methods.ConnectionUpdateSecret(new_secret=b"x", reason="y"))
    assert client.expect_closed().code == NOT_ALLOWED
    check_nothing_changed(standing, untouched, "nothing")


# --- Topic permissions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "operation"),
    [
        (publishing(TOPICAL, "secret.key", what="publish"), "write"),
        (publishing(TOPICAL, "open.key", what="copies",
                    properties=encode_properties(headers={"CC": ["secret.key"]})), "write"),
        (publishing(TOPICAL, "open.key", what="blind copies",
                    properties=encode_properties(headers={"BCC": ["secret.key"]})), "write"),
        (line(methods.QueueBind(queue=QUEUE, exchange=TOPICAL, routing_key="secret.key")), "read"),
        (line(methods.QueueUnbind(queue=QUEUE, exchange=TOPICAL, routing_key="secret.key")), "read"),
        (line(methods.ExchangeBind(destination=FANOUT, source=TOPICAL, routing_key="secret.key")), "read"),
        (line(methods.ExchangeUnbind(destination=FANOUT, source=TOPICAL, routing_key="secret.key")), "read"),
    ],
    ids=str,
)  # fmt: skip
def test_a_routing_key_that_is_not_allowed_is_refused(
    standing: World, untouched: Any, one: Line, operation: str
) -> None:
    standing.access.set_permission(ANN, HOME, ".*", ".*", ".*")
    patterns = {"write": ".*", "read": ".*"} | {operation: "^open"}
    standing.access.set_topic_permission(ANN, HOME, TOPICAL, patterns["write"], patterns["read"])
    closed = refused(standing, one)
    assert closed.code == ACCESS_REFUSED
    assert closed.text == (
        f"ACCESS_REFUSED - {operation} access to topic 'secret.key' in exchange '{TOPICAL}' in vhost '{HOME}' "
        f"refused for user '{ANN}'"
    )
    check_nothing_changed(standing, untouched, one)


# --- What Kafka's rows deny -------------------------------------------------------------------------------------------

HERE, NOT_HERE = "127.0.0.1", "192.0.2.1"
# A topic by whatever name, and the operation of Kafka's that says who may do it.
BY_RULES: tuple[tuple[Line, str, Need], ...] = (
    (line(methods.BasicConsume(queue=STREAM, consumer_tag="t")), "read", read("queue", STREAM)),
    (line(methods.BasicGet(queue=STREAM)), "read", read("queue", STREAM)),
    (line(methods.QueueBind(queue=EMPTY_QUEUE, exchange=TOPIC)), "read", read("topic", TOPIC)),
    (line(methods.ExchangeBind(destination=FANOUT, source=TOPIC)), "read", read("topic", TOPIC)),
    (line(declared("new", source_topic=TOPIC)), "read", read("topic", TOPIC)),
    (line(methods.QueueBind(queue=STREAM, exchange=DIRECT)), "write", write("queue", STREAM)),
    (publishing(TOPIC, "k", what="a topic"), "write", write("topic", TOPIC)),
    (line(methods.QueueDelete(queue=STREAM)), "delete", configure("queue", STREAM)),
    (line(declared("new", queue_type="stream")), "create", configure("queue", "new")),
)  # fmt: skip


@pytest.mark.parametrize("host", ["*", HERE])
@pytest.mark.parametrize(("one", "operation", "need"), BY_RULES, ids=str)
def test_what_kafkas_rows_deny_is_denied_to_amqp_from_that_address(
    standing: World, untouched: Any, one: Line, operation: str, need: Need, host: str
) -> None:
    standing.access.set_permission(ANN, HOME, ".*", ".*", ".*")
    standing.access.add_rule(RuleRow(ANN, HOME, "topic", "literal", need.name, operation, "deny", host))
    check_refused(standing, one, need)
    check_nothing_changed(standing, untouched, one)


def test_what_is_denied_from_one_address_is_not_denied_from_another(standing: World, untouched: Any) -> None:
    standing.access.set_permission(ANN, HOME, ".*", ".*", ".*")
    standing.access.add_rule(RuleRow(ANN, HOME, "topic", "literal", EMPTY_QUEUE, "read", "deny", NOT_HERE))
    check_done(standing, line(methods.BasicGet(queue=EMPTY_QUEUE), answer=methods.BasicGetEmpty))
    check_nothing_changed(standing, untouched, "a get")


@pytest.mark.parametrize(("host", "is_allowed"), [("*", True), (HERE, True), (NOT_HERE, False)])
def test_what_is_allowed_from_one_address_is_allowed_from_there_only(
    standing: World, untouched: Any, host: str, is_allowed: bool
) -> None:
    standing.access.add_rule(RuleRow(ANN, HOME, "topic", "literal", EMPTY_QUEUE, "read", "allow", host))
    one = line(methods.BasicGet(queue=EMPTY_QUEUE), answer=methods.BasicGetEmpty)
    if is_allowed:
        check_done(standing, one)
    else:
        check_refused(standing, one, read("queue", EMPTY_QUEUE))
    check_nothing_changed(standing, untouched, one)


# --- In another's name ------------------------------------------------------------------------------------------------


def test_nobody_publishes_in_anothers_name_without_the_tag_for_it(standing: World, untouched: Any) -> None:
    standing.access.set_permission(ANN, HOME, "", ".*", "")
    client = standing.amqp_client()
    client.publish(1, QUEUE, properties=encode_properties(user_id=ROOT))
    closed = client.expect_channel_closed(1)
    assert closed.code == 406
    assert closed.text.endswith(f"user_id property set to '{ROOT}' but authenticated user was '{ANN}'")
    client.send(0, methods.ConnectionClose(reply_code=200, reply_text=""))
    client.expect(methods.ConnectionCloseOk)
    check_nothing_changed(standing, untouched, "a publish")
