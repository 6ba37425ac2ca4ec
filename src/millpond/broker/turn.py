"""The end of a turn of the event loop, where everything that a turn caused is done at once.

Protocols call the core while bytes arrive; nothing is written meanwhile. At the end of the turn, in this order:

    queues deliver -> the catalog commits -> the journal takes one frame -> connections write

so that a batch costs one journal frame and one socket write per connection, whatever it holds, and a reply never
leaves before what it speaks of has been handed to the catalog and the journal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from mypy_extensions import i64, trait

from millpond.base.limits import QUEUE_RUNS_PER_TURN_MAX

logger = logging.getLogger(__name__)


@trait
class TurnTask:
    """Something that wants to run once at the end of the turn."""

    turn_pending: bool

    def run_turn(self) -> None:
        raise NotImplementedError


class Turn:
    """Collects tasks during a turn and runs them at its end.

    `schedule` asks the event loop for a call at the end of the turn (`loop.call_soon`).
    """

    def __init__(self, schedule: Callable[[Callable[[], None]], object]) -> None:
        self._schedule: Final = schedule
        self._scheduled = False
        self._queues: list[TurnTask] = []
        self._later: list[TurnTask] = []
        self._outputs: list[TurnTask] = []
        # Called between delivering and writing, in order.
        self.commits: Final[list[Callable[[], None]]] = []
        # The wall clock as of the latest bytes or timer: one reading for all that a turn does.
        self.now_ms: i64 = 0

    def touch_queue(self, queue: TurnTask) -> None:
        """Let `queue` deliver at the end of this turn, also when it is ending already."""
        if not queue.turn_pending:
            queue.turn_pending = True
            self._queues.append(queue)
            if not self._scheduled:
                self._scheduled = True
                self._schedule(self.end)

    def touch_queue_later(self, queue: TurnTask) -> None:
        """Let `queue` go on at the end of the next turn: it has had its share of this one."""
        if not queue.turn_pending:
            queue.turn_pending = True
            self._later.append(queue)

    def touch_output(self, output: TurnTask) -> None:
        """Let `output` write at the end of this turn."""
        if not output.turn_pending:
            output.turn_pending = True
            self._outputs.append(output)
            self.touch()

    def touch(self) -> None:
        """Make sure that this turn has an end at which the journal is written."""
        if not self._scheduled:
            self._scheduled = True
            self._schedule(self.end)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call this in the next turn: the rest of what is too much for one, so that others are served in between."""
        self._schedule(callback)

    def end(self) -> None:
        """Run the end of the turn. Called by the event loop; at shutdown and in tests also directly."""
        self._scheduled = False
        # The list grows while it is walked: dead-lettering reaches further queues, which run in this same turn.
        queues = self._queues
        position = 0
        while position < len(queues) and position < QUEUE_RUNS_PER_TURN_MAX:
            queue = queues[position]
            position += 1
            queue.turn_pending = False
            try:
                queue.run_turn()
            except Exception:
                # A bug with one queue must not keep the others from being served.
                logger.exception("a bug stopped the deliveries of a queue for this turn")
        self._queues = queues[position:] + self._later
        self._later = []
        if self._queues:
            self.touch()
        for commit in self.commits:
            try:
                commit()
            except Exception:
                logger.exception("a bug at the end of the turn")
        outputs = self._outputs
        self._outputs = []
        for output in outputs:
            output.turn_pending = False
            try:
                output.run_turn()
            except Exception:
                logger.exception("a bug kept a connection from writing")
