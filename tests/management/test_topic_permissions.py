"""Topic permissions by the management API, in RabbitMQ's shapes, and by the commands on data that is not in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from millpond.cli import run
from millpond.embedded import Broker
from tests.support.management import Call


def test_they_are_set_shown_and_cleared(call: Call, user: Callable[..., str]) -> None:
    user("ann", "")
    path = "/api/topic-permissions/%2F/ann"
    assert call("GET", path).status == 404
    row = {"exchange": "amq.topic", "write": "^{username}", "read": "^{vhost}"}
    assert call("PUT", path, row).status == 201
    assert call("PUT", path, row).status == 204
    shown = [{"user": "ann", "vhost": "/", **row}]
    for asked in (
        path,
        "/api/topic-permissions",
        "/api/users/ann/topic-permissions",
        "/api/vhosts/%2F/topic-permissions",
    ):
        assert call("GET", asked).json == shown
    assert call("DELETE", f"{path}/amq.direct").status == 204
    assert call("GET", path).json == shown
    assert call("DELETE", f"{path}/amq.topic").status == 204
    assert call("GET", path).status == 404
    call("PUT", path, row)
    assert call("DELETE", path).status == 204
    assert call("GET", "/api/topic-permissions").json == []


def test_they_go_with_their_user_and_their_virtual_host(call: Call, user: Callable[..., str]) -> None:
    call("PUT", "/api/vhosts/v")
    row = {"exchange": "amq.topic", "write": "", "read": ""}
    for name in ("ann", "bob"):
        user(name, "")
        for vhost in ("%2F", "v"):
            assert call("PUT", f"/api/topic-permissions/{vhost}/{name}", row).status == 201
    call("DELETE", "/api/users/ann")
    assert [one["user"] for one in call("GET", "/api/topic-permissions").json] == ["bob", "bob"]
    call("DELETE", "/api/vhosts/v")
    assert [one["vhost"] for one in call("GET", "/api/topic-permissions").json] == ["/"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("%2F/absent", {"exchange": "amq.topic", "write": "", "read": ""}, 404),
        ("absent/guest", {"exchange": "amq.topic", "write": "", "read": ""}, 404),
        ("%2F/guest", {"exchange": "absent", "write": "", "read": ""}, 404),
        ("%2F/guest", {"exchange": "amq.topic", "write": "("}, 400),
        ("%2F/guest", {"exchange": "amq.topic", "write": "(", "read": ""}, 400),
        ("%2F/guest", {"exchange": "amq.topic", "write": "", "read": "x" * 1025}, 400),
        ("%2F/guest", {"exchange": "amq.topic", "write": "", "read": 5}, 400),
    ],
)
def test_what_cannot_be_is_refused(call: Call, path: str, body: object, status: int) -> None:
    assert call("PUT", f"/api/topic-permissions/{path}", body).status == status
    assert call("GET", "/api/topic-permissions").json == []


def test_only_administrators_see_them(call: Call, user: Callable[..., str]) -> None:
    login = user("monitor", "monitoring")
    assert call("GET", "/api/topic-permissions", login=login).status == 401
    assert call("DELETE", "/api/topic-permissions/%2F/guest", login=login).status == 401


async def test_the_commands_work_on_data_that_is_not_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Broker(tmp_path / "pond"):
        pass
    where = ["--data", str(tmp_path / "pond")]
    assert run(["permission", "set-topic", "guest", "amq.topic", "^a", "^b", *where]) == 0
    assert run(["permission", "list-topic", *where]) == 0
    assert capsys.readouterr().out == "guest\t/\tamq.topic\t^a\t^b\n"
    assert run(["permission", "set-topic", "guest", "absent", "", "", *where]) == 66
    assert run(["permission", "set-topic", "ann", "amq.topic", "", "", *where]) == 66
    assert run(["permission", "set-topic", "guest", "amq.topic", "", "", "--vhost", "v", *where]) == 66
    assert run(["permission", "set-topic", "guest", "amq.topic", "(", "", *where]) == 65
    assert run(["permission", "clear-topic", "guest", *where]) == 0
    capsys.readouterr()
    assert run(["permission", "list-topic", *where]) == 0
    assert capsys.readouterr().out == ""


def test_definitions_take_them_along(call: Call, user: Callable[..., str]) -> None:
    user("ann", "")
    # Its user must be held to it also when the exchange is declared later.
    row = {"user": "ann", "vhost": "/", "exchange": "later", "write": "^{username}$", "read": ""}
    assert call("POST", "/api/definitions", {"topic_permissions": [row]}).status == 204
    assert call("GET", "/api/topic-permissions").json == [row]
    assert call("GET", "/api/definitions").json["topic_permissions"] == [row]
    for wrong in ({**row, "user": "nobody"}, {**row, "vhost": "absent"}, {**row, "write": "("}, {**row, "read": 5}):
        assert call("POST", "/api/definitions", {"topic_permissions": [wrong]}).status == 400
    assert call("GET", "/api/topic-permissions").json == [row]
