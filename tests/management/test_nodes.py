"""The node and its health checks, and the order and the columns of lists."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from millpond.base.limits import ADMIN_COLUMNS_MAX
from millpond.pytest_plugin import BackgroundBroker
from tests.support import management
from tests.support.management import Call
from tests.support.waiting import eventually

CHECKS = "/api/health/checks"


def test_the_node_is_shown_with_its_memory_and_its_alarms(call: Call) -> None:
    [shown] = call("GET", "/api/nodes").json
    assert (shown["type"], shown["running"], shown["mem_alarm"], shown["disk_free_alarm"]) == (
        "disc",
        True,
        False,
        False,
    )
    assert 0 <= shown["mem_used"] < shown["mem_limit"]
    assert shown["disk_free"] > 0
    assert 0 < shown["fd_used"] < shown["fd_total"]
    assert {"name": "x-delayed-message", "enabled": True} in shown["exchange_types"]
    one = call("GET", f"/api/nodes/{quote(shown['name'])}").json
    assert one["name"] == call("GET", "/api/overview").json["node"] == shown["name"]
    assert call("GET", "/api/nodes?columns=name,type,mem_used").json[0].keys() == {"name", "type", "mem_used"}
    assert call("GET", "/api/nodes/rabbit@elsewhere").status == 404


def test_the_node_is_for_monitoring_and_its_checks_for_all_who_may_log_in(call: Call, user: Callable[..., str]) -> None:
    login = user("manager", "management")
    assert call("GET", "/api/nodes", login=login).status == 401
    assert call("GET", f"{CHECKS}/alarms", login=login).status == 200
    assert call("GET", f"{CHECKS}/alarms", login=None).status == 401


@pytest.mark.parametrize("check", ["is-in-service", "ready-to-serve-clients", "below-node-connection-limit"])
def test_a_load_balancer_needs_no_login(call: Call, check: str) -> None:
    for path in (f"{CHECKS}/{check}", f"{CHECKS}/{check}/"):
        for method in ("GET", "HEAD"):
            assert call(method, path, login=None).status == 200
    assert call("GET", f"{CHECKS}/{check}/../alarms", login=None).status in {401, 404}
    assert call("PUT", f"{CHECKS}/{check}", {}, login=None).status == 405


@pytest.mark.parametrize(
    "check",
    [
        "alarms",
        "local-alarms",
        "virtual-hosts",
        "is-in-service",
        "ready-to-serve-clients",
        "below-node-connection-limit",
        "metadata-store/initialized",
        "metadata-store/initialized/with-data",
        "reached-target-cluster-size",
        "quorum-queues-without-elected-leaders/all-vhosts/",
        "quorum-queues-without-elected-leaders/all-vhosts/pattern/%5Eorders",
        "quorum-queues-without-elected-leaders/vhost/%2F/",
        "quorum-queues-without-elected-leaders/vhost/%2F/pattern/%5Eorders",
    ],
)
def test_a_broker_that_is_well_says_so(call: Call, check: str) -> None:
    answer = call("GET", f"{CHECKS}/{check}")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


def test_the_checks_of_one_node(call: Call) -> None:
    assert call("GET", f"{CHECKS}/node-is-quorum-critical").json == {"status": "ok", "reason": "single node cluster"}
    assert call("GET", "/api/aliveness-test/%2F").json == {"status": "ok"}
    assert call("GET", "/api/aliveness-test/absent").status == 404
    assert call("GET", f"{CHECKS}/quorum-queues-without-elected-leaders/vhost/absent").status == 404


def test_an_alarm_fails_its_checks(tmp_path: Path) -> None:
    pond = BackgroundBroker(data_dir=tmp_path, admin="127.0.0.1:0", disk_free_min="1000PiB")
    pond.start()
    try:
        call = partial(management.request, pond.address("admin"))
        eventually(lambda: call("GET", "/api/nodes").json[0]["disk_free_alarm"], "there is too little free disk")
        node = call("GET", "/api/overview").json["node"]
        for check, where in (("alarms", "in the cluster"), ("local-alarms", "on the node")):
            answer = call("GET", f"{CHECKS}/{check}")
            assert answer.status == 503
            assert answer.json == {
                "status": "failed",
                "reason": f"There are alarms in effect {where}",
                "alarms": [{"node": node, "resource": "disk"}],
            }
    finally:
        pond.stop()


def test_a_port_is_listened_on_or_not(call: Call, pond: BackgroundBroker) -> None:
    port = pond.amqp_port
    assert call("GET", f"{CHECKS}/port-listener/{port}").json == {"status": "ok", "port": port}
    answer = call("GET", f"{CHECKS}/port-listener/1")
    assert (answer.status, answer.json["reason"], answer.json["missing"]) == (503, "No active listener", 1)
    assert port in answer.json["ports"]
    for wrong in ("amqp", "-1", "%D9%A1", "9" * 200):
        answer = call("GET", f"{CHECKS}/port-listener/{wrong}")
        assert (answer.status, answer.json) == (400, {"error": "bad_request", "reason": "Invalid port"})


def test_a_protocol_is_listened_for_or_not(call: Call) -> None:
    for spoken in ("amqp", "amqp091", "AMQP", "amqp,http"):
        answer = call("GET", f"{CHECKS}/protocol-listener/{spoken}")
        assert (answer.status, sorted(answer.json["protocols"])) == (200, ["amqp", "http"])
    answer = call("GET", f"{CHECKS}/protocol-listener/amqps,mqtt,amqp")
    assert (answer.status, answer.json["missing"]) == (503, ["amqp/ssl", "mqtt"])


def test_a_list_is_sorted_and_shows_the_columns_that_are_asked_for(call: Call, channel: BlockingChannel) -> None:
    for name, length in (("b", 2), ("C", 0), ("a", 1)):
        channel.queue_declare(name)
        for _ in range(length):
            channel.basic_publish("", name, b"m")
    # Declared after the messages, on the same connection: they have been counted.
    channel.queue_declare("b", passive=True)

    def names(query: str) -> list[str]:
        return [one["name"] for one in call("GET", f"/api/queues/%2F?{query}").json]

    assert names("sort=name") == ["C", "a", "b"]
    assert names("sort=name&sort_reverse=true") == ["b", "a", "C"]
    assert names("sort=message_stats.publish") == ["C", "a", "b"]
    assert names("sort=arguments") == names("sort=nothing.there") == names("") == ["b", "C", "a"]
    found = call("GET", "/api/queues/%2F?columns=name,message_stats.publish,absent.name&sort=messages").json
    assert found[0] == {"name": "C", "message_stats": {"publish": 0}}
    assert call("GET", f"/api/queues/%2F?columns={'a,' * (ADMIN_COLUMNS_MAX + 1)}").status == 400
    page = call("GET", "/api/queues/%2F?page=1&page_size=1&name=c&columns=name").json
    assert (page["items"], page["filtered_count"], page["total_count"]) == ([{"name": "C"}], 1, 3)
    for name in "abC":
        channel.queue_delete(name)
