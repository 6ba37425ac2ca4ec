"""Every setting of a node, declared once: as a flag, an environment variable and a TOML key.

The setting `memory_budget` is `--memory-budget` on the command line, `MILLPOND_MEMORY_BUDGET` in the environment and
`memory_budget` in the file that `--config` (or `MILLPOND_CONFIG`) names. A flag wins over the environment, the
environment over the file, the file over the default. What is unknown or wrong is a `ConfigurationError` that names the
place it stands at: the flag, the variable, or the file and line.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NoReturn

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from millpond.base import limits
from millpond.base.certificate import CertificateLogin
from millpond.base.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

ENVIRONMENT_PREFIX: Final = "MILLPOND_"
CONFIG_FILE_VARIABLE: Final = "MILLPOND_CONFIG"
# Variables of ours that are no settings: the file's name, the build's switches, the command line's connection.
NOT_SETTINGS: Final = {CONFIG_FILE_VARIABLE, "MILLPOND_PURE", "MILLPOND_OPT", "MILLPOND_URL", "MILLPOND_PASSWORD"}
# The tests' variables, and those that Kubernetes sets in every pod beside a service that is called "millpond".
NOT_SETTINGS_PATTERN: Final = re.compile(r"MILLPOND_(TEST_\w+|PORT(_\w+)?|SERVICE_(HOST|PORT)(_\w+)?)")


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a listener binds. Port 0 takes a free one; the host may be a name, an IPv4 or an IPv6 address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Read `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError with a text for the operator."""
        host, colon, port = text.strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r} is not an address: write an IPv6 address in brackets, as in [::1]:5672")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise ValueError(f"{text!r} is not an address: write HOST:PORT, or off")
        return cls(host, int(port))


def _listener(value: object) -> object:
    """The text of a listener's setting as an address, None for `off`."""
    if value is None or isinstance(value, ListenAddress):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("listener", "{text}", {"text": "is not an address: write HOST:PORT, or off"})
    if value.strip().lower() == "off":
        return None
    try:
        return ListenAddress.parse(value)
    except ValueError as error:
        raise PydanticCustomError("listener", "{text}", {"text": str(error)}) from None


def _not_blank(value: object) -> object:
    # An empty path would be the current folder, which nobody means.
    if value == "":
        raise PydanticCustomError("blank", "needs a value")
    return value


Listener = Annotated[ListenAddress | None, BeforeValidator(_listener)]
FilePath = Annotated[Path, BeforeValidator(_not_blank)]


class Settings(BaseModel):
    """The settings of one node: immutable, complete and checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: FilePath = Field(default=Path("data"), description="The data directory; made when it does not exist.")
    memory: bool = Field(default=False, description="Keep everything in memory: nothing is written to disk.")

    amqp: Listener = Field(
        default=ListenAddress("127.0.0.1", 5672),
        description="Where AMQP 0-9-1 listens: HOST:PORT (0 for a free port), or off.",
    )
    amqps: Listener = Field(default=None, description="Where AMQP 0-9-1 over TLS listens, or off.")
    admin: Listener = Field(
        default=None,
        description="Where the management API and the metrics listen, or off.",
    )
    kafka: Listener = Field(default=None, description="Where Kafka's protocol listens, or off.")
    kafka_advertised: Listener = Field(
        default=None,
        description="Where Kafka clients are told to connect, HOST:PORT; off for the address they have connected to.",
    )
    kafka_tls: Listener = Field(default=None, description="Where Kafka's protocol over TLS listens, or off.")
    kafka_tls_advertised: Listener = Field(
        default=None, description="Where Kafka clients that use TLS are told to connect, as kafka_advertised."
    )
    kafka_login: Literal["optional", "required"] = Field(
        default="optional",
        description="Whether Kafka clients must log in (SASL); if not, those that do not act as kafka_user.",
    )
    kafka_vhost: str = Field(
        default="/", min_length=1, max_length=255, description="The virtual host of Kafka's topics and groups."
    )
    kafka_user: str = Field(
        default="guest",
        min_length=1,
        max_length=255,
        description="The user that Kafka clients act as who do not log in.",
    )
    kafka_auto_create_topics: bool = Field(
        default=True, description="Make a topic when a Kafka client asks for one that is not there."
    )
    kafka_partitions: int = Field(
        default=1,
        ge=1,
        le=limits.PARTITIONS_PER_TOPIC_MAX,
        description="Partitions of topics that are made without a number of their own.",
    )
    kafka_request_bytes_max: ByteSize = Field(
        default=ByteSize(limits.KAFKA_REQUEST_BYTES_MAX),
        ge=limits.MIB,
        le=limits.GIB,
        description="The largest request of a Kafka client.",
    )
    tls_certificate: FilePath | None = Field(default=None, description="The server's certificate chain, PEM.")
    tls_key: FilePath | None = Field(default=None, description="The certificate's private key, PEM.")
    tls_ca: FilePath | None = Field(
        default=None, description="The authorities that vouch for client certificates, PEM."
    )
    tls_verify_client: bool = Field(
        default=False, description="Refuse clients without a certificate that tls_ca vouches for."
    )
    tls_login_from: Literal["distinguished_name", "common_name", "subject_alternative_name"] = Field(
        default="distinguished_name", description="What in a client's certificate is the user's name (SASL EXTERNAL)."
    )
    tls_login_san_type: Literal["dns", "ip", "email", "uri"] = Field(
        default="dns", description="Which kind of alternative name, where tls_login_from says so."
    )
    tls_login_san_index: int = Field(
        default=0, ge=0, le=1000, description="Which of the alternative names of that kind, counted from 0."
    )
    ready_file: FilePath | None = Field(
        default=None, description="Written when all listeners accept: JSON with the pid and the bound addresses."
    )

    memory_budget: ByteSize = Field(
        default=ByteSize(limits.MEMORY_BUDGET_BYTES),
        ge=limits.MIB,
        description="Messages beyond this are kept on disk only (512MiB, 2GiB).",
    )
    disk_free_min: ByteSize = Field(
        default=ByteSize(limits.DISK_FREE_BYTES_MIN),
        ge=0,
        description="With less free disk than this, publishers are blocked.",
    )
    journal_sync_interval_ms: int = Field(
        default=limits.JOURNAL_SYNC_INTERVAL_MS,
        ge=1,
        le=60_000,
        description="Unconfirmed publishes and acknowledgements are on disk at the latest after this long.",
    )
    frame_max: int = Field(
        default=limits.FRAME_BYTES_MAX,
        ge=limits.FRAME_BYTES_MIN,
        le=16 * limits.MIB,
        description="The largest AMQP frame, in bytes.",
    )
    channel_max: int = Field(
        default=limits.CHANNELS_PER_CONNECTION_MAX,
        ge=1,
        le=65_535,
        description="AMQP channels that a connection may open.",
    )
    heartbeat_s: int = Field(
        default=limits.HEARTBEAT_S,
        ge=0,
        le=65_535,
        description="The heartbeat that is proposed to AMQP clients; 0 for none.",
    )
    handshake_timeout_ms: int = Field(
        default=limits.HANDSHAKE_TIMEOUT_MS, ge=100, le=600_000, description="How long a client has to log in."
    )
    message_bytes_max: ByteSize = Field(
        default=ByteSize(limits.MESSAGE_BYTES_MAX),
        ge=1,
        # A message is one frame of the journal, beside its headers.
        le=limits.JOURNAL_FRAME_BYTES_MAX - limits.MIB,
        description="The largest message.",
    )
    connections_max: int = Field(
        default=limits.CONNECTIONS_MAX, ge=1, description="Connections to all listeners together."
    )
    queues_max: int = Field(default=limits.QUEUES_MAX, ge=1, description="Queues of all virtual hosts together.")
    consumer_timeout_ms: int = Field(
        default=limits.CONSUMER_TIMEOUT_MS,
        ge=0,
        description="How long a consumer may leave a delivery unsettled; 0 for ever.",
    )

    group_session_timeout_min_ms: int = Field(
        default=limits.GROUP_SESSION_TIMEOUT_MIN_MS,
        ge=1,
        le=86_400_000,
        description="The shortest session timeout that a member of a consumer group may have.",
    )
    group_session_timeout_max_ms: int = Field(
        default=limits.GROUP_SESSION_TIMEOUT_MAX_MS,
        ge=1,
        le=86_400_000,
        description="The longest session timeout that a member of a consumer group may have.",
    )
    group_initial_rebalance_delay_ms: int = Field(
        default=limits.GROUP_INITIAL_REBALANCE_DELAY_MS,
        ge=0,
        le=300_000,
        description="How long an empty consumer group waits for more members when the first one joins.",
    )
    group_members_max: int = Field(default=limits.GROUP_MEMBERS_MAX, ge=1, description="Members of a consumer group.")
    group_consumer_session_timeout_ms: int = Field(
        default=limits.GROUP_CONSUMER_SESSION_TIMEOUT_MS,
        ge=1,
        le=86_400_000,
        description="How long a member of a consumer group may be silent, where the broker assigns partitions.",
    )
    group_consumer_heartbeat_interval_ms: int = Field(
        default=limits.GROUP_CONSUMER_HEARTBEAT_INTERVAL_MS,
        ge=1,
        le=86_400_000,
        description="How often such a member is told to be heard of.",
    )
    group_consumer_migration_policy: Literal["bidirectional", "upgrade", "downgrade", "disabled"] = Field(
        default="bidirectional",
        description="Whether groups change to the consumer protocol, and back, while they have members.",
    )
    group_share_session_timeout_ms: int = Field(
        default=limits.GROUP_SHARE_SESSION_TIMEOUT_MS,
        ge=1,
        le=86_400_000,
        description="How long a member of a share group may be silent.",
    )
    group_share_heartbeat_interval_ms: int = Field(
        default=limits.GROUP_SHARE_HEARTBEAT_INTERVAL_MS,
        ge=1,
        le=86_400_000,
        description="How often a member of a share group is told to be heard of.",
    )
    group_share_members_max: int = Field(
        default=limits.GROUP_SHARE_MEMBERS_MAX, ge=1, le=1_000, description="Members of a share group."
    )
    group_share_min_record_lock_duration_ms: int = Field(
        default=limits.SHARE_LOCK_DURATION_MIN_MS,
        ge=1_000,
        le=limits.SHARE_LOCK_DURATION_MS,
        description="The shortest time that a share group may let its members have a record for themselves.",
    )
    group_share_max_record_lock_duration_ms: int = Field(
        default=limits.SHARE_LOCK_DURATION_MAX_MS,
        ge=limits.SHARE_LOCK_DURATION_MS,
        le=3_600_000,
        description="The longest time that a share group may let its members have a record for themselves.",
    )
    offsets_retention_minutes: int = Field(
        default=limits.OFFSETS_RETENTION_MINUTES,
        ge=1,
        # A hundred years, in milliseconds, is far from what 64 bits hold.
        le=52_560_000,
        description="How long the offsets of a consumer group outlive its last member.",
    )
    transaction_max_timeout_ms: int = Field(
        default=limits.TRANSACTION_MAX_TIMEOUT_MS,
        ge=1,
        le=2_147_483_647,
        description="The longest time that a producer may ask for its transactions.",
    )
    transactional_id_expiration_ms: int = Field(
        default=limits.TRANSACTIONAL_ID_EXPIRY_MS,
        ge=1,
        le=3_153_600_000_000,
        description="After this time without use a transactional id is forgotten.",
    )

    stream_check_interval_ms: int = Field(
        default=limits.STREAM_CHECK_INTERVAL_MS,
        ge=1_000,
        le=3_600_000,
        description="How often retention and compaction of streams are looked after.",
    )

    default_user: str = Field(
        default="guest", min_length=1, max_length=255, description="The user that a new node is made with."
    )
    default_password: SecretStr = Field(default=SecretStr("guest"), description="That user's password.")

    log_format: Literal["auto", "human", "json"] = Field(
        default="auto", description="How logs read; auto is human on a terminal and JSON otherwise."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is logged."
    )

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Settings:
        def refuse(field: str, text: str) -> NoReturn:
            raise PydanticCustomError("tls", "{text}", {"field": field, "text": text})

        for name, listener in (("amqps", self.amqps), ("kafka_tls", self.kafka_tls)):
            if listener is not None and (self.tls_certificate is None or self.tls_key is None):
                refuse(name, "needs tls_certificate and tls_key")
        if self.tls_verify_client and self.tls_ca is None:
            refuse("tls_verify_client", "needs tls_ca")
        return self

    @model_validator(mode="after")
    def _session_timeouts_are_ordered(self) -> Settings:
        if self.group_session_timeout_min_ms > self.group_session_timeout_max_ms:
            text = "is more than group_session_timeout_max_ms"
            raise PydanticCustomError("order", "{text}", {"field": "group_session_timeout_min_ms", "text": text})
        return self

    @model_validator(mode="after")
    def _heartbeats_are_in_time(self) -> Settings:
        for kind in ("consumer", "share"):
            interval = f"group_{kind}_heartbeat_interval_ms"
            timeout = f"group_{kind}_session_timeout_ms"
            if getattr(self, interval) >= getattr(self, timeout):
                text = f"is not less than {timeout}"
                raise PydanticCustomError("order", "{text}", {"field": interval, "text": text})
        return self

    @model_validator(mode="after")
    def _advertised_can_be_reached(self) -> Settings:
        for name in ("kafka_advertised", "kafka_tls_advertised"):
            advertised = getattr(self, name)
            if advertised is not None and (advertised.port == 0 or advertised.host in ("0.0.0.0", "::")):  # noqa: S104
                text = f"{str(advertised)!r} is not an address that a client can connect to"
                raise PydanticCustomError("advertised", "{text}", {"field": name, "text": text})
        return self

    def certificate_login(self) -> CertificateLogin | None:
        """How clients log in by their certificates; None where none is verified."""
        if self.tls_ca is None:
            return None
        return CertificateLogin(self.tls_login_from, self.tls_login_san_type, self.tls_login_san_index)

    @classmethod
    def of(cls, **values: object) -> Settings:
        """Settings from values as they would stand in a file (`amqp="127.0.0.1:0"`), the defaults for the rest.

        The environment is not looked at. Raises ConfigurationError.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigurationError(_described(error, lambda field: field)) from None


SECRETS: Final = frozenset(name for name, field in Settings.model_fields.items() if field.annotation is SecretStr)


def flag_of(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def variable_of(setting: str) -> str:
    return ENVIRONMENT_PREFIX + setting.upper()


def load(flags: Mapping[str, object], config_file: Path | None = None) -> Settings:
    """The settings from `flags` (by the setting's name), the environment, and the TOML file.

    Raises ConfigurationError that names the place of everything that is unknown or wrong.
    """
    if config_file is None and os.environ.get(CONFIG_FILE_VARIABLE):
        config_file = Path(os.environ[CONFIG_FILE_VARIABLE])
    text = _file_text(config_file) if config_file is not None else ""
    in_file = _parsed(text, config_file)
    in_environment = {variable.upper() for variable in os.environ if variable.upper().startswith(ENVIRONMENT_PREFIX)}

    problems = [
        f"{config_file}:{_line_of(text, key)}: {_unknown(key, Settings.model_fields)}"
        for key in in_file
        if key not in Settings.model_fields
    ]
    variables = {variable_of(name) for name in Settings.model_fields}
    problems += [
        _unknown(variable, variables)
        for variable in sorted(in_environment - variables - NOT_SETTINGS)
        if not NOT_SETTINGS_PATTERN.fullmatch(variable)
    ]
    if problems:
        raise ConfigurationError("; ".join(problems))

    def place(setting: str) -> str:
        if setting in flags:
            return flag_of(setting)
        if variable_of(setting) in in_environment:
            return variable_of(setting)
        if setting in in_file:
            return f"{config_file}:{_line_of(text, setting)}: {setting}"
        return setting

    try:
        return _from_sources(flags, in_file)
    except ValidationError as error:
        raise ConfigurationError(_described(error, place)) from None


def _from_sources(flags: Mapping[str, object], in_file: Mapping[str, object]) -> Settings:
    # Imported on demand: an embedded broker has no sources, and does not pay for them.
    from pydantic_settings import (
        BaseSettings,
        EnvSettingsSource,
        InitSettingsSource,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )

    class SourcedSettings(Settings, BaseSettings):
        # Addresses and sizes are read by the fields' own validators, never as JSON.
        model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, enable_decoding=False)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: object, **__: object
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                InitSettingsSource(settings_cls, dict(flags)),
                EnvSettingsSource(settings_cls),
                InitSettingsSource(settings_cls, dict(in_file)),
            )

    # Without the class of the moment, so that settings from anywhere are equal when their values are.
    return Settings.model_construct(**dict(SourcedSettings()))


def _file_text(config_file: Path) -> str:
    try:
        return config_file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{config_file}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{config_file}: is not UTF-8") from None


def _parsed(text: str, config_file: Path | None) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = at[1] if at else len(text.splitlines())
        reason = str(error)[: at.start()] if at else str(error).removesuffix(" (at end of document)")
        raise ConfigurationError(f"{config_file}:{line}: {reason[:1].lower()}{reason[1:]}") from None


def _line_of(text: str, key: str) -> int:
    """The line, counted from 1, that a top-level key or table stands at: tomllib does not tell."""
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"""\s*(\[+\s*)?["']?{re.escape(key)}["']?\s*[\].=]""", line):
            return number
    return 1


def _unknown(name: str, known: Iterable[str]) -> str:
    alike = difflib.get_close_matches(name, list(known), n=1)
    return f"unknown setting {name}" + (f", did you mean {alike[0]}?" if alike else "")


def _described(error: ValidationError, place: Callable[[str], str]) -> str:
    return "; ".join(_problem(detail, place) for detail in error.errors(include_url=False))


def _problem(detail: ErrorDetails, place: Callable[[str], str]) -> str:
    setting = str(detail["loc"][0]) if detail["loc"] else str(detail.get("ctx", {}).get("field", "settings"))
    if detail["type"] == "extra_forbidden":
        return _unknown(setting, Settings.model_fields)
    reason = detail["msg"][:1].lower() + detail["msg"][1:]
    # A listener's text quotes the value already; a secret is never shown; a model's error has the whole model as input.
    is_told = detail["type"] in {"listener", "tls", "order", "blank"}
    shown = "" if is_told or setting in SECRETS else f" {detail['input']!r}:"
    return f"{place(setting)}:{shown} {reason}"
