"""ShareFetch: records for a member of a share group, which has them for itself until it acknowledges them or its lock
on them ends.

Behaviour: a share session remembers the partitions that the member wants; a request names those that are new and those
that are no longer wanted, and may acknowledge what the member holds. Whole batches are sent, with the offsets of those
of their records that the member has acquired, up to `max records` of them; the partitions take turns. A request that
finds nothing waits for something, up to `max wait`. With epoch 0 a session begins, with -1 it ends: what the member
still holds is then available again, as it is when the connection is lost.
Versions: 2 may renew locks (type 4), in a request that fetches nothing; and says how strictly `max records` is meant,
which it always is here.
Not implemented: `batch size`, which is a hint how to split what is acquired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from millpond.base.clock import Timer
from millpond.base.errors import PeerError
from millpond.base.limits import (
    KAFKA_FETCH_BYTES_MAX,
    KAFKA_FETCH_BYTES_WHEN_SHORT,
    KAFKA_FETCH_LOAD_MS,
    KAFKA_FETCH_WAIT_MS_MAX,
)
from millpond.broker.access import Operation
from millpond.broker.shares.delivery_state import ShareReader
from millpond.broker.shares.sessions import FINAL_EPOCH, INITIAL_EPOCH
from millpond.broker.shares.share_partition import Fetched, SharePartition
from millpond.protocols.kafka.connection import Call, Waiting
from millpond.protocols.kafka.errors import GROUP_AUTHORIZATION_FAILED, INVALID_REQUEST, NONE, code_of
from millpond.protocols.kafka.groups import milliseconds
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer, api
from millpond.protocols.kafka.share_groups import NO_LEADER, acknowledge, find, has_renewals, id_bytes, shares_of

if TYPE_CHECKING:
    from millpond.broker.shares.coordinator import ShareGroup
    from millpond.broker.shares.records import Place
    from millpond.broker.shares.sessions import ShareSession, ShareSessions

_NOTHING: Final = Fetched()


@api(78, "ShareFetch", 1, 2)
def share_fetch(call: Call, request: Any) -> Tree | None:
    shares, group_id, member = shares_of(call), request.group_id or "", request.member_id or ""
    epoch = request.share_session_epoch
    connection = call.connection
    if not connection.apis.may(connection, Operation.READ, group_id, "group"):
        return _refused(GROUP_AUTHORIZATION_FAILED)
    if not member:
        return _refused(INVALID_REQUEST, "A member has an id.")
    if has_renewals(request.topics) != getattr(request, "is_renew_ack", False):
        return _refused(INVALID_REQUEST, "The request renews locks without saying so, or says so and does not.")
    acknowledges = any(asked.acknowledgement_batches for topic in request.topics for asked in topic.partitions)
    if epoch == INITIAL_EPOCH and acknowledges:
        return _refused(INVALID_REQUEST, "The first request of a share session has nothing to acknowledge.")
    try:
        if epoch == INITIAL_EPOCH:
            shares.check_name(group_id)
            shares.release_member(group_id, member)
            session = shares.sessions.begin(group_id, member, connection)
        else:
            session = shares.sessions.go_on(group_id, member, epoch)
        # With a session: what a group without one is asked for leaves nothing behind.
        group = shares.opened(group_id)
    except PeerError as error:
        return _refused(code_of(error), str(error))
    fetching = ShareFetching(call, group, session, request)
    fetching.acknowledge(request.topics)
    if epoch == FINAL_EPOCH:
        shares.end_session(session)
        fetching.finish()
        return None
    try:
        _change_session(shares.sessions, session, request)
    except PeerError as error:
        shares.end_session(session)
        return _refused(code_of(error), str(error))
    fetching.begin()
    return None


def _refused(code: int, message: str | None = None) -> Tree:
    return {"error_code": code, "error_message": message, "acquisition_lock_timeout": 0}


def _change_session(sessions: ShareSessions, session: ShareSession, request: Any) -> None:
    for topic in request.topics:
        topic_id = id_bytes(topic.topic_id)
        for asked in topic.partitions:
            sessions.want(session, (topic_id, asked.partition_index))
    for topic in request.forgotten_topics_data:
        topic_id = id_bytes(topic.topic_id)
        for number in topic.partitions:
            sessions.forget(session, (topic_id, number))


class ShareFetching(Waiting):
    """A request that is being answered, now or later."""

    def __init__(self, call: Call, group: ShareGroup, session: ShareSession, request: Any) -> None:
        self._call: Final = call
        self._group: Final = group
        self._session: Final = session
        self._max_wait_ms: Final = min(milliseconds(request.max_wait), KAFKA_FETCH_WAIT_MS_MAX)
        memory = call.connection.broker.memory
        allowed = KAFKA_FETCH_BYTES_MAX if memory.used <= memory.budget_bytes else KAFKA_FETCH_BYTES_WHEN_SHORT
        self._bytes_max: Final = max(0, min(request.max_bytes, int(allowed)))
        self._records_max: Final = max(0, request.max_records)
        # What came of acknowledgements, and of looking for partitions.
        self._acknowledged: Final[dict[Place, int]] = {}
        self._errors: Final[dict[Place, int]] = {}
        self._sequence = 0
        # How long the client is to wait before it asks again, as its quota is used up.
        self._throttle_ms = 0
        self._timer: Timer | None = None
        self._reader: Final = _Reader(self)
        self._partitions: list[SharePartition] = []
        self._is_due = self._max_wait_ms <= 0
        # So is the time for what is being read from the disk.
        self._is_overdue = False

    def acknowledge(self, topics: Any) -> None:
        """Do with what the member holds as it says."""
        for topic in topics:
            topic_id = id_bytes(topic.topic_id)
            for asked in topic.partitions:
                if asked.acknowledgement_batches:
                    place = (topic_id, asked.partition_index)
                    self._acknowledged[place] = acknowledge(
                        self._call, self._group, self._session.member, place, asked.acknowledgement_batches
                    )
        if self._acknowledged:
            self._sequence = int(self._call.connection.ledger.covering())

    def begin(self) -> None:
        """Answer if there is something, and else wait for it."""
        for place in self._session.partitions:
            found, code = find(self._call, self._group, *place)
            if found is None:
                self._errors[place] = code
            else:
                self._partitions.append(found)
        if self._records_max == 0 or self._bytes_max == 0:
            self.finish()
            return
        if self._look():
            return
        self._call.waiting = self
        for partition in self._partitions:
            partition.add_reader(self._reader)
        wait_ms = KAFKA_FETCH_LOAD_MS if self._is_due else self._max_wait_ms
        self._timer = self._call.connection.broker.clock.call_later(int(wait_ms), self._time_is_up)

    def _look(self) -> bool:
        """Look at what there is, and answer if that is something, or nothing is to be waited for."""
        if self._call.is_answered:
            return True
        connection = self._call.connection
        if connection.broker.quotas.is_set:
            # Before anything is acquired: it could not be put back as if nothing had been.
            self._throttle_ms = connection.apis.fetching(connection, 0)
            if self._throttle_ms > 0:
                self.finish()
                return True
        fetched: dict[Place, Fetched] = {}
        bytes_left, records_left = self._bytes_max, self._records_max
        is_loading = False
        for partition in self._partitions:
            if partition.is_gone:
                # Of a topic that was deleted, or a group: the client is told by what it asks next.
                continue
            if records_left <= 0:
                break
            found = partition.fetch(self._session.member, records_left, bytes_left, not fetched)
            is_loading = is_loading or found.is_loading
            if found.batches:
                fetched[partition.place] = found
                bytes_left -= found.size
                records_left -= found.records
        is_enough = bool(fetched) or bool(self._errors) or not self._partitions
        if not is_enough and not (self._is_due and not is_loading) and not self._is_overdue:
            return False
        for place in fetched:
            self._session.rotate(place)
        if connection.broker.quotas.is_set:
            connection.apis.fetched(connection, sum(found.size for found in fetched.values()))
        self.finish(fetched)
        return True

    def finish(self, fetched: dict[Place, Fetched] | None = None) -> None:
        """Answer with what has been acquired."""
        self._stop()
        fetched = fetched or {}
        places = dict.fromkeys([*fetched, *self._acknowledged, *self._errors])
        topics: dict[bytes, list[Tree]] = {}
        for place in places:
            found = fetched.get(place, _NOTHING)
            entry = {
                "partition_index": place[1],
                "error_code": self._errors.get(place, NONE),
                "acknowledge_error_code": self._acknowledged.get(place, NONE),
                "current_leader": NO_LEADER,
                "records": b"".join([batch.data for batch in found.batches]),
                "acquired_records": [
                    {
                        "first_offset": int(run.first),
                        "last_offset": int(run.end) - 1,
                        "delivery_count": int(run.count),
                    }
                    for run in found.acquired
                ],
            }
            topics.setdefault(place[0], []).append(entry)
        tree: Tree = {
            "throttle_time": self._throttle_ms,
            "error_code": NONE,
            "acquisition_lock_timeout": self._group.settings.lock_ms,
            "responses": [{"topic_id": topic, "partitions": entries} for topic, entries in topics.items()],
        }
        answer(self._call, tree, self._sequence)

    def wake(self) -> None:
        self._call.connection.wake(self)

    def look(self) -> None:
        self._look()

    def _time_is_up(self) -> None:
        self._timer = None
        if self._is_due:
            self._is_overdue = True
        else:
            self._is_due = True
            self._timer = self._call.connection.broker.clock.call_later(KAFKA_FETCH_LOAD_MS, self._time_is_up)
        self.wake()

    def call_off(self) -> None:
        self._stop()

    def _stop(self) -> None:
        for partition in self._partitions:
            partition.remove_reader(self._reader)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Reader(ShareReader):
    """A waiting request, as the partitions of its group know it."""

    def __init__(self, fetching: ShareFetching) -> None:
        self._fetching: Final = fetching

    def wake(self) -> None:
        self._fetching.wake()
