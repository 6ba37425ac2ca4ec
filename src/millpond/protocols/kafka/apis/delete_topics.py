"""DeleteTopics: delete topics with all their records.

Behaviour: they are gone when the answer comes. Clients that fetch from one are told that there is no such topic.
Versions: 1 to 5 name them; from 6 on a topic is named, or given by its id. 5 and later say why in words.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from millpond.base.errors import PeerError
from millpond.broker.access import Operation
from millpond.protocols.kafka.errors import (
    INVALID_REQUEST,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_ID,
    UNKNOWN_TOPIC_OR_PARTITION,
    code_of,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api

if TYPE_CHECKING:
    from millpond.broker.streams.topic import Topic
    from millpond.broker.streams.topics import Topics
    from millpond.protocols.kafka.connection import Call, Connection

_UNAUTHORIZED = "Topic authorization failed."


@api(20, "DeleteTopics", 1, 6)
def delete_topics(call: Call, request: Any) -> None:
    if call.version >= 6:
        asked = [(topic.name, topic.topic_id.bytes if topic.topic_id is not None else None) for topic in request.topics]
    else:
        asked = [(name, None) for name in request.topic_names]
    answer_when_durable(call, {"responses": _delete(call.connection, asked)})


def _delete(connection: Connection, asked: list[tuple[str | None, bytes | None]]) -> list[Tree]:
    responses: list[Tree] = []
    found: dict[Topic, tuple[str | None, bytes | None]] = {}
    counts = Counter(asked)
    for name, topic_id in counts:
        topic: Topic | None = None
        if name is None and topic_id is None:
            error = INVALID_REQUEST, "Neither topic name nor id were specified."
        elif name is not None and topic_id is not None:
            error = INVALID_REQUEST, "You may not specify both topic name and topic id."
        elif counts[name, topic_id] > 1:
            error = INVALID_REQUEST, f"Duplicate topic {'name' if topic_id is None else 'id'}."
        else:
            topic, error = _find(connection, name, topic_id)
        if topic is not None and topic in found:
            error = INVALID_REQUEST, "The provided topic name maps to an ID that was already supplied."
            responses.append(_response(name, topic_id, *error))
            # Neither of the two is done.
            del found[topic]
        elif topic is not None:
            found[topic] = name, topic_id
        else:
            responses.append(_response(name, topic_id, *error))
    assert connection.vhost is not None
    for topic in found:
        connection.vhost.topics.delete(topic)
        responses.append({"name": topic.name, "topic_id": topic.id})
    return responses


def _response(name: str | None, topic_id: bytes | None, code: int, message: str) -> Tree:
    return {"name": name, "topic_id": topic_id, "error_code": code, "error_message": message}


def _find(connection: Connection, name: str | None, topic_id: bytes | None) -> tuple[Topic | None, tuple[int, str]]:
    """The topic if the user may delete it, and otherwise why not."""
    assert connection.vhost is not None
    topics, apis = connection.vhost.topics, connection.apis
    if name is None:
        topic = topics.by_id.get(topic_id or b"")
        if topic is None:
            return None, (UNKNOWN_TOPIC_ID, "This server does not host this topic ID.")
        if not apis.may(connection, Operation.DELETE, topic.name):
            return None, (TOPIC_AUTHORIZATION_FAILED, _UNAUTHORIZED)
        return _deletable(topics, topic)
    if not apis.may(connection, Operation.DELETE, name):
        return None, (TOPIC_AUTHORIZATION_FAILED, _UNAUTHORIZED)
    topic = topics.by_name.get(name)
    if topic is None:
        return None, (UNKNOWN_TOPIC_OR_PARTITION, "This server does not host this topic-partition.")
    return _deletable(topics, topic)


def _deletable(topics: Topics, topic: Topic) -> tuple[Topic | None, tuple[int, str]]:
    try:
        topics.check_changeable(topic)
    except PeerError as error:
        return None, (code_of(error), str(error))
    return topic, (0, "")
