"""SASL mechanisms: PLAIN (RFC 4616) and AMQPLAIN (RabbitMQ's own, a field table without its length)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from millpond.base.errors import SyntaxFault
from millpond.protocols.amqp import field_table


class Credentials(NamedTuple):
    name: str
    password: bytes

    def __repr__(self) -> str:
        return f"Credentials(name={self.name!r})"


def _plain(response: bytes) -> Credentials:
    # authorization identity NUL authentication identity NUL password; the first is not used, as in RabbitMQ.
    parts = response.split(b"\0", 2)
    if len(parts) != 3:
        raise SyntaxFault("response to PLAIN is not three parts separated by NUL")
    return Credentials(parts[1].decode("utf-8", "surrogateescape"), parts[2])


def _amqplain(response: bytes) -> Credentials:
    table = field_table.decode_entries(response, 0, len(response), 0)
    name = table.get("LOGIN")
    password = table.get("PASSWORD")
    if not isinstance(name, str) or not isinstance(password, str):
        raise SyntaxFault("response to AMQPLAIN has no LOGIN or no PASSWORD")
    return Credentials(name, password.encode("utf-8", "surrogateescape"))


# Mechanism -> how to read the client's response. In the order in which they are offered.
MECHANISMS: Final[dict[str, Callable[[bytes], Credentials]]] = {"PLAIN": _plain, "AMQPLAIN": _amqplain}
