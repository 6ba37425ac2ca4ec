"""Users with limited permissions: what each AMQP method asks for, and how a refusal reads."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import ChannelClosedByBroker, ProbableAccessDeniedError, ProbableAuthenticationError

from tests.conftest import EXTERNAL_VARIABLE
from tests.support.broker_process import COMMAND_VARIABLE, BrokerProcess, run_operator_command
from tests.support.endpoint import Endpoint
from tests.support.pika_client import Inbox, channel_refused, connection_refused, drain, publish, wait_ready

PASSWORD = "correct horse"
# What `limited` may do in "/": everything with names of its own, read from those that are shared, and publish by them.
CONFIGURE, WRITE, READ = "^own-", "^(own-|readable-exchange|amq\\.default)", "^(own-|readable-)"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker with the users `limited`, and `stranger` who has no permissions at all."""
    if EXTERNAL_VARIABLE in os.environ and COMMAND_VARIABLE not in os.environ:
        pytest.skip(f"{EXTERNAL_VARIABLE} names a broker whose users the tests cannot manage")
    with BrokerProcess(tmp_path_factory.mktemp("permissions")) as process:
        # The operator's commands work on the data of a broker that does not run.
        process.terminate()
        for user in ("limited", "stranger"):
            run_operator_command(process.data, "user", "add", user, standard_input=f"{PASSWORD}\n")
        run_operator_command(process.data, "permission", "set", "limited", CONFIGURE, WRITE, READ)
        process.start()
        yield process


@pytest.fixture
def log_in(guarded: BrokerProcess) -> Iterator[Callable[..., BlockingConnection]]:
    opened: list[BlockingConnection] = []

    def open_connection(user: str, password: str = PASSWORD) -> BlockingConnection:
        endpoint = Endpoint("127.0.0.1", guarded.port, user, password)
        opened.append(BlockingConnection(endpoint.parameters()))
        return opened[-1]

    yield open_connection
    for connection in opened:
        if connection.is_open:
            connection.close()


@pytest.fixture
def guest(log_in: Callable[..., BlockingConnection]) -> BlockingChannel:
    return log_in("guest", "guest").channel()


@pytest.fixture
def limited(log_in: Callable[..., BlockingConnection]) -> BlockingChannel:
    return log_in("limited").channel()


@pytest.fixture
def own() -> str:
    return f"own-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def foreign(guest: BlockingChannel) -> Iterator[str]:
    """A queue and an exchange of the administrator's, of the same name."""
    name = f"foreign-{uuid.uuid4().hex[:12]}"
    guest.queue_declare(name)
    guest.exchange_declare(name, "fanout")
    yield name
    guest.queue_delete(name)
    guest.exchange_delete(name)


@contextmanager
def refused(kind: str, name: str) -> Iterator[None]:
    """The broker closes the channel with RabbitMQ's text; since 3.12 that names the operation as well."""
    with pytest.raises(ChannelClosedByBroker) as caught:
        yield
    assert caught.value.reply_code == 403
    assert re.fullmatch(
        rf"ACCESS_REFUSED - ((configure|write|read) )?access to {kind} '{re.escape(name)}' in vhost '/' "
        r"refused for user 'limited'",
        caught.value.reply_text,
    ), caught.value.reply_text


class TestVirtualHost:
    def test_a_user_without_permissions_may_not_open_it(self, log_in: Callable[..., BlockingConnection]) -> None:
        with pytest.raises((pika.exceptions.ConnectionClosedByBroker, ProbableAccessDeniedError)) as denied:
            log_in("stranger")
        assert "NOT_ALLOWED - access to vhost '/' refused for user 'stranger'" in str(denied.value)

    def test_a_password_is_checked_for_every_user(self, log_in: Callable[..., BlockingConnection]) -> None:
        with pytest.raises(ProbableAuthenticationError):
            log_in("limited", "battery staple")


class TestConfigure:
    def test_own_names_may_be_declared_and_deleted(self, limited: BlockingChannel, own: str) -> None:
        limited.queue_declare(own)
        limited.exchange_declare(own, "direct")
        limited.queue_delete(own)
        limited.exchange_delete(own)

    @pytest.mark.parametrize("operation", ["declare", "delete"])
    def test_other_queues_may_not(self, limited: BlockingChannel, foreign: str, operation: str) -> None:
        with refused("queue", foreign):
            (limited.queue_declare if operation == "declare" else limited.queue_delete)(foreign)

    @pytest.mark.parametrize("operation", ["declare", "delete"])
    def test_other_exchanges_may_not(self, limited: BlockingChannel, foreign: str, operation: str) -> None:
        with refused("exchange", foreign):
            if operation == "declare":
                limited.exchange_declare(foreign, "fanout")
            else:
                limited.exchange_delete(foreign)

    def test_a_dead_letter_exchange_must_be_writable(self, limited: BlockingChannel, own: str, foreign: str) -> None:
        with refused("exchange", foreign):
            limited.queue_declare(own, arguments={"x-dead-letter-exchange": foreign})

    def test_an_alternate_exchange_must_be_writable(self, limited: BlockingChannel, own: str, foreign: str) -> None:
        with refused("exchange", foreign):
            limited.exchange_declare(own, "direct", arguments={"alternate-exchange": foreign})


class TestWrite:
    def test_publishing_needs_it_on_the_exchange(self, limited: BlockingChannel, foreign: str) -> None:
        with refused("exchange", foreign):
            limited.basic_publish(foreign, "", b"m")
            limited.basic_qos(prefetch_count=1)

    def test_the_default_exchange_is_called_amq_default(
        self, limited: BlockingChannel, guest: BlockingChannel, foreign: str
    ) -> None:
        # Whoever may write to amq.default may publish to every queue by its name.
        publish(limited, foreign, b"m")
        wait_ready(guest, foreign, 1)
        assert drain(guest, foreign) == [b"m"]

    def test_binding_needs_it_on_the_queue_and_read_on_the_exchange(
        self, log_in: Callable[..., BlockingConnection], own: str, foreign: str
    ) -> None:
        connection = log_in("limited")
        channel = connection.channel()
        channel.queue_declare(own)
        channel.exchange_declare(own, "fanout")
        channel.queue_bind(own, own)
        with refused("queue", foreign):
            connection.channel().queue_bind(foreign, own)
        with refused("exchange", foreign):
            connection.channel().queue_bind(own, foreign)
        channel.queue_delete(own)
        channel.exchange_delete(own)

    def test_binding_exchanges_needs_it_on_the_destination_and_read_on_the_source(
        self, log_in: Callable[..., BlockingConnection], own: str, foreign: str
    ) -> None:
        connection = log_in("limited")
        channel = connection.channel()
        channel.exchange_declare(own, "fanout")
        for destination, source in ((foreign, own), (own, foreign)):
            with refused("exchange", foreign):
                connection.channel().exchange_bind(destination, source)
        channel.exchange_delete(own)


class TestRead:
    @pytest.mark.parametrize("operation", ["consume", "get", "purge"])
    def test_other_queues_may_not_be_read(self, limited: BlockingChannel, foreign: str, operation: str) -> None:
        with refused("queue", foreign):
            match operation:
                case "consume":
                    limited.basic_consume(foreign, lambda *_: None)
                case "get":
                    limited.basic_get(foreign)
                case "purge":
                    limited.queue_purge(foreign)

    def test_it_is_enough_to_consume(self, limited: BlockingChannel, guest: BlockingChannel) -> None:
        name = f"readable-{uuid.uuid4().hex[:12]}"
        guest.queue_declare(name)
        publish(guest, name, b"m")
        wait_ready(guest, name, 1)
        assert drain(limited, name) == [b"m"]
        guest.queue_delete(name)


class TestPassive:
    """RabbitMQ 4.3: to ask whether something is there, any permission on it will do, but one is needed."""

    @pytest.mark.parametrize("stem", ["own-", "readable-"])
    def test_any_permission_is_enough(self, limited: BlockingChannel, guest: BlockingChannel, stem: str) -> None:
        name = f"{stem}{uuid.uuid4().hex[:12]}"
        guest.queue_declare(name)
        guest.exchange_declare(name, "fanout")
        limited.queue_declare(name, passive=True)
        limited.exchange_declare(name, passive=True)
        guest.queue_delete(name)
        guest.exchange_delete(name)

    def test_without_any_it_is_refused_whether_it_is_there_or_not(
        self, log_in: Callable[..., BlockingConnection], foreign: str
    ) -> None:
        connection = log_in("limited")
        for name in (foreign, "absent"):
            with refused("queue", name):
                connection.channel().queue_declare(name, passive=True)
            with refused("exchange", name):
                connection.channel().exchange_declare(name, passive=True)


class TestUpdateSecret:
    """It changes no password here, but what the user may do is looked at again."""

    @pytest.fixture
    def changing(self, guarded: BrokerProcess) -> Iterator[Callable[[str], None]]:
        run_operator_command(guarded.data, "user", "add", "renewing", standard_input=f"{PASSWORD}\n")

        def permit_to_read(pattern: str) -> None:
            run_operator_command(guarded.data, "permission", "set", "renewing", ".*", ".*", pattern)

        permit_to_read(".*")
        yield permit_to_read
        run_operator_command(guarded.data, "user", "delete", "renewing")

    def test_consumers_that_may_no_longer_read_are_cancelled(
        self, changing: Callable[[str], None], log_in: Callable[..., BlockingConnection], guest: BlockingChannel
    ) -> None:
        connection = log_in("renewing")
        channel = connection.channel()
        kept, lost = f"kept-{uuid.uuid4().hex[:12]}", f"lost-{uuid.uuid4().hex[:12]}"
        inboxes = {}
        for name in (kept, lost):
            guest.queue_declare(name)
            inboxes[name] = Inbox(channel, name, auto_ack=True)
        cancelled: list[str] = []
        channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
        changing("^kept-")
        connection.update_secret("whatever", "it is time")
        publish(guest, kept, b"m")
        publish(guest, lost, b"m")
        inboxes[kept].wait(1)
        assert cancelled == [inboxes[lost].consumer_tag]
        wait_ready(guest, lost, 1)
        assert inboxes[lost].deliveries == []
        guest.queue_delete(kept)
        guest.queue_delete(lost)

    def test_a_virtual_host_that_is_no_longer_open_to_the_user_closes_the_connection(
        self, guarded: BrokerProcess, changing: Callable[[str], None], log_in: Callable[..., BlockingConnection]
    ) -> None:
        connection = log_in("renewing")
        run_operator_command(guarded.data, "permission", "clear", "renewing")
        with connection_refused(530, "NOT_ALLOWED - access to vhost '/' refused for user 'renewing'"):
            connection.update_secret("whatever", "it is time")


def test_a_deleted_user_is_disconnected(guarded: BrokerProcess, log_in: Callable[..., BlockingConnection]) -> None:
    run_operator_command(guarded.data, "user", "add", "leaver", standard_input=f"{PASSWORD}\n")
    run_operator_command(guarded.data, "permission", "set", "leaver", ".*", ".*", ".*")
    connection = log_in("leaver")
    run_operator_command(guarded.data, "user", "delete", "leaver")
    with connection_refused(320, "CONNECTION_FORCED - user 'leaver' is deleted"):
        connection.process_data_events(time_limit=20)


def test_a_refused_channel_leaves_the_connection_usable(
    log_in: Callable[..., BlockingConnection], own: str, foreign: str
) -> None:
    connection = log_in("limited")
    with refused("queue", foreign):
        connection.channel().basic_get(foreign)
    channel = connection.channel()
    channel.queue_declare(own, exclusive=True)
    publish(channel, own, b"m")
    wait_ready(channel, own, 1)


def test_permissions_changed_while_the_broker_runs_hold_for_open_connections(
    guarded: BrokerProcess, log_in: Callable[..., BlockingConnection], own: str
) -> None:
    user = f"changing-{uuid.uuid4().hex[:12]}"
    run_operator_command(guarded.data, "user", "add", user, standard_input=f"{PASSWORD}\n")
    run_operator_command(guarded.data, "permission", "set", user, ".*", ".*", ".*")
    channel = log_in(user).channel()
    channel.queue_declare(own, exclusive=True)
    run_operator_command(guarded.data, "permission", "set", user, "", "", "")
    with channel_refused(403):
        channel.queue_purge(own)
