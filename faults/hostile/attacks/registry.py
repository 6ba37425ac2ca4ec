"""What an attack is, and the table of them, in the order in which they run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Final

from faults.hostile.target import Target

# Does the attack at a scale of 0 to 1, and says what it did. Raises where the broker's answers are not what they should
# be.
Work = Callable[[Target, random.Random, float], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Attack:
    """By how much the broker's memory may grow while it goes on, and how much of it may be kept after it: Python and
    the C library give memory back in pieces, and tables that were large once stay large."""

    name: str
    run: Work
    memory_mib: int
    kept_mib: int


ATTACKS: Final[dict[str, Attack]] = {}


def attack(name: str, *, memory_mib: int = 128, kept_mib: int = 64) -> Callable[[Work], Work]:
    """Add an attack to the table."""

    def add(work: Work) -> Work:
        assert name not in ATTACKS
        ATTACKS[name] = Attack(name, work, memory_mib, kept_mib)
        return work

    return add


def times(count: int, scale: float) -> int:
    """So many of something at full scale; a few at least."""
    return max(4, int(count * scale))
