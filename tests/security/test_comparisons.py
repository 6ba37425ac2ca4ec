"""How secrets are compared, and that nobody is told who is a user.

The first is a look at the source: an `==` between secrets takes longer the more of them is right.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import argon2
import pytest

import millpond
from millpond.protocols.amqp import methods
from tests.protocols.amqp import harness as amqp
from tests.security.world import (
    ANN,
    HOME,
    PASSWORD,
    ROOT,
    SASL_AUTHENTICATE,
    SASL_HANDSHAKE,
    World,
    world_of,
)

SOURCE = Path(millpond.__file__).parent
SECRETS = ("password", "digest", "salted", "stored_key", "server_key", "secret", "proof", "token", "hmac")
# Comparisons with what is no secret: each with the reason.
HARMLESS = {
    ("broker/access.py", "password == DEFAULT_PASSWORD"): "at the start, of a setting with what every manual says",
    ("broker/access.py", "row.password_hash != stored"): "two hashes of the catalog's, none of them a client's",
    ("broker/access.py", "row.password_hash == stored"): "the same",
    ("broker/access.py", "old.password_hash != password_hash"): "an administrator's",
}


def comparisons() -> Iterator[tuple[str, str]]:
    """(file, comparison) of all in the source that have something called like a secret on one of their sides."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare):
                continue
            if not any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops):
                continue
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Constant) and side.value is not True for side in sides):
                continue
            if any(is_secret(side) for side in sides):
                yield str(path.relative_to(SOURCE)), ast.unparse(node)


def is_secret(side: ast.expr) -> bool:
    """Whether it is called like a secret. Its length, and how it is written, are none."""
    if isinstance(side, ast.Call):
        return not (isinstance(side.func, ast.Name) and side.func.id == "len") and "digest" in ast.unparse(side.func)
    name = side.attr if isinstance(side, ast.Attribute) else side.id if isinstance(side, ast.Name) else ""
    return any(word in name.lower() for word in SECRETS) and not name.isupper()


def test_no_secret_is_compared_byte_by_byte() -> None:
    found = set(comparisons())
    assert found - set(HARMLESS) == set()
    assert set(HARMLESS) - found == set(), "what is no more need not be excused"


def test_the_look_at_the_source_sees_what_it_is_to_see() -> None:
    bad = ast.parse("given_digest == stored").body[0]
    assert isinstance(bad, ast.Expr)
    assert isinstance(bad.value, ast.Compare)
    assert is_secret(bad.value.left)


@pytest.fixture
def world() -> Iterator[World]:
    with world_of() as made:
        made.add_user("powerless")
        made.access.put_user("no-password", None)
        yield made


NOBODIES = ("nobody", "no-password", ANN, "powerless", ROOT)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that were computed."""
    computed: list[str] = []
    verify = argon2.PasswordHasher.verify

    def counting(hasher: argon2.PasswordHasher, stored: str, password: bytes) -> bool:
        computed.append(stored)
        return verify(hasher, stored, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counting)
    return computed


@pytest.mark.parametrize("mechanism", ["PLAIN", "AMQPLAIN"])
def test_amqp_refuses_all_alike_after_the_same_work(world: World, hashes: list[str], mechanism: str) -> None:
    told = set()
    for number, name in enumerate(NOBODIES):
        client = amqp.Client(world.amqp_waters)
        if mechanism == "PLAIN":
            client.start(response=f"\0{name}\0wrong".encode())
        else:
            from millpond.protocols.amqp import field_table

            table = field_table.encode_table({"LOGIN": name, "PASSWORD": "wrong"})[4:]
            client.start(mechanism="AMQPLAIN", response=table)
        told.add(client.expect_closed())
        assert len(hashes) == number + 1
    assert len(told) == 1


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_kafka_refuses_all_alike_after_the_same_work(world: World, hashes: list[str], mechanism: str) -> None:
    told = set()
    for number, name in enumerate(NOBODIES):
        client = world.pond.client()
        client.call(SASL_HANDSHAKE, 1, mechanism=mechanism)
        if mechanism == "PLAIN":
            token = f"\0{name}\0wrong".encode()
        else:
            first = client.call(SASL_AUTHENTICATE, 2, auth_bytes=f"n,,n={name},r=abc".encode()).auth_bytes
            parts = first.decode().split(",")
            assert [part[:2] for part in parts] == ["r=", "s=", "i="]
            assert parts[2] == "i=8192"
            token = f"c=biws,{parts[0]},p=eA==".encode()
        client.send(SASL_AUTHENTICATE, 2, auth_bytes=token)
        world.pond.rest()
        world.pond.advance(100)
        told.add(repr(client.take()))
        assert len(hashes) == (number + 1 if mechanism == "PLAIN" else 0)
    assert len(told) == 1
    assert not any(name in answer for answer in told for name in NOBODIES)


def test_the_management_api_refuses_all_alike_after_the_same_work(world: World, hashes: list[str]) -> None:
    told = set()
    for number, name in enumerate(NOBODIES):
        reply = world.ask("GET", "/api/whoami", user=name, password="wrong")
        told.add((reply.status, reply.body))
        assert len(hashes) == number + 1
    assert len(told) == 1


def test_what_a_user_may_is_told_to_nobody_before_the_password_is_right(world: World) -> None:
    """A tag that is missing, or a virtual host that is not open, would tell that there is such a user."""
    wrong = world.ask("GET", "/api/whoami", user="powerless", password="wrong").body
    right = world.ask("GET", "/api/whoami", user="powerless", password=PASSWORD).body
    assert wrong == world.ask("GET", "/api/whoami", user="nobody", password="wrong").body
    assert right != wrong
    client = world.amqp_client("powerless", opens=False)
    client.send(0, methods.ConnectionOpen(virtual_host=HOME))
    assert client.expect_closed().code == 530
