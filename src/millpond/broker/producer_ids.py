"""Ids of idempotent producers, none of which is ever given twice.

The catalog remembers up to where ids may be in use; it is told of a block of them at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from millpond.base.limits import KAFKA_PRODUCER_IDS
from millpond.broker.turn import Turn

if TYPE_CHECKING:
    from millpond.catalog.catalog import Catalog

SETTING: Final = "producer_ids_end"


class ProducerIds:
    """Hands out ids. They may be told to a client when the turn's commit is durable."""

    def __init__(self, catalog: Catalog, turn: Turn) -> None:
        self._catalog: Final = catalog
        self._turn: Final = turn
        self._next = 0
        self._end = 0

    def restore(self, settings: dict[str, str]) -> None:
        """Go on behind what may be in use."""
        self._next = self._end = int(settings.get(SETTING, "0"))

    def next(self) -> int:
        """An id that nobody has."""
        if self._next == self._end:
            self._end += KAFKA_PRODUCER_IDS
            self._catalog.put_setting(SETTING, str(self._end))
            self._turn.touch()
        self._next += 1
        return self._next - 1
