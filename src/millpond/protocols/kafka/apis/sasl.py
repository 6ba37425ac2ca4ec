"""SaslHandshake and SaslAuthenticate: log in. What a login is made of is in `login.py`.

Behaviour: a client that logs in is that user from then on, with all that it does. Who is logged in already, by SASL, is
refused with ILLEGAL_SASL_STATE. A mechanism that is not spoken is refused with the list of those that are, and the
connection is closed; so is it where the login fails, after 100 ms, and where steps come in another order.
Versions: SaslHandshake 0 and 1: after 0 the steps come as bare frames, with their size before them and nothing
else. SaslAuthenticate 0 to 2.
Not implemented: sessions that end (KIP-368): the lifetime that is told is 0, for ever. GSSAPI, OAUTHBEARER.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millpond.protocols.kafka.errors import ILLEGAL_SASL_STATE, UNSUPPORTED_SASL_MECHANISM
from millpond.protocols.kafka.login import MECHANISMS, Login
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import EXTERNAL, api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call


@api(17, "SaslHandshake", 0, 1)
def sasl_handshake(call: Call, request: Any) -> Tree:
    connection = call.connection
    if connection.mechanism not in {"", EXTERNAL}:
        return {"error_code": ILLEGAL_SASL_STATE, "mechanisms": []}
    if connection.login is not None:
        connection.end_when_answered()
        return {"error_code": ILLEGAL_SASL_STATE, "mechanisms": []}
    if request.mechanism not in MECHANISMS:
        connection.end_when_answered()
        return {"error_code": UNSUPPORTED_SASL_MECHANISM, "mechanisms": MECHANISMS}
    connection.login = Login(connection, request.mechanism)
    connection.must_log_in = True
    connection.takes_tokens = call.version == 0
    return {"mechanisms": MECHANISMS}


@api(36, "SaslAuthenticate", 0, 2)
def sasl_authenticate(call: Call, request: Any) -> Tree | None:
    connection = call.connection
    if connection.login is None:
        if not connection.mechanism:
            connection.end_when_answered()
        when = "after successful authentication" if connection.mechanism else "before SaslHandshake"
        text = f"SaslAuthenticate request received {when}"
        return {"error_code": ILLEGAL_SASL_STATE, "error_message": text, "auth_bytes": b""}
    connection.login.take(call, bytes(request.auth_bytes))
    return None
