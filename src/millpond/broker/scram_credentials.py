"""What a user needs to log in by SCRAM: RFC 5802's salt, iteration count, stored key and server key.

Neither the password nor anything that a client could log in with can be had from them, but by trying passwords: each
try costs `ITERATIONS` rounds of HMAC, which is less than argon2 costs. The protocol leaves no other choice, as it is
the client that does the work at each login.

Source: RFC 5802, 3; RFC 7677; KIP-554 for the bounds.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final

SHA256: Final = "SCRAM-SHA-256"
SHA512: Final = "SCRAM-SHA-512"
# Mechanism -> the name of its hash.
MECHANISMS: Final[dict[str, str]] = {SHA256: "sha256", SHA512: "sha512"}

# Kafka's bounds for iterations. Ours are as many as its clients accept everywhere.
ITERATIONS_MIN: Final = 4_096
ITERATIONS_MAX: Final = 16_384
ITERATIONS: Final = 8_192
_SALT_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class ScramCredential:
    """One user's for one mechanism."""

    mechanism: str
    iterations: int
    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


def of_password(password: bytes) -> tuple[ScramCredential, ...]:
    """Credentials for all mechanisms, with new salts. Blocks for some 10 ms."""
    made = []
    for mechanism, digest in MECHANISMS.items():
        salt = secrets.token_bytes(_SALT_BYTES)
        salted = hashlib.pbkdf2_hmac(digest, password, salt, ITERATIONS)
        made.append(of_salted_password(mechanism, ITERATIONS, salt, salted))
    return tuple(made)


def of_salted_password(mechanism: str, iterations: int, salt: bytes, salted_password: bytes) -> ScramCredential:
    digest = MECHANISMS[mechanism]
    client_key = hmac.digest(salted_password, b"Client Key", digest)
    stored_key = hashlib.new(digest, client_key).digest()
    return ScramCredential(mechanism, iterations, salt, stored_key, hmac.digest(salted_password, b"Server Key", digest))


def pretended(mechanism: str, name: str, secret: bytes) -> ScramCredential:
    """Credentials of somebody who does not exist: the same each time, and right for no password.

    Who asks with names at random is so not told which of them are users.
    """
    digest = MECHANISMS[mechanism]
    salt = hmac.digest(secret, f"{mechanism} {name}".encode(errors="surrogatepass"), "sha256")[:_SALT_BYTES]
    size = hashlib.new(digest).digest_size
    return ScramCredential(mechanism, ITERATIONS, salt, secrets.token_bytes(size), secrets.token_bytes(size))
