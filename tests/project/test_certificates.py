"""How a certificate names a user: RabbitMQ's way to write a distinguished name, and its other sources of a name."""

from __future__ import annotations

import pytest

from millpond.base.certificate import Certificate, CertificateLogin, distinguished_name


@pytest.mark.parametrize(
    ("parts", "written"),
    [
        ((), ""),
        (((("countryName", "DE"),), (("organizationName", "Pond"),), (("commonName", "ann"),)), "CN=ann,O=Pond,C=DE"),
        (((("commonName", "ann"), ("userId", "7")),), "CN=ann+UID=7"),
        (((("commonName", 'a,b+c"d\\e<f>g;h'),),), 'CN=a\\,b\\+c\\"d\\\\e\\<f\\>g\\;h'),
        (((("commonName", " ann "),),), "CN=\\ ann\\ "),
        (((("commonName", "#ann"),),), "CN=\\#ann"),
        (((("commonName", " "),),), "CN=\\ "),
        (((("commonName", "a#b c"),),), "CN=a#b c"),
        (((("commonName", "Zoë"),),), "CN=Zo\\C3\\AB"),
        (((("commonName", "admin\0evil\n~"),),), "CN=admin\\00evil\\0A\\7E"),
        (((("streetAddress", "Mill Lane"),),), "2.5.4.9=Mill Lane"),
        (((("1.2.3.4", "x"),),), "1.2.3.4=x"),
        (((("emailAddress", "a@b"), ("domainComponent", "b")),), "EMAILADDRESS=a@b+DC=b"),
    ],
)
def test_a_distinguished_name_is_written_as_rabbitmq_writes_it(
    parts: tuple[tuple[tuple[str, str], ...], ...], written: str
) -> None:
    assert distinguished_name(parts) == written
    assert CertificateLogin().name(Certificate(parts)) == written


def test_several_common_names_are_joined() -> None:
    subject = ((("commonName", "a"),), (("organizationName", "o"),), (("commonName", "b"),))
    assert CertificateLogin("common_name").name(Certificate(subject)) == "a,b"
    assert CertificateLogin("common_name").name(Certificate(subject[1:2])) is None


def test_alternative_names_are_counted_by_kind() -> None:
    names = (("DNS", "a"), ("email", "m@a"), ("DNS", "b"), ("IP Address", "::1"), ("URI", "https://a"))
    certificate = Certificate((), alternative_names=names)

    def name(kind: str, index: int = 0) -> str | None:
        return CertificateLogin("subject_alternative_name", kind, index).name(certificate)

    assert [name("dns"), name("dns", 1), name("dns", 2)] == ["a", "b", None]
    assert [name("email"), name("ip"), name("uri")] == ["m@a", "::1", "https://a"]


def test_what_python_tells_of_a_peer_is_read() -> None:
    peer = {"subject": ((("commonName", "a"),),), "subjectAltName": (("DNS", "b"),), "notAfter": "x"}
    certificate = Certificate.of_peer(peer)
    assert (certificate.subject, certificate.issuer) == (((("commonName", "a"),),), ())
    assert certificate.alternative_names == (("DNS", "b"),)
