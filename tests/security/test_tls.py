"""TLS on every listener that offers it: which versions and ciphers, whose certificates, and what else arrives there."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from millpond.base.errors import ConfigurationError
from millpond.config import Settings
from millpond.server.listeners import tls_context
from tests.support.broker_process import BrokerProcess

LISTENERS = ("amqps", "kafka_tls")
AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
# ApiVersions, version 0.
API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 7, -1)
# Shorter than what any timeout of the broker's would take, but for a machine that does other things.
DEADLINE_S = 8.0


class Authority:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.issuer = trustme.CA()
        self.ca = folder / "ca.pem"
        self.issuer.cert_pem.write_to_path(str(self.ca))
        self.chain, self.key = self.certificate("server", "127.0.0.1", "localhost")

    def certificate(self, name: str, *identities: str, **options: dt.datetime) -> tuple[Path, Path]:
        """The files of a new certificate and its key."""
        made = self.issuer.issue_cert(*identities, **options)
        chain, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        chain.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        made.private_key_pem.write_to_path(str(key))
        return chain, key

    def settings(self) -> list[str]:
        return ["--tls-certificate", str(self.chain), "--tls-key", str(self.key), "--tls-ca", str(self.ca)]

    def client(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.issuer.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def started(folder: Path, authority: Authority, *more: str) -> BrokerProcess:
    arguments = [*(f"--{name.replace('_', '-')}={'127.0.0.1:0'}" for name in LISTENERS), *authority.settings(), *more]
    return BrokerProcess(folder, kafka=True, arguments=["--handshake-timeout-ms", "1000", *arguments]).start()


@pytest.fixture(scope="module")
def broker(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """Which asks for certificates, and lets those in who have none."""
    with started(tmp_path_factory.mktemp("tls"), authority) as process:
        yield process


@pytest.fixture(scope="module")
def strict(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """Which demands certificates."""
    with started(tmp_path_factory.mktemp("strict"), authority, "--tls-verify-client") as process:
        yield process


def connected(process: BrokerProcess, listener: str) -> socket.socket:
    host, _, port = process.listeners[listener].rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def talks(process: BrokerProcess, listener: str, context: ssl.SSLContext) -> ssl.SSLSocket | None:
    """A client to which the broker has answered in its protocol; None where TLS refused one of the two."""
    used = plain = connected(process, listener)
    try:
        used = wrapped = context.wrap_socket(plain, server_hostname="localhost")
        # A refused certificate shows with the first read only, in TLS 1.3.
        wrapped.sendall(AMQP_HEADER if listener == "amqps" else API_VERSIONS)
        if wrapped.recv(1):
            return wrapped
    except (ssl.SSLError, ConnectionError):
        pass
    used.close()
    return None


def is_closed(sock: socket.socket) -> bool:
    """Whether the broker closes it, whatever it says before, before the deadline."""
    try:
        while sock.recv(4096):
            continue
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_of_today_are_spoken(
    broker: BrokerProcess, authority: Authority, listener: str, version: ssl.TLSVersion
) -> None:
    context = authority.client()
    context.minimum_version = context.maximum_version = version
    client = talks(broker, listener, context)
    assert client is not None
    with client:
        assert client.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version]
        cipher = client.cipher()
        assert cipher is not None
        assert "GCM" in cipher[0] or "POLY1305" in cipher[0]


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_older_versions_are_refused(broker: BrokerProcess, authority: Authority, listener: str, version: str) -> None:
    context = authority.client()
    # Distributions forbid these on the client's side as well; the broker is to refuse on its own.
    context.set_ciphers("ALL:@SECLEVEL=0")
    wanted = getattr(ssl.TLSVersion, version)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = wanted
    assert talks(broker, listener, context) is None
    check_serves(broker, authority)


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize(
    "ciphers",
    ["AES128-GCM-SHA256", "AES256-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "DHE-RSA-AES256-SHA256"],
)
def test_ciphers_without_forward_secrecy_or_authentication_are_refused(
    broker: BrokerProcess, authority: Authority, listener: str, ciphers: str
) -> None:
    context = authority.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    assert talks(broker, listener, context) is None
    check_serves(broker, authority)


def check_serves(broker: BrokerProcess, authority: Authority) -> None:
    for listener in LISTENERS:
        client = talks(broker, listener, authority.client())
        assert client is not None
        client.close()


def with_certificate(authority: Authority, kind: str, folder: Path) -> ssl.SSLContext:
    """A client that shows a certificate of this kind."""
    context = authority.client()
    now = dt.datetime.now(dt.UTC)
    match kind:
        case "good":
            context.load_cert_chain(*authority.certificate("good", "client@example.org"))
        case "expired":
            over = now - dt.timedelta(days=1)
            context.load_cert_chain(*authority.certificate("expired", "client@example.org", not_after=over))
        case "of another authority":
            context.load_cert_chain(*Authority(folder).certificate("other", "client@example.org"))
    return context


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize(
    ("kind", "is_asked", "is_demanded"),
    [("good", True, True), ("none", True, False), ("expired", False, False), ("of another authority", False, False)],
)
def test_certificates_of_clients_are_verified(
    broker: BrokerProcess,
    strict: BrokerProcess,
    authority: Authority,
    tmp_path: Path,
    listener: str,
    kind: str,
    is_asked: bool,
    is_demanded: bool,
) -> None:
    for process, is_let_in in ((broker, is_asked), (strict, is_demanded)):
        client = talks(process, listener, with_certificate(authority, kind, tmp_path))
        assert (client is not None) == is_let_in
        if client is not None:
            client.close()


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("sent", [AMQP_HEADER, API_VERSIONS, b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"\x16\x03\x01"])
def test_whatever_is_no_tls_on_a_port_of_tls_is_closed_and_told_nothing(
    broker: BrokerProcess, authority: Authority, listener: str, sent: bytes
) -> None:
    with connected(broker, listener) as plain:
        plain.sendall(sent)
        answer = b""
        try:
            while part := plain.recv(4096):
                answer += part
        except ConnectionError:
            pass
        # Nothing, or an alert of TLS.
        assert answer == b"" or (answer[0] == 21 and len(answer) == 7), answer
    check_serves(broker, authority)


@pytest.mark.parametrize("listener", ["amqp", "kafka"])
def test_tls_on_a_port_without_it_is_closed(broker: BrokerProcess, authority: Authority, listener: str) -> None:
    with connected(broker, listener) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        authority.client().wrap_socket(plain, server_hostname="localhost")
    check_serves(broker, authority)


@pytest.mark.parametrize("listener", LISTENERS)
def test_a_handshake_that_does_not_go_on_is_closed(broker: BrokerProcess, authority: Authority, listener: str) -> None:
    with connected(broker, listener) as silent, connected(broker, listener) as half:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = authority.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            session.do_handshake()
        half.sendall(outgoing.read()[:40])
        assert is_closed(silent)
        assert is_closed(half)


# --- Settings ---------------------------------------------------------------------------------------------------------


def context_of(authority: Authority, **changes: object) -> ssl.SSLContext:
    values = {"tls_certificate": authority.chain, "tls_key": authority.key, "tls_ca": authority.ca, **changes}
    return tls_context(Settings.of(amqps="127.0.0.1:0", **values))


def test_the_context_says_no_to_what_is_old(authority: Authority) -> None:
    context = context_of(authority)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.verify_mode == ssl.CERT_OPTIONAL
    assert context_of(authority, tls_verify_client=True).verify_mode == ssl.CERT_REQUIRED
    assert context_of(authority, tls_ca=None).verify_mode == ssl.CERT_NONE


def wrong_files(authority: Authority) -> dict[str, tuple[dict[str, object], str]]:
    """What can be wrong with the files: the settings, and the text that names them."""
    folder = authority.folder
    _, other_key = authority.certificate("another", "localhost")
    empty, nonsense, locked = folder / "empty.pem", folder / "nonsense.pem", folder / "locked.key"
    empty.write_bytes(b"")
    nonsense.write_bytes(b"-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n")
    key = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"very secret passphrase"),
        )
    )
    return {
        "another certificate's key": ({"tls_key": other_key}, "are not a pair"),
        "a key with a passphrase": ({"tls_key": locked}, "are not a pair"),
        "an empty key": ({"tls_key": empty}, "are not a pair"),
        "no certificate": ({"tls_certificate": nonsense}, "are not a pair"),
        "a missing certificate": ({"tls_certificate": folder / "absent"}, "tls_certificate: "),
        "a missing key": ({"tls_key": folder / "absent"}, "tls_key: "),
        "a missing authority": ({"tls_ca": folder / "absent"}, "tls_ca: "),
        "no authority": ({"tls_ca": empty}, "holds no certificates"),
    }


@pytest.mark.parametrize("what", ["another certificate's key", "a key with a passphrase", "an empty key",
                                  "no certificate", "a missing certificate", "a missing key", "a missing authority",
                                  "no authority"])  # fmt: skip
def test_a_file_that_will_not_do_is_named_at_the_start(authority: Authority, what: str) -> None:
    changes, text = wrong_files(authority)[what]
    with pytest.raises(ConfigurationError) as caught:
        context_of(authority, **changes)
    assert text in str(caught.value)
    assert "BEGIN" not in str(caught.value)
    assert "passphrase" not in str(caught.value)


def test_a_broker_whose_key_will_not_do_does_not_start(authority: Authority, tmp_path: Path) -> None:
    _, other_key = authority.certificate("yet-another", "localhost")
    with pytest.raises(AssertionError, match="are not a pair"):
        started(tmp_path, authority, "--tls-key", str(other_key))
