"""Who waits for the journal, and what the disk's state means to publishers."""

from __future__ import annotations

import logging
from typing import Final

from mypy_extensions import i64, mypyc_attr

from millpond.base.errors import StorageFailed
from millpond.storage.journal import JournalListener

logger = logging.getLogger(__name__)

ALARM_MEMORY: Final = "memory"
ALARM_DISK: Final = "disk"
ALARM_STORAGE: Final = "storage"
# Not an alarm that anybody is told of: the journal is behind, and publishers wait for a moment.
FLOW: Final = "flow"
# Alarms of one kind that are logged between two calls of `interval_passed`.
ALARMS_LOGGED_PER_INTERVAL: Final = 2


@mypyc_attr(allow_interpreted_subclasses=True)
class CommitWaiter:
    """Somebody who promised to say when something is durable."""

    def committed(self, durable_sequence: i64) -> bool:
        """Everything up to `durable_sequence` is durable. Whether there is more to wait for."""
        raise NotImplementedError

    def commit_failed(self) -> None:
        """Nothing more will become durable: whatever is promised must be refused."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class AlarmListener:
    """Somebody who publishes, and is to be held back while an alarm is on."""

    def alarms_changed(self, reasons: list[str]) -> None:
        """The alarms that are on now."""
        raise NotImplementedError


class Alarms:
    """Reasons to hold publishers back. Consumers are never held back: they are how the reason goes away."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.raised_total = 0
        self._listeners: dict[AlarmListener, None] = {}
        self._logged: dict[str, int] = {}

    def raise_alarm(self, reason: str) -> None:
        if reason not in self.reasons:
            if reason != FLOW:
                self.raised_total += 1
                if self._logged.get(reason, 0) < ALARMS_LOGGED_PER_INTERVAL:
                    self._logged[reason] = self._logged.get(reason, 0) + 1
                    logger.warning("publishers are blocked: low on %s", reason)
            self.reasons = [*self.reasons, reason]
            self._tell()

    def clear_alarm(self, reason: str) -> None:
        if reason in self.reasons:
            if reason != FLOW and self._logged.get(reason, 0) < ALARMS_LOGGED_PER_INTERVAL:
                logger.warning("the %s alarm is over", reason)
            self.reasons = [other for other in self.reasons if other != reason]
            self._tell()

    def add(self, listener: AlarmListener) -> None:
        self._listeners[listener] = None

    def remove(self, listener: AlarmListener) -> None:
        self._listeners.pop(listener, None)

    def interval_passed(self) -> None:
        """Called from time to time: what comes and goes all the while is logged a few times in between only."""
        self._logged = {}

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener.alarms_changed(self.reasons)


class Commits(JournalListener):
    """Passes on what the journal says."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms: Final = alarms
        self._waiters: list[CommitWaiter] = []
        self.has_failed = False
        # The journal waits for room on the disk.
        self.is_blocked = False

    def wait(self, waiter: CommitWaiter) -> None:
        """Tell `waiter` of every commit until it has nothing to wait for. It must not be waiting already."""
        if self.has_failed:
            waiter.commit_failed()
        else:
            self._waiters.append(waiter)

    def committed(self, durable_sequence: i64) -> None:
        waiters = self._waiters
        self._waiters = []
        for waiter in waiters:
            if waiter.committed(durable_sequence):
                self._waiters.append(waiter)

    def blocked(self, is_blocked: bool) -> None:
        self.is_blocked = is_blocked
        if is_blocked:
            self._alarms.raise_alarm(ALARM_DISK)
        else:
            self._alarms.clear_alarm(ALARM_DISK)

    def failed(self, error: StorageFailed) -> None:
        logger.critical("the journal can no longer be written; nothing is confirmed until a restart: %s", error)
        self.has_failed = True
        self._alarms.raise_alarm(ALARM_STORAGE)
        waiters = self._waiters
        self._waiters = []
        for waiter in waiters:
            waiter.commit_failed()
