"""The delivery state of a share group in a partition, beside one that has an object for each record."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from millpond.base.limits import SHARE_RANGES_MAX
from millpond.broker.shares.delivery_state import (
    ACKNOWLEDGED,
    ACQUIRED,
    ARCHIVED,
    AVAILABLE,
    DEAD_EXHAUSTED,
    DEAD_REJECTED,
    NEVER_MS,
    DeliveryListener,
    DeliveryState,
)

END = 60
offsets = st.integers(0, END)
owners = st.sampled_from(["", "a", "b"])


class Listener(DeliveryListener):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.changes = 0
        self.available = 0
        self.dead = 0

    def changed(self, state: DeliveryState) -> None:
        self.changes += 1

    def became_available(self, state: DeliveryState) -> None:
        self.available += 1

    def became_dead(self, state: DeliveryState) -> None:
        self.dead += 1


def new_state(start: int = 0) -> DeliveryState:
    return DeliveryState(Listener(), start)


def got(state: DeliveryState, first: int, end: int, owner: str = "a", records_max: int = 1000) -> list[tuple[int, ...]]:
    acquired = state.acquire(first, end, owner, 100, records_max)
    return [(int(one.first), int(one.end), int(one.count)) for one in acquired]


def test_what_is_acquired_is_nobody_elses() -> None:
    state = new_state()
    assert got(state, 0, 10) == [(0, 10, 1)]
    assert got(state, 0, 15, "b") == [(10, 15, 1)]
    assert not state.accept("b", 0, 10)
    assert state.accept("a", 0, 10)
    assert (state.start, state.end) == (10, 15)


def test_no_more_is_acquired_than_is_wanted() -> None:
    state = new_state()
    assert got(state, 0, 100, records_max=7) == [(0, 7, 1)]
    assert got(state, 0, 100, records_max=0) == []
    assert state.next_available(0) == 7


def test_a_range_is_settled_as_a_whole_or_not_at_all() -> None:
    state = new_state()
    got(state, 0, 5)
    assert not state.accept("a", 3, 7)
    assert state.ranges() == [(0, 5, ACQUIRED, 1)]


def test_what_is_settled_between_is_kept_as_a_range() -> None:
    state = new_state()
    got(state, 0, 1000)
    for offset in range(1, 999):
        assert state.accept("a", offset, offset + 1)
    assert state.ranges() == [(0, 1, ACQUIRED, 1), (1, 999, ACKNOWLEDGED, 0), (999, 1000, ACQUIRED, 1)]


def test_what_is_released_comes_again_with_its_count() -> None:
    state = new_state()
    got(state, 0, 5)
    assert state.release("a", 1, 3)
    assert state.next_available(0) == 1
    assert got(state, 0, 7, "b") == [(1, 3, 2), (5, 7, 1)]


def test_a_record_that_is_delivered_too_often_is_archived() -> None:
    state = new_state()
    state.deliveries_max = 2
    got(state, 0, 2)
    state.release("a", 0, 2)
    got(state, 0, 2)
    state.release("a", 0, 1)
    assert state.start == 1
    assert state.exhausted_total == 1
    assert state.accept("a", 1, 2)


def test_what_is_refused_waits_to_be_dead_lettered_where_that_is_wished() -> None:
    state = new_state()
    state.dead_letters = True
    state.deliveries_max = 1
    got(state, 0, 4)
    state.reject("a", 0, 2)
    state.release("a", 2, 3)
    assert state.next_dead() == (0, 2, DEAD_REJECTED)
    assert state.dead_count == 3
    state.buried(0, 2)
    assert state.next_dead() == (2, 3, DEAD_EXHAUSTED)
    state.buried(2, 3)
    assert (state.start, state.dead_count) == (3, 0)


def test_a_lock_ends_and_can_be_renewed() -> None:
    state = new_state()
    state.acquire(0, 5, "a", 100, 10)
    assert state.renew("a", 2, 3, 200)
    assert state.next_deadline_ms() == 100
    assert state.expire(100) == 4
    assert state.ranges() == [(0, 2, AVAILABLE, 1), (2, 3, ACQUIRED, 1), (3, 5, AVAILABLE, 1)]
    assert not state.accept("a", 0, 2)
    assert state.accept("a", 2, 3)
    assert state.next_deadline_ms() == NEVER_MS


def test_all_that_a_lost_owner_holds_is_available_again() -> None:
    state = new_state()
    got(state, 0, 5)
    got(state, 5, 8, "b")
    got(state, 8, 9)
    assert state.release_owner("a") == 6
    assert state.ranges() == [(0, 5, AVAILABLE, 1), (5, 8, ACQUIRED, 1), (8, 9, AVAILABLE, 1)]


def test_gaps_are_passed_over() -> None:
    state = new_state()
    got(state, 0, 2)
    state.skip(0, 6)
    assert state.ranges() == [(0, 2, ACQUIRED, 1), (2, 6, ARCHIVED, 0)]
    assert state.accept("a", 0, 2)
    assert state.start == 6


def test_retention_moves_the_start_and_late_acknowledgements_do_no_harm() -> None:
    state = new_state()
    got(state, 0, 5)
    state.trim_before(3)
    assert (state.start, state.acquired_count) == (3, 2)
    assert state.accept("a", 0, 5)
    assert state.start == 5
    state.trim_before(20)
    assert (state.start, state.end) == (20, 20)


def test_what_is_rewound_comes_again_but_for_what_is_in_hands() -> None:
    state = new_state()
    got(state, 0, 10)
    state.accept("a", 0, 4)
    state.accept("a", 6, 8)
    state.rewind(2)
    assert state.ranges() == [(2, 4, AVAILABLE, 0), (4, 6, ACQUIRED, 1), (6, 8, AVAILABLE, 0), (8, 10, ACQUIRED, 1)]
    assert got(state, 0, 10, "b") == [(2, 4, 1), (6, 8, 1)]


def test_with_too_many_ranges_nothing_new_is_handed_out() -> None:
    state = new_state()
    # Every other record is settled.
    for offset in range(0, SHARE_RANGES_MAX, 2):
        got(state, offset, offset + 2)
        state.accept("a", offset + 1, offset + 2)
    assert not state.has_room
    assert got(state, 0, 1 << 40) == []
    # What comes back is handed out all the same.
    state.release("a", 2, 3)
    assert got(state, 0, 1 << 40) == [(2, 3, 2)]


def test_changes_of_neighbours_are_one_change() -> None:
    state = new_state()
    for offset in range(100):
        got(state, offset, offset + 1)
        if offset >= 10:
            state.accept("a", offset - 10, offset - 9)
    changes = [(int(one.first), int(one.end), int(one.state)) for one in state.take_changes()]
    # As they come in turns, two of each would be a hundred otherwise.
    assert changes == [(0, 100, ACQUIRED), (0, 90, ACKNOWLEDGED)]
    assert state.take_changes() == []


def test_a_change_is_not_put_before_one_of_the_same_offsets() -> None:
    state = new_state()
    got(state, 0, 2)
    state.release("a", 0, 2)
    got(state, 0, 4)
    changes = [(int(one.first), int(one.end), int(one.state), int(one.count)) for one in state.take_changes()]
    assert changes == [(0, 2, ACQUIRED, 1), (0, 2, AVAILABLE, 1), (0, 2, ACQUIRED, 2), (2, 4, ACQUIRED, 1)]


@dataclass(frozen=True)
class Fate:
    """What has become of one record."""

    state: int = AVAILABLE
    count: int = 0
    owner: str = ""
    deadline_ms: int = NEVER_MS


FRESH = Fate()
SETTLED = (ACKNOWLEDGED, ARCHIVED)


class Model(RuleBasedStateMachine):
    """A state, one that has a value for each record, and one that is recovered from what the journal is told."""

    def __init__(self) -> None:
        super().__init__()
        self.listener = Listener()
        self.state = DeliveryState(self.listener, 0)
        self.records = [FRESH] * END
        self.start = 0
        self.kept = new_state()
        self.now_ms = 0

    @initialize(limit=st.integers(1, 4), dead_letters=st.booleans())
    def choose(self, limit: int, dead_letters: bool) -> None:
        self.state.deliveries_max = limit
        self.state.dead_letters = dead_letters

    @rule(first=offsets, size=st.integers(1, 20), owner=owners, wanted=st.integers(0, 15), lock_ms=st.integers(1, 5))
    def acquire(self, first: int, size: int, owner: str, wanted: int, lock_ms: int) -> None:
        end = min(END, first + size)
        acquired = self.state.acquire(first, end, owner, self.now_ms + lock_ms, wanted)
        expected: list[tuple[int, int]] = []
        for offset in range(max(first, self.start), end):
            fate = self.records[offset]
            if len(expected) < wanted and fate.state == AVAILABLE:
                expected.append((offset, fate.count + 1))
                self.records[offset] = Fate(ACQUIRED, fate.count + 1, owner, self.now_ms + lock_ms)
        assert [(offset, one.count) for one in acquired for offset in range(int(one.first), int(one.end))] == expected

    def held(self, owner: str, first: int, end: int) -> list[int] | None:
        counted = range(max(first, self.start), end)
        if all(self.records[offset].state == ACQUIRED and self.records[offset].owner == owner for offset in counted):
            return list(counted)
        return None

    @rule(
        how=st.sampled_from(["accept", "release", "reject", "archive", "renew"]),
        owner=owners,
        first=offsets,
        size=st.integers(1, 8),
    )
    def settle(self, how: str, owner: str, first: int, size: int) -> None:
        end = min(END, first + size)
        if first >= end:
            return
        held = self.held(owner, first, end)
        if how == "renew":
            assert self.state.renew(owner, first, end, self.now_ms + 9) == (held is not None)
        else:
            assert getattr(self.state, how)(owner, first, end) == (held is not None)
        for offset in held or ():
            if how == "accept":
                self.records[offset] = Fate(ACKNOWLEDGED)
            elif how == "archive":
                self.records[offset] = Fate(ARCHIVED)
            elif how == "release":
                self.release(offset)
            elif how == "reject":
                self.drop(offset, DEAD_REJECTED)
            else:
                self.records[offset] = replace(self.records[offset], deadline_ms=self.now_ms + 9)

    def release(self, offset: int) -> None:
        count = self.records[offset].count
        if count >= self.state.deliveries_max:
            self.drop(offset, DEAD_EXHAUSTED)
        else:
            self.records[offset] = Fate(AVAILABLE, count)

    def drop(self, offset: int, state: int) -> None:
        dead = Fate(state, self.records[offset].count)
        self.records[offset] = dead if self.state.dead_letters else Fate(ARCHIVED)

    @rule(first=offsets, size=st.integers(1, 8))
    def skip(self, first: int, size: int) -> None:
        end = min(END, first + size)
        self.state.skip(first, end)
        for offset in range(max(first, self.start), end):
            if self.records[offset].state == AVAILABLE:
                self.records[offset] = Fate(ARCHIVED)

    @rule()
    def bury(self) -> None:
        dead = self.state.next_dead()
        expected = [offset for offset in range(self.start, END) if self.records[offset].state >= DEAD_REJECTED]
        assert (dead is None) == (not expected)
        if dead is not None:
            assert dead[0] == expected[0]
            self.state.buried(dead[0], dead[1])
            for offset in range(dead[0], dead[1]):
                self.records[offset] = Fate(ARCHIVED)

    @rule(owner=owners)
    def lose(self, owner: str) -> None:
        held = [at for at in range(self.start, END) if self.records[at] == replace(self.records[at], owner=owner)]
        held = [offset for offset in held if self.records[offset].state == ACQUIRED]
        assert self.state.release_owner(owner) == len(held)
        for offset in held:
            self.release(offset)

    @rule(passed_ms=st.integers(1, 6))
    def wait(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        late = [offset for offset in range(self.start, END) if self.records[offset].deadline_ms <= self.now_ms]
        assert self.state.expire(self.now_ms) == len(late)
        for offset in late:
            self.release(offset)

    @rule(offset=offsets)
    def trim(self, offset: int) -> None:
        # Half of all trims would trim all.
        offset = min(offset, self.start + 3)
        self.tell_journal()
        self.state.trim_before(offset)
        self.kept.trim_before(offset)
        self.start = max(self.start, offset)
        self.records[:offset] = [Fate(ARCHIVED)] * offset

    @rule(offset=offsets)
    def rewind(self, offset: int) -> None:
        self.tell_journal()
        self.state.rewind(offset)
        self.kept.begin_earlier(offset)
        for at in range(offset, int(self.state.end)):
            if self.records[at].state != ACQUIRED:
                self.records[at] = FRESH
        self.start = min(self.start, offset)

    @rule()
    def tell_journal(self) -> None:
        for change in self.state.take_changes():
            self.kept.apply(change.first, change.end, change.state, change.count)

    @rule()
    def restart(self) -> None:
        self.tell_journal()
        again = new_state(int(self.kept.start))
        for first, end, state, count in self.kept.ranges():
            again.apply(first, end, state, count)
        assert again.ranges() == self.kept.ranges()
        assert (again.start, again.end) == (self.kept.start, self.kept.end)
        again.deliveries_max, again.dead_letters = self.state.deliveries_max, self.state.dead_letters
        self.state = again
        self.kept = new_state(int(again.start))
        for first, end, state, count in again.ranges():
            self.kept.apply(first, end, state, count)
        for offset in range(self.start, END):
            if self.records[offset].state == ACQUIRED:
                self.records[offset] = Fate(AVAILABLE, self.records[offset].count)

    @invariant()
    def agrees(self) -> None:
        while self.start < END and self.records[self.start].state in SETTLED:
            self.start += 1
        state = self.state
        assert state.start == self.start
        found = [FRESH] * END
        position = int(state.start)
        for run in state._runs:
            assert run.first == position < run.end
            position = int(run.end)
            for offset in range(int(run.first), int(run.end)):
                found[offset] = Fate(int(run.state), int(run.count), run.owner, int(run.deadline_ms))
        assert position == state.end
        assert found[self.start :] == self.records[self.start :]
        in_window = self.records[self.start : int(state.end)]
        assert state.acquired_count == sum(fate.state == ACQUIRED for fate in in_window)
        assert state.available_count == sum(fate.state == AVAILABLE for fate in in_window)
        assert state.dead_count == sum(fate.state >= DEAD_REJECTED for fate in in_window)
        deadlines = [fate.deadline_ms for fate in in_window]
        assert state.next_deadline_ms() == min(deadlines, default=NEVER_MS)
        for offset in (0, self.start, (self.start + END) // 2):
            expected = [at for at in range(max(offset, self.start), END) if self.records[at].state == AVAILABLE]
            assert min(int(state.next_available(offset)), END) == min(expected, default=END)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("count", [1, 3])
def test_a_change_is_announced_once_until_it_is_taken(count: int) -> None:
    listener = Listener()
    state = DeliveryState(listener, 0)
    for offset in range(count):
        state.acquire(offset * 2, offset * 2 + 1, "a", 1, 1)
    assert listener.changes == 1
    state.take_changes()
    state.accept("a", 0, 1)
    assert listener.changes == 2
