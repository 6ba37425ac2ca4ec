"""Every route of the management API against everybody who might ask.

A line of the matrix is a request and who may send it: by a tag, by access to the virtual host, by a permission in it.
Everybody else is refused with 401, or with 404 for a virtual host that they may not know of, and nothing has changed.

Source: RabbitMQ, "Management Plugin: Permissions".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.routing import APIRoute

from tests.security.world import (
    ANN,
    DEAD_QUEUE,
    DIRECT,
    EMPTY_QUEUE,
    FANOUT,
    HOME,
    IDLE,
    MODERN,
    OTHER_TOPIC,
    QUEUE,
    ROOT,
    SHARERS,
    TOPIC,
    TOPICAL,
    TRANSACTION,
    World,
    differences,
    world_of,
)

# Who may: everybody; whoever has a tag; who has access to the virtual host; who has the permission in it; the tags.
OPEN, TAGGED, LISTED, VISIBLE, PERMITTED = "open", "tagged", "listed", "visible", "permitted"
MONITORING, POLICYMAKER, POLICYMAKER_HERE, ADMINISTRATOR = "monitoring", "policymaker", "policymaker-here", "admin"


@dataclass(frozen=True)
class Line:
    """`route` is the method and the path as it is declared, `path` the path that is asked for."""

    route: str
    path: str
    who: str
    body: object = None
    # (operation, kind, name): what RabbitMQ's text names, too.
    needs: tuple[tuple[str, str, str], ...] = ()

    @property
    def method(self) -> str:
        return self.route.split()[0]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def get(path: str, who: str, asked: str | None = None) -> Line:
    return Line(f"GET {path}", filled(path) if asked is None else asked, who)


def filled(path: str) -> str:
    """The path with what there is."""
    names = {"vhost": "%2F", "name": QUEUE, "user": ANN, "component": "shovel"}
    for field, value in names.items():
        path = path.replace("{" + field + "}", value)
    return path


def change(route: str, path: str, who: str, body: object = None, *needs: tuple[str, str, str]) -> Line:
    return Line(route, path, who, body, needs)


CHECKS = "/api/health/checks"
BINDINGS = f"/api/bindings/%2F/e/{DIRECT}/q/{QUEUE}"
POLICY = {"pattern": "^y", "definition": {"max-length": 3}}
PUBLISH = {"routing_key": "k", "properties": {}, "payload": "x", "payload_encoding": "string"}
GET = {"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"}
ALL = {"configure": ".*", "write": ".*", "read": ".*"}
BIND = (("write", "queue", EMPTY_QUEUE), ("read", "exchange", FANOUT))

# In an order in which all of it can be done.
MATRIX: tuple[Line, ...] = (
    *(get(f"{CHECKS}/{check}", OPEN) for check in
      ("is-in-service", "below-node-connection-limit", "ready-to-serve-clients")),
    *(get(f"{CHECKS}/{check}", TAGGED) for check in (
        "alarms", "local-alarms", "reached-target-cluster-size", "metadata-store/initialized",
        "metadata-store/initialized/with-data", "virtual-hosts", "node-is-quorum-critical",
        "quorum-queues-without-elected-leaders/all-vhosts")),
    get(f"{CHECKS}/port-listener/{{port}}", TAGGED, f"{CHECKS}/port-listener/5672"),
    get(f"{CHECKS}/protocol-listener/{{protocols}}", TAGGED, f"{CHECKS}/protocol-listener/amqp"),
    get(f"{CHECKS}/quorum-queues-without-elected-leaders/all-vhosts/pattern/{{pattern}}", TAGGED,
        f"{CHECKS}/quorum-queues-without-elected-leaders/all-vhosts/pattern/x"),
    get(f"{CHECKS}/quorum-queues-without-elected-leaders/vhost/{{vhost}}", VISIBLE),
    get(f"{CHECKS}/quorum-queues-without-elected-leaders/vhost/{{vhost}}/pattern/{{pattern}}", VISIBLE,
        f"{CHECKS}/quorum-queues-without-elected-leaders/vhost/%2F/pattern/x"),
    get("/api/aliveness-test/{vhost}", VISIBLE),
    get("/api/overview", TAGGED),
    get("/api/whoami", TAGGED),
    get("/api/nodes", MONITORING),
    get("/api/nodes/{name}", MONITORING, "/api/nodes/millpond@test"),
    get("/metrics", MONITORING),
    get("/metrics/per-object", MONITORING),
    # Lists show what is in virtual hosts that one sees.
    *(get(f"/api/{what}", LISTED) for what in (
        "vhosts", "queues", "exchanges", "bindings", "consumers", "policies", "operator-policies",
        "topics", "groups", "shares", "transactions", "connections", "channels")),
    *(get(f"/api/{what}/{{vhost}}", VISIBLE) for what in (
        "vhosts", "queues", "exchanges", "bindings", "consumers", "policies", "operator-policies",
        "topics", "groups", "shares", "transactions")),
    get("/api/vhosts/{vhost}/connections", VISIBLE),
    get("/api/vhosts/{vhost}/channels", VISIBLE),
    get("/api/connections/username/{user}", TAGGED),
    get("/api/queues/{vhost}/{name}", VISIBLE),
    get("/api/queues/{vhost}/{name}/bindings", VISIBLE),
    get("/api/exchanges/{vhost}/{name}", VISIBLE, f"/api/exchanges/%2F/{DIRECT}"),
    get("/api/exchanges/{vhost}/{name}/bindings/source", VISIBLE, f"/api/exchanges/%2F/{DIRECT}/bindings/source"),
    get("/api/exchanges/{vhost}/{name}/bindings/destination", VISIBLE,
        f"/api/exchanges/%2F/{DIRECT}/bindings/destination"),
    get("/api/bindings/{vhost}/e/{source}/{kind}/{destination}", VISIBLE, BINDINGS),
    get("/api/bindings/{vhost}/e/{source}/{kind}/{destination}/{key}", VISIBLE, f"{BINDINGS}/k"),
    get("/api/topics/{vhost}/{name}", VISIBLE, f"/api/topics/%2F/{TOPIC}"),
    get("/api/groups/{vhost}/{name}", VISIBLE, f"/api/groups/%2F/{MODERN}"),
    get("/api/shares/{vhost}/{name}", VISIBLE, f"/api/shares/%2F/{SHARERS}"),
    get("/api/transactions/{vhost}/{name}", VISIBLE, f"/api/transactions/%2F/{TRANSACTION}"),
    get("/api/policies/{vhost}/{name}", POLICYMAKER_HERE, "/api/policies/%2F/p"),
    get("/api/operator-policies/{vhost}/{name}", ADMINISTRATOR, "/api/operator-policies/%2F/o"),
    get("/parameters", POLICYMAKER, "/api/parameters"),
    get("/parameters/{component}", POLICYMAKER, "/api/parameters/shovel"),
    get("/parameters/{component}/{vhost}", POLICYMAKER_HERE, "/api/parameters/shovel/%2F"),
    get("/parameters/{component}/{vhost}/{name}", POLICYMAKER_HERE, "/api/parameters/shovel/%2F/s"),
    get("/global-parameters", POLICYMAKER, "/api/global-parameters"),
    get("/global-parameters/{name}", POLICYMAKER, "/api/global-parameters/g"),
    get("/vhost-limits", LISTED, "/api/vhost-limits"),
    get("/vhost-limits/{vhost}", VISIBLE, "/api/vhost-limits/%2F"),
    get("/user-limits", ADMINISTRATOR, "/api/user-limits"),
    get("/user-limits/{user}", MONITORING, f"/api/user-limits/{ROOT}"),
    *(get(path, ADMINISTRATOR) for path in (
        "/api/users", "/api/permissions", "/api/definitions", "/api/definitions/{vhost}", "/api/topic-permissions",
        "/api/users/{user}/topic-permissions", "/api/vhosts/{vhost}/topic-permissions", "/api/quotas")),
    get("/api/users/{name}", ADMINISTRATOR, f"/api/users/{ROOT}"),
    get("/api/users/{name}/permissions", ADMINISTRATOR, f"/api/users/{ROOT}/permissions"),
    get("/api/permissions/{vhost}/{user}", ADMINISTRATOR, f"/api/permissions/%2F/{ROOT}"),
    get("/api/topic-permissions/{vhost}/{user}", ADMINISTRATOR, f"/api/topic-permissions/%2F/{ROOT}"),
    # What changes something in a virtual host, in the user's own name.
    change("PUT /api/queues/{vhost}/{name}", "/api/queues/%2F/made", PERMITTED, {}, ("configure", "queue", "made")),
    change("PUT /api/queues/{vhost}/{name}", "/api/queues/%2F/lettered", PERMITTED,
           {"arguments": {"x-dead-letter-exchange": DIRECT}}, ("configure", "queue", "lettered"),
           ("read", "queue", "lettered"), ("write", "exchange", DIRECT)),
    change("DELETE /api/queues/{vhost}/{name}", f"/api/queues/%2F/{DEAD_QUEUE}", PERMITTED, None,
           ("configure", "queue", DEAD_QUEUE)),
    change("PUT /api/exchanges/{vhost}/{name}", "/api/exchanges/%2F/made", PERMITTED, {},
           ("configure", "exchange", "made")),
    change("PUT /api/exchanges/{vhost}/{name}", "/api/exchanges/%2F/fallen", PERMITTED,
           {"arguments": {"alternate-exchange": FANOUT}}, ("configure", "exchange", "fallen"),
           ("read", "exchange", "fallen"), ("write", "exchange", FANOUT)),
    change("DELETE /api/exchanges/{vhost}/{name}", f"/api/exchanges/%2F/{TOPICAL}", PERMITTED, None,
           ("configure", "exchange", TOPICAL)),
    change("POST /api/bindings/{vhost}/e/{source}/{kind}/{destination}",
           f"/api/bindings/%2F/e/{FANOUT}/q/{EMPTY_QUEUE}", PERMITTED, {"routing_key": "k"}, *BIND),
    change("DELETE /api/bindings/{vhost}/e/{source}/{kind}/{destination}/{key}", f"{BINDINGS}/k", PERMITTED, None,
           ("write", "queue", QUEUE), ("read", "exchange", DIRECT)),
    change("POST /api/exchanges/{vhost}/{exchange}/publish", f"/api/exchanges/%2F/{DIRECT}/publish", PERMITTED,
           PUBLISH, ("write", "exchange", DIRECT)),
    change("POST /api/exchanges/{vhost}/{exchange}/publish", "/api/exchanges/%2F/amq.default/publish", PERMITTED,
           {**PUBLISH, "routing_key": QUEUE}, ("write", "exchange", "amq.default")),
    change("POST /api/queues/{vhost}/{name}/get", f"/api/queues/%2F/{QUEUE}/get", PERMITTED, GET,
           ("read", "queue", QUEUE)),
    change("DELETE /api/queues/{vhost}/{name}/contents", f"/api/queues/%2F/{QUEUE}/contents", PERMITTED, None,
           ("read", "queue", QUEUE)),
    change("PUT /api/topics/{vhost}/{name}", "/api/topics/%2F/made-topic", PERMITTED, {},
           ("configure", "topic", "made-topic")),
    change("PATCH /api/topics/{vhost}/{name}", f"/api/topics/%2F/{TOPIC}", PERMITTED,
           {"configs": {"retention.ms": 1}}, ("configure", "topic", TOPIC)),
    change("POST /api/topics/{vhost}/{name}/partitions", f"/api/topics/%2F/{TOPIC}/partitions", PERMITTED,
           {"count": 3}, ("configure", "topic", TOPIC)),
    change("DELETE /api/topics/{vhost}/{name}", f"/api/topics/%2F/{OTHER_TOPIC}", PERMITTED, None,
           ("configure", "topic", OTHER_TOPIC)),
    # What policymakers may.
    change("PUT /api/policies/{vhost}/{name}", "/api/policies/%2F/made", POLICYMAKER_HERE, POLICY),
    change("DELETE /api/policies/{vhost}/{name}", "/api/policies/%2F/p", POLICYMAKER_HERE),
    change("PUT /parameters/{component}/{vhost}/{name}", "/api/parameters/shovel/%2F/made", POLICYMAKER_HERE,
           {"value": {"src": "y"}}),
    change("PUT /parameters/{component}/{vhost}/{name}", "/api/parameters/operator_policy/%2F/made", ADMINISTRATOR,
           {"value": POLICY}),
    change("DELETE /parameters/{component}/{vhost}/{name}", "/api/parameters/shovel/%2F/s", POLICYMAKER_HERE),
    change("PUT /global-parameters/{name}", "/api/global-parameters/made", POLICYMAKER, {"value": 1}),
    change("DELETE /global-parameters/{name}", "/api/global-parameters/g", POLICYMAKER),
    # What administrators may.
    change("PUT /api/operator-policies/{vhost}/{name}", "/api/operator-policies/%2F/more", ADMINISTRATOR, POLICY),
    change("DELETE /api/operator-policies/{vhost}/{name}", "/api/operator-policies/%2F/o", ADMINISTRATOR),
    change("PUT /vhost-limits/{vhost}/{name}", "/api/vhost-limits/%2F/max-queues", ADMINISTRATOR, {"value": 7}),
    change("DELETE /vhost-limits/{vhost}/{name}", "/api/vhost-limits/%2F/max-queues", ADMINISTRATOR),
    change("PUT /user-limits/{user}/{name}", f"/api/user-limits/{ROOT}/max-channels", ADMINISTRATOR, {"value": 7}),
    change("DELETE /user-limits/{user}/{name}", f"/api/user-limits/{ROOT}/max-connections", ADMINISTRATOR),
    change("PUT /api/users/{name}", "/api/users/made", ADMINISTRATOR, {"password_hash": "", "tags": "administrator"}),
    change("PUT /api/permissions/{vhost}/{user}", "/api/permissions/%2F/made", ADMINISTRATOR, ALL),
    change("DELETE /api/permissions/{vhost}/{user}", "/api/permissions/%2F/made", ADMINISTRATOR),
    change("PUT /api/topic-permissions/{vhost}/{user}", "/api/topic-permissions/%2F/made", ADMINISTRATOR,
           {"exchange": DIRECT, "write": "", "read": ""}),
    change("DELETE /api/topic-permissions/{vhost}/{user}/{exchange}", f"/api/topic-permissions/%2F/made/{DIRECT}",
           ADMINISTRATOR),
    change("DELETE /api/topic-permissions/{vhost}/{user}", f"/api/topic-permissions/%2F/{ROOT}", ADMINISTRATOR),
    change("DELETE /api/users/{name}", "/api/users/guest", ADMINISTRATOR),
    change("PUT /api/vhosts/{vhost}", "/api/vhosts/made", ADMINISTRATOR, {}),
    change("DELETE /api/vhosts/{vhost}", "/api/vhosts/elsewhere", ADMINISTRATOR),
    change("PUT /api/quotas", "/api/quotas", ADMINISTRATOR,
           {"entity": {"user": "x"}, "quotas": {"producer_byte_rate": 1}}),
    change("POST /api/definitions", "/api/definitions", ADMINISTRATOR,
           {"vhosts": [{"name": "imported"}]}),
    change("POST /api/definitions/{vhost}", "/api/definitions/%2F", ADMINISTRATOR,
           {"queues": [{"name": "imported", "durable": True, "auto_delete": False, "arguments": {}}]}),
    change("DELETE /api/groups/{vhost}/{name}", f"/api/groups/%2F/{IDLE}", ADMINISTRATOR),
    change("DELETE /api/transactions/{vhost}/{name}", f"/api/transactions/%2F/{TRANSACTION}", ADMINISTRATOR),
    change("POST /api/queues/{vhost}/{name}/redrive", f"/api/queues/%2F/{QUEUE}/redrive", ADMINISTRATOR, {}),
    change("POST /api/queues/{vhost}/{name}/rewind", "/api/queues/%2F/kept/rewind", ADMINISTRATOR, {"offset": 0}),
)  # fmt: skip

# Of which `test_connections_are_their_users` speaks.
OWN = {
    "GET /api/connections/{name}", "DELETE /api/connections/{name}", "GET /api/connections/{name}/channels",
    "GET /api/channels/{name}",
}  # fmt: skip

# Who asks: tags, and what patterns there are in "/" ("" for all three), if any.
EVERYBODY: dict[str, tuple[tuple[str, ...], str | None]] = {
    "untagged": ((), ".*"),
    "impersonator": (("impersonator",), ".*"),
    "manager-elsewhere": (("management",), None),
    "manager": (("management",), ""),
    "policymaker-elsewhere": (("policymaker",), None),
    "policymaker": (("policymaker",), ""),
    "monitor": (("monitoring",), None),
}


def declared_routes(routes: Any) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from declared_routes(route.original_router.routes)


@pytest.fixture(scope="module")
def standing() -> Iterator[World]:
    with world_of() as made:
        for name, (tags, pattern) in EVERYBODY.items():
            made.add_user(name, tags)
            if pattern is not None:
                made.access.set_permission(name, HOME, pattern, pattern, pattern)
        yield made


@pytest.fixture(scope="module")
def untouched(standing: World) -> Any:
    return standing.snapshot()


def test_the_matrix_has_every_route(standing: World) -> None:
    declared = {
        f"{method} {route.path}" for route in declared_routes(standing.routes.routes) for method in route.methods
    }
    assert {one.route for one in MATRIX} | OWN == declared


def expected(one: Line, name: str) -> int:
    """The status for this user: 0 for any that is no refusal."""
    is_here = EVERYBODY[name][1] is not None
    match one.who:
        case "open":
            return 0
        case _ if name in {"untagged", "impersonator"}:
            return 401
        case "tagged" | "listed":
            return 0
        case "visible":
            return 0 if is_here or name == "monitor" else 404
        case "permitted":
            return 401 if is_here else 404
        case "monitoring":
            return 0 if name == "monitor" else 401
        case "policymaker":
            return 0 if name.startswith("policymaker") else 401
        case "policymaker-here":
            return 0 if name == "policymaker" else 404 if name == "policymaker-elsewhere" else 401
        case _:
            return 401


@pytest.mark.parametrize("one", MATRIX, ids=str)
def test_who_may_not_is_refused_and_nothing_changes(standing: World, untouched: Any, one: Line) -> None:
    for user, password in ((None, ""), (ROOT, "wrong"), ("nobody", "wrong"), (ROOT, "")):
        reply = standing.ask(one.method, one.path, one.body, user=user, password=password)
        assert (reply.status == 401) == (one.who != OPEN), (user, reply)
        standing.forget_failures()
    for name in EVERYBODY:
        status = expected(one, name)
        if status == 0 and one.method != "GET":
            continue
        reply = standing.ask(one.method, one.path, one.body, user=name)
        if status:
            # Who may not use a virtual host is not told of it; a missing tag may be seen first.
            assert reply.status == status or {reply.status, status} == {401, 404}, (name, reply)
            assert set(reply.json) == {"error", "reason"}
        else:
            assert reply.status in {200, 204}, (name, reply)
    changed = differences(untouched, standing.snapshot())
    assert not changed, f"{one} was refused, and has changed something: {changed}"


@pytest.mark.parametrize("one", [one for one in MATRIX if one.who == LISTED], ids=str)
def test_lists_show_nothing_of_virtual_hosts_that_are_not_the_users(standing: World, one: Line) -> None:
    assert standing.ask("GET", one.path, user="manager-elsewhere").json == []


@pytest.mark.parametrize("one", [one for one in MATRIX if one.needs], ids=str)
def test_each_permission_is_asked_for_in_rabbitmqs_words(standing: World, untouched: Any, one: Line) -> None:
    standing.access.set_tags(ANN, ("management",))
    for operation, kind, name in one.needs:
        patterns = dict.fromkeys(("configure", "write", "read"), ".*") | {operation: f"^(?!{name}$)"}
        standing.access.set_permission(ANN, HOME, patterns["configure"], patterns["write"], patterns["read"])
        reply = standing.ask(one.method, one.path, one.body)
        text = f"{operation} access to {kind} '{name}' in vhost '{HOME}' refused for user '{ANN}'"
        assert (reply.status, reply.json["reason"]) == (401, text)
    standing.revoke_all()
    assert not differences(untouched, standing.snapshot())


def test_with_the_right_and_no_other_it_is_done() -> None:
    with world_of() as world:
        world.broker.vhosts[HOME].declare_queue("kept", True, False, False, {"x-retention-ms": 60_000}, None)
        for one in MATRIX:
            world.revoke_all()
            world.access.set_tags(ANN, TAGS[one.who])
            if one.who in {VISIBLE, PERMITTED, POLICYMAKER_HERE}:
                patterns = dict.fromkeys(("configure", "write", "read"), "")
                for operation, _, name in one.needs:
                    patterns[operation] = f"^{name}$"
                world.access.set_permission(ANN, HOME, patterns["configure"], patterns["write"], patterns["read"])
            user = None if one.who == OPEN else ANN
            if one.who == ADMINISTRATOR and one.path.endswith("/ann/topic-permissions"):
                user = ROOT
            reply = world.ask(one.method, one.path, one.body, user=user)
            assert reply.status in {200, 201, 204}, (str(one), reply)


TAGS: dict[str, tuple[str, ...]] = {
    OPEN: (), TAGGED: ("management",), LISTED: ("management",), VISIBLE: ("management",), PERMITTED: ("management",),
    MONITORING: ("monitoring",), POLICYMAKER: ("policymaker",), POLICYMAKER_HERE: ("policymaker",),
    ADMINISTRATOR: ("administrator",),
}  # fmt: skip


def test_connections_are_their_users() -> None:
    with world_of() as world:
        client = world.amqp_client(ROOT)
        name = client.connection.name.replace(" ", "%20").replace(">", "%3E")
        for tag, may_see in (("management", False), ("policymaker", False), ("monitoring", True)):
            world.access.set_tags(ANN, (tag,))
            for path in (f"connections/{name}", f"connections/{name}/channels", f"channels/{name}%20(1)"):
                assert world.ask("GET", f"/api/{path}").status == (200 if may_see else 401), (tag, path)
            assert world.ask("DELETE", f"/api/connections/{name}").status == 401
            assert world.ask("GET", "/api/connections/username/root").json != [] or not may_see
        assert not client.transport.is_closed
        assert world.ask("DELETE", f"/api/connections/{name}", user=ROOT).status == 204
        assert client.expect_closed().code == 320


def test_operator_limits_are_not_reached_by_another_name() -> None:
    """What is for administrators only by its own path is so as a parameter, too."""
    with world_of() as world:
        before = world.snapshot()
        world.access.set_tags(ANN, ("policymaker",))
        world.access.set_permission(ANN, HOME, ".*", ".*", ".*")
        for component in ("operator_policy", "vhost-limits"):
            for method in ("PUT", "DELETE"):
                reply = world.ask(method, f"/api/parameters/{component}/%2F/o", {"value": POLICY})
                assert reply.status == 401
        world.revoke_all()
        assert not differences(before, world.snapshot())
