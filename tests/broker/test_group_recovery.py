"""Consumer groups over restarts: after a clean stop, a kill, and a power cut in the middle of a rebalance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from millpond.base.clock import ManualClock
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.broker.broker import DEFAULT_VHOST
from millpond.broker.groups.coordinator import GroupCoordinator
from millpond.broker.groups.errors import GroupNotFound, RebalanceInProgress, UnknownMember
from millpond.broker.groups.group import Group
from millpond.broker.groups.offsets import CommitRequest, OffsetCommit
from millpond.broker.groups.records import (
    COMPLETING_REBALANCE,
    EMPTY,
    PREPARING_REBALANCE,
    STABLE,
    CommittedOffset,
    GroupHead,
    MemberChanged,
    MemberState,
)
from millpond.catalog.rows import VhostRow
from tests.broker.group_members import DELAY_MS, GROUP, REBALANCE_MS, SESSION_MS, Client, share, stabilise
from tests.broker.life import Life, copy_catalog

TOPIC = "log"


class Lives:
    """One disk, and one broker on it after the other, with a topic."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = self.new_disk()
        self.number = 0
        self.catalog = folder / "catalog-0"
        self.life = self.begin(ManualClock())
        self.life.vhost.topics.create(TOPIC, 4, {})
        self.life.settle_down()

    def new_disk(self) -> FaultyFilesystem:
        return FaultyFilesystem(1)

    def begin(self, clock: ManualClock) -> Life:
        return Life(self.disk, self.catalog, clock=clock)

    @property
    def groups(self) -> GroupCoordinator:
        return self.life.vhost.groups

    def group(self, group_id: str = GROUP) -> Group:
        return self.groups.group(group_id)

    def client(self, name: str, **options: object) -> Client:
        """Of the broker that lives at the time."""
        return Client(lambda: self.groups, name, **options)  # type: ignore[arg-type]

    def advance(self, duration_ms: int) -> None:
        self.life.clock.advance(duration_ms)
        self.life.end_turn()

    def stable(self, *clients: Client) -> Group:
        group = stabilise(self.life.clock, *clients)
        self.life.settle_down()
        return group

    def commit(self, *offsets: tuple[str, int, int], group: str = GROUP) -> None:
        request = CommitRequest(group, tuple(OffsetCommit(*one) for one in offsets))
        assert not self.groups.offsets.commit(request)

    def cut_power(self, keeps_some: bool = False) -> Life:
        """What was durable is there in the next life; with `keeps_some`, some of what was on its way too."""
        old = self.life
        with self.disk.guard:
            disk = self.disk.copy_for_crash()
        catalog = self._next_catalog()
        old.copy_durable_catalog(catalog)
        old.vanish()
        disk.crash(keeps_some)
        self.disk = disk
        return self._live_on()

    def told_by_kill(self) -> int:
        """Up to which commit all is there after a kill. Here the threads are let finish what they were given."""
        return 1 << 60

    def kill(self) -> Life:
        """What has been handed to the operating system is there in the next life."""
        self.life.end_turn()
        self.life.vanish()
        copy_catalog(self.catalog_before(), self._next_catalog())
        return self._live_on()

    def stop(self) -> Life:
        self.life.stop()
        copy_catalog(self.catalog_before(), self._next_catalog())
        return self._live_on()

    def catalog_before(self) -> Path:
        return self.catalog

    def _next_catalog(self) -> Path:
        self.number += 1
        self.catalog = self.folder / f"catalog-{self.number}"
        return self.catalog

    def _live_on(self) -> Life:
        self.life = self.begin(self.life.clock)
        return self.life


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(tmp_path)
    yield lives
    lives.life.abandon()


Durable = tuple[GroupHead, list[MemberState], dict[str, dict[int, CommittedOffset]]]


def durable_of(group: Group) -> Durable:
    return group.head, [member.state for member in group.members.values()], group.offsets


@pytest.mark.parametrize("end", ["stop", "kill", "cut_power"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_stable_group_goes_on_without_a_rebalance(lives: Lives, end: str, checkpoint: bool) -> None:
    leader, static = lives.client("leader"), lives.client("static", instance_id="s")
    group = lives.stable(leader, static)
    lives.commit((TOPIC, 0, 3), group="other")
    lives.life.settle_down()
    if checkpoint:
        lives.life.checkpoint()
    before = durable_of(group)
    getattr(lives, end)()
    assert durable_of(lives.group()) == before
    assert lives.group().state == STABLE
    assert leader.heartbeat() is None
    assert static.sync().assigned == b"static"
    assert lives.groups.offsets.of("other")[TOPIC][0].offset == 3
    # A follower that joins again unchanged is told what it knows.
    static.join()
    assert static.generation == leader.generation
    lives.commit((TOPIC, 1, 4), group="other")


def test_a_power_cut_before_the_commit_takes_what_nobody_was_told(lives: Lives) -> None:
    lives.commit((TOPIC, 0, 1))
    lives.life.settle_down()
    lives.commit((TOPIC, 0, 2))
    assert lives.groups.sequence > lives.life.ledger.durable()
    lives.cut_power()
    assert lives.groups.offsets.of(GROUP)[TOPIC][0].offset == 1


def test_what_the_coordinator_has_told_is_durable_with_its_sequence(lives: Lives) -> None:
    lives.commit((TOPIC, 0, 1))
    lives.life.pump_until(lambda: lives.life.ledger.durable() >= lives.groups.sequence)
    lives.cut_power()
    assert lives.groups.offsets.of(GROUP)[TOPIC][0].offset == 1


def test_members_that_were_joining_are_still_expected_after_a_restart(lives: Lives) -> None:
    first, second = lives.client("first"), lives.client("second")
    lives.stable(first)
    second.join()
    lives.life.settle_down()
    lives.cut_power()
    assert lives.group().state == PREPARING_REBALANCE
    assert len(lives.group().members) == 2
    assert isinstance(first.heartbeat(), RebalanceInProgress)
    # The second lost its connection, and with it the answer: all it has is the id that it was given.
    second.member_id = list(lives.group().members)[1]
    second.join()
    assert second.joined is None
    first.join()
    assert first.generation == second.generation == 2
    share(first, second)


def test_members_that_do_not_come_back_after_a_restart_are_removed(lives: Lives) -> None:
    first, second = lives.client("first"), lives.client("second")
    lives.stable(first)
    second.join()
    lives.life.settle_down()
    lives.kill()
    first.join()
    lives.advance(SESSION_MS)
    assert (first.generation, list(lives.group().members)) == (2, [first.member_id])


def test_a_group_whose_leader_was_to_assign_waits_for_it_after_a_restart(lives: Lives) -> None:
    leader, follower = lives.client("leader").join(), lives.client("follower").join()
    lives.advance(DELAY_MS)
    lives.advance(DELAY_MS)
    assert leader.generation == 1
    lives.life.settle_down()
    lives.cut_power()
    assert lives.group().state == COMPLETING_REBALANCE
    # The leader missed the answer to its join, and asks again.
    told = leader.joined
    leader.join()
    assert leader.joined == told
    follower.sync()
    leader.sync({follower.member_id: b"theirs"})
    assert follower.assigned == b"theirs"
    assert lives.group().state == STABLE


def test_who_does_not_sync_after_a_restart_is_removed(lives: Lives) -> None:
    leader = lives.client("leader", session_ms=300_000).join()
    follower = lives.client("follower", session_ms=300_000).join()
    lives.advance(DELAY_MS)
    lives.advance(DELAY_MS)
    lives.life.settle_down()
    lives.kill()
    follower.sync()
    lives.advance(REBALANCE_MS)
    assert isinstance(follower.sync_error, RebalanceInProgress)
    assert leader.member_id not in lives.group().members


def test_sessions_begin_anew_at_a_restart(lives: Lives) -> None:
    client = lives.client("reader")
    lives.stable(client)
    lives.advance(SESSION_MS - 1)
    lives.stop()
    lives.advance(SESSION_MS - 1)
    assert client.heartbeat() is None
    lives.advance(SESSION_MS)
    assert lives.group().state == EMPTY
    assert isinstance(client.heartbeat(), UnknownMember)
    lives.life.settle_down()
    lives.cut_power()
    assert (lives.group().state, lives.group().generation) == (EMPTY, 2)


def test_an_id_that_was_not_used_is_forgotten_by_a_restart(lives: Lives) -> None:
    client = lives.client("reader")
    client.ask_to_join()
    lives.life.settle_down()
    lives.kill()
    client.ask_to_join()
    assert isinstance(client.error, UnknownMember)


def test_what_happened_since_a_checkpoint_is_applied_to_it(lives: Lives) -> None:
    client = lives.client("reader")
    lives.stable(client)
    lives.commit((TOPIC, 0, 1), (TOPIC, 1, 1), group="other")
    lives.commit((TOPIC, 0, 1), group="gone")
    lives.life.checkpoint()
    client.leave()
    lives.commit((TOPIC, 0, 2), group="other")
    lives.groups.offsets.delete("other", [(TOPIC, 1)])
    lives.groups.delete("gone")
    lives.life.settle_down()
    before = durable_of(lives.group()), durable_of(lives.group("other"))
    lives.cut_power()
    assert (durable_of(lives.group()), durable_of(lives.group("other"))) == before
    with pytest.raises(GroupNotFound):
        lives.group("gone")
    assert lives.life.broker.groups.totals.offsets == 1


def test_a_checkpoint_has_the_state_of_its_moment_and_not_a_later_one(lives: Lives) -> None:
    lives.commit((TOPIC, 0, 1))
    lives.life.settle_down()
    lives.life.checkpointer.begin()
    lives.commit((TOPIC, 0, 2))
    lives.life.pump_until(lambda: not lives.life.checkpointer.running)
    lives.life.settle_down()
    lives.kill()
    assert lives.groups.offsets.of(GROUP)[TOPIC][0].offset == 2


@pytest.mark.parametrize("checkpoint", [False, True])
def test_offsets_of_a_deleted_topic_do_not_come_back(lives: Lives, checkpoint: bool) -> None:
    lives.commit((TOPIC, 0, 5))
    lives.life.settle_down()
    if checkpoint:
        lives.life.checkpoint()
    topics = lives.life.vhost.topics
    topics.delete(topics.topic(TOPIC))
    topics.create(TOPIC, 4, {})
    lives.life.settle_down()
    lives.cut_power()
    assert not lives.groups.offsets.of(GROUP)


def test_a_topic_whose_deletion_only_the_catalog_knows_has_no_offsets(lives: Lives) -> None:
    lives.commit((TOPIC, 0, 5))
    lives.life.settle_down()
    lives.life.catalog.delete_topic(DEFAULT_VHOST, TOPIC)
    lives.life.catalog.commit()
    lives.kill()
    assert not lives.groups.offsets.of(GROUP)


def test_a_deleted_queue_takes_its_offsets_with_it(lives: Lives) -> None:
    lives.life.declare_stream("stream")
    lives.commit(("stream", 0, 5))
    lives.life.vhost.remove_queue(lives.life.stream("stream"))
    assert not lives.groups.offsets.of(GROUP)


def test_a_virtual_host_that_is_made_again_has_no_groups(lives: Lives) -> None:
    broker = lives.life.broker
    for _ in range(2):
        vhost = broker.create_vhost("side")
        assert not list(vhost.groups.groups())
        vhost.topics.create("side-log", 1, {})
        vhost.groups.offsets.commit(CommitRequest("side-crew", (OffsetCommit("side-log", 0, 1),)))
        lives.life.settle_down()
        broker.delete_vhost("side")
        assert broker.groups.totals.groups == broker.groups.totals.offsets == 0
    broker.create_vhost("side")
    lives.life.settle_down()
    lives.cut_power()
    assert not list(lives.life.broker.vhost("side").groups.groups())


def test_a_virtual_host_of_which_only_the_catalog_knows_that_it_is_new_has_no_groups(lives: Lives) -> None:
    broker = lives.life.broker
    vhost = broker.create_vhost("side")
    vhost.topics.create("side-log", 1, {})
    vhost.groups.offsets.commit(CommitRequest("side-crew", (OffsetCommit("side-log", 0, 1),)))
    vhost.transactions.begin_producer("x", 60_000)
    vhost.shares.configure("side-crew", {"share.auto.offset.reset": "earliest"})
    lives.life.settle_down()
    broker.delete_vhost("side")
    lives.life.settle_down()
    lives.life.catalog.add_vhost(VhostRow("side"))
    lives.life.catalog.commit()
    lives.kill()
    found = lives.life.broker.vhost("side")
    assert not list(found.groups.groups())
    assert not list(found.transactions.all())
    assert not list(found.shares.configured())


def test_groups_of_virtual_hosts_are_apart(lives: Lives) -> None:
    vhost = lives.life.broker.create_vhost("side")
    vhost.topics.create(TOPIC, 1, {})
    vhost.groups.offsets.commit(CommitRequest(GROUP, (OffsetCommit(TOPIC, 0, 1),)))
    lives.commit((TOPIC, 0, 2))
    lives.life.settle_down()
    lives.life.checkpoint()
    lives.kill()
    assert lives.groups.offsets.of(GROUP)[TOPIC][0].offset == 2
    assert lives.life.broker.vhost("side").groups.offsets.of(GROUP)[TOPIC][0].offset == 1


def test_what_is_left_of_a_damaged_journal_makes_a_group_that_goes_on(lives: Lives) -> None:
    """Without its beginning, the journal speaks of members and assignments of a group that it does not describe."""
    leader, follower = lives.client("leader"), lives.client("follower")
    lives.stable(leader, follower)
    store = lives.groups.store
    group = lives.group()
    member = group.members[follower.member_id].state
    store.groups.clear()
    remains = Group(GROUP, GroupHead(STABLE, 7, "consumer", "range", leader.member_id))
    store.groups[GROUP] = remains
    store.apply(MemberChanged(GROUP, member))
    lives.groups.restored()
    assert (remains.state, remains.head.leader, remains.generation) == (STABLE, follower.member_id, 7)
    remains.members.clear()
    lives.groups.restored()
    assert (remains.state, remains.head.leader, remains.generation) == (EMPTY, None, 8)


def test_a_stopped_broker_changes_nothing_by_itself(lives: Lives) -> None:
    client, new = lives.client("reader"), lives.client("new")
    group = lives.stable(client)
    new.ask_to_join()
    before = durable_of(group)
    lives.life.broker.groups.stop()
    lives.life.clock.advance(10 * REBALANCE_MS)
    assert durable_of(group) == before
    assert not lives.life.ledger.has_changes()
