"""What comes by the management API, by configuration files, and from administrators' hands."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, cast

from faults.fuzz.targets.target import target
from millpond.admin.gate import _credentials
from millpond.admin.requests import Json, json_body
from millpond.base.certificate import ALTERNATIVE_NAME, Certificate, CertificateLogin
from millpond.base.errors import AccessRefused, ConfigurationError, PeerError
from millpond.broker import password_hashes
from millpond.broker.definitions.exports import exported
from millpond.broker.definitions.imports import Import
from millpond.broker.groups.subscription_pattern import matching
from millpond.broker.patterns import compile_pattern
from millpond.broker.streams.topic_settings import TOPIC_CONFIGS, TopicSettings, checked_config
from millpond.config import ListenAddress, Settings, _line_of, _parsed
from tests.protocols.amqp import harness

_NAMES = ("", "a", "orders.eu.1", "a" * 255, "é", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "\udcff")
_PATTERN_CHARACTERS_MAX = 128


class _Asked:
    """As much of a request as the reader of its body looks at."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def body(self) -> bytes:
        return self._content


def _bodies() -> list[bytes]:
    return [
        b"{}", b"null", b'{"a": [1, 2.5, {"b": null}], "c": "\\u00e9"}', b'{"n": 9223372036854775807, "f": -1e300}',
        b'{"arguments": {"x-max-length": 5}, "durable": true}', b'{"a": "\\ud800"}', b'{"a": NaN}', b"[" * 100, b"\xff",
    ]  # fmt: skip


@target("json-body", _bodies, PeerError)
def read_body(data: bytes) -> object:
    body = asyncio.run(json_body(cast("Any", _Asked(data))))
    rendered = Json(body).body
    assert json.loads(rendered) == body
    return rendered


def _definitions() -> list[bytes]:
    with harness.pond_of() as pond:
        client = pond.client(channels=1)
        client.declare(1, "q", durable=True, arguments={"x-max-length": 5})
        client.declare(1, "s", durable=True, arguments={"x-queue-type": "stream"})
        own = json.dumps(exported(pond.broker)).encode()
    parts: list[dict[str, object]] = [
        {"vhosts": [{"name": "v"}], "exchanges": [{"name": "e", "vhost": "v", "type": "topic", "durable": True}]},
        {"policies": [{"name": "p", "vhost": "/", "pattern": "^q", "definition": {"max-length": 5}, "priority": 1}]},
        {"users": [{"name": "u", "password_hash": "", "tags": "administrator"}],
         "permissions": [{"user": "u", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
         "topic_permissions": [{"user": "u", "vhost": "/", "exchange": "amq.topic", "write": "^a", "read": "b$"}]},
        {"queues": [{"name": "q", "vhost": "/", "durable": True, "arguments": {"x-message-ttl": 1000}}],
         "bindings": [{"source": "amq.topic", "vhost": "/", "destination": "q", "destination_type": "queue",
                       "routing_key": "a.#", "arguments": {}}]},
        {"parameters": [{"component": "operator_policy", "vhost": "/", "name": "o",
                         "value": {"pattern": "", "definition": {"max-length": 5}}}],
         "global_parameters": [{"name": "g", "value": {"a": [1]}}]},
        {"topics": [{"name": "t", "vhost": "/", "partitions": 3, "configs": {"retention.ms": "5"}}]},
    ]  # fmt: skip
    return [own, *[json.dumps(part).encode() for part in parts]]


@target("definitions", _definitions, PeerError, memory_bytes=32 << 20)
def import_definitions(data: bytes) -> object:
    """A document, which is refused as a whole or can be done as a whole; what it made can be exported and read back."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    with harness.pond_of() as pond:
        Import(pond.broker, document).run()
        pond.rest()
        made = exported(pond.broker)
        Import(pond.broker, json.loads(json.dumps(made))).run()
        pond.rest()
        return sorted(made)


def _patterns() -> list[bytes]:
    return [
        b"^amq\\.", b".*", b"(a+)+$", b"(?:a|b|c)*d{2,5}[^x-z]", b"(?=a)b|(?<!c)d", b"(a)(b)?\\1", b"a{1000}{1000}",
        b"[[:alpha:]]+", b"(?i)x", b"(?P<n>a)(?P=n)", b"(?>a+)b", b"\\p{L}+", b"((((((((((a?)*)*)*)*)*)*)*)*)*)*",
    ]  # fmt: skip


@target("pattern", _patterns, ValueError, PeerError, memory_bytes=32 << 20)
def use_pattern(data: bytes) -> object:
    """A regular expression of an administrator's, and as one of a client's: neither takes long, whatever the name."""
    text = data.decode("utf-8", "surrogateescape")[:_PATTERN_CHARACTERS_MAX]
    refusal: Exception | None = None
    shown: list[object] = []
    try:
        compiled = compile_pattern(text)
        shown += [compiled.search(name) is not None for name in _NAMES]
    except ValueError as error:
        refusal = error
    # Names of topics are ASCII.
    shown.append(matching(text, _NAMES[:4], lambda _: True))
    if refusal is not None:
        raise refusal
    return shown


def _files() -> list[bytes]:
    return [
        b'amqp = "127.0.0.1:5672"\nadmin = "off"\n', b'memory_budget = "512MiB"\nmessage_bytes_max = 1000\n',
        b'kafka = "[::1]:9092"\nheartbeat_s = 60\n', b"[table]\na = 1\n", b'data = ""\n', b'"log-level" = "debug"\n',
        b'disk_free_limit = "50%"\n', b'memory_budget = "1e400GiB"\n', b"amqp = 5\nx = [1, {a = 2}]\n",
    ]  # fmt: skip


@target("configuration", _files, ConfigurationError, memory_bytes=8 << 20)
def read_configuration(data: bytes) -> object:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    values = _parsed(text, None)
    for key in values:
        assert _line_of(text, key) >= 1
    return repr(Settings.of(**values))


def _small_texts() -> list[bytes]:
    stored = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA\x00rabbit_password_hashing_sha256"
    return [
        b"127.0.0.1:5672", b"[::1]:0", b"localhost:99999", b"Basic Z3Vlc3Q6Z3Vlc3Q=", b"basic !", b"100", b"1e5",
        b"compact,delete", b"LogAppendTime", b"1_000", b"", stored.encode(), b"DNS\0example.org\0URI\0x:y",
    ]  # fmt: skip


@target("small-texts", _small_texts, memory_bytes=8 << 20)
def read_small_texts(data: bytes) -> object:
    """An address, an HTTP header, values of a topic's configuration, a password's hash, and a certificate's names."""
    text = data.decode("utf-8", "surrogateescape")
    shown: list[object] = []
    try:
        address = ListenAddress.parse(text)
        assert ListenAddress.parse(str(address)) == address
        shown.append(address)
    except ValueError:
        pass
    with contextlib.suppress(AccessRefused):
        shown.append(_credentials(data))
    for name in TOPIC_CONFIGS:
        try:
            value = checked_config(name, text)
        except PeerError:
            continue
        assert checked_config(name, value) == value
        TopicSettings({name: value})
        shown.append((name, value))
    try:
        hash_, _, algorithm = text.partition("\0")
        stored = password_hashes.from_definitions(hash_, algorithm or None)
        assert password_hashes.from_definitions(*password_hashes.to_definitions(stored)) == stored
        shown.append(stored)
    except PeerError:
        pass
    parts = text.split("\0")
    names = tuple(zip(parts[::2], parts[1::2], strict=False))
    certificate = Certificate.of_peer({"subject": tuple((pair,) for pair in names), "subjectAltName": names})
    kinds = ("distinguished_name", "common_name", ALTERNATIVE_NAME)
    return shown, [CertificateLogin(kind, "dns", 0).name(certificate) for kind in kinds]
