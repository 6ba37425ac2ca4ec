"""Random lives of a consumer group whose assignment the broker decides: members of both protocols join, give up and
take partitions, change what they read, leave and vanish; answers are lost, topics grow, and the broker is killed at any
moment. A failing run prints its seed; `MILLPOND_TEST_SEED` runs that one alone.

What must hold whatever happens:

- no partition is read by two members at once: members read what they were told until they have been told otherwise, or
  the broker has let their time pass;
- member epochs never go back while a member lives, and a restart changes neither them nor what members have;
- recovery makes the same of the records as the broker that wrote them;
- when the chaos ends, those who live share all partitions evenly.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from millpond.base.clock import ManualClock
from millpond.base.errors import PeerError
from millpond.broker.groups.assignors.places import Place, places_of
from millpond.broker.groups.consumer_membership import ConsumerHeartbeat
from millpond.broker.groups.coordinator import ConsumerGroups, GroupCoordinator
from millpond.broker.groups.errors import (
    FencedInstance,
    FencedMemberEpoch,
    IllegalGeneration,
    MemberIdRequired,
    RebalanceInProgress,
    UnknownMember,
    UnreleasedInstance,
)
from millpond.broker.groups.group import JoinRequest, JoinResult, SyncRequest, SyncResult
from millpond.broker.groups.modern_records import Assignment
from millpond.broker.groups.records import STABLE
from millpond.broker.groups.subscription import assigned_partitions
from millpond.broker.turn import Turn
from tests.broker.group_members import GROUP
from tests.broker.test_group_simulation import Disk

SESSION_MS, REBALANCE_MS = 45_000, 60_000
TOPICS_ALL = ("log", "orders", "odd")
STEPS = 800
SEEDS = [int(os.environ["MILLPOND_TEST_SEED"])] if "MILLPOND_TEST_SEED" in os.environ else list(range(40))


class Directory:
    """The topics."""

    def __init__(self) -> None:
        self.version = 1
        self.sizes = {"log": 4, "orders": 2}

    def names(self) -> Iterator[str]:
        return iter(self.sizes)

    def find(self, name: str) -> tuple[bytes, int] | None:
        return (name.encode().ljust(16, b"."), self.sizes[name]) if name in self.sizes else None

    def name(self, topic_id: bytes) -> str | None:
        name = topic_id.rstrip(b".").decode()
        return name if name in self.sizes else None


class Player:
    """A client of the new protocol, which does what clients do."""

    def __init__(self, world: World, number: int, instance_id: str | None) -> None:
        self.world = world
        self.number = number
        self.instance_id = instance_id
        self.member_id = f"new-{number}"
        self.epoch = 0
        self.has: set[Place] = set()
        self.wanted: set[Place] | None = None
        self.topics: tuple[str, ...] = ("log", "orders")
        # When it was heard of last, and when it had nothing to give up, nor to join again for.
        self.heard_ms = self.settled_ms = world.clock.monotonic_ms()
        self.is_over = False

    def act(self, rng: random.Random) -> None:
        choice = rng.random()
        if choice < 0.05 and self.epoch > 0:
            self.leave(rng)
        elif choice < 0.1:
            self.topics = tuple(rng.sample(TOPICS_ALL, rng.randint(1, 3)))
            self.beat(rng, tells_all=True)
        elif choice < 0.4 and self.wanted is not None:
            # What is not to be read any more is let go before anything else.
            self.has &= self.wanted
        else:
            self.beat(rng, tells_all=rng.random() < 0.1)

    def beat(self, rng: random.Random, *, tells_all: bool = False) -> None:
        is_joining = self.epoch == 0
        if is_joining:
            self.has, self.wanted = set(), None
        asked = ConsumerHeartbeat(
            GROUP,
            self.member_id,
            self.epoch,
            self.instance_id,
            rebalance_timeout_ms=REBALANCE_MS if is_joining or tells_all else -1,
            topics=self.topics if is_joining or tells_all else None,
            owned=self.world.assignment(self.has) if is_joining or tells_all or rng.random() < 0.8 else None,
        )
        try:
            answer = self.world.groups.consumers.heartbeat(asked)
        except (FencedMemberEpoch, UnknownMember):
            self.has, self.wanted, self.epoch = set(), None, 0
            return
        except (FencedInstance, UnreleasedInstance):
            self.has, self.is_over = set(), True
            return
        if rng.random() < 0.1 and not is_joining:
            # The answer is lost: all is said again with the next one, and the epoch may be the one before.
            self.wanted = None if self.wanted is None else self.wanted
            return
        self.heard_ms = self.world.clock.monotonic_ms()
        assert answer.epoch >= self.epoch, "an epoch went back"
        self.epoch = answer.epoch
        if answer.assigned is not None:
            self.wanted = set(places_of(answer.assigned))
            self.has = max(self.wanted, self.has)

    def leave(self, rng: random.Random) -> None:
        epoch = -2 if self.instance_id is not None and rng.random() < 0.7 else -1
        self.has, self.wanted, self.is_over = set(), None, True
        asked = ConsumerHeartbeat(GROUP, self.member_id, epoch, self.instance_id)
        try:
            self.world.groups.consumers.heartbeat(asked)
        except (UnknownMember, FencedInstance):
            return
        if epoch == -2:
            self.world.players.append(Player(self.world, self.world.next_number(), self.instance_id))

    def is_late_at(self, now_ms: int) -> bool:
        """Whether the client itself knows by then that the broker waits for it no longer."""
        return now_ms - self.heard_ms >= SESSION_MS or now_ms - self.settled_ms >= REBALANCE_MS

    def be_late(self) -> None:
        self.has, self.wanted, self.epoch = set(), None, 0


class OldPlayer(Player):
    """A client of the classic protocol with a cooperative strategy: it goes on reading what it has."""

    def __init__(self, world: World, number: int, instance_id: str | None) -> None:
        super().__init__(world, number, instance_id)
        self.member_id = ""
        self.must_join = True
        self.must_sync = False
        self.waits = False
        self.leader: JoinResult | None = None

    def act(self, rng: random.Random) -> None:
        if self.waits:
            return
        if self.must_join:
            self.join()
        elif self.must_sync:
            self.sync()
        elif rng.random() < 0.05:
            self.has, self.is_over = set(), True
            self.world.groups.membership.leave(GROUP, [(self.member_id, self.instance_id)])
        else:
            try:
                self.world.groups.membership.heartbeat(GROUP, self.member_id, self.instance_id, self.epoch)
                self.heard_ms = self.settled_ms = self.world.clock.monotonic_ms()
            except PeerError as error:
                self.failed(error)

    def join(self) -> None:
        owned = {name: [number for topic, number in sorted(self.has) if topic == found[0]]
                 for name in TOPICS_ALL if (found := self.world.topics.find(name)) is not None}  # fmt: skip
        protocols = (("cooperative-sticky", subscription(self.topics, owned)),)
        self.waits = True
        self.world.groups.membership.join(
            JoinRequest(
                GROUP, self.member_id, self.instance_id, "old", "/host", SESSION_MS, REBALANCE_MS, "consumer", protocols
            ),
            self.joined,
        )

    def joined(self, result: JoinResult) -> None:
        self.waits = False
        if result.error is None:
            self.member_id, self.epoch = result.member_id, result.generation
            self.must_join, self.must_sync, self.leader = False, True, result
            self.heard_ms = self.world.clock.monotonic_ms()
        elif isinstance(result.error, MemberIdRequired):
            self.member_id = result.member_id
        else:
            self.failed(result.error)

    def sync(self) -> None:
        told = self.leader
        assert told is not None
        given: dict[str, dict[str, list[int]]] = {}
        if told.leader == self.member_id:
            # In a classic group the members assign. Nothing is taken from anybody who has not let it go.
            given = self.world.shared_by_leader([member.member_id for member in told.members])
        assignments = tuple([(member_id, written(parts)) for member_id, parts in given.items()])
        self.waits = True
        asked = SyncRequest(GROUP, self.member_id, self.instance_id, self.epoch, "consumer", told.protocol, assignments)
        self.world.groups.membership.sync(asked, self.synced)

    def synced(self, result: SyncResult) -> None:
        self.waits = self.must_sync = False
        if result.error is not None:
            self.failed(result.error)
            return
        self.heard_ms = self.world.clock.monotonic_ms()
        parts = assigned_partitions(result.assignment)
        assert parts is not None
        wanted = {(found[0], number) for name, numbers in parts.items() for number in numbers
                  if (found := self.world.topics.find(name)) is not None}  # fmt: skip
        self.must_join = not self.has <= wanted
        self.settled_ms = self.settled_ms if self.must_join else self.heard_ms
        self.has = wanted

    def failed(self, error: PeerError) -> None:
        self.must_join, self.must_sync = True, False
        if isinstance(error, (UnknownMember, IllegalGeneration)):
            self.has = set()
        if isinstance(error, UnknownMember):
            self.member_id = ""
        elif isinstance(error, FencedInstance):
            self.has, self.is_over = set(), True
        else:
            assert isinstance(error, (IllegalGeneration, RebalanceInProgress)), error

    def disconnected(self) -> None:
        if self.waits:
            self.waits, self.must_join, self.must_sync = False, True, False

    def be_late(self) -> None:
        self.has, self.must_join, self.must_sync = set(), True, False


def subscription(topics: tuple[str, ...], owned: dict[str, list[int]]) -> bytes:
    """Version 1: with what the member has."""
    names = b"".join(len(topic).to_bytes(2, "big") + topic.encode() for topic in topics)
    return b"\x00\x01" + len(topics).to_bytes(4, "big") + names + b"\xff\xff\xff\xff" + partitions(owned)


def partitions(parts: dict[str, list[int]]) -> bytes:
    data = len(parts).to_bytes(4, "big")
    for topic, numbers in parts.items():
        data += len(topic).to_bytes(2, "big") + topic.encode() + len(numbers).to_bytes(4, "big")
        data += b"".join(number.to_bytes(4, "big") for number in numbers)
    return data


def written(parts: dict[str, list[int]]) -> bytes:
    return b"\x00\x01" + partitions(parts) + b"\xff\xff\xff\xff"


class World:
    """The broker, its disk and its clients."""

    def __init__(self, seed: int, kinds: tuple[type[Player], ...]) -> None:
        self.random = random.Random(seed)
        self.kinds = kinds
        self.clock = ManualClock()
        self.disk = Disk()
        self.topics = Directory()
        self.groups = self.start()
        self.players: list[Player] = []
        self.number = 0

    def start(self) -> GroupCoordinator:
        everything = ConsumerGroups(self.clock, Turn(lambda callback: None), self.disk)  # type: ignore[arg-type]
        groups = everything.add("/", lambda topic: True, self.topics)
        journal, self.disk.journal = self.disk.journal, None  # type: ignore[assignment]
        for turn in self.disk.turns:
            for record in turn:
                everything.restore(record)
        everything.restored()
        self.disk.journal = journal
        self.everything = everything
        return groups

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def assignment(self, places: set[Place]) -> Assignment:
        found: dict[bytes, set[int]] = {}
        for topic_id, number in places:
            found.setdefault(topic_id, set()).add(number)
        return {topic_id: frozenset(numbers) for topic_id, numbers in found.items()}

    def shared_by_leader(self, member_ids: list[str]) -> dict[str, dict[str, list[int]]]:
        """Each gets what it has; what nobody has goes round."""
        has = {player.member_id: player.has for player in self.players}
        given: dict[str, dict[str, list[int]]] = {member_id: {} for member_id in member_ids}
        taken = set().union(*has.values()) if has else set()
        for name, size in self.topics.sizes.items():
            topic_id = name.encode().ljust(16, b".")
            for number in range(size):
                place = (topic_id, number)
                owner = next((one for one in member_ids if place in has.get(one, set())), None)
                if owner is None and place not in taken:
                    owner = member_ids[number % len(member_ids)]
                if owner is not None:
                    given[owner].setdefault(name, []).append(number)
        return given

    def captured(self) -> list[bytes]:
        return sorted(record for state in self.everything.capture() for record in state.records())

    def step(self) -> None:
        choice = self.random.random()
        if choice < 0.03 and len(self.players) < 6:
            instance = f"s{self.next_number()}" if self.random.random() < 0.4 else None
            self.players.append(self.random.choice(self.kinds)(self, self.next_number(), instance))
        elif choice < 0.04 and self.players:
            # Gone without a word.
            self.players.remove(self.random.choice(self.players))
        elif choice < 0.1:
            self.advance(self.random.choice((10, 500, 3_000, 5_000, 20_000, SESSION_MS)))
        elif choice < 0.12:
            self.kill()
        elif choice < 0.13:
            name = self.random.choice(TOPICS_ALL)
            self.topics.sizes[name] = self.topics.sizes.get(name, 0) + 1
            self.topics.version += 1
        elif self.players:
            self.random.choice(self.players).act(self.random)
        self.disk.end_turn()
        self.players = [player for player in self.players if not player.is_over]
        self.check()

    def advance(self, duration_ms: int) -> None:
        """Clients whose time will be over know it themselves, and stop reading before the broker lets others read."""
        for player in self.players:
            if player.is_late_at(self.clock.monotonic_ms() + duration_ms):
                player.be_late()
        self.clock.advance(duration_ms)

    def check(self) -> None:
        readers: dict[Place, Player] = {}
        for player in self.players:
            for place in player.has:
                other = readers.setdefault(place, player)
                assert other is player, f"{other.member_id} and {player.member_id} both read {place}"

    def kill(self) -> None:
        self.disk.end_turn()
        states = self.captured()
        self.everything.stop()
        self.groups = self.start()
        assert self.captured() == states, "recovery made something else of it"
        for player in self.players:
            player.heard_ms = self.clock.monotonic_ms()
            if isinstance(player, OldPlayer):
                player.disconnected()

    def settle(self) -> None:
        """No more chaos."""
        for player in self.players:
            player.topics = ("log", "orders")
        calm = random.Random(0)
        for turn in range(600):
            for player in list(self.players):
                if isinstance(player, OldPlayer):
                    if turn == 0:
                        player.must_join = not player.waits
                    self.act_calmly(player, calm)
                else:
                    if player.wanted is not None:
                        player.has &= player.wanted
                    player.beat(_Calm(), tells_all=True)
            self.disk.end_turn()
            self.clock.advance(500)
            self.players = [player for player in self.players if not player.is_over]
            self.check()
            if turn > 200 and self.is_settled():
                return
        shown = [(player.member_id, player.epoch, sorted(player.has)) for player in self.players]
        raise AssertionError(f"the group does not come to rest: {shown}")

    def act_calmly(self, player: OldPlayer, calm: random.Random) -> None:
        if player.waits:
            return
        if player.must_join:
            player.join()
        elif player.must_sync:
            player.sync()
        else:
            player.act(_Calm())

    def is_settled(self) -> bool:
        if not self.players:
            return True
        group = self.groups.group(GROUP)
        everything = {(name.encode().ljust(16, b"."), number)
                      for name in ("log", "orders") for number in range(self.topics.sizes[name])}  # fmt: skip
        sizes = [len(player.has) for player in self.players]
        read = set().union(*[player.has for player in self.players])
        if group.modern is None:
            # The leader here shares all topics, and does not care for evenness.
            return group.state == STABLE and read >= everything
        return group.state == STABLE and read == everything and max(sizes) - min(sizes) <= 1


class _Calm(random.Random):
    """Nothing foolish happens."""

    def random(self) -> float:
        return 0.5


def run(seed: int, *kinds: type[Player]) -> None:
    print(f"MILLPOND_TEST_SEED={seed}")
    world = World(seed, kinds)
    for _ in range(STEPS):
        world.step()
    world.settle()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_partition_is_read_by_two_members_of_the_new_protocol(seed: int) -> None:
    run(seed, Player)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_partition_is_read_by_two_members_of_a_group_that_migrates(seed: int) -> None:
    run(seed, Player, OldPlayer)
