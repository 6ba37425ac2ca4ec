"""What a part of the campaign is given, and what it tells when it is over."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A promise that was not kept: what it was, what happened around it, and how to see it again."""

    what: str
    history: Sequence[str]
    replay: str


@dataclasses.dataclass(slots=True)
class Report:
    """What one part did, and what went wrong. A part that did less than it has to says so as a failure."""

    done: Counter[str] = dataclasses.field(default_factory=Counter)
    figures: dict[str, str] = dataclasses.field(default_factory=dict)
    failures: list[Failure] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """A part's seed, how long it may take, and where it keeps its files. All chance comes from `choose`."""

    seed: int
    seconds: float
    folder: Path
    say: Callable[[str], None]
    began: float = dataclasses.field(default_factory=time.monotonic)

    def choose(self, name: str = "") -> random.Random:
        """Chance for one purpose, so that more of it in one place changes nothing in others."""
        return random.Random(f"{self.seed}/{name}")

    @property
    def seconds_left(self) -> float:
        """Negative when the time is over."""
        return self.began + self.seconds - time.monotonic()
