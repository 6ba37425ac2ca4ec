"""Connections and channels by the management API, and whose they are to see and to close."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from millpond.pytest_plugin import BackgroundBroker
from tests.support.management import Call
from tests.support.waiting import eventually

ANYTHING = (".*", ".*", ".*")


def connected(pond: BackgroundBroker, login: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(pond.amqp_url.replace("guest:guest", login)))


def test_a_channel_is_shown_with_what_it_does(call: Call, channel: BlockingChannel) -> None:
    channel.queue_declare("work")
    for _ in range(3):
        channel.basic_publish("", "work", b"m")
    channel.basic_qos(prefetch_count=2)
    channel.basic_consume("work", lambda *_: None, consumer_tag="worker")
    transactional = channel.connection.channel()
    transactional.tx_select()
    transactional.basic_publish("", "work", b"m")
    confirming = channel.connection.channel()
    confirming.confirm_delivery()
    confirming.basic_qos(prefetch_count=7, global_qos=True)
    [connection] = call("GET", "/api/connections").json
    path = f"/api/connections/{quote(connection['name'])}"
    shown = eventually(
        lambda: (found := call("GET", f"{path}/channels").json)[0]["messages_unacknowledged"] == 2 and found,
        "two messages are with the consumer",
    )
    assert [one["number"] for one in shown] == [1, 2, 3]
    first, second, third = shown
    assert first["name"] == f"{connection['name']} (1)"
    assert first["connection_details"]["name"] == connection["name"]
    assert (first["user"], first["vhost"], first["prefetch_count"], first["consumer_count"]) == ("guest", "/", 2, 1)
    assert (first["message_stats"]["publish"], first["transactional"], first["confirm"]) == (3, False, False)
    assert (second["transactional"], second["messages_uncommitted"]) == (True, 1)
    assert (third["confirm"], third["global_prefetch_count"], third["messages_unconfirmed"]) == (True, 7, 0)
    assert call("GET", "/api/channels").json == shown
    assert call("GET", "/api/vhosts/%2F/channels").json == shown
    one = call("GET", f"/api/channels/{quote(first['name'])}").json
    assert [consumer["consumer_tag"] for consumer in one.pop("consumer_details")] == ["worker"]
    assert one == first
    assert call("GET", path).json["channels"] == 3
    channel.queue_delete("work")


def test_who_is_not_there_is_not_found(call: Call) -> None:
    for path in ("connections/absent", "connections/absent/channels", "channels/absent", "channels/absent%20(1)"):
        assert call("GET", f"/api/{path}").status == 404
    assert call("DELETE", "/api/connections/absent").status == 404


def test_users_see_and_close_their_own(
    call: Call, pond: BackgroundBroker, user: Callable[..., str], channel: BlockingChannel
) -> None:
    login = user("manager", "management", ANYTHING)
    monitor = user("monitor", "monitoring")
    own = connected(pond, login)
    own.channel()
    [shown] = call("GET", "/api/connections", login=login).json
    assert shown["user"] == "manager"
    assert [one["user"] for one in call("GET", "/api/channels", login=login).json] == ["manager"]
    assert {one["user"] for one in call("GET", "/api/channels", login=monitor).json} == {"guest", "manager"}
    [foreign] = call("GET", "/api/connections/username/guest").json
    path = f"/api/connections/{quote(foreign['name'])}"
    for asked in (path, f"{path}/channels", f"/api/channels/{quote(foreign['name'] + ' (1)')}"):
        assert call("GET", asked, login=login).status == 401
        assert call("GET", asked, login=monitor).status == 200
    assert call("DELETE", path, login=login).status == 401
    assert call("DELETE", path, login=monitor).status == 401
    assert call("DELETE", f"/api/connections/{quote(shown['name'])}", login=login).status == 204
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="Closed via management plugin"):
        own.process_data_events(time_limit=20)


def test_a_deleted_user_is_disconnected(call: Call, pond: BackgroundBroker, user: Callable[..., str]) -> None:
    first, second = connected(pond, user("leaver", "", ANYTHING)), connected(pond, user("stayer", "", ANYTHING))
    assert call("DELETE", "/api/users/leaver").status == 204
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as closed:
        first.process_data_events(time_limit=20)
    assert (closed.value.reply_code, closed.value.reply_text) == (
        320,
        "CONNECTION_FORCED - user 'leaver' is deleted",
    )
    second.channel()
    second.close()


def test_a_changed_password_leaves_connections_alone(
    call: Call, pond: BackgroundBroker, user: Callable[..., str]
) -> None:
    with connected(pond, user("changer", "", ANYTHING)) as connection:
        assert call("PUT", "/api/users/changer", {"password": "other", "tags": ""}).status == 204
        connection.channel()
        with pytest.raises(pika.exceptions.ProbableAuthenticationError):
            connected(pond, "changer:secret")
        connected(pond, "changer:other").close()
