"""SASL mechanisms: PLAIN (RFC 4616), AMQPLAIN (RabbitMQ's own, a field table without its length), and EXTERNAL
(RFC 4422, appendix A), by which TLS has told who the client is: the response is not looked at, as in RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from millpond.base.certificate import Certificate, CertificateLogin
from millpond.base.errors import AccessRefused, CommandInvalid, SyntaxFault
from millpond.protocols.amqp import field_table

if TYPE_CHECKING:
    from millpond.protocols.amqp.connection import Connection

EXTERNAL: Final = "EXTERNAL"


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


# Mechanism with a password -> how to read the client's response. In the order in which they are offered.
MECHANISMS: Final[dict[str, Callable[[bytes], Credentials]]] = {"PLAIN": _plain, "AMQPLAIN": _amqplain}


def offered(connection: Connection) -> list[str]:
    """The mechanisms that this client is told of.

    EXTERNAL is one for who has shown a certificate that was verified. Others are not told of it, since there are
    clients that prefer it to their password wherever they see it.
    """
    login, certificate = _by_certificate(connection)
    return [*MECHANISMS, EXTERNAL] if login is not None and certificate is not None else list(MECHANISMS)


def external_name(connection: Connection) -> str:
    """Who the client's certificate says that it is, be there a user of that name or not.

    Raises CommandInvalid where the connection is none on which certificates are verified, AccessRefused where there
    is no certificate or no name in it.
    """
    login, certificate = _by_certificate(connection)
    if login is None:
        raise CommandInvalid(f"invalid authentication mechanism '{EXTERNAL}'")
    if certificate is None:
        raise AccessRefused("connection peer presented no TLS (x.509) certificate")
    name = login.name(certificate)
    if name is None:
        raise AccessRefused("no name found")
    return name


def _by_certificate(connection: Connection) -> tuple[CertificateLogin | None, Certificate | None]:
    if not connection.transport.is_tls():
        return None, None
    return connection.settings.certificate_login, connection.transport.peer_certificate()
