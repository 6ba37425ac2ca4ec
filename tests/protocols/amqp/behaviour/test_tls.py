"""AMQP over TLS: a listener of its own, with a certificate that a private authority signed."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
import trustme

from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import drain, numbered, publish, wait_ready

pytestmark = pytest.mark.millpond_only("a listener with the test's certificate")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate_arguments(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("certificates")
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    chain, key, trusted = folder / "server.pem", folder / "server.key", folder / "ca.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(chain), append=True)
    certificate.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(trusted))
    return ["--tls-certificate", str(chain), "--tls-key", str(key), "--tls-ca", str(trusted)]


def start(directory: Path, arguments: list[str]) -> BrokerProcess:
    return BrokerProcess(directory, arguments=["--amqps", "127.0.0.1:0", *arguments]).start()


@pytest.fixture(scope="module")
def encrypted(certificate_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with start(tmp_path_factory.mktemp("tls"), certificate_arguments) as process:
        yield process


def tls_port(broker: BrokerProcess) -> int:
    return int(broker.listeners["amqps"].rpartition(":")[2])


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def connect(broker: BrokerProcess, context: ssl.SSLContext) -> pika.BlockingConnection:
    endpoint = Endpoint("127.0.0.1", tls_port(broker))
    return pika.BlockingConnection(endpoint.parameters(ssl_options=pika.SSLOptions(context, "localhost")))


def test_a_client_that_trusts_the_authority_works(encrypted: BrokerProcess, authority: trustme.CA) -> None:
    with connect(encrypted, trusting(authority)) as connection:
        channel = connection.channel()
        channel.queue_declare("encrypted", exclusive=True)
        large = bytes(range(256)) * 4096
        publish(channel, "encrypted", *numbered(100), large)
        wait_ready(channel, "encrypted", 101)
        assert drain(channel, "encrypted") == [*numbered(100), large]


def test_a_client_that_does_not_trust_the_authority_refuses(encrypted: BrokerProcess) -> None:
    with pytest.raises((pika.exceptions.AMQPConnectionError, ssl.SSLError)):
        connect(encrypted, ssl.create_default_context())


def test_the_plain_listener_works_beside_it(encrypted: BrokerProcess) -> None:
    with pika.BlockingConnection(Endpoint.of_url(encrypted.amqp_url).parameters()) as connection:
        connection.channel()


def test_plain_amqp_on_the_tls_port_is_closed(encrypted: BrokerProcess, authority: trustme.CA) -> None:
    with socket.create_connection(("127.0.0.1", tls_port(encrypted)), timeout=15) as plain:
        plain.sendall(b"AMQP\x00\x00\x09\x01" + b"\x00" * 64)
        try:
            while plain.recv(4096):
                continue
        except ConnectionResetError:
            # Closed all the same.
            pass
    connect(encrypted, trusting(authority)).close()


def test_tls_before_1_2_is_refused(encrypted: BrokerProcess, authority: trustme.CA) -> None:
    context = trusting(authority)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    # Distributions forbid these versions on the client's side as well; the broker is to refuse on its own.
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", tls_port(encrypted)), timeout=15) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_peer_that_never_finishes_its_handshake_holds_up_nobody(
    encrypted: BrokerProcess, authority: trustme.CA
) -> None:
    with socket.create_connection(("127.0.0.1", tls_port(encrypted))):
        worked = threading.Event()

        def work() -> None:
            connect(encrypted, trusting(authority)).close()
            worked.set()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(20)
        assert worked.is_set()


def test_a_client_certificate_is_demanded_when_configured(
    certificate_arguments: list[str], authority: trustme.CA, tmp_path: Path
) -> None:
    with start(tmp_path, [*certificate_arguments, "--tls-verify-client"]) as process:
        with pytest.raises((pika.exceptions.AMQPConnectionError, ssl.SSLError)):
            connect(process, trusting(authority))
        context = trusting(authority)
        authority.issue_cert("client@example.org").configure_cert(context)
        connect(process, context).close()
