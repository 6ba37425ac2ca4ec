"""Logging in by SASL: PLAIN (RFC 4616), SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677).

    handshake   the client names a mechanism
    steps       its tokens, by SaslAuthenticate, or after version 0 of the handshake as bare frames
    the end     the connection is the user's; or it is closed, a moment after the client was told so

Passwords are verified on a thread; meanwhile the connection handles nothing. What fails is answered alike, whoever the
user is and whatever is wrong, and never with a part of what the client has sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import PeerError
from millpond.base.limits import KAFKA_LOGIN_FAILED_DELAY_MS, SASL_TOKEN_BYTES_MAX
from millpond.broker import scram_credentials
from millpond.protocols.kafka.errors import SASL_AUTHENTICATION_FAILED
from millpond.protocols.kafka.registry import answer

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call, Connection

logger = logging.getLogger(__name__)

PLAIN: Final = "PLAIN"
# In the order in which they are offered.
MECHANISMS: Final = (PLAIN, *scram_credentials.MECHANISMS)

# In Kafka's words, by which its users look for the cause.
_REFUSAL: Final = "Authentication failed: Invalid username or password"


class Login:
    """One client's login by one mechanism, from the handshake on."""

    def __init__(self, connection: Connection, mechanism: str) -> None:
        self._connection: Final = connection
        self._mechanism: Final = mechanism
        self._name = ""
        # What SCRAM is doing, once the client has begun.
        self._exchange: Any = None

    def take(self, call: Call, token: bytes) -> None:
        """Take a step, and answer it."""
        if len(token) > SASL_TOKEN_BYTES_MAX:
            self._fail(call, "a token that is too large", self._wrong())
        elif self._mechanism == PLAIN:
            self._plain(call, token)
        else:
            self._scram(call, token)

    # --- PLAIN ----------------------------------------------------------------------------------------------------

    def _plain(self, call: Call, token: bytes) -> None:
        parts = token.split(b"\0")
        if len(parts) != 3:
            self._fail(call, "a token that is not of PLAIN", _REFUSAL)
            return
        identity, name, password = parts
        if not name or not password:
            what = "username" if not name else "password"
            self._fail(call, f"no {what}", f"Authentication failed: {what} not specified")
            return
        if identity not in {b"", name}:
            self._fail(
                call,
                "an authorization id of somebody else",
                "Authentication failed: Client requested an authorization id that is different from username",
            )
            return
        self._name = name.decode("utf-8", "surrogateescape")
        access = self._connection.broker.access
        try:
            access.check_address(self._name, self._connection.peer_address or None)
        except PeerError as error:
            self._fail(call, str(error), _REFUSAL)
            return
        if access.is_known_login(self._name, password):
            self._succeed(call, b"")
            return
        self._connection.hold_for_login()
        self._in_turn(call, partial(self._verify, call, password))

    def _verify(self, call: Call, password: bytes) -> None:
        broker = self._connection.broker
        verify = partial(broker.access.verify_password, self._name, password)
        broker.run_blocking(verify, partial(self._verified, call))

    def _in_turn(self, call: Call, verify: Callable[[], None]) -> None:
        """Look at the login, at once or when it is its turn after those that have failed; or refuse it unseen."""
        connection = self._connection
        clock = connection.broker.clock
        failures = connection.broker.access.failed_logins
        wait_ms = failures.wait_ms(connection.peer_address or None, self._name, clock.monotonic_ms())
        if wait_ms is None:
            self._fail(call, "too many logins that fail", self._wrong())
        elif wait_ms > 0:
            connection.hold_for_login()
            clock.call_later(wait_ms, lambda: None if connection.is_closed else verify())
        else:
            verify()

    def _verified(self, call: Call, result: object) -> None:
        connection = self._connection
        if connection.is_closed:
            return
        # The user may have been deleted while the password was looked at.
        if result is True and connection.broker.access.exists(self._name):
            self._succeed(call, b"")
            connection.login_looked_at()
        else:
            self._fail(call, "wrong name or password", _REFUSAL)

    # --- SCRAM ----------------------------------------------------------------------------------------------------

    def _scram(self, call: Call, token: bytes) -> None:
        from scramp import ScramException, ScramMechanism

        try:
            text = token.decode()
            if self._exchange is None:
                exchange = ScramMechanism(self._mechanism).make_server(self._credential)
                exchange.set_client_first(text)
                self._exchange = exchange
                self._go_on(call, exchange.get_server_first().encode())
                return
        except (ScramException, ValueError, LookupError, TypeError):
            self._fail(call, "wrong name or password", self._wrong())
            return
        self._in_turn(call, partial(self._prove, call, text))

    def _prove(self, call: Call, text: str) -> None:
        """Take the client's proof that it knows the password."""
        from scramp import ScramException

        try:
            self._exchange.set_client_final(text)
            last = self._exchange.get_server_final().encode()
        except (ScramException, ValueError, LookupError, TypeError):
            self._fail(call, "wrong name or password", self._wrong())
            return
        if self._connection.broker.access.exists(self._name):
            self._succeed(call, last)
            # It may have waited for its turn.
            self._connection.login_looked_at()
        else:
            self._fail(call, "no such user", self._wrong())

    def _credential(self, name: str) -> tuple[bytes, bytes, bytes, int]:
        """What the client is compared with: the user's credential, or one that nobody has."""
        self._name = name
        access = self._connection.broker.access
        try:
            access.check_address(name, self._connection.peer_address or None)
        except PeerError as error:
            logger.warning("%s: %s", self._connection.describe_peer(), error)
            found = access.pretended_scram_credential(name, self._mechanism)
        else:
            found = access.scram_credential(name, self._mechanism)
        return found.salt, found.stored_key, found.server_key, found.iterations

    # --- Its end --------------------------------------------------------------------------------------------------

    def _wrong(self) -> str:
        return (
            _REFUSAL
            if self._mechanism == PLAIN
            else "Authentication failed during authentication due to invalid credentials with SASL mechanism "
            + self._mechanism
        )

    def _go_on(self, call: Call, token: bytes) -> None:
        if call.is_bare:
            call.answer([token], False)
        else:
            answer(call, {"auth_bytes": token, "error_message": None})

    def _succeed(self, call: Call, token: bytes) -> None:
        connection = self._connection
        try:
            connection.apis.admit(connection, self._name)
        except PeerError as error:
            self._fail(call, str(error), str(error))
            return
        connection.logged_in(self._name, self._mechanism)
        self._go_on(call, token)

    def _fail(self, call: Call, reason: str, message: str) -> None:
        """Refuse the client, a moment later, and close the connection."""
        connection = self._connection
        logger.warning(
            "%s: login refused for user %r by %s: %s", connection.describe_peer(), self._name, self._mechanism, reason
        )
        connection.hold_for_login()
        clock, failures = connection.broker.clock, connection.broker.access.failed_logins
        delay_ms = failures.failed(connection.peer_address or None, self._name, clock.monotonic_ms())
        clock.call_later(max(KAFKA_LOGIN_FAILED_DELAY_MS, delay_ms), partial(self._refuse, call, message))

    def _refuse(self, call: Call, message: str) -> None:
        connection = self._connection
        if connection.is_closed:
            return
        if call.is_bare:
            # There is no way to tell it.
            call.stay_silent()
        else:
            answer(call, {"error_code": SASL_AUTHENTICATION_FAILED, "error_message": message, "auth_bytes": b""})
        connection.end_when_answered()


def name_in_certificate(connection: Connection) -> str | None:
    """The user that the client's certificate names; None where there is none."""
    if not connection.transport.is_tls():
        return None
    login, certificate = connection.settings.certificate_login, connection.transport.peer_certificate()
    if login is None or certificate is None:
        return None
    name = login.name(certificate)
    access = connection.broker.access
    if name is None or not access.exists(name):
        logger.warning("%s: its certificate names %r, who is no user", connection.describe_peer(), name)
        return None
    access.check_address(name, connection.peer_address or None)
    return name
