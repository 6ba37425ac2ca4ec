"""Definitions: files that RabbitMQ exported are imported, and what is exported is imported again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from millpond.base import limits
from millpond.cli import run
from millpond.pytest_plugin import BackgroundBroker
from tests.support.management import Management
from tests.support.pika_client import drain, numbered, wait_ready
from tests.support.waiting import eventually

FILES = Path(__file__).with_name("definitions")
RABBITMQ_3 = FILES / "rabbitmq-3.10.json"
RABBITMQ_4 = FILES / "rabbitmq-4.1.json"


@pytest.fixture
def pond(tmp_path: Path) -> Iterator[BackgroundBroker]:
    broker = BackgroundBroker(data_dir=tmp_path / "pond", admin="127.0.0.1:0")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def management(pond: BackgroundBroker) -> Management:
    return Management(pond.address("admin"))


@pytest.fixture
def take_in(management: Management) -> Callable[[object], str]:
    """Imports a document; what the broker says to it, nothing where it was taken."""

    def post(document: object) -> str:
        answer = management.call("POST", "/api/definitions", document)
        assert answer.status in {204, 400}, answer
        return str(answer.json["reason"]) if answer.content else ""

    return post


def own(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(objects, key=lambda one: json.dumps(one, sort_keys=True))


def test_an_export_of_rabbitmq_3_is_taken_over(
    pond: BackgroundBroker, management: Management, take_in: Callable[[object], str]
) -> None:
    assert take_in(RABBITMQ_3.read_bytes()) == ""
    shop = management.get("/api/queues/shop")
    assert [(one["name"], one.get("policy"), one["operator_policy"]) for one in shop] == [
        ("ha-q", None, "cap"),
        ("big-one", "lazy", "cap"),
        ("q", None, "cap"),
    ]
    assert [one["name"] for one in management.get("/api/policies")] == ["ae", "lazy"]
    assert management.get("/api/vhost-limits") == [{"vhost": "shop", "value": {"max-queues": 100}}]
    assert management.get("/api/global-parameters") == [{"name": "mine", "value": {"a": [1, "b"]}}]
    assert management.get("/api/users/ann") == {
        "name": "ann",
        "tags": ["monitoring", "management"],
        "limits": {"max-channels": 10},
    }
    [topic] = management.get("/api/topic-permissions")
    assert topic == {"user": "ann", "vhost": "shop", "exchange": "amq.topic", "write": "^a", "read": ".*"}
    url = pond.amqp_url.replace("%2F", "shop").replace("guest:guest", "ann:ann-secret")
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for body in numbered(3):
            channel.basic_publish("events", "a.b", body)
        wait_ready(channel, "big-one", 3)
        assert drain(channel, "big-one") == numbered(3)


def test_an_export_of_rabbitmq_4_is_taken_over(management: Management, take_in: Callable[[object], str]) -> None:
    assert take_in(RABBITMQ_4.read_bytes()) == ""
    orders = management.get("/api/queues/shop/orders")
    assert orders["arguments"] == {"x-queue-type": "quorum", "x-delivery-limit": 10}
    assert orders["effective_policy_definition"] == {
        "delivery-limit": 5,
        "dead-letter-exchange": "graveyard",
        "max-length": 100,
    }
    shop = management.get("/api/vhosts/shop")
    assert (shop["description"], shop["tags"], shop["default_queue_type"]) == ("The shop", ["eu"], "quorum")
    assert management.get("/api/queues/shop/dead")["arguments"] == {"x-queue-type": "classic"}


@pytest.mark.parametrize("file", [RABBITMQ_3, RABBITMQ_4], ids=lambda file: file.stem)
def test_what_is_exported_can_be_imported_again_and_changes_nothing(
    pond: BackgroundBroker, management: Management, take_in: Callable[[object], str], file: Path
) -> None:
    assert take_in(file.read_bytes()) == ""
    exported = management.get("/api/definitions")
    assert take_in(exported) == ""
    assert management.get("/api/definitions") == exported
    pond.restart()
    assert Management(pond.address("admin")).get("/api/definitions") == exported


def test_an_empty_broker_becomes_the_same_by_an_import(
    management: Management, take_in: Callable[[object], str], tmp_path: Path
) -> None:
    assert take_in(RABBITMQ_3.read_bytes()) == ""
    exported = management.get("/api/definitions")
    other = BackgroundBroker(data_dir=tmp_path / "other", admin="127.0.0.1:0")
    other.start()
    try:
        copy = Management(other.address("admin"))
        assert copy.call("POST", "/api/definitions", exported).status == 204
        copied = copy.get("/api/definitions")
        for category in (
            "queues",
            "exchanges",
            "bindings",
            "policies",
            "parameters",
            "permissions",
            "topic_permissions",
            "users",
        ):
            assert own(copied[category]) == own(exported[category]), category
    finally:
        other.stop()


@pytest.mark.parametrize(("user", "password"), [("ann", "ann-secret"), ("bob", "bob-secret")])
def test_rabbitmqs_hashes_log_in_and_become_better_ones(
    pond: BackgroundBroker, management: Management, take_in: Callable[[object], str], user: str, password: str
) -> None:
    document = json.loads(RABBITMQ_3.read_text())
    document["permissions"].append({"user": "bob", "vhost": "shop", "configure": "", "write": "", "read": ""})
    assert take_in(document) == ""

    def algorithm() -> str:
        users = management.get("/api/definitions")["users"]
        return next(str(one["hashing_algorithm"]) for one in users if one["name"] == user)

    assert algorithm().startswith("rabbit_password_hashing_sha")
    url = pond.amqp_url.replace("%2F", "shop").replace("guest:guest", f"{user}:{{}}")
    for wrong in ("", "wrong"):
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            pika.BlockingConnection(pika.URLParameters(url.format(wrong)))
    pika.BlockingConnection(pika.URLParameters(url.format(password))).close()
    eventually(lambda: algorithm() == "millpond_password_hashing_argon2id", "the hash is argon2id")
    pika.BlockingConnection(pika.URLParameters(url.format(password))).close()
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(url.format("wrong")))


def test_a_virtual_host_goes_into_another_one(management: Management, take_in: Callable[[object], str]) -> None:
    assert take_in(RABBITMQ_3.read_bytes()) == ""
    shop = management.get("/api/definitions/shop")
    assert not any("vhost" in one for category in ("queues", "policies", "bindings") for one in shop[category])
    assert "no virtual host" in take_in(shop)
    management.put("/api/vhosts/copy", None)
    assert management.call("POST", "/api/definitions/copy", shop).status == 204
    copy = management.get("/api/definitions/copy")
    for category in ("queues", "exchanges", "bindings", "policies", "parameters"):
        assert own(copy[category]) == own(shop[category]), category
    assert management.call("POST", "/api/definitions/absent", shop).status == 404
    assert management.call("GET", "/api/definitions/absent").status == 404


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"{", "failed_to_parse_json"),
        (b"[" * 100_000, "failed_to_parse_json"),
        ([], "definitions are a JSON object"),
        ({"queues": {}}, "queues is not a list"),
        ({"queues": [1]}, "queues: entry 0 is no object"),
        (
            {"queues": [{"name": "q", "vhost": "absent"}]},
            "queue 'q' in vhost 'absent': Please create virtual host \"absent\" prior to importing definitions.",
        ),
        (
            {"queues": [{"name": "q", "vhost": "/", "arguments": {"x-max-length": -1}}]},
            "queue 'q' in vhost '/': invalid arg 'x-max-length' for queue 'q' in vhost '/': {value_negative,-1}",
        ),
        (
            {"queues": [{"name": "q", "vhost": "/", "type": "quorum", "auto_delete": True}]},
            "queue 'q' in vhost '/': invalid property 'auto-delete' for queue 'q' in vhost '/'",
        ),
        ({"queues": [{"name": "q", "vhost": "/", "durable": "yes"}]}, "durable is neither true nor false"),
        ({"queues": [{"name": "q" * 256, "vhost": "/"}]}, "a name has 1 to 255 bytes"),
        ({"queues": [{"name": "\ud800", "vhost": "/"}]}, "a text is not Unicode"),
        ({"queues": [{"vhost": "/"}]}, "queue 'None' in vhost '/': name is missing"),
        ({"exchanges": [{"name": "x", "vhost": "/", "type": "x-odd"}]}, "unknown exchange type 'x-odd'"),
        (
            {"bindings": [{"source": "x", "vhost": "/", "destination": "q", "destination_type": "queue"}]},
            "binding from 'x' to queue 'q' in vhost '/': routing_key is missing",
        ),
        (
            {
                "bindings": [
                    {
                        "source": "amq.direct",
                        "vhost": "/",
                        "destination": "q",
                        "destination_type": "queue",
                        "routing_key": "",
                    }
                ]
            },
            "no queue 'q' in vhost '/'",
        ),
        (
            {"policies": [{"name": "p", "vhost": "/", "pattern": "", "definition": {"max-length": -1}}]},
            "policy 'p' in vhost '/': Validation failed\n\n-1 is not a valid maximum length",
        ),
        (
            {"parameters": [{"name": "p", "vhost": "/", "component": "odd", "value": 1}]},
            "parameter 'p' of component 'odd' in vhost '/': Validation failed\n\ncomponent odd not found",
        ),
        (
            {"vhosts": [{"name": "v", "metadata": {"default_queue_type": "odd"}}]},
            "vhost 'v': odd is not a valid queue type",
        ),
        ({"users": [{"name": "u", "password_hash": "?", "tags": ""}]}, "user 'u': the password hash is not base64"),
        (
            {"users": [{"name": "u", "password_hash": "AAAA", "hashing_algorithm": "md5", "tags": ""}]},
            "user 'u': hashing algorithm 'md5' is not supported",
        ),
        ({"users": [{"name": "u", "password_hash": "AAAA", "tags": ""}]}, "user 'u': a password hash is an argon2id"),
        (
            {"permissions": [{"user": "u", "vhost": "/", "configure": "", "write": "", "read": ""}]},
            "permission of user 'u' in vhost '/': no user 'u'",
        ),
        (
            {
                "topic_permissions": [
                    {"user": "guest", "vhost": "/", "exchange": "amq.topic", "write": "(", "read": ""},
                ]
            },
            "topic permission of user 'guest' in vhost '/': invalid regular expression '('",
        ),
        (
            {"permissions": [{"user": "guest", "vhost": "/", "configure": "(", "write": "", "read": ""}]},
            "invalid regular expression '('",
        ),
        (
            {
                "parameters": [
                    {"name": "limits", "vhost": "/", "component": "vhost-limits", "value": {"max-queues": 1}}
                ],
                "queues": [{"name": "a", "vhost": "/"}, {"name": "b", "vhost": "/"}],
            },
            'Adding 2 queue(s) to virtual host "/" would exceed the limit of 1 queue(s).',
        ),
    ],
    ids=lambda value: None if isinstance(value, (bytes, dict, list)) else value[:40],
)
def test_a_mistake_is_named_and_nothing_is_done(shared: Management, document: object, reason: str) -> None:
    before = shared.get("/api/definitions")
    if isinstance(document, dict):
        # What comes first is right: it must not be done either.
        document = {"vhosts": [{"name": "new"}], "global_parameters": [{"name": "n", "value": 1}], **document}
    answer = shared.call("POST", "/api/definitions", document)
    assert answer.status == 400
    assert reason in answer.json["reason"]
    assert shared.get("/api/definitions") == before


@pytest.fixture(scope="module")
def shared() -> Iterator[Management]:
    """Of a broker that several tests use, and leave as it was."""
    broker = BackgroundBroker(admin="127.0.0.1:0")
    broker.start()
    yield Management(broker.address("admin"))
    broker.stop()


@pytest.mark.parametrize(
    ("limit", "document"),
    [
        (
            "millpond.base.limits.POLICIES_PER_VHOST_MAX",
            {"policies": [{"name": n, "vhost": "/", "pattern": "", "definition": {"expires": 1}} for n in "ab"]},
        ),
        (
            "millpond.base.limits.POLICIES_PER_VHOST_MAX",
            {
                "parameters": [
                    {
                        "name": name,
                        "vhost": "/",
                        "component": "operator_policy",
                        "value": {"pattern": "", "definition": {"expires": 1}, "priority": 0},
                    }
                    for name in "ab"
                ]
            },
        ),
        (
            "millpond.broker.parameters.PARAMETERS_MAX",
            {"global_parameters": [{"name": name, "value": 1} for name in "ab"]},
        ),
        (
            "millpond.broker.parameters.PARAMETERS_MAX",
            {"users": [{"name": n, "tags": "", "limits": {"max-channels": 1}} for n in "ab"]},
        ),
    ],
)
def test_a_document_that_exceeds_a_limit_changes_nothing(
    shared: Management, monkeypatch: pytest.MonkeyPatch, limit: str, document: object
) -> None:
    before = shared.get("/api/definitions")
    monkeypatch.setattr(limit, 1)
    answer = shared.call("POST", "/api/definitions", document)
    assert (answer.status, "at most 1" in answer.json["reason"]) == (400, True)
    assert shared.get("/api/definitions") == before


def test_a_password_in_clear_is_hashed(shared: Management) -> None:
    document = {"users": [{"name": "zoe", "password": "zoe-secret", "tags": "administrator"}]}
    assert shared.call("POST", "/api/definitions", document).status == 204
    assert shared.get("/api/whoami", login="zoe:zoe-secret")["name"] == "zoe"
    assert "zoe-secret" not in json.dumps(shared.get("/api/definitions"))
    shared.delete("/api/users/zoe")


def test_a_user_is_put_with_one_of_rabbitmqs_hashes(shared: Management) -> None:
    ann = json.loads(RABBITMQ_3.read_text())["users"][0]
    shared.put("/api/users/ann", {"password_hash": ann["password_hash"], "tags": "management"})
    assert shared.get("/api/whoami", login="ann:ann-secret")["name"] == "ann"
    shared.delete("/api/users/ann")


def test_a_document_may_be_larger_than_other_requests_but_not_endless(shared: Management) -> None:
    assert shared.call("POST", "/api/definitions", b" " * 1_000_000 + b"{}").status == 204
    assert shared.call("POST", "/api/definitions", b"\xef\xbb\xbf{}").status == 204
    assert shared.call("POST", "/api/definitions", b"").status == 204
    assert shared.call("POST", "/api/definitions", b" " * 1_000_000 + b"{}", login="guest:wrong").status == 401
    assert shared.call("PUT", "/api/policies/%2F/p", b" " * 1_000_000 + b"{}").status == 413
    assert limits.DEFINITIONS_BYTES_MAX == 20 * 1024 * 1024


def test_an_export_is_a_download_when_asked_for(shared: Management) -> None:
    answer = shared.call("GET", "/api/definitions?download=pond.json")
    assert answer.headers["content-disposition"] == "attachment; filename=pond.json"
    assert "content-disposition" not in shared.call("GET", "/api/definitions?download=a%0Ab").headers


def test_queues_of_a_connection_are_not_exported(pond: BackgroundBroker, management: Management) -> None:
    with pika.BlockingConnection(pika.URLParameters(pond.amqp_url)) as connection:
        channel = connection.channel()
        name = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(name, "amq.fanout")
        exported = management.get("/api/definitions")
    assert (exported["queues"], exported["bindings"], exported["exchanges"]) == ([], [], [])


def test_a_virtual_host_chooses_the_type_of_queues_that_name_none(
    pond: BackgroundBroker, management: Management
) -> None:
    body = {"description": "a shop", "tags": "eu,new", "default_queue_type": "quorum"}
    management.put("/api/vhosts/shop", body)
    assert management.call("PUT", "/api/vhosts/odd", {"default_queue_type": "odd"}).status == 400
    with pika.BlockingConnection(pika.URLParameters(pond.amqp_url.replace("%2F", "shop"))) as connection:
        channel = connection.channel()
        channel.queue_declare("replicated", durable=True)
        channel.queue_declare("replicated", durable=True)
        channel.queue_declare("classic", durable=True, arguments={"x-queue-type": "classic"})
        channel.queue_declare("transient")
        shown = {one["name"]: one["arguments"] for one in management.get("/api/queues/shop")}
    assert shown == {
        "replicated": {"x-queue-type": "quorum"},
        "classic": {"x-queue-type": "classic"},
        "transient": {},
    }
    pond.restart()
    [shop] = [one for one in Management(pond.address("admin")).get("/api/vhosts") if one["name"] == "shop"]
    assert (shop["description"], shop["tags"], shop["default_queue_type"]) == ("a shop", ["eu", "new"], "quorum")


def test_what_a_file_does_not_say_of_a_virtual_host_stays(
    management: Management, take_in: Callable[[object], str]
) -> None:
    management.put("/api/vhosts/shop", {"description": "a shop", "tags": "eu", "default_queue_type": "quorum"})
    assert take_in({"vhosts": [{"name": "shop"}]}) == ""
    shop = management.get("/api/vhosts/shop")
    assert (shop["description"], shop["tags"], shop["default_queue_type"]) == ("a shop", ["eu"], "quorum")
    assert take_in({"vhosts": [{"name": "shop", "metadata": {"tags": ["us"]}}]}) == ""
    shop = management.get("/api/vhosts/shop")
    assert (shop["description"], shop["tags"], shop["default_queue_type"]) == ("a shop", ["us"], "quorum")


class TestCommands:
    def test_a_file_of_rabbitmq_goes_in_and_out(
        self, pond: BackgroundBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = ["--data", str(tmp_path / "pond")]
        assert run(["import", str(RABBITMQ_3), *data]) == 0
        out = tmp_path / "out.json"
        assert run(["export", str(out), *data]) == 0
        assert out.stat().st_mode & 0o777 == 0o600
        assert json.loads(out.read_text())["policies"][0]["name"] == "ae"
        assert run(["export", "--no-users", *data]) == 0
        assert not {"users", "permissions"} & set(json.loads(capsys.readouterr().out))
        shop = tmp_path / "shop.json"
        assert run(["export", str(shop), "--vhost", "shop", *data]) == 0
        assert run(["import", str(shop), "--vhost", "/", *data]) == 0
        assert run(["import", str(shop), "--vhost", "absent", *data]) == 66
        assert capsys.readouterr().err == "millpond: no vhost 'absent'\n"

    def test_what_cannot_be_imported_is_told_in_one_line(
        self, pond: BackgroundBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = ["--data", str(tmp_path / "pond")]
        wrong = tmp_path / "wrong.json"
        wrong.write_text('{"policies": [{"name": "p", "vhost": "/", "pattern": "", "definition": {"max-length": -1}}]}')
        assert run(["import", str(wrong), *data]) == 65
        assert capsys.readouterr().err == (
            "millpond: policy 'p' in vhost '/': Validation failed -1 is not a valid maximum length\n"
        )
        wrong.write_text("{")
        assert run(["import", str(wrong), *data]) == 65
        assert run(["import", str(tmp_path / "absent.json"), *data]) == 74

    def test_a_policy_is_set_listed_and_cleared(
        self, pond: BackgroundBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = ["--data", str(tmp_path / "pond")]
        with pika.BlockingConnection(pika.URLParameters(pond.amqp_url)) as connection:
            channel = connection.channel()
            channel.queue_declare("orders")
            for body in numbered(3):
                channel.basic_publish("", "orders", body)
            wait_ready(channel, "orders", 3)
            command = ["policy", "set", "short", "^orders", '{"max-length": 1}', "--apply-to", "queues"]
            assert run([*command, "--priority", "2", *data]) == 0
            wait_ready(channel, "orders", 1)
        assert run(["policy", "list", *data]) == 0
        assert capsys.readouterr().out == '/\tshort\t^orders\tqueues\t{"max-length": 1}\t2\n'
        assert run([*command, "--operator", *data]) == 0
        assert run(["policy", "list", "--operator", "--json", "-p", "/", *data]) == 0
        assert json.loads(capsys.readouterr().out)[0]["definition"] == {"max-length": 1}
        assert run(["policy", "clear", "short", *data]) == 0
        assert run(["policy", "clear", "short", *data]) == 66
        assert capsys.readouterr().err == "millpond: no policy 'short'\n"
        assert run(["policy", "set", "short", "(", "{}", *data]) == 65
        assert run(["policy", "set", "short", "x", "{", *data]) == 65
        assert run(["policy", "set", "short", "x", "{}", "--apply-to", "cats", *data]) == 64
