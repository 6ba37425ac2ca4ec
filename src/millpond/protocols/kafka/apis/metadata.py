"""Metadata: the brokers, the topics, and who leads their partitions: always this node.

Behaviour: all topics that the user may read or write or configure, or those that are asked for by name, or by id from
version 12 on. A name that is asked for and not there becomes a topic where the node makes topics so and the client
does not forbid it. The node's address is the one that the client has connected to, unless another is advertised.
Versions: 0 asks for all topics by an empty list, later ones by null. 1 to 3 always allow topics to be made. From 8 on
what the user is authorized to do is told to those who ask for it; of the cluster up to 10.
Not implemented: racks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import AlreadyExists, PeerError
from millpond.base.limits import (
    METADATA_ANSWERS_CACHED_MAX,
    METADATA_CACHED_PARTITIONS_MIN,
    TOPICS_MADE_PER_REQUEST_MAX,
)
from millpond.broker.streams.topic import Topic
from millpond.broker.streams.topics import check_topic_name
from millpond.protocols.kafka import messages
from millpond.protocols.kafka.authorized_operations import operations_on_cluster, operations_on_topic
from millpond.protocols.kafka.errors import (
    INVALID_REQUEST,
    INVALID_TOPIC_EXCEPTION,
    LEADER_NOT_AVAILABLE,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_ID,
    UNKNOWN_TOPIC_OR_PARTITION,
    code_of,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.broker.streams.topics import Topics
    from millpond.protocols.kafka.connection import Call, Connection

NODE_ID: Final = 1
LEADER_EPOCH: Final = 0
# Versions 10 and 11 have a field for it that must not be used.
_BY_ID_FROM: Final = 12


def node_address(connection: Connection) -> tuple[str, int]:
    """Where this client is told to connect."""
    return connection.settings.advertised or connection.transport.local_address()


def brokers(connection: Connection) -> list[Tree]:
    """The brokers of the cluster: this one."""
    host, port = node_address(connection)
    return [{"node_id": NODE_ID, "broker_id": NODE_ID, "host": host, "port": port}]


# Encoded answers about many partitions, which take milliseconds to make and are asked for by every client of them.
_answers: Final[dict[tuple[object, ...], tuple[bytes, bool]]] = {}


@api(3, "Metadata", 0, 12)
def metadata(call: Call, request: Any) -> Tree | None:
    connection = call.connection
    found: list[Topic] = []
    others: list[Tree] = []
    if request.topics is None or (call.version == 0 and not request.topics):
        assert connection.vhost is not None
        topics = connection.vhost.topics.known_to_kafka()
        found = [topic for topic in topics if connection.apis.may_see(connection, topic.name)]
    elif call.version < _BY_ID_FROM and any(map(_is_by_id, request.topics)):
        others = [{"error_code": INVALID_REQUEST, "name": asked.name or ""} for asked in request.topics]
    else:
        may_create = getattr(request, "allow_auto_topic_creation", True)
        made_max = len(topics_of(connection).by_name) + TOPICS_MADE_PER_REQUEST_MAX
        # Each is told once, however often it is asked for: a name is short, and what is told of it may be long.
        for asked in dict.fromkeys(request.topics):
            topic = (
                _by_id(connection, asked)
                if _is_by_id(asked)
                else _by_name(connection, asked.name, may_create, made_max)
            )
            if isinstance(topic, Topic):
                found.append(topic)
            else:
                others.append(topic)
    tells_topics = getattr(request, "include_topic_authorized_operations", False)
    tells_cluster = getattr(request, "include_cluster_authorized_operations", False)
    if tells_topics or tells_cluster:
        trees = [*map(described, found), *others]
        if tells_topics:
            trees = [_with_operations(connection, tree) for tree in trees]
        tree = _tree(connection, trees)
        if tells_cluster:
            tree["cluster_authorized_operations"] = operations_on_cluster(connection)
        return tree
    if others or sum(len(topic.partitions) for topic in found) < METADATA_CACHED_PARTITIONS_MIN:
        return _tree(connection, [*map(described, found), *others])
    _answer_from_cache(call, found)
    return None


def _is_by_id(asked: Any) -> bool:
    # Apache's admin client sends an empty name with the id, not none.
    return asked.name is None or getattr(asked, "topic_id", None) is not None


def _with_operations(connection: Connection, topic: Tree) -> Tree:
    name = topic.get("name")
    if not isinstance(name, str) or not name or topic.get("error_code") == TOPIC_AUTHORIZATION_FAILED:
        return topic
    return {**topic, "topic_authorized_operations": operations_on_topic(connection, name)}


def _tree(connection: Connection, topics: list[Tree]) -> dict[str, object]:
    return {
        "brokers": brokers(connection),
        "cluster_id": connection.settings.cluster_id,
        "controller_id": NODE_ID,
        "topics": topics,
    }


def _answer_from_cache(call: Call, topics: list[Topic]) -> None:
    connection = call.connection
    # A topic keeps its id and never has fewer partitions: this says all that the answer depends on.
    key = (
        int(call.version), connection.settings.cluster_id, node_address(connection),
        tuple((topic.id, len(topic.partitions)) for topic in topics),
    )  # fmt: skip
    encoded = _answers.get(key)
    if encoded is None:
        tree = _tree(connection, [described(topic) for topic in topics])
        encoded = messages.encode_response(int(call.api_key), int(call.version), tree)
        if len(_answers) >= METADATA_ANSWERS_CACHED_MAX:
            del _answers[next(iter(_answers))]
        _answers[key] = encoded
    body, flexible = encoded
    call.answer([body], flexible)


def described(topic: Topic, first: int = 0, end: int | None = None) -> Tree:
    """A topic with its partitions, or with those from `first` to before `end`."""
    return {
        "name": topic.name,
        "topic_id": topic.id,
        "partitions": [
            {
                "partition_index": number,
                "leader_id": NODE_ID,
                "leader_epoch": LEADER_EPOCH,
                "replica_nodes": [NODE_ID],
                "isr_nodes": [NODE_ID],
                # Apache's own client fails at null here.
                "eligible_leader_replicas": [],
                "last_known_elr": [],
            }
            for number in range(len(topic.partitions))[first:end]
        ],
    }


def topics_of(connection: Connection) -> Topics:
    """The topics of the client's virtual host."""
    assert connection.vhost is not None
    return connection.vhost.topics


def _by_name(connection: Connection, name: str, may_create: bool, made_max: int) -> Topic | Tree:
    """A topic, which is made if need be while there are no more than `made_max`, or why there is none."""
    apis = connection.apis
    topics = topics_of(connection)
    if not apis.may_see(connection, name):
        return {"error_code": TOPIC_AUTHORIZATION_FAILED, "name": name}
    topic = topics.by_name.get(name)
    if topic is not None:
        return topic
    try:
        check_topic_name(name)
    except PeerError:
        return {"error_code": INVALID_TOPIC_EXCEPTION, "name": name}
    if may_create and connection.settings.auto_create_topics:
        if not apis.may_create(connection, name):
            return {"error_code": TOPIC_AUTHORIZATION_FAILED, "name": name}
        if len(topics.by_name) >= made_max:
            return {"error_code": LEADER_NOT_AVAILABLE, "name": name}
        try:
            return topics.create(name, int(connection.settings.partitions), {})
        except AlreadyExists:
            # A queue has this name. To be told that a topic exists makes clients ask again until their time is over.
            return {"error_code": INVALID_TOPIC_EXCEPTION, "name": name}
        except PeerError as error:
            return {"error_code": code_of(error), "name": name}
    return {"error_code": UNKNOWN_TOPIC_OR_PARTITION, "name": name}


def _by_id(connection: Connection, asked: Any) -> Topic | Tree:
    assert connection.vhost is not None
    topic_id = asked.topic_id.bytes if asked.topic_id is not None else b""
    topic = connection.vhost.topics.by_id.get(topic_id)
    if topic is None:
        return {"error_code": UNKNOWN_TOPIC_ID, "name": None, "topic_id": topic_id or None}
    if not connection.apis.may_see(connection, topic.name):
        # An id is no secret to Apache Kafka; the name is.
        return {"error_code": TOPIC_AUTHORIZATION_FAILED, "name": None, "topic_id": topic_id}
    return topic
