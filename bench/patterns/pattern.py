"""What a pattern is, and how its figures become text."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.peers import RunningPeer

OURS: Final = "millpond"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long measurements take."""

    seconds: float
    levelling_seconds: float


@dataclass(slots=True)
class Outcome:
    """The rows of one broker, without its name, and what is expected of Millpond with whether it was so."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    expected: list[tuple[str, bool]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pattern:
    name: str
    title: str
    headings: Sequence[str]
    measure: Callable[[RunningPeer, Effort], Coroutine[Any, Any, Outcome]]
    options: Sequence[str] = ()
    """Further options of `millpond serve`."""


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of all lie; 0 for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"
