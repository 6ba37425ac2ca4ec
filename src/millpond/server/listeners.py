"""Sockets that listen, and the TLS they speak.

A socket is bound here and handed to the event loop (`loop.create_server(factory, sock=...)`), so that an address that
cannot be had is told in one line, before anything is served.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Final

from millpond.base.errors import ConfigurationError, ListenerError
from millpond.base.limits import LISTEN_BACKLOG
from millpond.config import ListenAddress, Settings

# TLS 1.2 with forward secrecy and authenticated encryption only; those of TLS 1.3 are all of that kind.
TLS12_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


def bind(listener: str, address: ListenAddress) -> socket.socket:
    """A socket that listens on `address`; `listener` is the setting's name, for the error. Raises ListenerError.

    A host name is bound at the first address that it stands for. `::` takes IPv4 as well.
    """
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ListenerError(f"{listener}: {address.host} is not a host of this machine: {error.strerror}") from None
    family, kind, protocol, _, where = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # A restart need not wait for the connections of the last run to be forgotten.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "::"))
        sock.bind(where)
        # Two sockets may be bound to one address as long as only one listens: so listening is what tells.
        sock.listen(LISTEN_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenerError(f"{listener}: {_why(address, error)}") from None
    return sock


def _why(address: ListenAddress, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"{address} is in use by another program"
        case errno.EACCES:
            return f"{address} needs more rights than this user has"
        case errno.EADDRNOTAVAIL:
            return f"{address} is not an address of this machine"
        case _:
            return f"{address} cannot be bound: {os.strerror(error.errno) if error.errno else error}"


def bound_address(sock: socket.socket) -> ListenAddress:
    """Where `sock` really listens, with the port that was chosen where it was given as 0."""
    host, port = sock.getsockname()[:2]
    return ListenAddress(host, port)


def tls_context(settings: Settings) -> ssl.SSLContext:
    """The TLS context of the listeners that speak it. Raises ConfigurationError that names the file."""
    assert settings.tls_certificate is not None
    assert settings.tls_key is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS12_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    for setting, path in (
        ("tls_certificate", settings.tls_certificate),
        ("tls_key", settings.tls_key),
        ("tls_ca", settings.tls_ca),
    ):
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigurationError(f"{setting}: {path} cannot be read")
    try:
        # A key with a passphrase would ask on the terminal: a server has nobody to answer.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        pair = f"{settings.tls_certificate} and {settings.tls_key}"
        raise ConfigurationError(f"tls_certificate, tls_key: {pair} are not a pair: {_reason(error)}") from None
    if settings.tls_ca is not None:
        try:
            context.load_verify_locations(settings.tls_ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(f"tls_ca: {settings.tls_ca} holds no certificates: {_reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED if settings.tls_verify_client else ssl.CERT_OPTIONAL
    return context


def _reason(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return (reason or str(error)).lower().replace("_", " ")
