"""Passwords on all their ways into a broker that logs everything: none of them is found anywhere afterwards.

One broker process; every login path of every protocol, with the right password and with wrong ones; every way to set a
password. Then all that a reader could see is searched: logs, the command line of the process, the data directory, the
answers of the management API and of the protocols, the metrics.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pamqp.commands as commands
import pamqp.encode
import pytest
from kio.schema.alter_user_scram_credentials.v0.request import (
    AlterUserScramCredentialsRequest,
    ScramCredentialUpsertion,
)
from kio.schema.sasl_authenticate.v2.request import SaslAuthenticateRequest
from kio.schema.sasl_handshake.v1.request import SaslHandshakeRequest
from scramp import ScramClient

from tests.support import management
from tests.support.broker_process import BrokerProcess, run_operator_command
from tests.support.endpoint import Endpoint
from tests.support.management import Answer
from tests.support.raw_amqp import PROTOCOL_HEADER, RawConnection
from tests.support.raw_kafka import RawKafka

ROOT = "root"


def secret(of: str) -> str:
    """A password that nothing else has in it."""
    return f"{of}-{secrets.token_hex(12)}"


class Traces:
    """The broker, the secrets it was told, and everything it has said."""

    def __init__(self, directory: Path) -> None:
        self.first = secret("first")
        # User, password: those that were sent, right or wrong.
        self.sent: list[tuple[str, str]] = [(ROOT, self.first)]
        self.other: list[bytes] = []
        self.answers: list[bytes] = []
        config = directory / "millpond.toml"
        config.write_text(f'default_user = "{ROOT}"\ndefault_password = "{self.first}"\nlog_level = "debug"\n')
        arguments = ["--config", str(config), "--admin", "127.0.0.1:0", "--kafka-login", "required"]
        self.process = BrokerProcess(directory / "broker", kafka=True, arguments=arguments)

    def password(self, user: str) -> str:
        made = secret(user)
        self.sent.append((user, made))
        return made

    # --- ways in

    def http(self, method: str, path: str, body: object = None, *, login: str | None = None) -> Answer:
        host, _, port = self.process.listeners["admin"].rpartition(":")
        answer = management.request((host, int(port)), method, path, body, login or f"{ROOT}:{self.first}")
        self.answers.append(answer.content)
        return answer

    def amqp(self, user: str, password: str, mechanism: str) -> bool:
        response = f"\0{user}\0{password}"
        if mechanism == "AMQPLAIN":
            table = pamqp.encode.field_table({"LOGIN": user, "PASSWORD": password})[4:]
            response = table.decode("latin-1")
        with RawConnection(Endpoint("127.0.0.1", self.process.port)) as raw:
            raw.send_bytes(PROTOCOL_HEADER)
            raw.expect(commands.Connection.Start)
            properties = {"capabilities": {"authentication_failure_close": True}}
            raw.send(commands.Connection.StartOk(properties, mechanism, response, "en_US"))
            _, frame = raw.read_frame()
            self.answers.append(repr(dict(frame)).encode())
            return isinstance(frame, commands.Connection.Tune)

    def kafka(self, user: str, password: str, mechanism: str) -> RawKafka | None:
        raw = RawKafka(self.process.kafka_address)
        raw.ask(SaslHandshakeRequest(mechanism=mechanism))
        token = f"\0{user}\0{password}".encode()
        if mechanism != "PLAIN":
            scram = ScramClient([mechanism], user, password)
            first = raw.ask(SaslAuthenticateRequest(auth_bytes=scram.get_client_first().encode()))
            scram.set_server_first(first.auth_bytes.decode())
            token = scram.get_client_final().encode()
        answer = raw.ask(SaslAuthenticateRequest(auth_bytes=token))
        self.answers.append(repr(answer).encode())
        if answer.error_code.value == 0:
            return raw
        raw.socket.close()
        return None

    # --- what is looked for

    def needles(self) -> Iterator[tuple[str, bytes]]:
        """(what it is, what must not be found): all passwords in all the ways in which they could be written down."""
        for user, password in dict.fromkeys(self.sent):
            plain = password.encode()
            yield password, plain
            yield f"{password} for a path", quote(password, safe="").encode()
            yield f"{password} in hex", plain.hex().encode()
            yield f"{password} unsalted", hashlib.sha256(plain).hexdigest().encode()
            for joined in (plain, f"{user}:{password}".encode(), f"\0{user}\0{password}".encode()):
                yield f"{password} in base64", base64.b64encode(joined).rstrip(b"=")
                yield f"{password} in base64 for paths", base64.urlsafe_b64encode(joined).rstrip(b"=")
        for other in self.other:
            yield "a key", other
            yield "a key in hex", other.hex().encode()
            yield "a key in base64", base64.b64encode(other).rstrip(b"=")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    made = Traces(tmp_path_factory.mktemp("secrets"))
    with made.process:
        set_passwords(made)
        log_in_everywhere(made)
        yield made


def set_passwords(traces: Traces) -> None:
    for user in ("by-api", "by-definitions"):
        password = traces.password(user)
        fields = {"password": password, "tags": "administrator"}
        if user == "by-api":
            assert traces.http("PUT", f"/api/users/{user}", fields).status == 201
            # What is wrong about a request must not be told with the password in it.
            assert traces.http("PUT", f"/api/users/{user}", {**fields, "tags": 5}).status == 400
            assert traces.http("PUT", f"/api/users/{user}", {**fields, "password": [password]}).status == 400
            assert traces.http("PUT", f"/api/users/{user}x", {"password_hash": password, "tags": ""}).status == 400
        else:
            users = {"users": [{"name": user, **fields}]}
            assert traces.http("POST", "/api/definitions", users).status == 204
            wrong = {"users": [{"name": user, **fields}, {"name": "", "password": password}]}
            assert traces.http("POST", "/api/definitions", wrong).status == 400
            assert traces.http("POST", "/api/definitions", json.dumps(users).encode()[:-3]).status == 400
    hashed = traces.password("by-hash")
    salted = b"salt" + hashlib.sha256(b"salt" + hashed.encode()).digest()
    fields = {"password_hash": base64.b64encode(salted).decode(), "tags": "administrator"}
    assert traces.http("PUT", "/api/users/by-hash", fields).status == 201
    typed = traces.password("by-command")
    said = run_operator_command(
        traces.process.data, "user", "add", "by-command", "--tag", "administrator", standard_input=f"{typed}\n"
    )
    changed = traces.password("by-command")
    said += run_operator_command(traces.process.data, "user", "passwd", "by-command", standard_input=f"{changed}\n")
    traces.answers.append(said.encode())
    connection = traces.kafka(ROOT, traces.first, "PLAIN")
    assert connection is not None
    with connection:
        key = secrets.token_bytes(32)
        traces.other.append(key)
        upsertion = ScramCredentialUpsertion(
            name="by-kafka", mechanism=1, iterations=4096, salt=b"s" * 16, salted_password=key
        )
        answer = connection.ask(AlterUserScramCredentialsRequest(deletions=(), upsertions=(upsertion,)))
        traces.answers.append(repr(answer).encode())
        assert answer.results[0].error_code.value == 0


def log_in_everywhere(traces: Traces) -> None:
    right = dict(traces.sent)
    for user, password in right.items():
        assert traces.amqp(user, password, "PLAIN")
        assert traces.amqp(user, password, "AMQPLAIN")
        assert traces.http("GET", "/api/whoami", login=f"{user}:{password}").status == 200
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            raw = traces.kafka(user, password, mechanism)
            # A hash of RabbitMQ's gives no credentials for SCRAM.
            assert (raw is not None) == (mechanism == "PLAIN" or user != "by-hash"), (user, mechanism)
            if raw is not None:
                raw.socket.close()
    for user in (ROOT, "nobody"):
        assert not traces.amqp(user, traces.password(user), "PLAIN")
        assert not traces.amqp(user, traces.password(user), "AMQPLAIN")
        assert traces.http("GET", "/api/whoami", login=f"{user}:{traces.password(user)}").status == 401
        for mechanism in ("PLAIN", "SCRAM-SHA-256"):
            assert traces.kafka(user, traces.password(user), mechanism) is None
    # Passwords where they do not belong: as a mechanism, as half a login, as a name.
    assert not traces.amqp(ROOT, traces.password("x"), "PLAIN")
    lost = traces.password("y")
    with RawConnection(Endpoint("127.0.0.1", traces.process.port)) as raw:
        raw.start("PLAIN", f"{lost}-without-a-name")
        raw.expect_closed()
    raw_kafka = RawKafka(traces.process.kafka_address)
    with raw_kafka:
        raw_kafka.ask(SaslHandshakeRequest(mechanism="PLAIN"))
        answer = raw_kafka.ask(SaslAuthenticateRequest(auth_bytes=f"{lost}-without-a-name".encode()))
        traces.answers.append(repr(answer).encode())


def check(traces: Traces, where: str, seen: bytes) -> None:
    found = {what for what, needle in traces.needles() if needle in seen}
    assert not found, f"in {where}: {found}"


def test_logs_have_no_secrets(traces: Traces) -> None:
    log = traces.process.log
    assert "login refused" in log, "there is something to look at"
    check(traces, "the log", log.encode())


def test_the_command_line_has_no_secrets(traces: Traces) -> None:
    shown = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True).stdout
    assert b"serve" in shown
    check(traces, "what ps shows", shown)


def test_the_data_directory_has_hashes_only(traces: Traces) -> None:
    files = [path for path in traces.process.data.rglob("*") if path.is_file()]
    assert any(path.name.startswith("catalog.sqlite") for path in files)
    for path in files:
        # The journal is made large before it is filled.
        check(traces, str(path), path.read_bytes().rstrip(b"\0"))
        assert path.stat().st_mode & 0o077 == 0 or not path.name.startswith("catalog"), "others can read it"


def test_answers_have_no_secrets(traces: Traces) -> None:
    for path in (
        "/api/overview", "/api/users", "/api/users/by-api", "/api/connections", "/api/permissions", "/api/definitions",
        "/api/global-parameters", "/api/nodes", "/metrics", "/metrics/per-object", "/api/channels",
    ):  # fmt: skip
        assert traces.http("GET", path).status == 200
    for answer in traces.answers:
        check(traces, "an answer", answer)


def test_only_definitions_show_hashes(traces: Traces) -> None:
    users = [*traces.http("GET", "/api/users").json, traces.http("GET", "/api/users/by-hash").json]
    assert not any("argon2" in repr(user) or "$" in repr(user) for user in users)
    assert all(user["password_hash"] for user in traces.http("GET", "/api/definitions").json["users"]
               if user["name"] != "by-kafka")  # fmt: skip
