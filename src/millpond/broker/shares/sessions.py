"""Share sessions (KIP-932): what a member of a share group wants to be given, so that it need not say it each time.

    epoch    0 begins a session, then every request has the next number; -1 ends it

A session belongs to a connection: with it everything ends that the member holds.
"""

from __future__ import annotations

from typing import Final, TypeVar

from millpond.base.errors import PeerError
from millpond.base.limits import SHARE_SESSION_PARTITIONS_MAX, SHARE_SESSIONS_MAX

Key = TypeVar("Key")

INITIAL_EPOCH: Final = 0
FINAL_EPOCH: Final = -1
_EPOCH_MAX: Final = 0x7FFFFFFF


class ShareSessionNotFound(PeerError):
    """The member has no session here."""


class InvalidShareSessionEpoch(PeerError):
    """The request is not the one that should come next."""


class ShareSessionLimitReached(PeerError):
    """There are as many sessions as there may be, or they want as many partitions."""


class ShareSession:
    """One member's session. `partitions` are (topic id, number), those first that are to be looked at first."""

    def __init__(self, group: str, member: str, connection: object) -> None:
        self.group: Final = group
        self.member: Final = member
        self.connection: Final = connection
        self.epoch = 1
        self.partitions: Final[dict[tuple[bytes, int], None]] = {}

    def rotate(self, place: tuple[bytes, int]) -> None:
        """Let a partition be the last one to be looked at next time: it has just been served."""
        if place in self.partitions:
            del self.partitions[place]
            self.partitions[place] = None


class ShareSessions:
    """The sessions of one virtual host."""

    def __init__(self) -> None:
        self._sessions: Final[dict[tuple[str, str], ShareSession]] = {}
        self._by_connection: Final[dict[object, dict[ShareSession, None]]] = {}
        self._by_group: Final[dict[str, dict[ShareSession, None]]] = {}
        # Of all sessions.
        self.partition_count = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def of_group(self, group: str) -> list[ShareSession]:
        return list(self._by_group.get(group, ()))

    def has_any(self, group: str) -> bool:
        """Whether a group has a session."""
        return group in self._by_group

    def begin(self, group: str, member: str, connection: object) -> ShareSession:
        """A new session, in place of the one that the member may have. ShareSessionLimitReached."""
        current = self._sessions.get((group, member))
        if current is not None:
            self.end(current)
        if len(self._sessions) >= SHARE_SESSIONS_MAX:
            raise ShareSessionLimitReached(f"there are {SHARE_SESSIONS_MAX} share sessions already")
        session = self._sessions[group, member] = ShareSession(group, member, connection)
        self._by_connection.setdefault(connection, {})[session] = None
        self._by_group.setdefault(group, {})[session] = None
        return session

    def go_on(self, group: str, member: str, epoch: int) -> ShareSession:
        """The member's session, whose next request has this epoch, or which is to end now. ShareSessionNotFound,
        InvalidShareSessionEpoch."""
        session = self._sessions.get((group, member))
        if session is None:
            raise ShareSessionNotFound("The share session was not found.")
        if epoch != FINAL_EPOCH:
            if epoch != session.epoch:
                raise InvalidShareSessionEpoch("The share session epoch is invalid.")
            session.epoch = 1 if epoch == _EPOCH_MAX else epoch + 1
        return session

    def want(self, session: ShareSession, place: tuple[bytes, int]) -> None:
        """A session wants a partition. ShareSessionLimitReached."""
        if place in session.partitions:
            return
        if self.partition_count >= SHARE_SESSION_PARTITIONS_MAX:
            raise ShareSessionLimitReached(f"share sessions want {SHARE_SESSION_PARTITIONS_MAX} partitions already")
        session.partitions[place] = None
        self.partition_count += 1

    def forget(self, session: ShareSession, place: tuple[bytes, int]) -> None:
        """A session does not want a partition any more."""
        if place in session.partitions:
            del session.partitions[place]
            self.partition_count -= 1

    def end(self, session: ShareSession) -> None:
        """Forget a session."""
        if self._sessions.pop((session.group, session.member), None) is not None:
            self.partition_count -= len(session.partitions)
        _remove(self._by_connection, session.connection, session)
        _remove(self._by_group, session.group, session)

    def lost(self, connection: object) -> list[ShareSession]:
        """A connection is gone, and its sessions with it: which they were."""
        sessions = list(self._by_connection.get(connection, ()))
        for session in sessions:
            self.end(session)
        return sessions


def _remove(index: dict[Key, dict[ShareSession, None]], key: Key, session: ShareSession) -> None:
    together = index.get(key)
    if together is not None:
        together.pop(session, None)
        if not together:
            del index[key]
