"""Random lives of a consumer group: members join, sync, commit, leave and vanish, answers and connections are lost, and
the broker is killed at any moment. A failing run prints its seed; `MILLPOND_TEST_SEED` runs that one alone.

What must hold whatever happens:

- a generation has one leader and one protocol, and generations never go back;
- in a generation a partition is never given to two members;
- what a client was told is so after a restart: an acknowledged offset is there, or a later one that was on its way;
- recovery makes the same of the records as the broker that wrote them;
- when the chaos ends, those who live share all partitions.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial

import pytest

from millpond.base.clock import ManualClock
from millpond.base.errors import PeerError
from millpond.broker.groups.coordinator import ConsumerGroups, GroupCoordinator
from millpond.broker.groups.errors import FencedInstance, MemberIdRequired, UnknownMember
from millpond.broker.groups.group import JoinRequest, JoinResult, SyncRequest, SyncResult
from millpond.broker.groups.offsets import CommitRequest, OffsetCommit
from millpond.broker.groups.records import STABLE
from millpond.broker.groups.subscription import assigned_partitions
from millpond.broker.turn import Turn
from tests.broker.group_members import DELAY_MS, GROUP, REBALANCE_MS, SESSION_MS, assignment, subscription

PARTITIONS = 6
STEPS = 1500
SEEDS = [int(os.environ["MILLPOND_TEST_SEED"])] if "MILLPOND_TEST_SEED" in os.environ else list(range(25))


class Disk:
    """Stands for ledger and journal: records by their turns, of which some are durable."""

    def __init__(self) -> None:
        self.turns: list[list[bytes]] = []
        self.now: list[bytes] = []
        self.durable_turns = 0
        self.sync_wanted = False
        self.journal = self

    def recorded(self, change: int, record: bytes) -> None:
        self.now.append(record)

    def sequence(self) -> int:
        return len(self.turns) + 1

    def end_turn(self) -> None:
        if self.now:
            self.turns.append(self.now)
            self.now = []


class Player:
    """A client of the group, which does what clients do."""

    def __init__(self, world: World, instance_id: str | None) -> None:
        self.world = world
        self.instance_id = instance_id
        self.member_id = ""
        self.generation = -1
        self.version = 0
        # What it waits for came over this connection; answers to earlier ones are lost.
        self.waits = False
        self.connection = 0
        self.is_fenced = False
        self.assigned: list[int] | None = None
        self.must_sync: JoinResult | None = None

    def act(self, random: random.Random) -> None:
        """The next thing, or something foolish."""
        if self.waits:
            return
        if self.generation > 0 and random.random() < 0.1:
            self.be_late()
        if self.must_sync is not None:
            self.sync()
        elif self.assigned is None:
            self.join()
        else:
            choice = random.random()
            if choice < 0.5:
                self.heartbeat()
            elif choice < 0.85:
                self.commit()
            elif choice < 0.93:
                self.version += 1
                self.join()
            else:
                self.leave()

    def be_late(self) -> None:
        """Speak for a generation that is over."""
        late, world = self.generation - 1, self.world
        with pytest.raises(PeerError):
            world.groups.membership.heartbeat(GROUP, self.member_id, self.instance_id, late)
        commit = CommitRequest(GROUP, (OffsetCommit("log", 0, -7),), self.member_id, late, self.instance_id)
        with pytest.raises(PeerError):
            world.groups.offsets.commit(commit)
        told: list[SyncResult] = []
        given = ((self.member_id, assignment("log", *range(PARTITIONS))),)
        world.groups.membership.sync(
            SyncRequest(GROUP, self.member_id, self.instance_id, late, assignments=given), told.append
        )
        assert [result.error is None for result in told] == [False]

    def request(self, done: Callable[[Callable[..., None]], None]) -> None:
        self.waits = True
        done(partial(self.world.answer, self, self.connection))

    def join(self) -> None:
        self.assigned = None
        protocols = (("range", subscription("log") + bytes([self.version % 256])), ("sticky", subscription("log")))
        asked = JoinRequest(
            GROUP, self.member_id, self.instance_id, "player", "/host", SESSION_MS, REBALANCE_MS, "consumer", protocols
        )
        self.request(lambda done: self.world.groups.membership.join(asked, partial(done, self.joined)))

    def joined(self, result: JoinResult) -> None:
        if result.error is None:
            self.member_id, self.generation = result.member_id, result.generation
            self.must_sync = result
            self.world.check_generation(result)
        elif isinstance(result.error, MemberIdRequired):
            self.member_id = result.member_id
        else:
            self.failed(result.error)

    def sync(self) -> None:
        told = self.must_sync
        assert told is not None
        given: tuple[tuple[str, bytes], ...] = ()
        if told.leader == self.member_id and not told.skip_assignment:
            ids = [member.member_id for member in told.members]
            shares = {one: [part for part in range(PARTITIONS) if part % len(ids) == at] for at, one in enumerate(ids)}
            given = tuple((one, assignment("log", *parts)) for one, parts in shares.items())
        asked = SyncRequest(GROUP, self.member_id, self.instance_id, self.generation, "consumer", told.protocol, given)
        self.request(lambda done: self.world.groups.membership.sync(asked, partial(done, self.synced)))

    def synced(self, result: SyncResult) -> None:
        self.must_sync = None
        if result.error is not None:
            self.failed(result.error)
            return
        found = assigned_partitions(result.assignment)
        assert found is not None
        self.assigned = found.get("log", [])
        self.world.check_assignment(self)

    def heartbeat(self) -> None:
        def beat(done: Callable[..., None]) -> None:
            error: PeerError | None = None
            try:
                self.world.groups.membership.heartbeat(GROUP, self.member_id, self.instance_id, self.generation)
            except PeerError as raised:
                error = raised
            done(self.told, error)

        self.request(beat)

    def commit(self) -> None:
        assert self.assigned is not None
        offsets = {part: self.world.next_offset() for part in self.assigned}

        def commit(done: Callable[..., None]) -> None:
            error: PeerError | None = None
            asked = tuple(OffsetCommit("log", part, offset) for part, offset in offsets.items())
            try:
                self.world.groups.offsets.commit(
                    CommitRequest(GROUP, asked, self.member_id, self.generation, self.instance_id)
                )
            except PeerError as raised:
                error = raised
            done(self.committed, offsets, error)

        self.request(commit)

    def committed(self, offsets: dict[int, int], error: PeerError | None) -> None:
        if error is None:
            for part, offset in offsets.items():
                self.world.acknowledged[part] = max(offset, self.world.acknowledged.get(part, -1))
        else:
            self.failed(error)

    def leave(self) -> None:
        told = self.world.groups.membership.leave(GROUP, [(self.member_id, self.instance_id)])
        self.request(lambda done: done(self.left, told[0]))

    def left(self, error: PeerError | None) -> None:
        self.member_id, self.assigned = "", None
        if isinstance(error, FencedInstance):
            self.is_fenced = True

    def told(self, error: PeerError | None) -> None:
        if error is not None:
            self.failed(error)

    def failed(self, error: PeerError) -> None:
        self.assigned = None
        if isinstance(error, UnknownMember):
            self.member_id = ""
        self.is_fenced = self.is_fenced or isinstance(error, FencedInstance)

    def disconnected(self) -> None:
        """What was waited for never comes, and is asked for again."""
        self.waits = False
        self.connection += 1


class World:
    """The broker, its disk and its clients."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.disk = Disk()
        self.groups = self.start()
        self.players: list[Player] = []
        # (sequence, player, its connection, what it is told)
        self.answers: list[tuple[int, Player, int, Callable[[], None]]] = []
        self.acknowledged: dict[int, int] = {}
        self.generations: dict[int, tuple[str, str | None]] = {}
        self.owners: dict[tuple[int, int], str] = {}
        self.last_generation = -1
        self.offset = 0
        self.instances = 0

    def start(self) -> GroupCoordinator:
        everything = ConsumerGroups(self.clock, Turn(lambda callback: None), self.disk)  # type: ignore[arg-type]
        groups = everything.add("/", lambda topic: True)
        journal, self.disk.journal = self.disk.journal, None  # type: ignore[assignment]
        for turn in self.disk.turns:
            for record in turn:
                everything.restore(record)
        everything.restored()
        self.disk.journal = journal
        self.everything = everything
        return groups

    def captured(self) -> list[bytes]:
        return sorted(record for state in self.everything.capture() for record in state.records())

    def next_offset(self) -> int:
        self.offset += 1
        return self.offset

    def answer(self, player: Player, connection: int, told: Callable[..., None], *result: object) -> None:
        if connection == player.connection:
            self.answers.append((self.groups.sequence, player, connection, partial(told, *result)))

    def deliver(self) -> None:
        ready = [answer for answer in self.answers if answer[0] <= self.disk.durable_turns]
        self.answers = [answer for answer in self.answers if answer[0] > self.disk.durable_turns]
        for _, player, connection, told in ready:
            if player in self.players and connection == player.connection:
                player.waits = False
                told()

    def check_generation(self, result: JoinResult) -> None:
        assert result.generation >= 0
        told = result.leader, result.protocol
        known = self.generations.setdefault(result.generation, told)
        # A static leader that comes back leads under its new id.
        assert known[1] == told[1], "two protocols in a generation"
        self.last_generation = max(self.last_generation, result.generation)

    def check_assignment(self, player: Player) -> None:
        assert player.assigned is not None
        who = player.instance_id or player.member_id
        for part in player.assigned:
            owner = self.owners.setdefault((player.generation, part), who)
            assert owner == who, f"partition {part} belongs to two members in generation {player.generation}"

    def step(self) -> None:
        choice = self.random.random()
        if choice < 0.03 and len(self.players) < 6:
            self.instances += 1
            is_static = self.random.random() < 0.4
            self.players.append(Player(self, f"s{self.random.randrange(3)}-{self.instances}" if is_static else None))
        elif choice < 0.04 and self.players:
            gone = self.players.pop(self.random.randrange(len(self.players)))
            if gone.instance_id is not None and self.random.random() < 0.7:
                # The same instance, as another process.
                self.players.append(Player(self, gone.instance_id))
        elif choice < 0.12:
            self.clock.advance(self.random.choice((10, 10, 500, 500, DELAY_MS, DELAY_MS, SESSION_MS // 2, SESSION_MS)))
        elif choice < 0.13:
            self.kill()
        elif choice < 0.14 and self.players:
            self.random.choice(self.players).disconnected()
        elif choice < 0.4:
            self.disk.durable_turns = self.random.randint(self.disk.durable_turns, len(self.disk.turns))
        elif self.players:
            self.random.choice(self.players).act(self.random)
        self.disk.end_turn()
        self.deliver()
        self.players = [player for player in self.players if not player.is_fenced]

    def kill(self) -> None:
        """Some of what is not durable survives, as whole turns."""
        self.disk.end_turn()
        before = self.groups
        kept = self.random.randint(self.disk.durable_turns, len(self.disk.turns))
        whole = kept == len(self.disk.turns)
        states = self.captured()
        for group in list(before.groups()):
            group.stop()
        del self.disk.turns[kept:]
        self.disk.durable_turns = kept
        self.groups = self.start()
        if whole:
            assert self.captured() == states, "recovery made something else of it"
        self.answers = []
        for player in self.players:
            player.disconnected()
        found = self.groups.offsets.of(GROUP).get("log", {})
        for part, offset in self.acknowledged.items():
            assert part in found, f"the offset of partition {part} is lost"
            assert found[part].offset >= offset, f"partition {part} went back"
        for group in self.groups.groups():
            assert group.generation >= self.last_generation, "a generation that was told is not known any more"

    def settle(self) -> None:
        """No more chaos: everybody does what they should until the group is stable."""
        self.players = self.players or [Player(self, None)]
        for _ in range(400):
            for player in self.players:
                if player.waits or player.must_sync is not None or player.assigned is None:
                    player.act(self.random)
                else:
                    player.heartbeat()
                self.disk.end_turn()
                self.disk.durable_turns = len(self.disk.turns)
                self.deliver()
            self.clock.advance(1000)
            self.disk.end_turn()
            self.disk.durable_turns = len(self.disk.turns)
            self.deliver()
            self.players = [player for player in self.players if not player.is_fenced]
            group = self.groups.store.groups.get(GROUP)
            if group is None or group.state != STABLE or any(player.assigned is None for player in self.players):
                continue
            if set(group.members) == {player.member_id for player in self.players}:
                break
        else:
            raise AssertionError("the group did not become stable")
        shared = sorted(part for player in self.players for part in player.assigned or ())
        assert shared == list(range(PARTITIONS))


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_to_a_group_its_promises_are_kept(seed: int) -> None:
    print(f"MILLPOND_TEST_SEED={seed}")
    world = World(seed)
    for _ in range(STEPS):
        world.step()
    world.settle()
    world.kill()
