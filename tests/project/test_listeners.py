"""Binding addresses, and the TLS that listeners speak."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from millpond.base.errors import ConfigurationError, ListenerError
from millpond.config import ListenAddress, Settings
from millpond.server.listeners import bind, bound_address, tls_context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> Settings:
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(tmp_path / "certificate.pem", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return Settings.of(amqps="127.0.0.1:0", tls_certificate=tmp_path / "certificate.pem", tls_key=tmp_path / "key.pem")


def test_port_0_takes_a_free_one() -> None:
    with bind("amqp", ListenAddress("127.0.0.1", 0)) as sock:
        assert bound_address(sock).port > 0
        assert bound_address(sock).host == "127.0.0.1"


def test_an_address_can_be_had_again_at_once() -> None:
    with bind("amqp", ListenAddress("127.0.0.1", 0)) as sock:
        address = bound_address(sock)
        with socket.create_connection((address.host, address.port)):
            sock.accept()[0].close()
    bind("amqp", address).close()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (ListenAddress("192.0.2.1", 5672), "amqp: 192.0.2.1:5672 is not an address of this machine"),
        (ListenAddress("no-such-host.invalid", 0), "amqp: no-such-host.invalid is not a host of this machine"),
    ],
)
def test_an_address_that_cannot_be_had_is_told_clearly(address: ListenAddress, text: str) -> None:
    with pytest.raises(ListenerError) as caught:
        bind("amqp", address)
    assert str(caught.value).startswith(text)


def test_an_address_in_use_is_told_clearly() -> None:
    with bind("amqp", ListenAddress("127.0.0.1", 0)) as sock:
        address = bound_address(sock)
        with pytest.raises(ListenerError, match=f"^amqps: {address} is in use by another program$"):
            bind("amqps", address)


async def _handshake(settings: Settings, client: ssl.SSLContext) -> ssl.SSLObject:
    """The client's side of a connection to a server of these settings, which answers one byte."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1))
        await writer.drain()
        writer.close()

    with bind("amqps", ListenAddress("127.0.0.1", 0)) as sock:
        server = await asyncio.start_server(answer, sock=sock, ssl=tls_context(settings))
        address = bound_address(sock)
        async with server:
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=client, server_hostname="localhost"
            )
            try:
                writer.write(b"x")
                # With TLS 1.3 a client learns only now that it was refused.
                if await reader.read(1) != b"x":
                    raise ConnectionResetError("refused")
                handshake: ssl.SSLObject = writer.get_extra_info("ssl_object")
                return handshake
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()


async def test_tls_is_at_least_1_2_with_forward_secrecy(authority: trustme.CA, tls: Settings) -> None:
    client = ssl.create_default_context()
    authority.configure_trust(client)
    assert (await _handshake(tls, client)).version() == "TLSv1.3"
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    cipher = (await _handshake(tls, client)).cipher()
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-")
    assert tls_context(tls).minimum_version == ssl.TLSVersion.TLSv1_2


async def test_a_client_without_a_certificate_is_refused_where_one_is_asked_for(
    authority: trustme.CA, tls: Settings, tmp_path: Path
) -> None:
    asking = tls.model_copy(update={"tls_ca": tmp_path / "ca.pem", "tls_verify_client": True})
    client = ssl.create_default_context()
    authority.configure_trust(client)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await _handshake(asking, client)
    authority.issue_cert("client").configure_cert(client)
    await _handshake(asking, client)


def test_a_key_of_another_certificate_is_told_clearly(tls: Settings, tmp_path: Path) -> None:
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key.pem")
    with pytest.raises(ConfigurationError, match=r"^tls_certificate, tls_key: .* are not a pair: key values mismatch"):
        tls_context(tls)


def test_a_ca_file_without_certificates_is_told_clearly(tls: Settings, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing\n")
    with pytest.raises(ConfigurationError, match=r"^tls_ca: .* holds no certificates"):
        tls_context(tls.model_copy(update={"tls_ca": tmp_path / "ca.pem"}))
