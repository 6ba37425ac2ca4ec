"""The APIs that are spoken, each with its versions and what to do for it.

Each API has a file in `apis/`, which puts a line into the table here: a new API is a file there.
Produce and Fetch read and write their own bytes; the messages of the others are kio's, by way of `messages.py`.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from millpond.base.certificate import distinguished_name
from millpond.base.errors import AccessRefused, CorruptData, LimitExceeded, PeerError, SyntaxFault
from millpond.base.limits import KAFKA_FETCH_SESSION_PARTITIONS_MAX, RECORDS_DECOMPRESSED_AT_ONCE_MAX
from millpond.broker.access import CLUSTER, CLUSTER_NAME, TOPIC, Operation
from millpond.broker.transactions.coordinator import ProducerIdentity
from millpond.protocols.kafka import messages
from millpond.protocols.kafka.errors import NONE, UNSUPPORTED_VERSION
from millpond.protocols.kafka.messages import Tree
from millpond.storage.record_batch import BatchHeader, RecordReader

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call, Connection

logger = logging.getLogger(__name__)

API_VERSIONS: Final = 18
# How requests are counted for operators.
PROTOCOL: Final = "kafka"
# How who is known by a certificate has logged in.
EXTERNAL: Final = "EXTERNAL"

# What a handler of decoded messages gets, and the answer if it is known at once.
Handler = Callable[["Call", Any], Tree | None]


@dataclass(frozen=True, slots=True)
class Api:
    """`advertised_from` may be lower than `least` for the sake of clients: see the API's own file."""

    key: int
    name: str
    least: int
    most: int
    advertised_from: int
    # One of the two.
    handler: Handler | None
    raw_handler: Callable[[Call], None] | None


APIS: Final[dict[int, Api]] = {}


def api(key: int, name: str, least: int, most: int) -> Callable[[Handler], Handler]:
    """Make a function the handler of an API, in versions `least` to `most`. It gets the call and the decoded request,
    and returns the answer as a tree, or None and answers later by `answer`."""

    def register(handler: Handler) -> Handler:
        APIS[key] = Api(key, name, least, most, least, handler, None)
        return handler

    return register


def answer(call: Call, tree: Tree, sequence: int = 0) -> None:
    """Answer a call, when the commit `sequence` is durable."""
    if not call.is_answered and not call.connection.is_closed:
        try:
            _count_errors(call, tree)
            body, flexible = messages.encode_response(int(call.api_key), int(call.version), tree)
        except Exception:
            # Whoever has come to the answer, a timer or another client, has no part in the bug.
            logger.exception(
                "a bug: an answer of api key %d, version %d, cannot be written", call.api_key, call.version
            )
            call.connection.close_for("an answer that cannot be written")
            return
        # KIP-511: who does not know our versions could not read a newer header.
        call.answer([body], flexible and call.api_key != API_VERSIONS, sequence)


def _count_errors(call: Call, tree: object) -> None:
    """Count the errors that an answer tells, wherever in it they are."""
    if isinstance(tree, Mapping):
        code = tree.get("error_code")
        if isinstance(code, int) and code != 0:
            call.connection.apis.count_error(call, code)
        for value in tree.values():
            if isinstance(value, (list, dict)):
                _count_errors(call, value)
    elif isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        for item in tree:
            _count_errors(call, item)


def answer_when_durable(call: Call, tree: Tree) -> None:
    """Answer a call when all that has been recorded so far, in the catalog too, is durable."""
    connection = call.connection
    if connection.broker.catalog.changed:
        connection.ledger.mark()
    answer(call, tree, int(connection.ledger.covering()))


class ApiTable:
    """Dispatches requests to their handlers."""

    def __init__(self, connections_max: int) -> None:
        self.connections_max: Final = connections_max
        # Partitions of the fetch sessions of all connections.
        self.session_partitions = 0

    def open(self, connection: Connection) -> None:
        """A client has connected. PeerError where it may not be here."""
        broker, settings = connection.broker, connection.settings
        if len(broker.connections) >= self.connections_max:
            raise LimitExceeded(f"node connection limit ({self.connections_max}) is reached")
        connection.vhost = broker.vhost(settings.vhost)
        from millpond.protocols.kafka.login import name_in_certificate

        name = name_in_certificate(connection)
        if name is not None:
            self.admit(connection, name)
            connection.logged_in(name, EXTERNAL)
            return
        try:
            if settings.login_required:
                raise AccessRefused("a login is required")
            # Who does not log in is this user, where that may be here at all.
            broker.access.check_address(settings.user, connection.peer_address)
            broker.access.check_vhost(settings.user, settings.vhost)
        except PeerError as error:
            logger.info("%s: must log in: %s", connection.describe_peer(), error)
            connection.user = ""
            connection.must_log_in = True
            return
        self.admit(connection, settings.user)

    def admit(self, connection: Connection, user: str) -> None:
        """The connection is to be this user's. PeerError where there are too many."""
        broker = connection.broker
        assert connection.vhost is not None
        broker.parameters.check_connection(broker.connections, user, connection.vhost, connection)

    def handle_token(self, call: Call) -> None:
        """Take a step of a login that comes without a header."""
        login = call.connection.login
        assert login is not None
        token = call.data[int(call.position) : int(call.end)]
        call.data = b""
        login.take(call, token)

    def closed(self, connection: Connection) -> None:
        """A client is gone."""
        self.end_session(connection)
        if connection.vhost is not None:
            connection.vhost.shares.lost(connection)

    def has_session_room(self, count: int) -> bool:
        """Whether fetch sessions may have so many more partitions."""
        return self.session_partitions + count <= KAFKA_FETCH_SESSION_PARTITIONS_MAX

    def end_session(self, connection: Connection) -> None:
        """Give up a connection's fetch session, if it has one."""
        session = connection.fetch_session
        if session is not None:
            self.session_partitions -= len(session.wanted)
            connection.fetch_session = None

    def handle(self, call: Call) -> None:
        """Do what a request asks for. SyntaxFault where it cannot be read."""
        found = APIS.get(int(call.api_key))
        if found is None or not found.least <= call.version <= found.most:
            self._refuse(call)
            return
        requests, counted = call.connection.broker.requests, (PROTOCOL, found.name)
        requests[counted] = requests.get(counted, 0) + 1
        if found.raw_handler is not None:
            found.raw_handler(call)
            return
        assert found.handler is not None
        request = messages.decode_request(found.key, int(call.version), call.data, int(call.position), int(call.end))
        # A call that waits for long keeps nothing of what arrived with it.
        call.data = b""
        tree = found.handler(call, request)
        if tree is not None:
            answer(call, tree)

    def _refuse(self, call: Call) -> None:
        if call.api_key != API_VERSIONS:
            found = APIS.get(int(call.api_key))
            what = f"api key {call.api_key}" if found is None else found.name
            raise SyntaxFault(f"an unsupported request: {what}, version {call.version}")
        # KIP-511: in the oldest version, so that the client can read which versions there are.
        from millpond.protocols.kafka.apis.api_versions import listed

        body, _ = messages.encode_response(API_VERSIONS, 0, {"error_code": UNSUPPORTED_VERSION, "api_keys": listed()})
        call.answer([body], False)

    def count_error(self, call: Call, code: int) -> None:
        """Count an error that an answer tells, for operators."""
        errors, counted = call.connection.broker.request_errors, (PROTOCOL, APIS[int(call.api_key)].name, int(code))
        errors[counted] = errors.get(counted, 0) + 1

    def may(self, connection: Connection, operation: Operation, name: str, resource: str = TOPIC) -> bool:
        """Whether the connection's user may do this to a topic, or another resource: "group", "transactional_id",
        "cluster", whose name is always the same."""
        if operation is Operation.CONFIGURE:
            # RabbitMQ's word for what changes a thing.
            operation = Operation.ALTER
        if resource == CLUSTER:
            name = CLUSTER_NAME
        return connection.broker.access.allows(
            connection.user, connection.settings.vhost, connection.peer_address, operation, resource, name
        )

    def may_create(self, connection: Connection, name: str) -> bool:
        """Whether the connection's user may make a topic of this name."""
        return self.may(connection, Operation.CREATE, CLUSTER_NAME, CLUSTER) or self.may(
            connection, Operation.CREATE, name
        )

    def may_administer(self, connection: Connection, operation: Operation) -> bool:
        """Whether the connection's user may see (an operation that describes) or change what others may do: ACLs,
        SCRAM credentials, quotas. Regular expressions do not give this. It takes an ACL for the cluster, or an
        administrator who has logged in: nobody becomes that by not doing so."""
        access = connection.broker.access
        said = access.rules_allow(
            connection.user, connection.settings.vhost, connection.peer_address, operation, CLUSTER, CLUSTER_NAME
        )
        return said if said is not None else connection.mechanism != "" and access.is_administrator(connection.user)

    def may_see(self, connection: Connection, name: str, resource: str = TOPIC) -> bool:
        """Whether the connection's user may know of a topic, or another resource."""
        return self.may(connection, Operation.DESCRIBE, name, resource)

    def may_write(self, connection: Connection, name: str) -> bool:
        return self.may(connection, Operation.WRITE, name)

    def may_read(self, connection: Connection, name: str) -> bool:
        return self.may(connection, Operation.READ, name)

    def produced(self, connection: Connection, size: int) -> int:
        """So many bytes have been produced: for how many milliseconds the connection is to be held back."""
        broker = connection.broker
        wait_ms = broker.quotas.produced(connection.user, connection.client_id, size, broker.clock.monotonic_ms())
        if wait_ms > 0:
            connection.mute(wait_ms)
        return wait_ms

    def fetching(self, connection: Connection, size: int) -> int:
        """So many bytes are to be fetched: 0 where they may be, otherwise for how many milliseconds the connection is
        held back before it may ask again."""
        broker = connection.broker
        wait_ms = broker.quotas.fetching(connection.user, connection.client_id, size, broker.clock.monotonic_ms())
        if wait_ms > 0:
            connection.mute(wait_ms)
        return wait_ms

    def fetched(self, connection: Connection, size: int) -> None:
        """So many bytes have been fetched, after `fetching` has allowed some."""
        broker = connection.broker
        broker.quotas.fetched(connection.user, connection.client_id, size, broker.clock.monotonic_ms())

    def may_be_transactional(self, connection: Connection, transactional_id: str) -> bool:
        """Whether the connection's user may write in transactions of this transactional id."""
        return self.may(connection, Operation.WRITE, transactional_id, "transactional_id")

    def why_not_in_transaction(
        self,
        call: Call,
        transactional_id: str,
        header: BatchHeader,
        topic: str,
        number: int,
        adds_partition: bool,
        knows_abortable: bool,
    ) -> int:
        """Why a transactional batch, the first in its partition, must not be appended; NONE where it may."""
        from millpond.protocols.kafka.transactions import code_for_data, coordinator

        producer = _identity(header)
        try:
            if adds_partition:
                coordinator(call).may_join(transactional_id, producer, (topic, number))
            else:
                coordinator(call).check_partition(transactional_id, producer, (topic, number))
        except PeerError as error:
            return code_for_data(error, knows_abortable)
        return NONE

    def join_transaction(self, call: Call, transactional_id: str, header: BatchHeader, topic: str, number: int) -> None:
        """Make the partition part of its producer's transaction, where `why_not_in_transaction` had nothing against."""
        from millpond.protocols.kafka.transactions import coordinator

        coordinator(call).add_partitions(transactional_id, _identity(header), [(topic, number)])

    def records_without_key(self, batch: bytes) -> list[int] | None:
        """The numbers of the records of a batch that have no key; None where it cannot be read."""
        from millpond.storage.batch_rewrite import plain_batch

        try:
            reader = RecordReader(plain_batch(batch, RECORDS_DECOMPRESSED_AT_ONCE_MAX))
            missing: list[int] = []
            while reader.next():
                if reader.key is None:
                    missing.append(int(reader.offset - reader.header.base_offset))
        except CorruptData:
            return None
        return missing

    def describe(self, connection: Connection) -> dict[str, object]:
        """The connection under the names of RabbitMQ's management API."""
        transport = connection.transport
        host, port = transport.local_address()
        certificate = transport.peer_certificate()
        return {
            "name": connection.name,
            "type": "network",
            "protocol": connection.protocol,
            "user": connection.user,
            "vhost": connection.vhost_name(),
            "state": "blocked" if connection.is_blocked else "running",
            "channels": 0,
            "channel_max": 0,
            "frame_max": int(connection.settings.request_bytes_max),
            "timeout": 0,
            "auth_mechanism": connection.mechanism,
            "ssl": transport.is_tls(),
            "peer_cert_subject": distinguished_name(certificate.subject) if certificate is not None else "",
            "peer_cert_issuer": distinguished_name(certificate.issuer) if certificate is not None else "",
            "peer_host": transport.peer_host(),
            "peer_port": transport.peer_port(),
            "host": host,
            "port": port,
            "connected_at": int(connection.connected_ms),
            "recv_oct": int(connection.received_bytes),
            "send_oct": int(connection.sent_bytes),
            "client_properties": {"connection_name": connection.client_id, "product": connection.client_software},
        }


def _identity(header: BatchHeader) -> ProducerIdentity:
    return ProducerIdentity(int(header.producer_id), int(header.producer_epoch))


def warm_up() -> None:
    """Import what every client needs. May be called on a thread."""
    messages.warm_up()


def load(connections_max: int) -> ApiTable:
    """The table with the handlers of all APIs."""
    from millpond.protocols.kafka import apis
    from millpond.protocols.kafka.apis import fetch, produce

    # Importing a module fills the table, but for those that are compiled.
    for module in pkgutil.iter_modules(apis.__path__, f"{apis.__name__}."):
        importlib.import_module(module.name)
    APIS[0] = Api(0, "Produce", 3, 13, 0, None, produce.produce)
    APIS[1] = Api(1, "Fetch", 4, 18, 4, None, fetch.fetch)
    return ApiTable(connections_max)
