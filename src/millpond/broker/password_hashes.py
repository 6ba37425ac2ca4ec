"""Password hashes that come and go with definitions: RabbitMQ's, and our own in RabbitMQ's clothes.

RabbitMQ's are base64 of a salt of 4 bytes and SHA-256 or SHA-512 of salt and password. They are stored as
"$rabbitmq-sha256$" and the base64, are good for logging in, and are replaced by argon2id with the first login that
succeeds.

Ours are exported as base64 of the argon2id hash in PHC format, under an algorithm name of our own: RabbitMQ takes such
a user over, but cannot let it log in before it has a new password.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any, Final

from millpond.base.errors import PreconditionFailed

ARGON2_PREFIX: Final = "$argon2id$"
ARGON2_ALGORITHM: Final = "millpond_password_hashing_argon2id"
DEFAULT_ALGORITHM: Final = "rabbit_password_hashing_sha256"

_SALT_BYTES: Final = 4
# Longer than any hash in PHC format with sensible parameters.
_HASH_CHARACTERS_MAX: Final = 512
# RabbitMQ's name -> what such a hash begins with when it is stored, and its digest.
_RABBITMQ: Final[dict[str, tuple[str, Callable[[bytes], Any]]]] = {
    "rabbit_password_hashing_sha256": ("$rabbitmq-sha256$", hashlib.sha256),
    "rabbit_password_hashing_sha512": ("$rabbitmq-sha512$", hashlib.sha512),
}


def from_definitions(password_hash: str, algorithm: str | None) -> str | None:
    """The hash to store for one that was exported; None for the empty one, of a user without a password.

    Raises PreconditionFailed, which does not quote the hash: it may be a password that somebody put there by mistake.
    """
    if not password_hash:
        return None
    if password_hash.startswith(ARGON2_PREFIX):
        return checked_hash(password_hash)
    algorithm = algorithm or DEFAULT_ALGORITHM
    try:
        decoded = b64decode(password_hash, validate=True)
    except (binascii.Error, ValueError):
        raise PreconditionFailed("the password hash is not base64") from None
    if algorithm == ARGON2_ALGORITHM:
        return checked_hash(decoded.decode(errors="replace"))
    if algorithm not in _RABBITMQ:
        known = ", ".join([*_RABBITMQ, ARGON2_ALGORITHM])
        raise PreconditionFailed(f"hashing algorithm '{algorithm}' is not supported; known are {known}")
    return checked_hash(_RABBITMQ[algorithm][0] + b64encode(decoded).decode())


def to_definitions(stored: str | None) -> tuple[str, str]:
    """A stored hash as definitions have it, and the name of its algorithm."""
    if stored is None:
        return "", DEFAULT_ALGORITHM
    for algorithm, (prefix, _) in _RABBITMQ.items():
        if stored.startswith(prefix):
            return stored.removeprefix(prefix), algorithm
    return b64encode(stored.encode()).decode(), ARGON2_ALGORITHM


def checked_hash(stored: str) -> str:
    """The hash, if it is one that can be stored. Raises PreconditionFailed."""
    if stored.startswith(ARGON2_PREFIX) and len(stored) <= _HASH_CHARACTERS_MAX and stored.isascii():
        return stored
    for prefix, digest in _RABBITMQ.values():
        if stored.startswith(prefix) and len(_salted(stored, prefix)) == _SALT_BYTES + digest(b"").digest_size:
            return stored
    # Whoever passes a password by mistake must not have it shown.
    raise PreconditionFailed("a password hash is an argon2id hash in PHC format, or RabbitMQ's of SHA-256 or SHA-512")


def is_rabbitmq(stored: str) -> bool:
    return any(stored.startswith(prefix) for prefix, _ in _RABBITMQ.values())


def matches_rabbitmq(stored: str, password: bytes) -> bool:
    """Whether RabbitMQ's hash is that of the password. Takes microseconds."""
    for prefix, digest in _RABBITMQ.values():
        if stored.startswith(prefix):
            salted = _salted(stored, prefix)
            return hmac.compare_digest(digest(salted[:_SALT_BYTES] + password).digest(), salted[_SALT_BYTES:])
    return False


def _salted(stored: str, prefix: str) -> bytes:
    try:
        return b64decode(stored.removeprefix(prefix), validate=True)
    except (binascii.Error, ValueError):
        return b""
