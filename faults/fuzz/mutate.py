"""Changes of bytes from a seed, for where there is no coverage to go by: the tests, and Python without atheris."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

from faults.fuzz.targets.target import INPUT_BYTES_MAX

# What numbers and lengths are wrong by.
_NUMBERS: Final = (
    b"\0", b"\1", b"\x7f", b"\x80", b"\xff", b"\0\0", b"\xff\xff", b"\x7f\xff", b"\0\0\0\0", b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\0\x0f\xff\xff", b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7,
    b"\x40" + b"\0" * 7, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\xfe\xff\xff\xff\x0f",
)  # fmt: skip
_CHANGES_MAX: Final = 5
_PIECE_BYTES_MAX: Final = 16


def mutated(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """`data` after some changes, for one of which a piece may come from one of the others."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, _CHANGES_MAX)):
        at = chance.randrange(len(changed) + 1)
        size = chance.randint(1, _PIECE_BYTES_MAX)
        choice = chance.randrange(8)
        if choice == 0:
            del changed[at : at + size]
        elif choice == 1:
            changed[at:at] = changed[at : at + size]
        elif choice == 2:
            number = chance.choice(_NUMBERS)
            changed[at : at + len(number)] = number
        elif choice == 3:
            changed[at:at] = chance.choice(_NUMBERS)
        elif choice == 4 and changed:
            changed[at % len(changed)] = chance.randrange(256)
        elif choice == 5 and others:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            changed[at:] = other[start:]
        elif choice == 6 and chance.random() < 0.3:
            del changed[at:]
        elif changed:
            changed[at % len(changed)] ^= 1 << chance.randrange(8)
    return bytes(changed[:INPUT_BYTES_MAX])


def mutations(seeds: Sequence[bytes], chance: random.Random) -> Iterator[bytes]:
    """Endlessly many inputs made of the seeds."""
    while True:
        yield mutated(chance.choice(seeds), seeds, chance)
