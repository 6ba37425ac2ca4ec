"""Fetch: record batches from offsets on, as soon as there are any.

Behaviour: whole batches, as they lie in the log, from the one that has the offset on: the client passes over the
records before it. What is shown is durable; who wants committed records only is shown nothing that an open transaction
comes before, and told which transactions were aborted: their records it leaves out itself. A request that finds less
than `min bytes` waits for more, up to `max wait`; not where nothing is asked for that could come, or where a partition
cannot be read from there. The first batch is sent however large it is, and waited for where it must come from the disk,
for a while longer than `max wait`.
Versions: 4 to 18. From 13 on topics are named by their ids; from 7 on there are sessions (`fetch_session.py`).
No partition ever has a diverging epoch, as there is one leader epoch.

    request     [replica i32] | max wait i32 | min bytes i32 | max bytes i32 | isolation i8
                | [session id i32 | session epoch i32]
                | topics (name or id | partitions (index i32 | [leader epoch i32] | offset i64
                | [last fetched epoch i32] | [log start i64] | max bytes i32))
                | [forgotten topics (name or id | partitions i32)] | [rack string]
    response    throttle time i32 | [error i16 | session id i32] | topics (name or id | partitions (index i32
                | error i16 | high watermark i64 | last stable offset i64 | [log start i64] | aborted transactions
                | [preferred replica i32] | records))
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter, write_i16_be, write_i32_be, write_i64_be
from mypy_extensions import i16, i32, i64

from millpond.base.clock import Timer
from millpond.base.errors import SyntaxFault
from millpond.base.limits import (
    KAFKA_FETCH_BYTES_MAX,
    KAFKA_FETCH_BYTES_WHEN_SHORT,
    KAFKA_FETCH_LOAD_MS,
    KAFKA_FETCH_WAIT_MS_MAX,
    KAFKA_PARTITIONS_PER_REQUEST_MAX,
)
from millpond.broker.streams.partition import Partition, PartitionListener
from millpond.broker.streams.topic import Topic
from millpond.protocols.kafka.connection import Call, Connection, Waiting
from millpond.protocols.kafka.errors import (
    FENCED_LEADER_EPOCH,
    FETCH_SESSION_ID_NOT_FOUND,
    FETCH_SESSION_TOPIC_ID_ERROR,
    INVALID_FETCH_SESSION_EPOCH,
    NONE,
    OFFSET_OUT_OF_RANGE,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_LEADER_EPOCH,
    UNKNOWN_TOPIC_ID,
    UNKNOWN_TOPIC_OR_PARTITION,
)
from millpond.protocols.kafka.fetch_session import FetchSession, Wanted
from millpond.protocols.kafka.wire import WireReader, write_count, write_no_tags, write_text
from millpond.storage.aborted_transactions import AbortedTransaction

_FLEXIBLE_FROM: Final = 12
_IDS_FROM: Final = 13
_LEADER_EPOCH: Final[i64] = 0
_READ_COMMITTED: Final = 1


@final
class FetchRequest:
    """A request, read to its end before anything is done. `wanted` are the partitions that it names, or, in a session,
    all that the session has."""

    def __init__(self, call: Call) -> None:
        version = call.version
        reader = WireReader(call.data, call.position, call.end, version >= _FLEXIBLE_FROM)
        reader.skip_tags()
        if version < 15:
            reader.int32()
        self.max_wait_ms: Final[i64] = reader.int32()
        self.min_bytes: i64 = reader.int32()
        self.max_bytes: i64 = reader.int32()
        self.is_committed_only: Final = reader.int8() == _READ_COMMITTED
        self.session_id: Final[i64] = reader.int32() if version >= 7 else 0
        self.session_epoch: Final[i64] = reader.int32() if version >= 7 else -1
        self.has_ids: Final = version >= _IDS_FROM
        self.wanted: list[Wanted] = []
        # The partitions that a session no longer has.
        self.forgotten: Final[list[tuple[str, bytes, i64]]] = []
        # What the request goes on with, and what the answer tells of it.
        self.session: FetchSession | None = None
        self.is_incremental = False
        # Topics and partitions that the request names.
        count: i64 = 0
        topics = reader.count()
        while topics > 0:
            topics -= 1
            name = "" if self.has_ids else reader.name()
            topic_id = reader.id() if self.has_ids else b""
            partitions = reader.count()
            count = _counted(count, partitions)
            while partitions > 0:
                partitions -= 1
                wanted = Wanted(name, topic_id, reader.int32())
                if version >= 9:
                    wanted.leader_epoch = reader.int32()
                wanted.offset = reader.int64()
                if version >= 12:
                    reader.int32()
                if version >= 5:
                    reader.int64()
                wanted.bytes_max = reader.int32()
                self.wanted.append(wanted)
                reader.skip_tags()
            reader.skip_tags()
        if version >= 7:
            topics = reader.count()
            while topics > 0:
                topics -= 1
                name = "" if self.has_ids else reader.name()
                topic_id = reader.id() if self.has_ids else b""
                partitions = reader.count()
                count = _counted(count, partitions)
                while partitions > 0:
                    partitions -= 1
                    self.forgotten.append((name, topic_id, reader.int32()))
                reader.skip_tags()
        if version >= 11:
            reader.text()
        reader.skip_tags()


def _counted(count: i64, partitions: i64) -> i64:
    """So many topics and partitions a request names by now."""
    count += 1 + max(0, partitions)
    if count > KAFKA_PARTITIONS_PER_REQUEST_MAX:
        raise SyntaxFault("a request of too many partitions")
    return count


def fetch(call: Call) -> None:
    """Answer a request when there is enough, or when it has waited long enough."""
    request = FetchRequest(call)
    # All is told that is needed from here on.
    call.data = b""
    error = _begin(call.connection, request)
    if error != NONE:
        call.answer([_encode(call, error)], call.version >= _FLEXIBLE_FROM)
        return
    connection = call.connection
    vhost = connection.vhost
    allowed_topic = ""
    for wanted in request.wanted:
        wanted.error = NONE
        wanted.partition = None
        topic: Topic | None = None
        if vhost is not None:
            if request.has_ids:
                topic = vhost.topics.by_id.get(wanted.topic_id)
                wanted.topic = topic.name if topic is not None else ""
            else:
                topic = vhost.topics.by_name.get(wanted.topic)
        if request.has_ids and topic is None:
            wanted.error = UNKNOWN_TOPIC_ID
            continue
        if wanted.topic != allowed_topic:
            if not connection.apis.may_read(connection, wanted.topic):
                wanted.error = TOPIC_AUTHORIZATION_FAILED
                continue
            allowed_topic = wanted.topic
        if topic is None or wanted.index < 0 or wanted.index >= len(topic.partitions):
            wanted.error = UNKNOWN_TOPIC_OR_PARTITION
        elif wanted.leader_epoch > _LEADER_EPOCH:
            wanted.error = UNKNOWN_LEADER_EPOCH
        elif wanted.leader_epoch < -1:
            wanted.error = FENCED_LEADER_EPOCH
        else:
            wanted.partition = topic.partitions[wanted.index]
    request.max_bytes = max(0, min(request.max_bytes, _bytes_max(connection)))
    if connection.broker.quotas.is_set:
        quota: i64 = connection.broker.quotas.fetch_bytes_max(connection.user, connection.client_id)
        if quota >= 0:
            # What is more than all that the quota allows in its time would never be brought.
            request.max_bytes = min(request.max_bytes, quota)
    request.min_bytes = min(request.min_bytes, request.max_bytes)
    fetching = Fetching(call, request)
    if not fetching.is_satisfied():
        fetching.wait()


def _begin(connection: Connection, request: FetchRequest) -> i64:
    """Begin a session, go on with it, or end it, as the request wants; or why that cannot be."""
    session = connection.fetch_session
    if request.session_epoch <= 0:
        # Whatever session there was is over, and all partitions are named.
        if session is not None and (request.session_epoch == 0 or request.session_id == session.id):
            connection.apis.end_session(connection)
        if request.session_epoch == 0 and request.wanted and connection.apis.has_session_room(len(request.wanted)):
            connection.fetch_sessions_begun += 1
            session = FetchSession(connection.fetch_sessions_begun, request.has_ids)
            for wanted in request.wanted:
                session.want(wanted)
            # One that names a partition twice gets it once.
            request.wanted = list(session.wanted.values())
            connection.fetch_session = request.session = session
            connection.apis.session_partitions += len(session.wanted)
        return NONE
    if session is None or session.id != request.session_id:
        return FETCH_SESSION_ID_NOT_FOUND
    if session.epoch != request.session_epoch:
        return INVALID_FETCH_SESSION_EPOCH
    if session.has_ids != request.has_ids:
        return FETCH_SESSION_TOPIC_ID_ERROR
    if not connection.apis.has_session_room(len(request.wanted)):
        # The client begins anew, with all that it wants, and does without a session.
        connection.apis.end_session(connection)
        return FETCH_SESSION_ID_NOT_FOUND
    present = len(session.wanted)
    for name, topic_id, index in request.forgotten:
        session.forget(name, topic_id, index)
    for wanted in request.wanted:
        session.want(wanted)
    connection.apis.session_partitions += len(session.wanted) - present
    session.advance()
    request.session = session
    request.is_incremental = True
    request.wanted = list(session.wanted.values())
    return NONE


def _bytes_max(connection: Connection) -> i64:
    memory = connection.broker.memory
    return KAFKA_FETCH_BYTES_MAX if memory.used <= memory.budget_bytes else KAFKA_FETCH_BYTES_WHEN_SHORT


@final
class Fetching(Waiting):
    """A request that is being answered, now or later."""

    def __init__(self, call: Call, request: FetchRequest) -> None:
        self._call: Final = call
        self._request: Final = request
        self._timer: Timer | None = None
        self._readers: list[_Reader] = []
        # The time is up: answer with what there is; and so is that for what is being read from the disk.
        self._is_due = request.max_wait_ms <= 0
        self._is_overdue = False

    def is_satisfied(self) -> bool:
        """Look at what there is, and answer if it is enough."""
        call, request = self._call, self._request
        if call.is_answered:
            return True
        room = request.max_bytes
        total: i64 = 0
        # As Kafka counts, which fills the room with part of a batch.
        found: i64 = 0
        # A partition that is not there does not come by waiting, but whoever asks for it again and again must wait.
        is_hopeless = True
        has_error = False
        is_loading = False
        for wanted in request.wanted:
            wanted.batches = []
            wanted.size = 0
            wanted.has_more = False
            if wanted.partition is None:
                has_error = has_error or wanted.error in (UNKNOWN_LEADER_EPOCH, FENCED_LEADER_EPOCH)
                continue
            is_hopeless = False
            bytes_max = min(wanted.bytes_max, room - total)
            is_ready = _read(wanted, wanted.partition, bytes_max, total == 0, request.is_committed_only)
            if wanted.error != NONE:
                has_error = True
            elif not is_ready:
                is_loading = True
            total += wanted.size
            found += max(wanted.size, bytes_max) if wanted.has_more else wanted.size
        if not (has_error or is_hopeless or self._is_overdue):
            if total == 0 and is_loading:
                return False
            if found < request.min_bytes and not self._is_due:
                return False
        self._stop()
        if total > 0 and call.connection.broker.quotas.is_set:
            throttle_ms: i64 = call.connection.apis.fetching(call.connection, int(total))
            if throttle_ms > 0:
                call.answer([_throttled(call, request, throttle_ms)], call.version >= _FLEXIBLE_FROM)
                return True
        call.answer(_chunks(call, request), call.version >= _FLEXIBLE_FROM)
        return True

    def wait(self) -> None:
        """Look again whenever something may have changed."""
        call, request = self._call, self._request
        call.waiting = self
        for wanted in request.wanted:
            partition = wanted.partition
            if partition is not None:
                reader = _Reader(self, partition)
                self._readers.append(reader)
                partition.add_listener(reader)
                partition.readers_waiting += 1
                if partition.has_pending:
                    # Nobody else may have asked for it to become durable.
                    call.connection.ledger.sync_wanted = True
                    call.connection.turn.touch()
        wait_ms: i64 = KAFKA_FETCH_LOAD_MS
        if not self._is_due:
            wait_ms = min(request.max_wait_ms, KAFKA_FETCH_WAIT_MS_MAX)
        self._timer = call.connection.broker.clock.call_later(int(wait_ms), self._time_is_up)

    def wake(self) -> None:
        self._call.connection.wake(self)

    def look(self) -> None:
        self.is_satisfied()

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
        for reader in self._readers:
            reader.partition.remove_listener(reader)
            reader.partition.readers_waiting -= 1
        self._readers = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@final
class _Reader(PartitionListener):
    """A waiting request, as one of its partitions knows it."""

    def __init__(self, fetching: Fetching, partition: Partition) -> None:
        self._fetching: Final = fetching
        self.partition: Final = partition

    def advanced(self) -> None:
        self._fetching.wake()

    def loaded(self) -> None:
        self._fetching.wake()


def _read(wanted: Wanted, partition: Partition, bytes_max: i64, is_first: bool, is_committed_only: bool) -> bool:
    """Take what there is of a partition; False where it must be read from the disk first."""
    offset = wanted.offset
    if partition.deleted:
        wanted.error = UNKNOWN_TOPIC_OR_PARTITION
        return True
    if offset < partition.start_offset or offset > partition.end_offset:
        wanted.error = OFFSET_OUT_OF_RANGE
        return True
    readable_end = partition.stable_end if is_committed_only else partition.durable_end
    if offset >= readable_end or (bytes_max <= 0 and not is_first):
        return True
    batches = partition.read(offset, readable_end, bytes_max)
    if batches is None:
        partition.load(offset)
        return False
    for batch in batches:
        wanted.size += len(batch.data)
    if wanted.size > bytes_max and not is_first:
        # One batch that is larger than what is left: it comes first next time.
        wanted.size = 0
        wanted.has_more = True
        return True
    wanted.batches = batches
    if batches:
        end_offset = batches[len(batches) - 1].end_offset
        wanted.has_more = end_offset < readable_end
        partition.load_ahead(end_offset)
    return True


def _chunks(call: Call, request: FetchRequest) -> list[bytes]:
    """The response's body, in which the batches are as they lie in memory."""
    version = call.version
    flexible = version >= _FLEXIBLE_FROM
    session = request.session
    chosen = request.wanted
    if request.is_incremental:
        chosen = [wanted for wanted in chosen if wanted.is_news()]
    runs = _runs(chosen)
    chunks: list[bytes] = []
    found: list[Wanted] = []
    writer = _head(version, NONE, session.id if session is not None else 0, len(runs), flexible)
    for run in runs:
        if request.has_ids:
            writer.write(run[0].topic_id)
        else:
            write_text(writer, run[0].topic, flexible)
        write_count(writer, len(run), flexible)
        for wanted in run:
            _write_partition(writer, wanted, version, flexible, request.is_committed_only)
            if wanted.error != NONE:
                call.connection.apis.count_error(call, wanted.error)
            if wanted.batches and wanted.partition is not None:
                wanted.partition.read_bytes += wanted.size
                chunks.append(writer.getvalue())
                writer = BytesWriter()
                for batch in wanted.batches:
                    chunks.append(batch.data)
                found.append(wanted)
            write_no_tags(writer, flexible)
        write_no_tags(writer, flexible)
    write_no_tags(writer, flexible)
    chunks.append(writer.getvalue())
    if session is not None:
        for wanted in request.wanted:
            wanted.told()
        session.served(found)
    return chunks


def _runs(chosen: list[Wanted]) -> list[list[Wanted]]:
    """The partitions by their topics, as far as they come one after the other."""
    runs: list[list[Wanted]] = []
    last: Wanted | None = None
    for wanted in chosen:
        if last is not None and wanted.topic_id == last.topic_id and (wanted.topic_id or wanted.topic == last.topic):
            runs[len(runs) - 1].append(wanted)
        else:
            runs.append([wanted])
        last = wanted
    return runs


def _throttled(call: Call, request: FetchRequest, throttle_ms: i64) -> bytes:
    """A response that brings nothing, for who has had more than the quota (KIP-219)."""
    session_id: i64 = 0
    session = request.session
    if session is not None and request.is_incremental:
        session_id = session.id
    elif session is not None:
        # What it would begin with has not been told.
        call.connection.fetch_session = None
    for wanted in request.wanted:
        wanted.batches = []
        wanted.size = 0
    flexible = call.version >= _FLEXIBLE_FROM
    writer = BytesWriter()
    write_i32_be(writer, i32(throttle_ms))
    if call.version >= 7:
        write_i16_be(writer, i16(NONE))
        write_i32_be(writer, i32(session_id))
    write_count(writer, 0, flexible)
    write_no_tags(writer, flexible)
    return writer.getvalue()


def _encode(call: Call, error: i64) -> bytes:
    """A response without any topic."""
    flexible = call.version >= _FLEXIBLE_FROM
    writer = _head(call.version, error, 0, 0, flexible)
    write_no_tags(writer, flexible)
    return writer.getvalue()


def _head(version: i64, error: i64, session_id: i64, topics: i64, flexible: bool) -> BytesWriter:
    writer = BytesWriter()
    write_i32_be(writer, 0)
    if version >= 7:
        write_i16_be(writer, i16(error))
        write_i32_be(writer, i32(session_id))
    write_count(writer, topics, flexible)
    return writer


def _write_partition(
    writer: BytesWriter, wanted: Wanted, version: i64, flexible: bool, is_committed_only: bool
) -> None:
    """All of a partition's answer but the bytes of its batches."""
    partition = wanted.partition
    high_watermark: i64 = -1
    stable_end: i64 = -1
    start_offset: i64 = -1
    if partition is not None and wanted.error == NONE:
        high_watermark = partition.durable_end
        stable_end = partition.stable_end
        start_offset = partition.start_offset
    write_i32_be(writer, i32(wanted.index))
    write_i16_be(writer, i16(wanted.error))
    write_i64_be(writer, high_watermark)
    write_i64_be(writer, stable_end)
    if version >= 5:
        write_i64_be(writer, start_offset)
    if is_committed_only and partition is not None and wanted.error == NONE:
        _write_aborted(writer, wanted, partition, flexible)
    else:
        write_count(writer, -1, flexible)
    if version >= 11:
        write_i32_be(writer, -1)
    write_count(writer, wanted.size, flexible)


def _write_aborted(writer: BytesWriter, wanted: Wanted, partition: Partition, flexible: bool) -> None:
    """The aborted transactions that have something among the batches."""
    aborted: list[AbortedTransaction] = []
    batches = wanted.batches
    if batches:
        end_offset = batches[len(batches) - 1].end_offset
        aborted = partition.transactions.aborted.between(batches[0].base_offset, end_offset)
    write_count(writer, len(aborted), flexible)
    for one in aborted:
        write_i64_be(writer, one.producer_id)
        write_i64_be(writer, one.first_offset)
        write_no_tags(writer, flexible)
