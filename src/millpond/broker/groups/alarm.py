"""A timer that is put off again and again: sessions, rebalances."""

from __future__ import annotations

from collections.abc import Callable

from millpond.base.clock import Clock, Timer


class Alarm:
    """Calls back when a time has passed in which it was not put off.

    Members put it off with every heartbeat. The clock's timer is left as it is then, and looks at the time when it
    fires.
    """

    def __init__(self, clock: Clock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self._timer: Timer | None = None
        self._fires_ms = 0
        self._due_ms = 0

    def set(self, delay_ms: int) -> None:
        """Have it go off `delay_ms` from now, whatever was asked for before."""
        self._due_ms = self._clock.monotonic_ms() + delay_ms
        if self._timer is not None and self._fires_ms > self._due_ms:
            self.stop()
        if self._timer is None:
            self._arm(delay_ms)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, delay_ms: int) -> None:
        self._fires_ms = self._clock.monotonic_ms() + delay_ms
        self._timer = self._clock.call_later(delay_ms, self._fired)

    def _fired(self) -> None:
        self._timer = None
        left_ms = self._due_ms - self._clock.monotonic_ms()
        if left_ms > 0:
            self._arm(left_ms)
        else:
            self._callback()
