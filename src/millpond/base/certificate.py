"""What a client's certificate says about its owner, and the name that the owner logs in by.

A `Certificate` is made from one that TLS has verified: nothing here checks a signature or a date.

Names are RabbitMQ's, so that users move over as they are. A distinguished name is written after RFC 4514: the most
specific part first, parts joined by commas, values of one part by plus signs, and whatever is not printable ASCII as a
backslash and two hexadecimal digits for each byte of its UTF-8:

    CN=worker-7,OU=Billing\\, EMEA,O=Example,C=DE
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# One attribute: its name as OpenSSL writes it in full, or its number; and its value.
Attribute = tuple[str, str]

# Where the name of a user is found in the certificate: RabbitMQ's `ssl_cert_login_from`.
DISTINGUISHED_NAME: Final = "distinguished_name"
COMMON_NAME: Final = "common_name"
ALTERNATIVE_NAME: Final = "subject_alternative_name"

# RabbitMQ's names for kinds of alternative names -> OpenSSL's, which Python gives.
ALTERNATIVE_KINDS: Final[dict[str, str]] = {"dns": "DNS", "ip": "IP Address", "email": "email", "uri": "URI"}

# How RabbitMQ writes the attributes that it knows. The others are written by their numbers.
_SHORT_NAMES: Final = {
    "surname": "SN",
    "givenName": "GIVENNAME",
    "initials": "INITIALS",
    "generationQualifier": "GENERATIONQUALIFIER",
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "title": "TITLE",
    "countryName": "C",
    "serialNumber": "SERIALNUMBER",
    "pseudonym": "PSEUDONYM",
    "domainComponent": "DC",
    "emailAddress": "EMAILADDRESS",
    "userId": "UID",
}
_NUMBERS: Final = {
    "streetAddress": "2.5.4.9",
    "description": "2.5.4.13",
    "businessCategory": "2.5.4.15",
    "postalAddress": "2.5.4.16",
    "postalCode": "2.5.4.17",
    "telephoneNumber": "2.5.4.20",
    "name": "2.5.4.41",
    "x500UniqueIdentifier": "2.5.4.45",
    "dnQualifier": "2.5.4.46",
    "role": "2.5.4.72",
    "organizationIdentifier": "2.5.4.97",
    "unstructuredName": "1.2.840.113549.1.9.2",
    "unstructuredAddress": "1.2.840.113549.1.9.8",
    "jurisdictionLocalityName": "1.3.6.1.4.1.311.60.2.1.1",
    "jurisdictionStateOrProvinceName": "1.3.6.1.4.1.311.60.2.1.2",
    "jurisdictionCountryName": "1.3.6.1.4.1.311.60.2.1.3",
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """`subject` and `issuer` are parts from the least specific on, each of one attribute or more."""

    subject: tuple[tuple[Attribute, ...], ...]
    issuer: tuple[tuple[Attribute, ...], ...] = ()
    alternative_names: tuple[Attribute, ...] = ()

    @classmethod
    def of_peer(cls, peer: Mapping[str, Any]) -> Certificate:
        """From what Python's `SSLSocket.getpeercert` gives for a verified peer."""
        return cls(peer.get("subject", ()), peer.get("issuer", ()), peer.get("subjectAltName", ()))


@dataclass(frozen=True, slots=True)
class CertificateLogin:
    """How a certificate names its user. `index` counts the alternative names of one kind from 0."""

    name_from: str = DISTINGUISHED_NAME
    kind: str = "dns"
    index: int = 0

    def name(self, certificate: Certificate) -> str | None:
        """The user's name; None where the certificate has none of that kind."""
        if self.name_from == COMMON_NAME:
            return _common_name(certificate)
        if self.name_from == ALTERNATIVE_NAME:
            kind = ALTERNATIVE_KINDS[self.kind]
            names = [value for found, value in certificate.alternative_names if found == kind]
            return names[self.index] if self.index < len(names) else None
        return distinguished_name(certificate.subject)


def _common_name(certificate: Certificate) -> str | None:
    names = [value for part in certificate.subject for name, value in part if name == "commonName"]
    return ",".join(names) if names else None


def distinguished_name(parts: tuple[tuple[Attribute, ...], ...]) -> str:
    """A subject or issuer as one line."""
    return ",".join(["+".join([_attribute(name, value) for name, value in part]) for part in reversed(parts)])


def _attribute(name: str, value: str) -> str:
    short = _SHORT_NAMES.get(name) or _NUMBERS.get(name, name)
    return f"{short}={_escaped(value)}"


def _escaped(value: str) -> str:
    written = "".join([_escaped_byte(byte) for byte in value.encode("utf-8", "surrogateescape")])
    if written.startswith((" ", "#")):
        written = "\\" + written
    if written.endswith(" ") and written != "\\ ":
        written = written[:-1] + "\\ "
    return written


def _escaped_byte(byte: int) -> str:
    if byte < 32 or byte >= 126:
        return f"\\{byte:02X}"
    character = chr(byte)
    return "\\" + character if character in '"+,;<>\\' else character
