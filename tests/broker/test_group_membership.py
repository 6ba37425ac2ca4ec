"""Joining, rebalancing, syncing, heartbeats and leaving, as the clients of a consumer group see them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from millpond.base import limits
from millpond.base.clock import ManualClock, Timer
from millpond.broker.groups import membership as membership_module
from millpond.broker.groups.coordinator import DEFAULT_SETTINGS, GroupCoordinator
from millpond.broker.groups.errors import (
    FencedInstance,
    GroupFull,
    GroupTooLarge,
    IllegalGeneration,
    InconsistentProtocol,
    InvalidGroupName,
    InvalidSessionTimeout,
    MemberIdRequired,
    RebalanceInProgress,
    UnknownMember,
)
from millpond.broker.groups.group import Group
from millpond.broker.groups.records import (
    COMPLETING_REBALANCE,
    EMPTY,
    PREPARING_REBALANCE,
    STABLE,
)
from tests.broker.group_members import (
    DELAY_MS,
    GROUP,
    REBALANCE_MS,
    SESSION_MS,
    Client,
    groups_without_disk,
    share,
    stabilise,
    subscription,
)


class Crew:
    """A coordinator, and clients that come to it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.groups = groups_without_disk(self.clock)

    def client(self, name: str, **options: object) -> Client:
        return Client(self._groups, name, **options)  # type: ignore[arg-type]

    def _groups(self) -> GroupCoordinator:
        return self.groups

    def limit(self, **settings: int) -> None:
        self.groups = groups_without_disk(self.clock, replace(DEFAULT_SETTINGS, **settings))

    @property
    def group(self) -> Group:
        return self.groups.group(GROUP)

    def stable(self, *clients: Client) -> Group:
        return stabilise(self.clock, *clients)


def count_timers(clock: ManualClock) -> Callable[[], int]:
    """From now on counts how often somebody asks to be called later. Who never stops asking is stopped."""
    call_later, count = clock.call_later, itertools.count()

    def counted(delay_ms: int, callback: Callable[[], None]) -> Timer:
        assert next(count) < 10_000, "somebody asks for timers without end"
        return call_later(delay_ms, callback)

    clock.call_later = counted  # type: ignore[method-assign]
    return lambda: next(count)


@pytest.fixture
def crew() -> Crew:
    return Crew()


# --- The first generation ---------------------------------------------------------------------------------------------


def test_a_client_without_an_id_is_given_one_and_joins_with_it(crew: Crew) -> None:
    client = crew.client("reader")
    client.ask_to_join()
    assert isinstance(client.error, MemberIdRequired)
    assert client.member_id.startswith("reader-")
    assert not crew.group.members
    client.ask_to_join()
    assert list(crew.group.members) == [client.member_id]


def test_an_old_client_joins_without_knowing_its_id(crew: Crew) -> None:
    client = crew.client("old", knows_id_first=False)
    client.ask_to_join()
    assert client.joined is None
    assert len(crew.group.members) == 1
    crew.clock.advance(DELAY_MS)
    assert client.member_id in crew.group.members


def test_the_first_rebalance_waits_for_more_members(crew: Crew) -> None:
    first, second = crew.client("first").join(), crew.client("second")
    crew.clock.advance(DELAY_MS - 1)
    assert first.joined is None
    assert crew.group.state == PREPARING_REBALANCE
    second.join()
    crew.clock.advance(1)
    # One has come meanwhile, and so may others.
    assert first.joined is None
    crew.clock.advance(DELAY_MS)
    assert first.generation == second.generation == 1
    assert crew.group.state == COMPLETING_REBALANCE


def test_the_first_rebalance_waits_no_longer_than_the_rebalance_timeout(crew: Crew) -> None:
    first = crew.client("first", rebalance_ms=2 * DELAY_MS).join()
    for number in range(5):
        crew.client(str(number), rebalance_ms=2 * DELAY_MS).join()
        crew.clock.advance(DELAY_MS - 500)
    assert first.generation == 1


def test_without_a_delay_the_first_member_begins_at_once(crew: Crew) -> None:
    crew.limit(initial_rebalance_delay_ms=0)
    client = crew.client("only").join()
    crew.clock.advance(0)
    assert client.generation == 1


def test_the_leader_alone_is_told_of_all_members(crew: Crew) -> None:
    clients = [crew.client(name, instance_id=name, protocols=(("range", name.encode()),)) for name in "abc"]
    for client in clients:
        client.join()
    crew.clock.advance(DELAY_MS * 2)
    leaders = [client for client in clients if client.is_leader]
    assert leaders == clients[:1]
    told = leaders[0].joined
    assert told is not None
    assert [(member.instance_id, member.metadata) for member in told.members] == [("a", b"a"), ("b", b"b"), ("c", b"c")]
    assert [client.joined.members for client in clients[1:] if client.joined] == [(), ()]
    assert {(client.joined.protocol_type, client.joined.protocol) for client in clients if client.joined} == {
        ("consumer", "range")
    }


def test_the_protocol_is_the_one_that_most_of_those_common_to_all_like_best(crew: Crew) -> None:
    def client(*names: str) -> Client:
        return crew.client("voter", protocols=tuple((name, subscription("log")) for name in names))

    group = crew.stable(client("a", "b", "c"), client("c", "b"), client("c", "b", "x"))
    assert group.head.protocol == "c"


def test_a_member_without_a_common_protocol_is_refused(crew: Crew) -> None:
    crew.stable(crew.client("range"))
    for options in ({"protocols": (("sticky", b""),)}, {"protocol_type": "connect"}, {"protocols": ()}):
        late = crew.client("late", **options)
        late.ask_to_join()
        assert isinstance(late.error, InconsistentProtocol)
    assert crew.group.state == STABLE


@pytest.mark.parametrize("options", [{"protocols": ()}, {"protocol_type": ""}])
def test_a_member_needs_a_protocol(crew: Crew, options: dict[str, object]) -> None:
    client = crew.client("bare", **options)
    client.ask_to_join()
    assert isinstance(client.error, InconsistentProtocol)


def test_requests_that_no_group_can_serve_are_refused(crew: Crew) -> None:
    nameless = crew.client("client", group="")
    nameless.ask_to_join()
    assert isinstance(nameless.error, InvalidGroupName)
    long = crew.client("client", group="g" * (limits.GROUP_NAME_BYTES_MAX + 1))
    long.ask_to_join()
    assert isinstance(long.error, InvalidGroupName)
    for session_ms in (limits.GROUP_SESSION_TIMEOUT_MIN_MS - 1, limits.GROUP_SESSION_TIMEOUT_MAX_MS + 1):
        hasty = crew.client("client", session_ms=session_ms)
        hasty.ask_to_join()
        assert isinstance(hasty.error, InvalidSessionTimeout)
    stranger = crew.client("client")
    stranger.member_id = "nobody"
    stranger.ask_to_join()
    assert isinstance(stranger.error, UnknownMember)
    assert not list(crew.groups.groups())


def test_an_id_that_is_not_used_is_forgotten_after_the_session_timeout(crew: Crew) -> None:
    client = crew.client("slow")
    client.ask_to_join()
    crew.clock.advance(SESSION_MS)
    assert not crew.group.pending
    client.ask_to_join()
    assert isinstance(client.error, UnknownMember)


def test_a_rebalance_waits_for_those_who_have_an_id_already(crew: Crew) -> None:
    crew.stable(crew.client("first"))
    coming = crew.client("coming")
    coming.ask_to_join()
    second = crew.client("second").join()
    member = next(iter(crew.group.members.values()))
    first = crew.client("first")
    first.member_id, first.generation = member.member_id, 1
    first.join()
    assert second.joined is None
    coming.ask_to_join()
    assert second.generation == coming.generation == first.generation == 2


# --- Syncing ----------------------------------------------------------------------------------------------------------


def test_followers_wait_for_the_leaders_assignments(crew: Crew) -> None:
    leader, follower = crew.client("leader").join(), crew.client("follower").join()
    crew.clock.advance(DELAY_MS * 2)
    follower.sync()
    assert follower.synced is None
    leader.sync({follower.member_id: b"theirs", "nobody": b"lost"})
    assert follower.assigned == b"theirs"
    assert leader.assigned == b""
    assert crew.group.state == STABLE
    # Who comes late finds it.
    assert follower.sync().assigned == b"theirs"


def test_a_sync_tells_the_protocol_and_checks_it(crew: Crew) -> None:
    client = crew.client("only")
    crew.stable(client)
    client.sync(protocol="range")
    assert client.synced is not None
    assert (client.synced.protocol_type, client.synced.protocol) == ("consumer", "range")
    assert isinstance(client.sync(protocol="sticky").sync_error, InconsistentProtocol)


def test_a_sync_needs_the_present_generation_and_a_member(crew: Crew) -> None:
    client = crew.client("only")
    crew.stable(client)
    client.generation += 1
    assert isinstance(client.sync().sync_error, IllegalGeneration)
    client.member_id = "nobody"
    assert isinstance(client.sync().sync_error, UnknownMember)
    client.group = "elsewhere"
    assert isinstance(client.sync().sync_error, UnknownMember)


def test_somebody_new_ends_the_wait_for_the_leader(crew: Crew) -> None:
    leader, follower = crew.client("leader").join(), crew.client("follower").join()
    crew.clock.advance(DELAY_MS * 2)
    follower.sync()
    crew.client("new").join()
    assert isinstance(follower.sync_error, RebalanceInProgress)
    assert isinstance(leader.sync({}).sync_error, RebalanceInProgress)
    assert isinstance(leader.heartbeat(), RebalanceInProgress)


def test_members_that_never_sync_are_removed_after_the_rebalance_timeout(crew: Crew) -> None:
    leader, lost = crew.client("leader", session_ms=300_000), crew.client("lost", session_ms=300_000)
    leader.join()
    lost.join()
    crew.clock.advance(DELAY_MS * 2)
    leader.sync({})
    assert crew.group.state == STABLE
    crew.clock.advance(REBALANCE_MS)
    assert list(crew.group.members) == [leader.member_id]
    assert crew.group.state == PREPARING_REBALANCE


def test_without_the_leaders_sync_the_others_begin_anew(crew: Crew) -> None:
    leader, follower = crew.client("leader", session_ms=300_000).join(), crew.client("other", session_ms=300_000).join()
    crew.clock.advance(DELAY_MS * 2)
    follower.sync()
    crew.clock.advance(REBALANCE_MS)
    assert isinstance(follower.sync_error, RebalanceInProgress)
    follower.join()
    assert follower.is_leader
    assert leader.member_id not in crew.group.members


def test_assignments_have_a_limit(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "GROUP_BYTES_MAX", 1000)
    leader, follower = crew.client("leader").join(), crew.client("follower").join()
    crew.clock.advance(DELAY_MS * 2)
    follower.sync()
    leader.sync({follower.member_id: bytes(1001)})
    assert isinstance(leader.sync_error, GroupTooLarge)
    assert isinstance(follower.sync_error, GroupTooLarge)
    assert crew.group.state == PREPARING_REBALANCE


# --- Later generations ------------------------------------------------------------------------------------------------


def test_a_new_member_has_the_others_join_again(crew: Crew) -> None:
    first, second = crew.client("first"), crew.client("second")
    crew.stable(first)
    second.join()
    assert isinstance(first.heartbeat(), RebalanceInProgress)
    assert second.joined is None
    first.join()
    assert first.generation == second.generation == 2
    assert first.is_leader
    share(first, second)


def test_members_that_do_not_join_again_in_time_are_removed(crew: Crew) -> None:
    gone = crew.client("gone", session_ms=600_000)
    crew.stable(gone)
    second = crew.client("second").join()
    crew.clock.advance(REBALANCE_MS)
    assert second.is_leader
    assert list(crew.group.members) == [second.member_id]
    assert isinstance(gone.heartbeat(), UnknownMember)


def test_the_leader_begins_a_new_generation_by_joining_again(crew: Crew) -> None:
    leader, follower = crew.client("leader"), crew.client("follower")
    crew.stable(leader, follower)
    leader.join()
    assert crew.group.state == PREPARING_REBALANCE
    assert leader.joined is None


def test_a_follower_that_joins_again_unchanged_is_told_the_present_generation(crew: Crew) -> None:
    leader, follower = crew.client("leader"), crew.client("follower")
    group = crew.stable(leader, follower)
    generation = group.generation
    follower.join()
    assert follower.generation == generation
    assert follower.sync().assigned == b"follower"
    assert group.state == STABLE


def test_a_follower_with_another_subscription_begins_a_new_generation(crew: Crew) -> None:
    leader, follower = crew.client("leader"), crew.client("follower")
    group = crew.stable(leader, follower)
    follower.protocols = (("range", subscription("other")),)
    follower.join()
    assert group.state == PREPARING_REBALANCE
    leader.join()
    assert leader.joined is not None
    assert [member.metadata for member in leader.joined.members] == [subscription("log"), subscription("other")]


def test_a_member_that_missed_the_answer_to_its_join_is_told_again(crew: Crew) -> None:
    leader, follower = crew.client("leader").join(), crew.client("follower").join()
    crew.clock.advance(DELAY_MS * 2)
    for client in (leader, follower):
        before = client.joined
        client.join()
        assert client.joined == before
    assert crew.group.generation == 1
    share(leader, follower)


def test_a_member_that_asks_twice_is_answered_twice(crew: Crew) -> None:
    client = crew.client("twice")
    client.join()
    client.ask_to_join()
    assert client.answers == 2
    assert client.joined is not None
    member_id = next(iter(crew.group.members))
    crew.clock.advance(DELAY_MS)
    assert client.answers == 3
    assert client.member_id == member_id


# --- Signs of life ----------------------------------------------------------------------------------------------------


def test_a_member_that_sends_heartbeats_stays(crew: Crew) -> None:
    client = crew.client("alive")
    group = crew.stable(client)
    for _ in range(20):
        crew.clock.advance(SESSION_MS - 1)
        assert client.heartbeat() is None
    assert group.state == STABLE


def test_a_silent_member_is_removed_and_the_others_rebalance(crew: Crew) -> None:
    alive, silent = crew.client("alive"), crew.client("silent")
    group = crew.stable(alive, silent)
    crew.clock.advance(SESSION_MS // 2)
    alive.heartbeat()
    crew.clock.advance(SESSION_MS // 2)
    assert list(group.members) == [alive.member_id]
    assert isinstance(alive.heartbeat(), RebalanceInProgress)
    alive.join()
    assert alive.generation == 2


def test_the_last_silent_member_leaves_an_empty_group(crew: Crew) -> None:
    client = crew.client("silent")
    group = crew.stable(client)
    crew.clock.advance(SESSION_MS)
    assert (group.state, group.generation, group.head.protocol) == (EMPTY, 2, None)
    assert group.head.protocol_type == "consumer"
    assert isinstance(client.heartbeat(), UnknownMember)


def test_a_member_that_the_coordinator_keeps_waiting_is_not_silent(crew: Crew) -> None:
    slow, patient = crew.client("slow", session_ms=REBALANCE_MS), crew.client("patient")
    crew.stable(slow, patient)
    patient.protocols = (("range", subscription("log", "more")),)
    patient.join()
    for _ in range(4):
        crew.clock.advance(SESSION_MS)
        slow.heartbeat()
    assert patient.member_id in crew.group.members
    crew.clock.advance(REBALANCE_MS)
    assert patient.generation == 2


def test_a_client_that_joins_for_the_first_time_and_vanishes_is_forgotten(crew: Crew) -> None:
    silent = crew.client("silent", session_ms=limits.GROUP_SESSION_TIMEOUT_MAX_MS, rebalance_ms=3_600_000)
    crew.stable(silent)
    new = crew.client("new").join()
    crew.clock.advance(limits.GROUP_NEW_MEMBER_TIMEOUT_MS)
    assert isinstance(new.error, UnknownMember)
    assert list(crew.group.members) == [silent.member_id]


def test_a_heartbeat_needs_the_present_generation(crew: Crew) -> None:
    client = crew.client("late")
    crew.stable(client)
    client.generation = 0
    assert isinstance(client.heartbeat(), IllegalGeneration)


# --- Leaving ----------------------------------------------------------------------------------------------------------


def test_a_member_that_leaves_has_the_others_rebalance_at_once(crew: Crew) -> None:
    leader, follower = crew.client("leader"), crew.client("follower")
    group = crew.stable(leader, follower)
    assert leader.leave() is None
    assert group.state == PREPARING_REBALANCE
    follower.join()
    assert follower.is_leader


def test_the_last_member_leaves_an_empty_group_at_once(crew: Crew) -> None:
    client = crew.client("only")
    group = crew.stable(client)
    assert client.leave() is None
    assert (group.state, group.generation) == (EMPTY, 2)
    assert isinstance(client.leave(), UnknownMember)


def test_several_members_leave_at_once_static_ones_by_their_instance(crew: Crew) -> None:
    dynamic, static, other = (
        crew.client("dynamic"),
        crew.client("s", instance_id="s"),
        crew.client("o", instance_id="o"),
    )
    group = crew.stable(dynamic, static, other)
    told = crew.groups.membership.leave(
        GROUP, [(dynamic.member_id, None), ("", "s"), ("", "t"), ("nobody", None), (dynamic.member_id, "o")]
    )
    assert [type(error) for error in told] == [type(None), type(None), UnknownMember, UnknownMember, FencedInstance]
    assert list(group.members) == [other.member_id]


def test_leaving_a_group_that_is_not_there(crew: Crew) -> None:
    (told,) = crew.groups.membership.leave("nowhere", [("member", None)])
    assert isinstance(told, UnknownMember)


def test_a_client_that_gives_its_id_back_does_not_hold_a_rebalance_up(crew: Crew) -> None:
    first, coming = crew.client("first"), crew.client("coming")
    crew.stable(first)
    coming.ask_to_join()
    first.join()
    assert first.joined is None
    coming.leave()
    assert first.generation == 2


def test_a_member_that_leaves_while_it_waits_is_told_so(crew: Crew) -> None:
    waiting = crew.client("waiting").join()
    member_id = waiting.member_id
    crew.groups.membership.leave(GROUP, [(member_id, None)])
    assert isinstance(waiting.error, UnknownMember)
    crew.clock.advance(DELAY_MS)
    assert crew.group.state == EMPTY


# --- Static members ---------------------------------------------------------------------------------------------------


def test_a_static_member_that_comes_back_takes_its_place_without_a_rebalance(crew: Crew) -> None:
    leader, static = crew.client("leader"), crew.client("static", instance_id="s")
    group = crew.stable(leader, static)
    generation = group.generation
    back = crew.client("static", instance_id="s").join()
    assert back.error is None
    assert (back.generation, group.state) == (generation, STABLE)
    assert back.member_id != static.member_id
    assert back.sync().assigned == b"static"
    assert isinstance(static.heartbeat(), FencedInstance)
    assert isinstance(static.sync().sync_error, FencedInstance)
    assert leader.heartbeat() is None


@pytest.mark.parametrize("can_skip", [True, False])
def test_a_static_leader_that_comes_back_assigns_nothing(crew: Crew, can_skip: bool) -> None:
    leader, follower = crew.client("leader", instance_id="s"), crew.client("follower")
    group = crew.stable(leader, follower)
    back = crew.client("leader", instance_id="s", can_skip_assignment=can_skip).join()
    assert back.joined is not None
    assert group.head.leader == back.member_id
    assert back.joined.skip_assignment is can_skip
    # An old client cannot be told to assign nothing, so it is not told that it leads.
    assert back.joined.leader == (back.member_id if can_skip else leader.member_id)
    assert len(back.joined.members) == (2 if can_skip else 0)
    assert back.sync().assigned == b"leader"
    assert group.state == STABLE


def test_a_static_member_that_comes_back_with_another_protocol_rebalances(crew: Crew) -> None:
    both = (("range", subscription("log")), ("sticky", subscription("log")))
    leader, static = crew.client("leader", protocols=both), crew.client("static", instance_id="s", protocols=both)
    group = crew.stable(leader, static)
    crew.client("static", instance_id="s", protocols=both[1:]).join()
    assert group.state == PREPARING_REBALANCE
    leader.join()
    assert group.head.protocol == "sticky"


def test_a_static_member_that_comes_back_while_the_leader_assigns_rebalances(crew: Crew) -> None:
    leader, static = crew.client("leader").join(), crew.client("static", instance_id="s").join()
    crew.clock.advance(DELAY_MS * 2)
    static.sync()
    crew.client("static", instance_id="s").join()
    assert isinstance(static.sync_error, FencedInstance)
    assert crew.group.state == PREPARING_REBALANCE
    assert isinstance(leader.sync({}).sync_error, RebalanceInProgress)


def test_a_static_member_that_waits_is_fenced_by_the_one_that_comes_after_it(crew: Crew) -> None:
    first = crew.client("first", instance_id="s").join()
    second = crew.client("second", instance_id="s").join()
    assert isinstance(first.error, FencedInstance)
    crew.clock.advance(DELAY_MS * 2)
    assert second.generation == 1
    assert len(crew.group.members) == 1


def test_a_static_member_may_be_away_for_a_rebalance(crew: Crew) -> None:
    first, away = crew.client("first"), crew.client("away", instance_id="s", session_ms=600_000)
    crew.stable(first, away)
    second = crew.client("second").join()
    first.join()
    assert first.joined is None
    crew.clock.advance(REBALANCE_MS)
    assert first.generation == second.generation == 2
    assert set(crew.group.members) == {first.member_id, second.member_id, away.member_id}


def test_a_group_of_static_members_that_are_all_away_waits_for_them(crew: Crew) -> None:
    away = crew.client("away", instance_id="s", session_ms=600_000)
    other = crew.client("other")
    crew.stable(away, other)
    other.leave()
    crew.clock.advance(REBALANCE_MS * 3)
    assert crew.group.state == PREPARING_REBALANCE
    back = crew.client("away", instance_id="s", session_ms=600_000).join()
    assert (back.error, back.generation, back.is_leader) == (None, 2, True)


def test_a_group_whose_members_are_away_and_do_not_want_to_be_waited_for_keeps_nobody_busy(crew: Crew) -> None:
    away = crew.client("away", instance_id="s", session_ms=600_000, rebalance_ms=0)
    other = crew.client("other")
    crew.stable(away, other)
    other.leave()
    timers = count_timers(crew.clock)
    crew.clock.advance(60_000)
    assert crew.group.state == PREPARING_REBALANCE
    assert timers() <= 100
    back = crew.client("away", instance_id="s", session_ms=600_000).join()
    assert (back.error, back.generation, back.is_leader) == (None, 2, True)


def test_a_static_member_with_an_id_that_is_not_its_own_is_fenced(crew: Crew) -> None:
    static, other = crew.client("static", instance_id="s"), crew.client("other")
    crew.stable(static, other)
    static.member_id = other.member_id
    static.ask_to_join()
    assert isinstance(static.error, FencedInstance)


# --- Limits -----------------------------------------------------------------------------------------------------------


def test_a_full_group_takes_nobody_else(crew: Crew) -> None:
    crew.limit(members_max=2)
    first, second, third = crew.client("first"), crew.client("second"), crew.client("third")
    group = crew.stable(first, second)
    third.ask_to_join()
    assert isinstance(third.error, GroupFull)
    assert group.state == STABLE
    second.leave()
    third.join()
    first.join()
    assert first.generation == third.generation == 3 - 1


def test_of_a_group_that_is_filling_the_first_to_come_are_taken(crew: Crew) -> None:
    crew.limit(members_max=2)
    clients = [crew.client(str(number), knows_id_first=False) for number in range(3)]
    for client in clients:
        client.ask_to_join()
    assert isinstance(clients[2].error, GroupFull)
    crew.clock.advance(DELAY_MS * 2)
    assert [client.generation for client in clients] == [1, 1, -1]


def test_there_are_only_so_many_groups(crew: Crew) -> None:
    crew.limit(groups_max=1)
    crew.client("first").join()
    other = crew.client("other", group="another").join()
    assert isinstance(other.error, GroupFull)


def test_ids_are_given_to_so_many_clients_only(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "GROUP_PENDING_MEMBERS_MAX", 2)
    clients = [crew.client(str(number)) for number in range(3)]
    for client in clients:
        client.ask_to_join()
    assert [type(client.error) for client in clients] == [MemberIdRequired, MemberIdRequired, GroupFull]


def test_what_members_say_of_themselves_has_a_limit(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    talker = crew.client("talker", protocols=(("range", bytes(limits.GROUP_MEMBER_BYTES_MAX)),)).join()
    assert isinstance(talker.error, GroupTooLarge)
    many = crew.client("many", protocols=(("", b""),) * (limits.GROUP_MEMBER_BYTES_MAX // 8)).join()
    assert isinstance(many.error, GroupTooLarge)
    for limit in ("GROUP_BYTES_MAX", "GROUPS_BYTES_MAX"):
        monkeypatch.setattr(membership_module, limit, 600)
        clients = [crew.client("c", group=limit, protocols=(("range", bytes(200)),)).join() for _ in range(3)]
        assert [client.joined is None for client in clients] == [True, True, False]
        assert isinstance(clients[2].error, GroupTooLarge)
        monkeypatch.undo()
        for client in clients[:2]:
            crew.groups.membership.leave(limit, [(client.member_id, None)])
        assert crew.groups.store.totals.member_bytes == 0


@pytest.mark.parametrize("long", ["protocol_type", "instance_id", "protocols"])
def test_names_that_are_in_every_record_have_a_limit(crew: Crew, long: str) -> None:
    name = "n" * (limits.GROUP_NAME_BYTES_MAX + 1)
    client = crew.client("client", **{long: ((name, b""),) if long == "protocols" else name}).join()
    assert isinstance(client.error, InconsistentProtocol)
    assert not list(crew.groups.groups())
