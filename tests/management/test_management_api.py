"""The management API: what it shows, whom it lets in, what it changes, by TCP and by the data directory's socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from millpond.base.limits import ADMIN_REQUEST_BYTES_MAX
from millpond.cli import run
from millpond.pytest_plugin import BackgroundBroker
from tests.support.management import Call
from tests.support.waiting import eventually


def test_a_queue_is_shown_with_its_messages_and_consumers(call: Call, channel: BlockingChannel) -> None:
    channel.queue_declare("work", durable=True, arguments={"x-max-length": 10})
    for _ in range(3):
        channel.basic_publish("", "work", b"12345")
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("work", lambda *_: None, consumer_tag="worker")
    shown = eventually(
        lambda: (found := call("GET", "/api/queues/%2F/work").json)["messages_unacknowledged"] == 1 and found,
        "a message is with the consumer",
    )
    assert (shown["messages"], shown["messages_ready"], shown["consumers"]) == (3, 2, 1)
    assert (shown["vhost"], shown["durable"], shown["arguments"]) == ("/", True, {"x-max-length": 10})
    [consumer] = call("GET", "/api/consumers/%2F").json
    assert (consumer["consumer_tag"], consumer["prefetch_count"]) == ("worker", 1)
    assert consumer["queue"] == {"vhost": "/", "name": "work"}
    assert call("GET", "/api/overview").json["queue_totals"]["messages"] == 3
    channel.queue_delete("work")
    assert call("GET", "/api/queues/%2F/work").status == 404


def test_a_stream_is_shown_with_its_offsets(call: Call, channel: BlockingChannel) -> None:
    channel.queue_declare("history", durable=True, arguments={"x-queue-type": "stream"})
    channel.confirm_delivery()
    for _ in range(3):
        channel.basic_publish("", "history", b"12345")
    shown = call("GET", "/api/queues/%2F/history").json
    assert (shown["type"], shown["messages"], shown["messages_ready"]) == ("stream", 3, 3)
    assert (shown["first_offset"], shown["committed_offset"]) == (0, 2)
    refused = call("DELETE", "/api/queues/%2F/history/contents")
    assert refused.status == 400
    assert "queue.purge not supported by stream queues" in refused.content.decode()
    assert call("DELETE", "/api/queues/%2F/history").status == 204


def test_exchanges_and_bindings_are_shown(call: Call, channel: BlockingChannel) -> None:
    channel.queue_declare("inbox")
    channel.exchange_declare("news", "topic")
    channel.queue_bind("inbox", "news", "sport.#")
    [exchange] = [one for one in call("GET", "/api/exchanges").json if one["name"] == "news"]
    assert (exchange["type"], exchange["vhost"], exchange["internal"]) == ("topic", "/", False)
    found = {(one["source"], one["routing_key"]) for one in call("GET", "/api/bindings/%2F").json}
    assert found == {("", "inbox"), ("news", "sport.#")}
    channel.queue_delete("inbox")
    channel.exchange_delete("news")


def test_connections_are_shown_and_can_be_closed(call: Call, pond: BackgroundBroker) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(pond.amqp_url))
    [shown] = call("GET", "/api/connections").json
    assert shown["user"] == "guest"
    name = shown["name"].replace(" ", "%20").replace(">", "%3E")
    assert call("DELETE", f"/api/connections/{name}", headers={"X-Reason": "enough"}).status == 204
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="enough"):
        connection.process_data_events(time_limit=20)


def test_lists_come_in_pages(call: Call) -> None:
    page = call("GET", "/api/exchanges?page=2&page_size=3&name=amq.").json
    assert (page["page"], page["page_size"], page["item_count"], page["page_count"]) == (2, 3, 2, 2)
    assert all(item["name"].startswith("amq.") for item in page["items"])
    assert call("GET", "/api/exchanges?page=0").status == 400


def test_nobody_gets_in_without_a_login(call: Call) -> None:
    for login in (None, "guest:wrong", "nobody:guest", "guest"):
        answer = call("GET", "/api/overview", login=login)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Basic realm="Millpond"'
    assert call("GET", "/metrics", login=None).status == 401
    assert call("GET", "/absent", login=None).status == 401


def test_the_tag_says_what_a_user_may_see(call: Call, user: Callable[[str, str], str]) -> None:
    assert call("GET", "/api/overview", login=user("untagged", "")).status == 401
    manager = user("manager", "management")
    assert call("GET", "/api/queues/%2F", login=manager).status == 404
    assert call("GET", "/api/users", login=manager).status == 401
    assert call("GET", "/metrics", login=manager).status == 401
    monitor = user("monitor", "monitoring")
    assert call("GET", "/api/queues/%2F", login=monitor).status == 200
    assert call("GET", "/metrics", login=monitor).status == 200
    assert call("DELETE", "/api/users/guest", login=monitor).status == 401


def test_users_and_permissions_are_changed(call: Call, pond: BackgroundBroker) -> None:
    assert call("PUT", "/api/users/ann", {"password": "secret", "tags": "monitoring, management"}).status == 201
    assert call("GET", "/api/users/ann").json == {"name": "ann", "tags": ["monitoring", "management"], "limits": {}}
    permission = {"configure": "^ann-", "write": ".*", "read": ""}
    assert call("PUT", "/api/permissions/%2F/ann", permission).status == 201
    assert call("PUT", "/api/permissions/%2F/ann", permission).status == 204
    assert call("GET", "/api/users/ann/permissions").json == [{"user": "ann", "vhost": "/", **permission}]
    url = pond.amqp_url.replace("guest:guest", "ann:secret")
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare("ann-queue", exclusive=True)
    assert call("DELETE", "/api/permissions/%2F/ann").status == 204
    assert call("GET", "/api/permissions/%2F/ann").status == 404
    assert call("DELETE", "/api/users/ann").status == 204
    assert call("DELETE", "/api/users/ann").json == {"error": "Object Not Found", "reason": "no user 'ann'"}


def test_virtual_hosts_are_made_and_deleted(call: Call, pond: BackgroundBroker) -> None:
    assert call("PUT", "/api/vhosts/a%2Fb").status == 201
    url = pond.amqp_url.replace("%2F", "a%2Fb")
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare("q", durable=True)
    assert [one["name"] for one in call("GET", "/api/queues/a%2Fb").json] == ["q"]
    assert call("DELETE", "/api/queues/a%2Fb/q").status == 204
    assert call("DELETE", "/api/vhosts/a%2Fb").status == 204
    assert call("GET", "/api/vhosts/a%2Fb").status == 404
    assert call("DELETE", "/api/vhosts/%2F").status == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/users/ann", {"password": ["secret"]}),
        ("/api/users/ann", {"password": ""}),
        ("/api/users/ann", {"password_hash": "plain"}),
        ("/api/permissions/%2F/guest", {"configure": "("}),
        ("/api/permissions/%2F/guest", {"configure": "(", "write": "", "read": ""}),
    ],
)
def test_a_body_that_is_not_valid_is_refused_without_quoting_it(call: Call, path: str, body: object) -> None:
    answer = call("PUT", path, body)
    assert answer.status == 400
    assert "secret" not in answer.content.decode()
    assert answer.json["error"] == "bad_request"


def test_a_large_body_is_refused_before_it_is_read(call: Call) -> None:
    headers = {"Content-Length": str(ADMIN_REQUEST_BYTES_MAX + 1)}
    assert call("PUT", "/api/users/ann", headers=headers).status == 413
    assert call("PUT", "/api/users/ann", headers={"Transfer-Encoding": "chunked"}).status == 411


def test_metrics_are_prometheus_metrics(call: Call, channel: BlockingChannel) -> None:
    channel.queue_declare("measured")
    channel.basic_publish("", "measured", b"x")
    channel.queue_declare("measured", passive=True)
    text = call("GET", "/metrics").content.decode()
    assert "rabbitmq_connections 1.0" in text
    assert "rabbitmq_channels 1.0" in text
    assert "rabbitmq_queue_messages 1.0" in text
    assert "rabbitmq_queue_messages_ready 1.0" in text
    assert "rabbitmq_alarms_memory_used_watermark 0.0" in text
    assert "rabbitmq_alarms_free_disk_space_watermark 0.0" in text
    assert 'millpond_alarm{reason="disk"} 0.0' in text
    assert "process_resident_memory_bytes" in text
    per_queue = call("GET", "/metrics/per-object").content.decode()
    assert 'rabbitmq_queue_messages_ready{queue="measured",vhost="/"} 1.0' in per_queue
    channel.queue_delete("measured")


def test_the_socket_of_the_data_directory_is_for_its_owner_only(pond: BackgroundBroker, data: Path) -> None:
    assert (data / "admin.sock").stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(data / "admin.sock"))
        client.sendall(b"GET /api/whoami HTTP/1.1\r\nHost: pond\r\nConnection: close\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(65_536), b""))
    assert received.endswith(b'{"name": null, "tags": ["administrator"]}')


def test_the_operators_commands_reach_the_running_broker(
    pond: BackgroundBroker, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["status", "--data", str(data)]) == 0
    assert f"amqp     127.0.0.1:{pond.amqp_port}" in capsys.readouterr().out
    assert run(["user", "delete", "absent", "--data", str(data)]) == 66
    assert capsys.readouterr().err == "millpond: no user 'absent'\n"
    host, port = pond.address("admin")
    monkeypatch.setenv("MILLPOND_PASSWORD", "guest")
    assert run(["user", "list", "--url", f"http://guest@{host}:{port}"]) == 0
    assert capsys.readouterr().out == "guest\tadministrator\n"
    monkeypatch.setenv("MILLPOND_PASSWORD", "wrong")
    assert run(["status", "--url", f"http://{host}:{port}"]) == 77
    assert capsys.readouterr().err == "millpond: Login failed\n"


def test_the_socket_goes_with_the_broker_and_a_left_over_is_replaced(tmp_path: Path) -> None:
    # Longer than the kernel takes for the name of a socket.
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(tmp_path / "short.sock"))
    left_over.close()
    (tmp_path / "short.sock").rename(folder / "admin.sock")
    broker = BackgroundBroker(data_dir=folder)
    broker.start()
    try:
        assert run(["user", "list", "--data", str(folder)]) == 0
    finally:
        broker.stop()
    assert not (folder / "admin.sock").exists()
