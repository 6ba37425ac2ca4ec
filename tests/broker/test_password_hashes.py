"""Password hashes of RabbitMQ: taken over, good for logging in, replaced by better ones; and ours in its clothes."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator

import pytest

from millpond.base.errors import PreconditionFailed, StorageFailed
from millpond.broker.access import DEFAULT_HASH, Access
from millpond.broker.password_hashes import (
    ARGON2_ALGORITHM,
    checked_hash,
    from_definitions,
    is_rabbitmq,
    matches_rabbitmq,
    to_definitions,
)
from millpond.catalog.catalog import Catalog

SHA256 = "rabbit_password_hashing_sha256"
SHA512 = "rabbit_password_hashing_sha512"
SALT = b"\x90\x8d\xc6\x0a"


def rabbitmq_hash(password: bytes, digest: str = "sha256") -> str:
    return b64encode(SALT + hashlib.new(digest, SALT + password).digest()).decode()


@pytest.fixture
def access() -> Iterator[Access]:
    catalog = Catalog(None)
    catalog.open()
    yield Access(catalog)
    catalog.close()


def test_the_example_of_rabbitmqs_manual() -> None:
    # "test12" with the salt 908dc60a, from the guide to passwords.
    stored = from_definitions("kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR", SHA256)
    assert stored is not None
    assert matches_rabbitmq(stored, b"test12")
    assert not matches_rabbitmq(stored, b"test13")


@pytest.mark.parametrize(("algorithm", "digest"), [(SHA256, "sha256"), (SHA512, "sha512"), (None, "sha256")])
def test_a_hash_is_taken_over_and_given_back(algorithm: str | None, digest: str) -> None:
    exported = rabbitmq_hash(b"secret", digest)
    stored = from_definitions(exported, algorithm)
    assert stored is not None
    assert is_rabbitmq(stored)
    assert matches_rabbitmq(stored, b"secret")
    assert to_definitions(stored) == (exported, algorithm or SHA256)


def test_our_own_hash_is_given_back_as_base64() -> None:
    exported, algorithm = to_definitions(DEFAULT_HASH)
    assert algorithm == ARGON2_ALGORITHM
    assert exported == b64encode(DEFAULT_HASH.encode()).decode()
    assert from_definitions(exported, algorithm) == DEFAULT_HASH
    assert from_definitions(DEFAULT_HASH, None) == DEFAULT_HASH


def test_a_user_without_a_password_has_an_empty_hash() -> None:
    assert from_definitions("", SHA512) is None
    assert to_definitions(None) == ("", SHA256)


@pytest.mark.parametrize(
    ("password_hash", "algorithm"),
    [
        ("secret", SHA256),
        ("c2VjcmV0", SHA256),
        (rabbitmq_hash(b"x"), SHA512),
        (rabbitmq_hash(b"x", "sha512"), SHA256),
        (rabbitmq_hash(b"x"), "rabbit_password_hashing_md5"),
        (rabbitmq_hash(b"x"), ARGON2_ALGORITHM),
        ("$argon2id$" + "x" * 1000, None),
        ("$argon2id$é", None),
    ],
)
def test_what_is_no_hash_is_refused_without_showing_it(password_hash: str, algorithm: str | None) -> None:
    with pytest.raises(PreconditionFailed) as caught:
        from_definitions(password_hash, algorithm)
    assert password_hash not in str(caught.value)


@pytest.mark.parametrize("stored", ["plain", "$rabbitmq-sha256$", "$rabbitmq-sha256$?", "$rabbitmq-md5$AAAA", ""])
def test_what_is_no_stored_hash_is_never_stored(stored: str) -> None:
    with pytest.raises(PreconditionFailed):
        checked_hash(stored)


def test_the_first_login_brings_a_better_hash(access: Access) -> None:
    access.put_user("ann", from_definitions(rabbitmq_hash(b"secret"), SHA256))
    assert not access.verify_password("ann", b"wrong")
    access.store_better_hashes()
    assert is_rabbitmq(access.exported_users()[0].password_hash or "")
    assert access.verify_password("ann", b"secret")
    assert access.is_known_login("ann", b"secret")
    access.store_better_hashes()
    assert (access.exported_users()[0].password_hash or "").startswith("$argon2id$")
    assert access.verify_password("ann", b"secret")
    assert not access.verify_password("ann", b"wrong")


def test_the_empty_password_opens_nothing(access: Access) -> None:
    access.put_user("ann", from_definitions(rabbitmq_hash(b""), SHA256))
    assert not access.verify_password("ann", b"")


def test_a_password_that_was_changed_meanwhile_stays_changed(access: Access) -> None:
    access.put_user("ann", from_definitions(rabbitmq_hash(b"secret"), SHA256))
    assert access.verify_password("ann", b"secret")
    access.set_password_hash("ann", DEFAULT_HASH)
    access.store_better_hashes()
    assert access.exported_users()[0].password_hash == DEFAULT_HASH


def test_a_disk_that_fails_leaves_the_hash_as_it_was(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    access.put_user("ann", from_definitions(rabbitmq_hash(b"secret"), SHA256))
    assert access.verify_password("ann", b"secret")

    def fail(*_: object) -> None:
        raise StorageFailed("no room")

    monkeypatch.setattr(Catalog, "put_user", fail)
    access.store_better_hashes()
    assert is_rabbitmq(access.exported_users()[0].password_hash or "")
