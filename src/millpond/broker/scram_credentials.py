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

from millpond.base.errors import PreconditionFailed

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


def to_definitions(credential: ScramCredential) -> dict[str, object]:
    """What definitions have of it: as good, and as secret, as the hash of a password."""
    return {
        "mechanism": credential.mechanism,
        "iterations": credential.iterations,
        "salt": credential.salt.hex(),
        "stored_key": credential.stored_key.hex(),
        "server_key": credential.server_key.hex(),
    }


def from_definitions(fields: object) -> ScramCredential:
    """The credential of such fields. Raises PreconditionFailed, which quotes none of them."""
    if not isinstance(fields, dict) or fields.get("mechanism") not in list(MECHANISMS):
        raise PreconditionFailed(f"a SCRAM credential is of one of {', '.join(MECHANISMS)}")
    mechanism, iterations = fields["mechanism"], fields.get("iterations")
    if not isinstance(iterations, int) or not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
        raise PreconditionFailed(f"a SCRAM credential has {ITERATIONS_MIN} to {ITERATIONS_MAX} iterations")
    try:
        salt, stored_key, server_key = (bytes.fromhex(fields[name]) for name in ("salt", "stored_key", "server_key"))
    except (KeyError, TypeError, ValueError):
        raise PreconditionFailed("a SCRAM credential has salt, stored_key and server_key, in hex") from None
    size = hashlib.new(MECHANISMS[mechanism]).digest_size
    if not salt or len(salt) > size or (len(stored_key), len(server_key)) != (size, size):
        raise PreconditionFailed(f"the salt or a key of a credential for {mechanism} has a wrong length")
    return ScramCredential(mechanism, iterations, salt, stored_key, server_key)


def pretended(mechanism: str, name: str, secret: bytes) -> ScramCredential:
    """Credentials of somebody who does not exist: the same each time, and right for no password.

    Who asks with names at random is so not told which of them are users.
    """
    digest = MECHANISMS[mechanism]
    salt = hmac.digest(secret, f"{mechanism} {name}".encode(errors="surrogatepass"), "sha256")[:_SALT_BYTES]
    size = hashlib.new(digest).digest_size
    return ScramCredential(mechanism, ITERATIONS, salt, secrets.token_bytes(size), secrets.token_bytes(size))
