"""What has become of a stream's records in the hands of those who work them off together: the state of one share group
in one partition. Kafka's share groups (KIP-932), and queues that have a stream for their messages, are this.

    offsets    start                                              end
                 |  the window: runs of offsets that share a fate  |  never handed out: available
      settled    | acquired 2 | acknowledged | available 1 | dead  |  ...

    AVAILABLE ── acquire ──> ACQUIRED ── accept ──────────────────────────> ACKNOWLEDGED
        ^                       |  |                                             |
        |                       |  └── reject, or delivered often enough ─┬─> ARCHIVED
        └── release, time out, loss of its owner                          └─> DEAD ── dead-lettered ──> ARCHIVED

A record is never an object here: neighbours in the same state, delivered equally often and held by the same owner, are
one run. What is settled at the start of the window leaves it. A delivery counts when it begins.

Rules: an owner settles only what it holds, a whole range or nothing of it. What is in somebody's hands is not handed
out again before it is given back, whatever else happens (`rewind`). Time is passed in.

`_set` is the one way in which anything changes. Each change is noted, to be told to the journal at the end of the turn
(`take_changes`), and recovery makes it again by `apply`. Who holds something is not kept: after a restart
it is available again, and has been delivered as often as it was before.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64, mypyc_attr

from millpond.base.limits import SHARE_RANGES_MAX

# Kafka's numbers, where it has one.
AVAILABLE: Final = 0
ACQUIRED: Final = 1
ACKNOWLEDGED: Final = 2
ARCHIVED: Final = 4
# To be dead-lettered, and archived then: somebody refused it, or it was delivered too often.
DEAD_REJECTED: Final = 5
DEAD_EXHAUSTED: Final = 6

STATES: Final = (AVAILABLE, ACQUIRED, ACKNOWLEDGED, ARCHIVED, DEAD_REJECTED, DEAD_EXHAUSTED)

# A lock that no time ends.
NEVER_MS: Final = (1 << 63) - 1

DELIVERIES_MAX: Final = 0x7FFF


@final
@mypyc_attr(acyclic=True)
class Run:
    """The offsets [first, end), which share a fate. `count` is how often they have been delivered."""

    def __init__(self, first: i64, end: i64, state: i64, count: i64, owner: str, deadline_ms: i64) -> None:
        self.first: i64 = first
        self.end: i64 = end
        self.state: Final[i64] = state
        self.count: Final[i64] = count
        # Of what is acquired.
        self.owner: Final = owner
        self.deadline_ms: Final[i64] = deadline_ms


@final
@mypyc_attr(acyclic=True)
class Change:
    """What the journal is to be told: [first, end) is in this state now."""

    def __init__(self, first: i64, end: i64, state: i64, count: i64) -> None:
        self.first: Final[i64] = first
        self.end: i64 = end
        self.state: Final[i64] = state
        self.count: Final[i64] = count


@final
@mypyc_attr(acyclic=True)
class Acquired:
    """What an owner has got: [first, end), delivered for the `count`th time."""

    def __init__(self, first: i64, end: i64, count: i64) -> None:
        self.first: Final[i64] = first
        self.end: Final[i64] = end
        self.count: Final[i64] = count


@mypyc_attr(allow_interpreted_subclasses=True)
class DeliveryListener:
    """Who is told of what happens in a delivery state."""

    def changed(self, state: DeliveryState) -> None:
        """There are changes for the journal, after there were none."""
        raise NotImplementedError

    def became_available(self, state: DeliveryState) -> None:
        """There may be something to be handed out."""
        raise NotImplementedError

    def became_dead(self, state: DeliveryState) -> None:
        """There is something to be dead-lettered."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class ShareReader:
    """Who wants to have records of a partition."""

    def wake(self) -> None:
        """There may be something."""
        raise NotImplementedError


@final
class DeliveryState:
    """The state of one share group in one partition."""

    def __init__(self, listener: DeliveryListener, start: i64) -> None:
        self._listener: Final = listener
        # All before `start` is settled; nothing from `end` on was ever handed out.
        self.start: i64 = start
        self.end: i64 = start
        self._runs: list[Run] = []
        self._changes: list[Change] = []
        # Nothing before it is available.
        self._available_from: i64 = start
        self.acquired_count: i64 = 0
        # Of the window.
        self.available_count: i64 = 0
        self.dead_count: i64 = 0
        # What has been delivered so often and is given back is not delivered again.
        self.deliveries_max: i64 = DELIVERIES_MAX
        # Whether what is refused, or delivered too often, is to be dead-lettered before it is archived.
        self.dead_letters = False
        self.is_deleted = False
        # Since the start of the broker, for operators.
        self.delivered_total: i64 = 0
        self.accepted_total: i64 = 0
        self.released_total: i64 = 0
        self.rejected_total: i64 = 0
        self.exhausted_total: i64 = 0
        self.timed_out_total: i64 = 0

    # --- Looking ----------------------------------------------------------------------------------------------------

    def next_available(self, offset: i64) -> i64:
        """The first offset from `offset` on that could be acquired; not before `end` where the window has none."""
        if offset < self.start:
            offset = self.start
        if offset >= self.end:
            return offset
        if self.available_count == 0:
            return self.end
        position = max(offset, self._available_from)
        found = self.end
        runs = self._runs
        if position < self.end:
            for index in range(self._index(position), len(runs)):
                run = runs[index]
                if run.state == AVAILABLE:
                    found = max(position, run.first)
                    break
        if offset <= self._available_from:
            self._available_from = found
        return found

    def next_dead(self) -> tuple[int, int, int] | None:
        """The first range that is to be dead-lettered as (first, end, state)."""
        if self.dead_count > 0:
            for run in self._runs:
                if run.state >= DEAD_REJECTED:
                    return run.first, run.end, run.state
        return None

    def is_held(self, owner: str, first: i64, end: i64) -> bool:
        """Whether all of [first, end) is in the hands of `owner`. What was settled by the start's moving past it does
        not matter any more."""
        position = max(first, self.start)
        if end > self.end:
            return False
        runs = self._runs
        index = self._index(position) if position < end else i64(0)
        while position < end:
            run = runs[index]
            if run.state != ACQUIRED or run.owner != owner:
                return False
            position = run.end
            index += 1
        return True

    def next_deadline_ms(self) -> i64:
        """When the first lock ends; NEVER_MS where none does."""
        earliest: i64 = NEVER_MS
        if self.acquired_count > 0:
            for run in self._runs:
                if run.state == ACQUIRED and run.deadline_ms < earliest:
                    earliest = run.deadline_ms
        return earliest

    @property
    def range_count(self) -> i64:
        return len(self._runs)

    @property
    def has_room(self) -> bool:
        """Whether more may be handed out that never was."""
        return len(self._runs) < SHARE_RANGES_MAX

    def ranges(self) -> list[tuple[int, int, int, int]]:
        """The window as (first, end, state, deliveries) each."""
        return [(run.first, run.end, run.state, run.count) for run in self._runs]

    def delivery_count(self, offset: i64) -> i64:
        """How often the record at `offset` has been delivered."""
        if offset < self.start or offset >= self.end:
            return 0
        return self._runs[self._index(offset)].count

    # --- Handing out ------------------------------------------------------------------------------------------------

    def acquire(self, first: i64, end: i64, owner: str, deadline_ms: i64, records_max: i64) -> list[Acquired]:
        """Let `owner` have what is available of [first, end), up to so many records."""
        acquired: list[Acquired] = []
        position = self.next_available(first)
        while position < end and records_max > 0:
            count: i64 = 1
            until = end
            if position < self.end:
                run = self._runs[self._index(position)]
                count = min(run.count + 1, DELIVERIES_MAX)
                until = min(end, run.end)
            elif not self.has_room:
                break
            until = min(until, position + records_max)
            records_max -= until - position
            self.delivered_total += until - position
            self._set(position, until, ACQUIRED, count, owner, deadline_ms)
            acquired.append(Acquired(position, until, count))
            position = self.next_available(until)
        return acquired

    def skip(self, first: i64, end: i64) -> None:
        """There is nothing to be delivered at [first, end): whatever of it is available is archived."""
        position = self.next_available(first)
        while position < end:
            until = end
            if position < self.end:
                until = min(end, self._runs[self._index(position)].end)
            self._set(position, until, ARCHIVED, 0, "", NEVER_MS)
            position = self.next_available(until)

    # --- Settling ---------------------------------------------------------------------------------------------------

    def accept(self, owner: str, first: i64, end: i64) -> bool:
        """`owner` is done with [first, end). False, and nothing has changed, where it does not hold it."""
        if not self.is_held(owner, first, end):
            return False
        first = max(first, self.start)
        if first < end:
            self.accepted_total += end - first
            self._set(first, end, ACKNOWLEDGED, 0, "", NEVER_MS)
        return True

    def release(self, owner: str, first: i64, end: i64) -> bool:
        """`owner` gives [first, end) back. What has been delivered often enough is not available again. False, and
        nothing has changed, where it does not hold it."""
        if not self.is_held(owner, first, end):
            return False
        self._release(max(first, self.start), end)
        return True

    def reject(self, owner: str, first: i64, end: i64) -> bool:
        """`owner` refuses [first, end) for good. False, and nothing has changed, where it does not hold it."""
        if not self.is_held(owner, first, end):
            return False
        first = max(first, self.start)
        if first < end:
            self.rejected_total += end - first
            self._drop(first, end, DEAD_REJECTED)
        return True

    def archive(self, owner: str, first: i64, end: i64) -> bool:
        """`owner` has found nothing at [first, end), or has dead-lettered it. False, and nothing has changed, where it
        does not hold it."""
        if not self.is_held(owner, first, end):
            return False
        self._set(first, end, ARCHIVED, 0, "", NEVER_MS)
        return True

    def renew(self, owner: str, first: i64, end: i64, deadline_ms: i64) -> bool:
        """`owner` keeps [first, end) for longer. False, and nothing has changed, where it does not hold it."""
        if not self.is_held(owner, first, end):
            return False
        position = max(first, self.start)
        while position < end:
            run = self._runs[self._index(position)]
            until = min(end, run.end)
            # Who holds something is not kept, so there is nothing to be told.
            self._replace(position, until, ACQUIRED, run.count, owner, deadline_ms)
            position = until
        return True

    def buried(self, first: i64, end: i64) -> None:
        """What is dead of [first, end) has been dead-lettered."""
        position = max(first, self.start)
        end = min(end, self.end)
        while position < end:
            run = self._runs[self._index(position)]
            until = min(end, run.end)
            if run.state >= DEAD_REJECTED:
                self._set(position, until, ARCHIVED, 0, "", NEVER_MS)
            position = until

    def release_owner(self, owner: str) -> i64:
        """`owner` is gone: give back all that it holds. How many records that were."""
        released: i64 = 0
        if self.acquired_count > 0:
            for run in list(self._runs):
                if run.state == ACQUIRED and run.owner == owner:
                    released += run.end - run.first
                    self._release(run.first, run.end)
        return released

    def expire(self, now_ms: i64) -> i64:
        """Give back what has been held for too long. How many records that were."""
        expired: i64 = 0
        if self.acquired_count > 0:
            for run in list(self._runs):
                if run.state == ACQUIRED and run.deadline_ms <= now_ms:
                    expired += run.end - run.first
                    self._release(run.first, run.end)
        self.timed_out_total += expired
        return expired

    def _release(self, first: i64, end: i64) -> None:
        """What is acquired of [first, end), which is all of it, comes back."""
        position = first
        if first < end:
            self.released_total += end - first
        while position < end:
            run = self._runs[self._index(position)]
            until = min(end, run.end)
            if run.count >= self.deliveries_max:
                self.exhausted_total += until - position
                self._drop(position, until, DEAD_EXHAUSTED)
            else:
                self._set(position, until, AVAILABLE, run.count, "", NEVER_MS)
            position = until

    def _drop(self, first: i64, end: i64, dead_state: i64) -> None:
        """What is in somebody's hands of [first, end), which is all of it, is dead."""
        if not self.dead_letters:
            self._set(first, end, ARCHIVED, 0, "", NEVER_MS)
            return
        position = first
        while position < end:
            run = self._runs[self._index(position)]
            until = min(end, run.end)
            self._set(position, until, dead_state, run.count, "", NEVER_MS)
            position = until
        self._listener.became_dead(self)

    # --- Moving the window ------------------------------------------------------------------------------------------

    def trim_before(self, offset: i64) -> None:
        """The stream has nothing before `offset` any more. Nothing is told to the journal, which knows that already."""
        if offset > self.start:
            self._start_at(offset)

    def reset(self, offset: i64) -> None:
        """Begin at `offset`, as if nothing had been delivered. Whoever holds something holds it no longer."""
        self._runs = []
        self._changes = []
        self.acquired_count = 0
        self.available_count = 0
        self.dead_count = 0
        self.start = offset
        self.end = offset
        self._available_from = offset
        self._listener.became_available(self)

    def rewind(self, offset: i64) -> None:
        """Let all from `offset` on be available again that is in nobody's hands, as if it had never been delivered. The
        journal is to be told of `begin_earlier`, if the start moves, before it is told of the changes."""
        self.begin_earlier(offset)
        position = offset
        while position < self.end:
            run = self._runs[self._index(position)]
            until = run.end
            if run.state != ACQUIRED and (run.state != AVAILABLE or run.count > 0):
                self._set(position, until, AVAILABLE, 0, "", NEVER_MS)
            position = until
        self._listener.became_available(self)

    def begin_earlier(self, offset: i64) -> None:
        """Let what lies between `offset` and the start be available again."""
        if offset < self.start:
            run = Run(offset, self.start, AVAILABLE, 0, "", NEVER_MS)
            self._count(run, 1)
            runs = self._runs
            if runs and _is_alike(runs[0], run):
                runs[0].first = offset
            else:
                runs.insert(0, run)
            self.start = offset
            self._available_from = offset

    def _start_at(self, offset: i64) -> None:
        runs = self._runs
        count: i64 = 0
        while count < len(runs) and runs[count].end <= offset:
            self._count(runs[count], -1)
            count += 1
        if count > 0:
            del runs[:count]
        if runs and runs[0].first < offset:
            first = runs[0]
            self._count(first, -1)
            first.first = offset
            self._count(first, 1)
        self.start = offset
        self.end = max(self.end, offset)
        self._leave_settled()

    # --- Changing ---------------------------------------------------------------------------------------------------

    def apply(self, first: i64, end: i64, state: i64, count: i64) -> None:
        """Make a change again that the journal or a checkpoint tells."""
        if state == ACQUIRED:
            state = AVAILABLE
        self._replace(first, end, state, count, "", NEVER_MS)

    def _set(self, first: i64, end: i64, state: i64, count: i64, owner: str, deadline_ms: i64) -> None:
        first = max(first, self.start)
        if first >= end:
            return
        self._note(first, end, state, count)
        self._replace(first, end, state, count, owner, deadline_ms)
        if state == AVAILABLE:
            self._listener.became_available(self)

    def _replace(self, first: i64, end: i64, state: i64, count: i64, owner: str, deadline_ms: i64) -> None:
        """Let [first, end) be one run."""
        if first > self.end:
            # What was passed over to come here is still to be handed out.
            self._replace(self.end, first, AVAILABLE, 0, "", NEVER_MS)
        first = max(first, self.start)
        if first >= end:
            return
        runs = self._runs
        low = self._split(first)
        high = self._split(end)
        for index in range(low, high):
            self._count(runs[index], -1)
        run = Run(first, end, state, count, owner, deadline_ms)
        self._count(run, 1)
        if state == AVAILABLE and first < self._available_from:
            self._available_from = first
        if low > 0 and _is_alike(runs[low - 1], run):
            low -= 1
            run.first = runs[low].first
        if high < len(runs) and _is_alike(runs[high], run):
            run.end = runs[high].end
            high += 1
        if high == low + 1:
            runs[low] = run
        else:
            runs[low:high] = [run]
        self.end = max(self.end, end)
        if low == 0:
            self._leave_settled()

    def _leave_settled(self) -> None:
        """What is settled at the start leaves the window."""
        runs = self._runs
        while runs and (runs[0].state == ACKNOWLEDGED or runs[0].state == ARCHIVED):
            self.start = runs[0].end
            del runs[0]

    def _split(self, offset: i64) -> i64:
        """Let a run begin at `offset`, and return its index."""
        runs = self._runs
        if offset >= self.end:
            return len(runs)
        index = self._index(offset)
        run = runs[index]
        if run.first == offset:
            return index
        runs.insert(index + 1, Run(offset, run.end, run.state, run.count, run.owner, run.deadline_ms))
        run.end = offset
        return index + 1

    def _index(self, offset: i64) -> i64:
        """Index of the run that has `offset`, which must lie in the window."""
        runs = self._runs
        low: i64 = 0
        high: i64 = len(runs) - 1
        if high >= 0 and offset >= runs[high].first:
            return high
        while low < high:
            middle = (low + high) >> 1
            if runs[middle].end <= offset:
                low = middle + 1
            else:
                high = middle
        return low

    def _count(self, run: Run, sign: i64) -> None:
        size = (run.end - run.first) * sign
        if run.state == ACQUIRED:
            self.acquired_count += size
        elif run.state == AVAILABLE:
            self.available_count += size
        elif run.state >= DEAD_REJECTED:
            self.dead_count += size

    # --- For the journal --------------------------------------------------------------------------------------------

    def _note(self, first: i64, end: i64, state: i64, count: i64) -> None:
        """Remember a change. One that goes on where one of the last two has ended is one with it."""
        changes = self._changes
        index: i64 = len(changes) - 1
        if index < 0:
            changes.append(Change(first, end, state, count))
            self._listener.changed(self)
            return
        last = changes[index]
        if last.end == first and last.state == state and last.count == count:
            last.end = end
            return
        if index > 0 and (end <= last.first or first >= last.end):
            # It happens before the last one then, which has nothing to do with these offsets.
            before = changes[index - 1]
            if before.end == first and before.state == state and before.count == count:
                before.end = end
                return
        changes.append(Change(first, end, state, count))

    def take_changes(self) -> list[Change]:
        """The changes since this was asked for the last time, in their order."""
        changes = self._changes
        self._changes = []
        return changes


def _is_alike(one: Run, other: Run) -> bool:
    """Whether neighbours are one run."""
    return (
        one.state == other.state
        and one.count == other.count
        and one.deadline_ms == other.deadline_ms
        and one.owner == other.owner
    )
