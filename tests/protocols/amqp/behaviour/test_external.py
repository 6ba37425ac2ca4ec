"""SASL EXTERNAL: a client logs in by the certificate that it shows to the TLS listener, and by nothing else."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
import trustme
from pika.adapters.blocking_connection import BlockingConnection
from pika.credentials import ExternalCredentials
from pika.exceptions import AuthenticationError, ProbableAccessDeniedError, ProbableAuthenticationError

from tests.support.broker_process import BrokerProcess, run_operator_command
from tests.support.endpoint import Endpoint
from tests.support.raw_amqp import PROTOCOL_HEADER, RawConnection, commands
from tests.support.waiting import eventually

pytestmark = pytest.mark.millpond_only("a listener with the test's certificates")

Connect = Callable[..., BlockingConnection]

WORKER = "CN=worker-7,OU=Billing\\, EMEA,O=Pond Ltd"
STRANGER = "CN=stranger,OU=Billing\\, EMEA,O=Pond Ltd"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate_arguments(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("certificates")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    chain = str(folder / "server.pem")
    return ["--tls-certificate", chain, "--tls-key", chain, "--tls-ca", str(folder / "ca.pem")]


def started(directory: Path, arguments: list[str], users: dict[str, bool]) -> BrokerProcess:
    """A broker with users without passwords; True for those who may do anything in "/"."""
    process = BrokerProcess(directory, arguments=["--amqps", "127.0.0.1:0", *arguments])
    process.start()
    for user, is_permitted in users.items():
        run_operator_command(process.data, "user", "add", user, "--no-password")
        if is_permitted:
            run_operator_command(process.data, "permission", "set", user, ".*", ".*", ".*")
    return process


@pytest.fixture(scope="module")
def encrypted(certificate_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with started(tmp_path_factory.mktemp("tls"), certificate_arguments, {WORKER: True, STRANGER: False}) as process:
        yield process


def client_context(authority: trustme.CA, certificate: trustme.LeafCert | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


def certificate(authority: trustme.CA, common_name: str | None = None, *identities: str) -> trustme.LeafCert:
    return authority.issue_cert(
        *(identities or ("client.example",)),
        common_name=common_name,
        organization_name="Pond Ltd",
        organization_unit_name="Billing, EMEA",
    )


def connect(
    broker: BrokerProcess, context: ssl.SSLContext, credentials: object | None = None
) -> pika.BlockingConnection:
    endpoint = Endpoint("127.0.0.1", int(broker.listeners["amqps"].rpartition(":")[2]))
    return BlockingConnection(
        endpoint.parameters(
            ssl_options=pika.SSLOptions(context, "localhost"), credentials=credentials or ExternalCredentials()
        )
    )


def test_the_distinguished_name_of_the_certificate_is_the_user(encrypted: BrokerProcess, authority: trustme.CA) -> None:
    with connect(encrypted, client_context(authority, certificate(authority, "worker-7"))) as connection:
        channel = connection.channel()
        channel.queue_declare("mine", exclusive=True)
        # The broker checks that the user is whom the message names.
        channel.confirm_delivery()
        channel.basic_publish("", "mine", b"m", pika.BasicProperties(user_id=WORKER))
        assert channel.basic_get("mine", auto_ack=True)[2] == b"m"


def test_passwords_work_beside_it_with_and_without_a_certificate(
    encrypted: BrokerProcess, authority: trustme.CA
) -> None:
    for shown in (None, certificate(authority, "worker-7")):
        connect(encrypted, client_context(authority, shown), pika.PlainCredentials("guest", "guest")).close()


@pytest.mark.parametrize("password", ["", "guest"])
def test_a_user_without_a_password_cannot_log_in_by_one(
    encrypted: BrokerProcess, authority: trustme.CA, password: str
) -> None:
    with pytest.raises(ProbableAuthenticationError):
        connect(encrypted, client_context(authority, None), pika.PlainCredentials(WORKER, password))


def test_who_shows_no_certificate_is_not_offered_it(encrypted: BrokerProcess, authority: trustme.CA) -> None:
    with pytest.raises(AuthenticationError):
        connect(encrypted, client_context(authority, None))


def test_who_insists_without_a_certificate_is_refused(encrypted: BrokerProcess, authority: trustme.CA) -> None:
    endpoint = Endpoint("127.0.0.1", int(encrypted.listeners["amqps"].rpartition(":")[2]))
    with RawConnection(endpoint) as raw:
        raw.socket = client_context(authority, None).wrap_socket(raw.socket, server_hostname="localhost")
        raw.start("EXTERNAL", WORKER, {"authentication_failure_close": True})
        close = raw.expect(commands.Connection.Close)
        assert close.reply_code == 403
        assert close.reply_text.startswith("ACCESS_REFUSED - Login was refused using authentication mechanism EXTERNAL")
    assert "connection peer presented no TLS (x.509) certificate" in encrypted.log


def test_on_a_plain_connection_there_is_no_such_mechanism(encrypted: BrokerProcess) -> None:
    with RawConnection(Endpoint("127.0.0.1", encrypted.port)) as raw:
        raw.start("EXTERNAL", WORKER)
        close = raw.expect(commands.Connection.Close)
        text = "COMMAND_INVALID - invalid authentication mechanism 'EXTERNAL'"
        assert (close.reply_code, close.reply_text) == (503, text)


def test_a_certificate_that_names_no_user_is_refused(encrypted: BrokerProcess, authority: trustme.CA) -> None:
    with pytest.raises(ProbableAuthenticationError, match="using authentication mechanism EXTERNAL"):
        connect(encrypted, client_context(authority, certificate(authority, "nobody")))
    assert "login refused for user 'CN=nobody,OU=Billing" in encrypted.log


def test_a_user_without_permissions_may_not_open_the_virtual_host(
    encrypted: BrokerProcess, authority: trustme.CA
) -> None:
    with pytest.raises((pika.exceptions.ConnectionClosedByBroker, ProbableAccessDeniedError)) as denied:
        connect(encrypted, client_context(authority, certificate(authority, "stranger")))
    assert "NOT_ALLOWED - access to vhost '/' refused for user 'CN=stranger," in str(denied.value)


def test_a_certificate_of_another_authority_is_refused_by_tls(encrypted: BrokerProcess, authority: trustme.CA) -> None:
    forged = certificate(trustme.CA(), "worker-7")
    with pytest.raises((pika.exceptions.AMQPConnectionError, ssl.SSLError, ConnectionError)):
        connect(encrypted, client_context(authority, forged))
    connect(encrypted, client_context(authority, certificate(authority, "worker-7"))).close()


def test_an_expired_certificate_is_refused_by_tls(encrypted: BrokerProcess, authority: trustme.CA) -> None:
    now = dt.datetime.now(dt.UTC)
    expired = authority.issue_cert(
        "client.example",
        common_name="worker-7",
        organization_name="Pond Ltd",
        organization_unit_name="Billing, EMEA",
        not_before=now - dt.timedelta(days=2),
        not_after=now - dt.timedelta(days=1),
    )
    with pytest.raises((pika.exceptions.AMQPConnectionError, ssl.SSLError, ConnectionError)):
        connect(encrypted, client_context(authority, expired))


def test_a_session_does_not_outlive_its_certificate(encrypted: BrokerProcess, authority: trustme.CA) -> None:
    now = dt.datetime.now(dt.UTC)
    until = (now + dt.timedelta(seconds=3)).replace(microsecond=0)
    shown = authority.issue_cert("client.example", common_name="x", not_before=now, not_after=until)
    context = client_context(authority, shown)
    # Here the session is known when the handshake is done, and TLS verifies nothing when it is taken up again.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    endpoint = Endpoint("127.0.0.1", int(encrypted.listeners["amqps"].rpartition(":")[2]))
    session: ssl.SSLSession | None = None

    def has_begun() -> bool:
        nonlocal session
        with RawConnection(endpoint) as raw:
            taken_up = context.wrap_socket(raw.socket, server_hostname="localhost", session=session)
            raw.socket = taken_up
            session = taken_up.session
            raw.send_bytes(PROTOCOL_HEADER)
            try:
                raw.expect(commands.Connection.Start)
            except (EOFError, OSError):
                assert taken_up.session_reused
                assert dt.datetime.now(dt.UTC) > until
                return False
            return True

    assert has_begun()
    eventually(lambda: not has_begun(), "the certificate has expired")


@pytest.mark.parametrize(
    ("arguments", "identities", "user", "lacking"),
    [
        (["--tls-login-from", "common_name"], [], "worker-7", []),
        (
            ["--tls-login-from", "subject_alternative_name"],
            ["one.example", "two.example"],
            "one.example",
            ["me@one.example"],
        ),
        (
            ["--tls-login-from", "subject_alternative_name", "--tls-login-san-index", "1"],
            ["one.example", "two.example"],
            "two.example",
            ["one.example"],
        ),
        (
            ["--tls-login-from", "subject_alternative_name", "--tls-login-san-type", "email"],
            ["one.example", "me@two.example"],
            "me@two.example",
            ["one.example"],
        ),
    ],
    ids=["common-name", "dns", "second-dns", "email"],
)
def test_the_name_is_taken_from_where_the_settings_say(
    certificate_arguments: list[str],
    authority: trustme.CA,
    tmp_path: Path,
    arguments: list[str],
    identities: list[str],
    user: str,
    lacking: list[str],
) -> None:
    with started(tmp_path, [*certificate_arguments, "--tls-verify-client", *arguments], {user: True}) as process:
        shown = certificate(authority, "worker-7", *identities)
        with connect(process, client_context(authority, shown)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.queue_declare("mine", exclusive=True)
            channel.basic_publish("", "mine", b"m", pika.BasicProperties(user_id=user))
        if lacking:
            # A certificate without a name of that kind names nobody.
            other = certificate(authority, "worker-7", *lacking)
            with pytest.raises(ProbableAuthenticationError):
                connect(process, client_context(authority, other))
            assert "no name found" in process.log
