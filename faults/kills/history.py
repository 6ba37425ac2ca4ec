"""What the clients of a workload have written down, all of it in the order of time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

# Of what concerns a failure so many lines are told.
LINES_MAX: Final = 60
# A broken promise breaks for many messages at once. So many are told of each kind.
TOLD_MAX: Final = 5


class Broken(NamedTuple):
    """A promise that was not kept, and the lines that say how it came."""

    what: str
    history: list[str]


@dataclass(slots=True)
class Event:
    """One line of a client's file. `at`, and `began` among the facts, are of the machine's monotonic clock."""

    client: str
    at: float
    what: str
    facts: dict[str, Any]
    line: str = ""

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.client} {self.what} {json.dumps(self.facts, separators=(',', ':'))[:400]}"


@dataclass(slots=True)
class History:
    """All that was written down, in the order of time."""

    events: list[Event] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> History:
        events = [event for path in sorted(folder.glob("*.notes")) for event in _events_of(path)]
        events.sort(key=lambda event: event.at)
        return cls(events)

    def of(self, *what: str) -> Iterator[Event]:
        return (event for event in self.events if event.what in what)

    def about(self, *words: str, client: str | None = None) -> list[str]:
        """The lines that have one of the words, if any are given; the last ones where there are many."""
        found = [
            str(event) for event in self.events
            if (client is None or event.client == client) and (not words or any(word in event.line for word in words))
        ]  # fmt: skip
        return found[-LINES_MAX:]

    def around(self, at: float, seconds: float = 1.0) -> list[str]:
        return [str(event) for event in self.events if abs(event.at - at) <= seconds][:LINES_MAX]


def _events_of(path: Path) -> Iterator[Event]:
    for line in path.read_text().splitlines():
        facts = json.loads(line)
        yield Event(path.stem, facts.pop("at"), facts.pop("what"), facts, line)
