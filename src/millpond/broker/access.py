"""Who may log in, and what they may do.

Users, password hashes and permissions are held in memory; every change is written through to the catalog, in the
transaction of the caller's turn. All methods belong on the event loop's thread but for `verify_password` and
`hash_password`, which burn 30 ms of a core on purpose and belong on another one.

Permissions are RabbitMQ's: a user has access to a vhost when there is a row for both, and its three regular expressions
say which names may be configured, written to and read from. A pattern is searched in the name, so it is anchored
only where it says so; the empty pattern matches the empty name only, that is nothing; the default exchange is
called "amq.default" here. At a topic exchange a user may have topic permissions besides: patterns for the routing keys
that may be published with and bound by, in which {username} and {vhost} stand for those.

Kafka's ACLs are rows of the same table: who (a user, or "*" for all) may do, or may not do, which operation to what
(a literal name, "*" for all of them, or a prefix), from where. What a row denies is denied, whatever others allow. Each
kind of row counts for all protocols: a regular expression for topics, groups and transactional ids as for queues and
exchanges, and an ACL of a topic for the queue of that name.

Patterns are Python's, with ASCII classes, where RabbitMQ's are PCRE: docs/security.md says where they differ. They come
from administrators, who are trusted not to write one that backtracks without end.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from millpond.base import limits
from millpond.base.errors import AccessRefused, LimitExceeded, NotAllowed, NotFound, PreconditionFailed, StorageFailed
from millpond.broker import password_hashes, scram_credentials
from millpond.broker.failed_logins import FailedLogins
from millpond.broker.patterns import NOTHING, Pattern, compile_pattern
from millpond.broker.scram_credentials import ScramCredential
from millpond.catalog.catalog import Catalog
from millpond.catalog.rows import CatalogState, PermissionRow, RuleRow, ScramRow, TopicPermissionRow, UserRow

if TYPE_CHECKING:
    from argon2 import PasswordHasher

# What a listener on a UNIX socket gives as its peers' address.
UNIX_SOCKET: Final = "unix"

ADMINISTRATOR: Final = "administrator"
DEFAULT_USER: Final = "guest"
DEFAULT_PASSWORD: Final = b"guest"
DEFAULT_VHOST: Final = "/"
# The hash of the default password. It is no secret, as the password is in every manual, and a hash that is made already
# lets a new broker start 50 ms sooner. Made with the costs below; a test holds the two together.
DEFAULT_HASH: Final = (
    "$argon2id$v=19$m=19456,t=3,p=1$iTyJXF+CUd5Ciy+TIjdYWQ$nP1bXdsgqL/+9/kJXBbbbjYQV1MWs/mk2nvdw6lr76M"
)
# The same for SCRAM.
DEFAULT_SCRAM: Final = (
    ScramCredential(
        scram_credentials.SHA256,
        8_192,
        bytes.fromhex("71abf20e38ed68848c27daacf6f9ee74"),
        bytes.fromhex("973d839fe945f484f5525203c2a6810446c91f7803547704255dff089b46bc22"),
        bytes.fromhex("85bdba0ffdf6d7b6f356a9728021c9596b30d713a381642eb383245dd9933c93"),
    ),
    ScramCredential(
        scram_credentials.SHA512,
        8_192,
        bytes.fromhex("548ee3090e751eab57b37850cc3dac22"),
        bytes.fromhex(
            "c527ca5eece512157ea778e79c07f6c1687dde1d257573f41a08cf7e6d8ee7a3"
            "4031a3f738597b03e2ca1f55c37237cd3810a7490f1dd2c0228c2ec678673463"
        ),
        bytes.fromhex(
            "5ed5a382881a777977256d2ff3a2c43d9df8aefd1bae762da18ad9a8f5af5573"
            "c625fc00db6e3c298b40208e60462536215d28b2935b2beecf193dbc7119ba3f"
        ),
    ),
)

# argon2id with 19 MiB of memory as OWASP's cheat sheet advises, and one pass more: 20 to 50 ms of a core.
ARGON2_PASSES: Final = 3
ARGON2_MEMORY_KIB: Final = 19 * 1024
ARGON2_LANES: Final = 1


class Operation(Enum):
    """What a permission is for: RabbitMQ's three, two of which are Kafka's too, and Kafka's others."""

    CONFIGURE = "configure"
    WRITE = "write"
    READ = "read"
    ALL = "all"
    CREATE = "create"
    DELETE = "delete"
    ALTER = "alter"
    DESCRIBE = "describe"
    CLUSTER_ACTION = "cluster_action"
    DESCRIBE_CONFIGS = "describe_configs"
    ALTER_CONFIGS = "alter_configs"
    IDEMPOTENT_WRITE = "idempotent_write"


# What permissions speak of. A queue is a topic to Kafka's rows; of exchanges they do not speak.
TOPIC: Final = "topic"
GROUP: Final = "group"
TRANSACTIONAL_ID: Final = "transactional_id"
CLUSTER: Final = "cluster"
CLUSTER_NAME: Final = "kafka-cluster"
_KINDS: Final = {"queue": TOPIC}

LITERAL: Final = "literal"
PREFIX: Final = "prefix"
# What rows may speak of, and which operations: some are Kafka's, and kept without effect here.
RULE_RESOURCES: Final = (TOPIC, GROUP, CLUSTER, TRANSACTIONAL_ID, "delegation_token", "user")
RULE_OPERATIONS: Final = (
    *(one.value for one in Operation if one is not Operation.CONFIGURE),
    "create_tokens",
    "describe_tokens",
)
ALLOW: Final = "allow"
DENY: Final = "deny"
# Any user, any host, any name.
ANY: Final = "*"

# An operation -> the rows that allow it, beside those of all operations. Others are allowed by their own.
_ALLOWED_BY: Final = {
    Operation.DESCRIBE: frozenset({"describe", "read", "write", "delete", "alter"}),
    Operation.DESCRIBE_CONFIGS: frozenset({"describe_configs", "alter_configs"}),
    Operation.CONFIGURE: frozenset[str](),
}
# The same for those that deny it.
_DENIED_BY: Final = {Operation.CONFIGURE: frozenset({"create", "delete", "alter", "alter_configs"})}
# An operation -> which of a user's three patterns allow it.
_ANY_PATTERN: Final = (Operation.READ, Operation.WRITE, Operation.CONFIGURE)
_PATTERNS_FOR: Final[dict[Operation, tuple[Operation, ...]]] = {
    Operation.CONFIGURE: (Operation.CONFIGURE,),
    Operation.WRITE: (Operation.WRITE,),
    Operation.READ: (Operation.READ,),
    Operation.CREATE: (Operation.CONFIGURE,),
    Operation.DELETE: (Operation.CONFIGURE,),
    Operation.ALTER: (Operation.CONFIGURE,),
    Operation.ALTER_CONFIGS: (Operation.CONFIGURE,),
    Operation.DESCRIBE: _ANY_PATTERN,
    Operation.DESCRIBE_CONFIGS: _ANY_PATTERN,
    Operation.IDEMPOTENT_WRITE: (Operation.WRITE,),
    # This is for brokers.
    Operation.CLUSTER_ACTION: (),
    Operation.ALL: (),
}


@dataclass(frozen=True, slots=True)
class User:
    """A user as others may see it."""

    name: str
    tags: tuple[str, ...] = ()


class _Patterns:
    """A permission row with its patterns compiled."""

    __slots__ = ("by_operation", "row")

    def __init__(self, row: PermissionRow, compiled: Callable[[str], Pattern]) -> None:
        self.row: Final = row
        self.by_operation: Final = {
            Operation.CONFIGURE: compiled(row.configure),
            Operation.WRITE: compiled(row.write),
            Operation.READ: compiled(row.read),
        }


class _TopicPatterns:
    """A topic permission row with its patterns compiled."""

    __slots__ = ("by_operation", "row")

    def __init__(self, row: TopicPermissionRow) -> None:
        self.row: Final = row
        self.by_operation: Final = {
            Operation.WRITE: _compiled_or_nothing(_expanded(row.write, row)),
            Operation.READ: _compiled_or_nothing(_expanded(row.read, row)),
        }


class Access:
    """All users and permissions of a broker.

    `version` grows with every change: whoever remembers a decision forgets it when the version is another one. A
    deleted user or permission so takes effect with the next operation, also on connections that are open.
    """

    def __init__(self, catalog: Catalog, loopback_users: Iterable[str] = (DEFAULT_USER,)) -> None:
        self.version = 0
        self._catalog: Final = catalog
        self._loopback_users: Final = frozenset(loopback_users)
        self._users: Final[dict[str, UserRow]] = {}
        self._permissions: Final[dict[tuple[str, str], _Patterns]] = {}
        # By user and vhost, then by exchange.
        self._topic_permissions: Final[dict[tuple[str, str], dict[str, _TopicPatterns]]] = {}
        # By user, or "*", and vhost.
        self._rules: Final[dict[tuple[str, str], dict[RuleRow, None]]] = {}
        self._rule_count = 0
        # By user, then by mechanism.
        self._scram: Final[dict[str, dict[str, ScramCredential]]] = {}
        # With the peer's address, and the kind of the resource before its name.
        self._decisions: Final[dict[tuple[str, str, str, Operation, str, str], bool]] = {}
        # With the routing key behind the exchange.
        self._topic_decisions: Final[dict[tuple[str, str, Operation, str, str], bool]] = {}
        self.failed_logins: Final = FailedLogins()
        self._logins: Final = _Logins()
        # Of users whose password was seen in clear: the hash they have, and one that is harder to crack.
        self._better_hashes: Final[dict[str, tuple[str, str]]] = {}
        self._pretending: Final = secrets.token_bytes(32)
        self._hashing: Final = threading.BoundedSemaphore(limits.PASSWORD_HASHES_AT_ONCE_MAX)

    def load(self, state: CatalogState) -> None:
        """Take over what the catalog holds."""
        self._users.clear()
        self._users.update((row.name, row) for row in state.users)
        self._permissions.clear()
        self._permissions.update(
            ((row.user, row.vhost), _Patterns(row, _compiled_or_nothing)) for row in state.permissions
        )
        self._rules.clear()
        for rule in state.rules:
            self._rules.setdefault((rule.user, rule.vhost), {})[rule] = None
        self._rule_count = len(state.rules)
        self._scram.clear()
        for scram in state.scram_credentials:
            self._scram.setdefault(scram.user, {})[scram.mechanism] = ScramCredential(
                scram.mechanism,
                scram.iterations,
                bytes.fromhex(scram.salt),
                bytes.fromhex(scram.stored_key),
                bytes.fromhex(scram.server_key),
            )
        self._topic_permissions.clear()
        for row in state.topic_permissions:
            patterns = _TopicPatterns(row)
            self._topic_permissions.setdefault((row.user, row.vhost), {})[row.exchange] = patterns
        self._forget_decisions()

    def create_default_user(
        self, name: str = DEFAULT_USER, password: bytes = DEFAULT_PASSWORD, vhost: str = DEFAULT_VHOST
    ) -> None:
        """Create the user of a broker that has just been installed: an administrator who may do anything in `vhost`.

        Blocks for the time of a hash where the password is not the default one.
        """
        stored = DEFAULT_HASH if password == DEFAULT_PASSWORD else self.hash_password(password)
        self.put_user(name, stored, (ADMINISTRATOR,))
        known = DEFAULT_SCRAM if password == DEFAULT_PASSWORD else scram_credentials.of_password(password)
        self.set_scram_credentials(name, known)
        self.set_permission(name, vhost, ".*", ".*", ".*")
        self._logins.remember(self._logins.key(name, password, stored))

    # --- Logging in ------------------------------------------------------------------------------------------------

    def verify_password(self, name: str, password: bytes) -> bool:
        """Whether `password` is the user's. Blocks for the time of a hash: call it on a thread of its own.

        It takes equally long for a wrong password and for a user who does not exist. A password that was right a
        moment ago is recognized without the hash.
        """
        if len(password) > limits.PASSWORD_BYTES_MAX:
            return False
        if self.is_known_login(name, password):
            return True
        row = self._users.get(name)
        stored = None if row is None else row.password_hash
        is_rabbitmq = stored is not None and password_hashes.is_rabbitmq(stored)
        with self._hashing:
            # One of RabbitMQ's takes no time. So that this does not show, argon2 is computed for those too.
            right = _matches(DEFAULT_HASH if stored is None or is_rabbitmq else stored, password)
            if stored is not None and is_rabbitmq:
                right = password_hashes.matches_rabbitmq(stored, password)
        # RabbitMQ's rule: the empty password is nobody's.
        if stored is None or not right or not password:
            return False
        # The user may have been deleted, or got another password, while the hash was computed.
        row = self._users.get(name)
        if row is None or row.password_hash != stored:
            return False
        self._logins.remember(self._logins.key(name, password, stored))
        if is_rabbitmq:
            with self._hashing:
                self._better_hashes[name] = (stored, self.hash_password(password))
        return True

    def store_better_hashes(self) -> None:
        """Replace RabbitMQ's hashes by ours, of those who have logged in since the last call: from time to time."""
        while self._better_hashes:
            name, (stored, better) = self._better_hashes.popitem()
            row = self._users.get(name)
            if row is not None and row.password_hash == stored:
                # A disk that fails does no harm here: the hash they have is still good.
                with suppress(StorageFailed):
                    self._store(replace(row, password_hash=better))

    def is_known_login(self, name: str, password: bytes) -> bool:
        """Whether `verify_password` said yes to the same before and still would. Takes microseconds."""
        row = self._users.get(name)
        stored = None if row is None else row.password_hash
        return self._logins.contains(self._logins.key(name, password, stored or "")) and stored is not None

    @staticmethod
    def hash_password(password: bytes) -> str:
        """The hash for `put_user` and `set_password_hash`, with a new salt. Blocks: call it on a thread of its own.

        Raises PreconditionFailed where the password is empty or longer than `limits.PASSWORD_BYTES_MAX`.
        """
        if not 0 < len(password) <= limits.PASSWORD_BYTES_MAX:
            raise PreconditionFailed(f"a password has 1 to {limits.PASSWORD_BYTES_MAX} bytes")
        return _hasher().hash(password)

    def scram_credential(self, name: str, mechanism: str) -> ScramCredential:
        """The user's, or one that is nobody's where there is none."""
        return self._scram.get(name, {}).get(mechanism) or self.pretended_scram_credential(name, mechanism)

    def pretended_scram_credential(self, name: str, mechanism: str) -> ScramCredential:
        return scram_credentials.pretended(mechanism, name, self._pretending)

    def exists(self, name: str) -> bool:
        """Whether there is such a user, for who has proved to be it without a password."""
        return name in self._users

    def check_address(self, name: str, address: str | None) -> None:
        """Raises AccessRefused where the user may log in from this machine only and `address` is another.

        `address` is the peer's IP address, UNIX_SOCKET for a UNIX socket, None where it is not known.
        """
        if name in self._loopback_users and not is_loopback(address):
            raise AccessRefused(f"user '{name}' can only connect via localhost")

    # --- Permissions -----------------------------------------------------------------------------------------------

    def check_vhost(self, user: str, vhost: str) -> None:
        """Raises NotAllowed, as RabbitMQ does, where the user has no permissions in the vhost."""
        if not self.has_vhost(user, vhost):
            raise NotAllowed(f"access to vhost '{vhost}' refused for user '{user}'")

    def has_vhost(self, user: str, vhost: str) -> bool:
        """Whether the user may connect to the vhost."""
        return (user, vhost) in self._permissions or any(
            rule.effect == ALLOW for rule in self._rules.get((user, vhost), ())
        )

    def check(self, user: str, vhost: str, operation: Operation, kind: str, name: str, host: str = "") -> None:
        """Raises AccessRefused where the user, who is at the address `host` ("" where that is not told), may not do
        `operation` to the `kind` `name`: a queue, an exchange or a topic.

        The empty name of an exchange is the default exchange.
        """
        if not name and kind == "exchange":
            name = "amq.default"
        allowed = self.allows(user, vhost, host, operation, _KINDS.get(kind, kind), name)
        if not allowed:
            raise AccessRefused(
                f"{operation.value} access to {kind} '{name}' in vhost '{vhost}' refused for user '{user}'"
            )

    def allows(self, user: str, vhost: str, host: str, operation: Operation, resource: str, name: str) -> bool:
        """Whether the user, who is at the address `host` ("" where that is not told), may do this."""
        decision = (user, vhost, host, operation, resource, name)
        allowed = self._decisions.get(decision)
        if allowed is None:
            allowed = self._is_allowed(user, vhost, host, operation, resource, name)
            if len(self._decisions) >= limits.ACCESS_DECISIONS_CACHED_MAX:
                self._decisions.clear()
            self._decisions[decision] = allowed
        return allowed

    def _is_allowed(self, user: str, vhost: str, host: str, operation: Operation, resource: str, name: str) -> bool:
        is_allowed = self._rules_allow(user, vhost, host, operation, resource, name)
        if is_allowed is not None:
            return is_allowed
        if operation is Operation.IDEMPOTENT_WRITE:
            return self._may_write_something(user, vhost, host)
        patterns = self._permissions.get((user, vhost))
        return patterns is not None and any(
            patterns.by_operation[one].search(name) is not None for one in _PATTERNS_FOR[operation]
        )

    def _rules_allow(
        self, user: str, vhost: str, host: str, operation: Operation, resource: str, name: str
    ) -> bool | None:
        """What Kafka's rows say: False where one denies, True where one allows, None where there is none."""
        if not self._rule_count:
            return None
        allowed_by = _ALLOWED_BY.get(operation) or {operation.value}
        denied_by = _DENIED_BY.get(operation) or {operation.value}
        is_allowed = None
        for principal in (user, ANY):
            for rule in self._rules.get((principal, vhost), ()):
                if rule.resource_type != resource or rule.host not in {ANY, host} or not _names(rule, name):
                    continue
                if rule.effect == DENY:
                    if rule.operation in denied_by or rule.operation == Operation.ALL.value:
                        return False
                elif rule.operation in allowed_by or rule.operation == Operation.ALL.value:
                    is_allowed = True
        return is_allowed

    def _may_write_something(self, user: str, vhost: str, host: str) -> bool:
        """Whether there is a topic that the user may write to: that is enough for an idempotent producer."""
        is_allowed = False
        for principal in (user, ANY):
            for rule in self._rules.get((principal, vhost), ()):
                if (
                    rule.resource_type == TOPIC
                    and rule.host in {ANY, host}
                    and rule.operation in {Operation.WRITE.value, Operation.ALL.value}
                ):
                    if rule.effect == ALLOW:
                        is_allowed = True
                    elif rule.pattern_type == LITERAL and rule.pattern == ANY:
                        return False
        patterns = self._permissions.get((user, vhost))
        return is_allowed or (patterns is not None and patterns.row.write not in {"", "^$"})

    def is_administrator(self, name: str) -> bool:
        row = self._users.get(name)
        return row is not None and ADMINISTRATOR in row.tags

    def rules_allow(
        self, user: str, vhost: str, host: str, operation: Operation, resource: str, name: str
    ) -> bool | None:
        """What Kafka's rows alone say: None where none of them speaks of this."""
        return self._rules_allow(user, vhost, host, operation, resource, name)

    def check_any(self, user: str, vhost: str, kind: str, name: str, host: str = "") -> None:
        """Raises AccessRefused where the user may do nothing at all to it; in the words of a refused `configure`."""
        for operation in (Operation.READ, Operation.WRITE):
            try:
                self.check(user, vhost, operation, kind, name, host)
            except AccessRefused:
                continue
            return
        self.check(user, vhost, Operation.CONFIGURE, kind, name, host)

    def check_topic(self, user: str, vhost: str, operation: Operation, exchange: str, routing_key: str) -> None:
        """Raises AccessRefused where the user may not write or read by the routing key at a topic exchange.

        Where nothing is said of the user and the exchange, every routing key is allowed.
        """
        if not self._topic_permissions:
            return
        permissions = self._topic_permissions.get((user, vhost))
        patterns = None if permissions is None else permissions.get(exchange)
        if patterns is None:
            return
        decision = (user, vhost, operation, exchange, routing_key)
        allowed = self._topic_decisions.get(decision)
        if allowed is None:
            allowed = patterns.by_operation[operation].search(routing_key) is not None
            if len(self._topic_decisions) >= limits.ACCESS_DECISIONS_CACHED_MAX:
                self._topic_decisions.clear()
            self._topic_decisions[decision] = allowed
        if not allowed:
            raise AccessRefused(
                f"{operation.value} access to topic '{routing_key}' in exchange '{exchange}' in vhost '{vhost}' "
                f"refused for user '{user}'"
            )

    # --- Administration --------------------------------------------------------------------------------------------

    def user(self, name: str) -> User:
        """Raises NotFound."""
        row = self._existing(name)
        return User(row.name, row.tags)

    def list_users(self) -> list[User]:
        return [User(row.name, row.tags) for _, row in sorted(self._users.items())]

    def exported_users(self) -> list[UserRow]:
        """All users with their hashes, which are for definitions only."""
        return [row for _, row in sorted(self._users.items())]

    def put_user(
        self,
        name: str,
        password_hash: str | None,
        tags: Sequence[str] = (),
        scram: Iterable[ScramCredential] = (),
    ) -> None:
        """Create the user, or replace its password and tags.

        `password_hash` comes from `hash_password`, `scram` from `scram_credentials.of_password`; without them the user
        cannot log in by that. Those of another password are forgotten. Raises PreconditionFailed where a value is not
        acceptable.
        """
        row = self.check_user(name, password_hash, tags)
        old = self._users.get(name)
        if old is None or old.password_hash != password_hash:
            self._forget_scram(name)
        self._store(row)
        self.set_scram_credentials(name, scram)

    def set_scram_credentials(self, name: str, credentials: Iterable[ScramCredential]) -> None:
        """Have a user log in by these, and by those of other mechanisms that there are. Raises NotFound."""
        self._existing(name)
        for one in credentials:
            self._catalog.put_scram_credential(
                ScramRow(
                    name, one.mechanism, one.iterations, one.salt.hex(), one.stored_key.hex(), one.server_key.hex()
                )
            )
            self._scram.setdefault(name, {})[one.mechanism] = one

    def delete_scram_credential(self, name: str, mechanism: str) -> None:
        """Raises NotFound where there is none."""
        credentials = self._scram.get(name, {})
        if mechanism not in credentials:
            raise NotFound(f"user '{name}' has no credential for {mechanism}")
        self._catalog.delete_scram_credential(name, mechanism)
        del credentials[mechanism]

    def _forget_scram(self, name: str) -> None:
        for mechanism in self._scram.pop(name, {}):
            self._catalog.delete_scram_credential(name, mechanism)

    def list_scram_credentials(self) -> dict[str, list[ScramCredential]]:
        """All users who have any, in the order of their names."""
        return {name: list(found.values()) for name, found in sorted(self._scram.items()) if found}

    def check_user(self, name: str, password_hash: str | None, tags: Sequence[str]) -> UserRow:
        """What `put_user` would store, which is not stored. Raises PreconditionFailed."""
        if not 0 < len(name.encode(errors="surrogatepass")) <= limits.NAME_BYTES_MAX:
            raise PreconditionFailed(f"a user name has 1 to {limits.NAME_BYTES_MAX} bytes")
        return UserRow(name, _checked_hash(password_hash), _checked_tags(tags))

    def set_password_hash(self, name: str, password_hash: str | None) -> None:
        """Change the password only. Raises NotFound."""
        row = replace(self._existing(name), password_hash=_checked_hash(password_hash))
        self._forget_scram(name)
        self._store(row)

    def set_tags(self, name: str, tags: Sequence[str]) -> None:
        """Change the tags only. Raises NotFound."""
        self._store(replace(self._existing(name), tags=_checked_tags(tags)))

    def delete_user(self, name: str) -> None:
        """Delete the user with all permissions. Raises NotFound."""
        self._existing(name)
        self._catalog.delete_user(name)
        del self._users[name]
        self._scram.pop(name, None)
        for key in [key for key in self._rules if key[0] == name]:
            self._rule_count -= len(self._rules.pop(key))
        for key in [key for key in self._permissions if key[0] == name]:
            del self._permissions[key]
        for key in [key for key in self._topic_permissions if key[0] == name]:
            del self._topic_permissions[key]
        self._logins.forget_all()
        self._forget_decisions()

    def list_permissions(self, user: str | None = None, vhost: str | None = None) -> list[PermissionRow]:
        """All permissions, or those of a user, or those in a vhost."""
        return [
            patterns.row
            for _, patterns in sorted(self._permissions.items(), key=lambda item: item[0])
            if user in {None, patterns.row.user} and vhost in {None, patterns.row.vhost}
        ]

    def set_permission(self, user: str, vhost: str, configure: str, write: str, read: str) -> None:
        """Give the user access to the vhost, which the caller knows to exist, with these patterns.

        Raises NotFound where there is no such user, PreconditionFailed for a pattern that does not compile.
        """
        self._existing(user)
        patterns = _Patterns(PermissionRow(user, vhost, configure, write, read), _compiled)
        self._catalog.put_permission(patterns.row)
        self._permissions[user, vhost] = patterns
        self._forget_decisions()

    def check_patterns(self, *patterns: str) -> None:
        """Raises PreconditionFailed for a pattern that `set_permission` would refuse."""
        for pattern in patterns:
            _compiled(pattern)

    def clear_permission(self, user: str, vhost: str) -> None:
        """Take the user's access to the vhost away. Raises NotFound where there is no such user."""
        self._existing(user)
        self._catalog.delete_permission(user, vhost)
        self._permissions.pop((user, vhost), None)
        self._forget_decisions()

    def list_rules(self, vhost: str) -> list[RuleRow]:
        """Kafka's rows in a vhost."""
        return [rule for key, rules in sorted(self._rules.items()) if key[1] == vhost for rule in rules]

    def check_rule(self, rule: RuleRow) -> None:
        """Raises LimitExceeded where there are too many, PreconditionFailed for one that is too long."""
        if self._rule_count >= limits.ACCESS_RULES_MAX:
            raise LimitExceeded(f"there are {limits.ACCESS_RULES_MAX} permissions already")
        for text in (rule.user, rule.pattern, rule.host):
            if not 0 < len(text.encode(errors="surrogatepass")) <= limits.NAME_BYTES_MAX:
                raise PreconditionFailed(f"a name has 1 to {limits.NAME_BYTES_MAX} bytes")

    def add_rule(self, rule: RuleRow) -> None:
        """Add one of Kafka's rows; one that is there stays as it is. The user need not exist.

        Raises as `check_rule` does.
        """
        rules = self._rules.setdefault((rule.user, rule.vhost), {})
        if rule in rules:
            return
        self.check_rule(rule)
        self._catalog.put_rule(rule)
        rules[rule] = None
        self._rule_count += 1
        self._forget_decisions()

    def delete_rule(self, rule: RuleRow) -> None:
        """Delete one of Kafka's rows that is there."""
        self._catalog.delete_rule(rule)
        del self._rules[rule.user, rule.vhost][rule]
        self._rule_count -= 1
        self._forget_decisions()

    def list_topic_permissions(self, user: str | None = None, vhost: str | None = None) -> list[TopicPermissionRow]:
        """All topic permissions, or those of a user, or those in a vhost."""
        return [
            patterns.row
            for key, permissions in sorted(self._topic_permissions.items(), key=lambda item: item[0])
            if user in {None, key[0]} and vhost in {None, key[1]}
            for _, patterns in sorted(permissions.items())
        ]

    def set_topic_permission(self, user: str, vhost: str, exchange: str, write: str, read: str) -> None:
        """Say by which routing keys the user may write to and read from a topic exchange.

        The caller knows vhost and exchange to exist. Raises NotFound where there is no such user, PreconditionFailed
        for a pattern that does not compile.
        """
        self._existing(user)
        for pattern in (write, read):
            _compiled(pattern)
        patterns = _TopicPatterns(TopicPermissionRow(user, vhost, exchange, write, read))
        self._catalog.put_topic_permission(patterns.row)
        self._topic_permissions.setdefault((user, vhost), {})[exchange] = patterns
        self._forget_decisions()

    def clear_topic_permissions(self, user: str, vhost: str, exchange: str | None = None) -> None:
        """Allow every routing key again, at one exchange or at all. Raises NotFound where there is no such user."""
        self._existing(user)
        permissions = self._topic_permissions.get((user, vhost), {})
        if exchange is None:
            self._catalog.delete_topic_permissions(user, vhost)
            permissions.clear()
        else:
            self._catalog.delete_topic_permission(user, vhost, exchange)
            permissions.pop(exchange, None)
        if not permissions:
            self._topic_permissions.pop((user, vhost), None)
        self._forget_decisions()

    def forget_vhost(self, vhost: str) -> None:
        """Forget the permissions in a vhost that is deleted; `Catalog.delete_vhost` deletes them there."""
        for key in [key for key in self._permissions if key[1] == vhost]:
            del self._permissions[key]
        for key in [key for key in self._rules if key[1] == vhost]:
            self._rule_count -= len(self._rules.pop(key))
        for key in [key for key in self._topic_permissions if key[1] == vhost]:
            del self._topic_permissions[key]
        self._forget_decisions()

    def _existing(self, name: str) -> UserRow:
        row = self._users.get(name)
        if row is None:
            raise NotFound(f"no user '{name}'")
        return row

    def _store(self, row: UserRow) -> None:
        self._catalog.put_user(row)
        self._users[row.name] = row
        self._logins.forget_all()
        self.version += 1

    def _forget_decisions(self) -> None:
        self._decisions.clear()
        self._topic_decisions.clear()
        self.version += 1


class _Logins:
    """Successful logins, each as a keyed digest of name, password and stored hash.

    The digest's key lives in this process only. The stored hash is part of the digest: another password makes what was
    remembered meaningless, even in the moment before it is forgotten.
    """

    def __init__(self) -> None:
        self._secret: Final = secrets.token_bytes(32)
        self._digests: Final[OrderedDict[bytes, None]] = OrderedDict()
        # `verify_password` runs on several threads.
        self._lock: Final = threading.Lock()

    def key(self, name: str, password: bytes, stored: str) -> bytes:
        parts = (name.encode(errors="surrogatepass"), password, stored.encode())
        # Lengths first, so that no two triples are the same bytes.
        message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._secret, message, hashlib.sha256)

    def contains(self, digest: bytes) -> bool:
        with self._lock:
            if digest not in self._digests:
                return False
            self._digests.move_to_end(digest)
            return True

    def remember(self, digest: bytes) -> None:
        with self._lock:
            self._digests[digest] = None
            if len(self._digests) > limits.LOGINS_CACHED_MAX:
                self._digests.popitem(last=False)

    def forget_all(self) -> None:
        with self._lock:
            self._digests.clear()


def is_loopback(address: str | None) -> bool:
    """Whether a peer's address (an IP address, UNIX_SOCKET, or None where it is not known) is this machine's own.

    As in RabbitMQ: 127.0.0.0/8, also mapped into IPv6, ::1, and UNIX sockets.
    """
    if address is None:
        return False
    if address == UNIX_SOCKET:
        return True
    import ipaddress

    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _names(rule: RuleRow, name: str) -> bool:
    if rule.pattern_type == PREFIX:
        return name.startswith(rule.pattern)
    return rule.pattern in {ANY, name}


def _expanded(pattern: str, row: TopicPermissionRow) -> str:
    """A pattern for the row's user and vhost, whose names are no patterns themselves."""
    return pattern.replace("{username}", re.escape(row.user)).replace("{vhost}", re.escape(row.vhost))


def _compiled(pattern: str) -> Pattern:
    """A pattern that somebody sets. Raises PreconditionFailed."""
    try:
        return compile_pattern(pattern or "^$")
    except ValueError as error:
        raise PreconditionFailed(f"invalid regular expression '{pattern[:80]}': {error}") from error


def _compiled_or_nothing(pattern: str) -> Pattern:
    """What a stored pattern means: nothing, where another version accepted it and this one does not."""
    try:
        # With the name of a user in it, it may be longer than what somebody may write.
        return compile_pattern(pattern or "^$", characters_max=None)
    except ValueError:
        return NOTHING


def _checked_hash(password_hash: str | None) -> str | None:
    return None if password_hash is None else password_hashes.checked_hash(password_hash)


def _checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    if len(tags) > limits.TAGS_PER_USER_MAX or any(len(tag.encode()) > limits.NAME_BYTES_MAX for tag in tags):
        raise PreconditionFailed(
            f"a user has at most {limits.TAGS_PER_USER_MAX} tags of at most {limits.NAME_BYTES_MAX} bytes"
        )
    return tuple(dict.fromkeys(tags))


def _hasher() -> PasswordHasher:
    # Imported with the first password that is hashed: it takes 20 ms, which the start of a broker does not need.
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=ARGON2_PASSES, memory_cost=ARGON2_MEMORY_KIB, parallelism=ARGON2_LANES)


def _matches(stored: str, password: bytes) -> bool:
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        return _hasher().verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False
