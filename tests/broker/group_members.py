"""Members of a consumer group as tests play them: each with what it was told last."""

from __future__ import annotations

from collections.abc import Callable

from millpond.base.clock import ManualClock
from millpond.base.errors import PeerError
from millpond.broker.groups.coordinator import DEFAULT_SETTINGS, ConsumerGroups, GroupCoordinator
from millpond.broker.groups.errors import MemberIdRequired
from millpond.broker.groups.group import Group, JoinRequest, JoinResult, SyncRequest, SyncResult
from millpond.broker.groups.store import GroupSettings
from millpond.broker.ledger import Ledger
from millpond.broker.turn import Turn

GROUP = "crew"
SESSION_MS = 10_000
REBALANCE_MS = 60_000
DELAY_MS = DEFAULT_SETTINGS.initial_rebalance_delay_ms


def subscription(*topics: str) -> bytes:
    """What a consumer says of itself: version 0, its topics, no user data."""
    names = [topic.encode() for topic in topics]
    listed = b"".join(len(name).to_bytes(2, "big") + name for name in names)
    return b"\x00\x00" + len(names).to_bytes(4, "big") + listed + b"\xff\xff\xff\xff"


def assignment(topic: str, *partitions: int) -> bytes:
    """What a consumer is given: version 0, one topic, no user data."""
    name = topic.encode()
    listed = len(partitions).to_bytes(4, "big") + b"".join(number.to_bytes(4, "big") for number in partitions)
    return b"\x00\x00\x00\x00\x00\x01" + len(name).to_bytes(2, "big") + name + listed + b"\xff\xff\xff\xff"


def groups_without_disk(clock: ManualClock, settings: GroupSettings = DEFAULT_SETTINGS) -> GroupCoordinator:
    """A coordinator of a broker that keeps nothing."""
    return ConsumerGroups(clock, Turn(lambda callback: None), Ledger(), settings).add("/", lambda topic: True)


class Client:
    """One client of a group."""

    def __init__(
        self,
        groups: Callable[[], GroupCoordinator],
        name: str = "client",
        *,
        group: str = GROUP,
        instance_id: str | None = None,
        protocols: tuple[tuple[str, bytes], ...] = (("range", subscription("log")),),
        protocol_type: str = "consumer",
        session_ms: int = SESSION_MS,
        rebalance_ms: int = REBALANCE_MS,
        knows_id_first: bool = True,
        can_skip_assignment: bool = True,
    ) -> None:
        self._groups = groups
        self.name = name
        self.group = group
        self.instance_id = instance_id
        self.protocols = protocols
        self.protocol_type = protocol_type
        self.session_ms = session_ms
        self.rebalance_ms = rebalance_ms
        self.knows_id_first = knows_id_first
        self.can_skip_assignment = can_skip_assignment
        self.member_id = ""
        self.generation = -1
        # The latest answers, None while one is waited for.
        self.joined: JoinResult | None = None
        self.synced: SyncResult | None = None
        self.answers = 0

    @property
    def groups(self) -> GroupCoordinator:
        return self._groups()

    def ask_to_join(self) -> None:
        """One request, as it is."""
        self.joined = None
        self.groups.membership.join(
            JoinRequest(
                self.group, self.member_id, self.instance_id, self.name, "/127.0.0.1", self.session_ms,
                self.rebalance_ms, self.protocol_type, self.protocols, self.knows_id_first, self.can_skip_assignment,
            ),
            self._join_done,
        )  # fmt: skip

    def join(self) -> Client:
        """Join, with another request where the first one only brings an id."""
        self.ask_to_join()
        if self.joined is not None and isinstance(self.joined.error, MemberIdRequired):
            self.ask_to_join()
        return self

    def _join_done(self, result: JoinResult) -> None:
        self.answers += 1
        self.joined = result
        self.member_id = result.member_id
        self.generation = result.generation

    def sync(self, assignments: dict[str, bytes] | None = None, protocol: str | None = None) -> Client:
        self.synced = None
        self.groups.membership.sync(
            SyncRequest(
                self.group, self.member_id, self.instance_id, self.generation, self.protocol_type, protocol,
                tuple((assignments or {}).items()),
            ),
            self._sync_done,
        )  # fmt: skip
        return self

    def _sync_done(self, result: SyncResult) -> None:
        self.synced = result

    def heartbeat(self) -> PeerError | None:
        """What it is told."""
        try:
            self.groups.membership.heartbeat(self.group, self.member_id, self.instance_id, self.generation)
        except PeerError as error:
            return error
        return None

    def leave(self) -> PeerError | None:
        return self.groups.membership.leave(self.group, [(self.member_id, None)])[0]

    @property
    def error(self) -> PeerError | None:
        """Of the latest join."""
        assert self.joined is not None, "the join has not been answered"
        return self.joined.error

    @property
    def is_leader(self) -> bool:
        return self.joined is not None and self.joined.leader == self.member_id

    @property
    def assigned(self) -> bytes:
        assert self.synced is not None, "the sync has not been answered"
        assert self.synced.error is None, self.synced.error
        return self.synced.assignment

    @property
    def sync_error(self) -> PeerError | None:
        assert self.synced is not None, "the sync has not been answered"
        return self.synced.error


def stabilise(clock: ManualClock, *clients: Client) -> Group:
    """Let the clients be the members of a stable group; each is assigned its own name."""
    for client in clients:
        client.join()
    for _ in range(2):
        # The second that comes in the first delay begins another.
        if any(client.joined is None for client in clients):
            clock.advance(DELAY_MS)
    share(*clients)
    return clients[0].groups.group(clients[0].group)


def share(*clients: Client) -> None:
    """All sync, the leader with an assignment for each."""
    given = {client.member_id: client.name.encode() for client in clients}
    for client in clients:
        client.sync(given if client.is_leader else None)
    for client in clients:
        assert client.assigned == client.name.encode()
