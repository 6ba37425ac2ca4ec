"""Deadlines of a connection: the handshake, heartbeats, and the answer to a close.

Heartbeats (AMQP 0-9-1, 4.2.7): each side sends something in every interval, and a peer that is silent for two of them
is gone. The timer here runs twice per interval, so that what is sent is never later than the client was promised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from mypy_extensions import i64

from millpond.base.clock import Clock, Timer

HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
# Half intervals of silence after which the peer is gone.
_SILENCES_MAX: Final = 4


@final
class Liveness:
    """One connection's timers: at most one runs at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._timer: Timer | None = None
        # Set by the connection whenever bytes come or go.
        self.heard = True
        self.sent = False
        self._interval_s: i64 = 0
        self._silences: i64 = 0
        self._beat: Callable[[], None] | None = None
        self._silent: Callable[[], None] | None = None

    def expect_within(self, timeout_ms: i64, expired: Callable[[], None]) -> None:
        """Call `expired` unless something else is expected, or nothing any more, before `timeout_ms` have passed."""
        self.stop()
        self._timer = self._clock.call_later(int(timeout_ms), expired)

    def keep_beating(self, interval_s: i64, beat: Callable[[], None], silent: Callable[[], None]) -> None:
        """From now on call `beat` when nothing was sent for half an interval, `silent` when the peer is gone. An
        interval of 0 means that neither side cares."""
        self.stop()
        self._interval_s = interval_s
        self._silences = 0
        self._beat = beat
        self._silent = silent
        if interval_s > 0:
            self._arm()

    def stop(self) -> None:
        """Expect nothing any more."""
        # The callbacks belong to the connection: kept, they would keep it alive until the garbage collector comes.
        self._beat = None
        self._silent = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = self._clock.call_later(int(self._interval_s * 500), self._due)

    def _due(self) -> None:
        self._timer = None
        beat = self._beat
        silent = self._silent
        if beat is None or silent is None:
            return
        if self.heard:
            self.heard = False
            self._silences = 0
        else:
            self._silences += 1
            if self._silences >= _SILENCES_MAX:
                silent()
                return
        if self.sent:
            self.sent = False
        else:
            beat()
        self._arm()
