"""Applies what the journal says of a turn to queues, streams and keepers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import i64

from millpond.base.errors import CorruptData
from millpond.broker.queues.backlog import Backlog, queue_id
from millpond.broker.queues.lanes import Lanes
from millpond.broker.records import (
    CHANGE_ATTEMPTED,
    CHANGE_BATCH,
    CHANGE_CARRIED,
    CHANGE_SETTLED,
    CHANGE_TRIMMED,
    Changes,
    MessageReader,
    attempted,
    batch_targets,
    settled_range,
    trimmed,
)
from millpond.storage.record_batch import RecordReader

if TYPE_CHECKING:
    from millpond.broker.keepers import RecordKeeper


def replay_turn(payload: bytes, lanes: Lanes, keepers: dict[int, RecordKeeper]) -> tuple[int, bool]:
    """Apply one turn. Changes of queues that are gone are passed over. The highest log id that occurred, and whether
    anything happened in it: what a checkpoint carried forward only repeats what had happened before."""
    highest = 0
    is_new = False
    changes = Changes(payload)
    while changes.next():
        is_new = is_new or changes.kind != CHANGE_CARRIED
        if changes.kind == CHANGE_BATCH or changes.kind == CHANGE_CARRIED:
            targets, batch = batch_targets(changes.body)
            known: list[Backlog] = []
            bases: list[i64] = []
            for log_id, base_offset in targets:
                highest = max(highest, queue_id(log_id))
                queue = lanes.get(log_id)
                if queue is not None:
                    known.append(queue)
                    bases.append(base_offset)
                    continue
                partition = lanes.partition(log_id)
                if partition is not None:
                    partition.restore_batch(batch, base_offset)
            if known:
                _replay_batch(batch, targets[0][1], known, bases)
        elif changes.kind == CHANGE_SETTLED:
            log_id, start, end, count, size = settled_range(changes.body)
            highest = max(highest, queue_id(log_id))
            queue = lanes.get(log_id)
            if queue is not None and start < end:
                queue.restore_settled(start, end, count, size)
        elif changes.kind == CHANGE_ATTEMPTED:
            log_id, offset, returns = attempted(changes.body)
            highest = max(highest, queue_id(log_id))
            queue = lanes.get(log_id)
            if queue is not None:
                queue.attempts[offset] = returns
        elif changes.kind == CHANGE_TRIMMED:
            log_id, start_offset = trimmed(changes.body)
            highest = max(highest, queue_id(log_id))
            partition = lanes.partition(log_id)
            if partition is not None:
                partition.restore_start(start_offset)
        else:
            keeper = keepers.get(changes.kind)
            if keeper is None:
                raise CorruptData(f"a journal change of the unknown kind {changes.kind}")
            keeper.restore(changes.body)
    return highest, is_new


def _replay_batch(batch: bytes, first_offset: i64, queues: list[Backlog], bases: list[i64]) -> None:
    reader = RecordReader(batch)
    messages = MessageReader()
    while reader.next():
        message = messages.message(reader)
        delta = reader.offset - first_offset
        for index in range(len(queues)):
            queues[index].restore_message(message, bases[index] + delta)
