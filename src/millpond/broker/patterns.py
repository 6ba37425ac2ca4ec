"""Regular expressions that administrators write: of permissions and of policies.

They are Python's, with ASCII classes, where RabbitMQ's are PCRE; docs/security.md says where the two differ. Python's
engine tries one way after the other, and `(a+)+$` has more of them than anybody lives to see, while the broker does
nothing else. So the ways are counted when an expression is set. Where there may be many, RE2 matches it, whose time
grows with the name only; and what RE2 does not know, as it looks around or back, is refused where they are too many.
"""

from __future__ import annotations

import re
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, Final, Protocol

from millpond.base.limits import (
    NAME_BYTES_MAX,
    PATTERN_CHARACTERS_MAX,
    PATTERN_MEMORY_BYTES_MAX,
    PATTERN_STEPS_MAX,
    PATTERN_WAYS_MAX,
    PATTERN_WAYS_WITHOUT_RE2_MAX,
)


class Pattern(Protocol):
    """What is searched in names."""

    def search(self, string: str, /) -> object | None:
        """None where it is not in there."""


class _Linear:
    """An expression as RE2 knows it."""

    def __init__(self, compiled: Any) -> None:
        self._compiled: Final = compiled

    def search(self, string: str, /) -> object | None:
        # A name may hold bytes that are no UTF-8, which RE2 does not take.
        found: object | None = self._compiled.search(string.encode("utf-8", "replace").decode())
        return found


_ENDLESS: Final = 1 << 64
# What is parsed is made of lists, which no set could be asked for.
_AT_THE_BEGINNING: Final = ((ops.AT, ops.AT_BEGINNING), (ops.AT, ops.AT_BEGINNING_STRING))
NOTHING: Final[Pattern] = re.compile(r"(?!)")


def compile_pattern(pattern: str, characters_max: int | None = PATTERN_CHARACTERS_MAX) -> Pattern:
    """Raises ValueError, whose text says what is wrong with the pattern."""
    if characters_max is not None and len(pattern) > characters_max:
        raise ValueError(f"more than {characters_max} characters")
    # PCRE has these classes and Python has not: it would take the letters between the colons one by one.
    if re.search(r"\[:\^?\w+:\]", pattern):
        raise ValueError("POSIX classes are not supported")
    try:
        compiled = re.compile(pattern, re.ASCII)
        ways = _ways_to_search(parser.parse(pattern, re.ASCII))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if ways <= PATTERN_WAYS_MAX:
        return compiled
    linear = _linear(pattern)
    if linear is not None:
        return linear
    if ways > PATTERN_WAYS_WITHOUT_RE2_MAX:
        raise ValueError("it may take too long to match: repetitions inside or after each other, with a look around")
    return compiled


def _linear(pattern: str) -> Pattern | None:
    """The expression for RE2, where that can have it."""
    # Few expressions need it.
    import re2

    options = re2.Options()
    options.max_mem = PATTERN_MEMORY_BYTES_MAX
    options.log_errors = False
    try:
        linear = re2.compile(pattern, options)
    except (re2.error, UnicodeError):
        return None
    if linear.programsize > PATTERN_STEPS_MAX:
        raise ValueError("it is too large when its repetitions are written out")
    return _Linear(linear)


def _ways_to_search(parsed: Any) -> int:
    is_anchored = len(parsed) > 0 and parsed[0] in _AT_THE_BEGINNING
    return _ways(parsed) * (1 if is_anchored else NAME_BYTES_MAX)


def _ways(parsed: Any) -> int:
    """In how many ways an expression may be matched from one place of a name on: a bound from above."""
    ways = 1
    for operation, argument in parsed:
        ways = min(ways * _ways_of(operation, argument), _ENDLESS)
    return ways


def _ways_of(operation: Any, argument: Any) -> int:
    if operation is ops.BRANCH:
        return sum([_ways(branch) for branch in argument[1]])
    if operation is ops.SUBPATTERN:
        return _ways(argument[3])
    if operation in {ops.ASSERT, ops.ASSERT_NOT}:
        return _ways(argument[1])
    if operation is ops.ATOMIC_GROUP:
        return _ways(argument)
    if operation is ops.GROUPREF_EXISTS:
        return _ways(argument[1]) + (_ways(argument[2]) if argument[2] is not None else 1)
    if operation in {ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT}:
        least, most, repeated = argument
        most = min(int(most), NAME_BYTES_MAX)
        times: int = max(1, most - int(least) + 1)
        inner = _ways(repeated)
        # More than 2 to the 64 is more than enough to know.
        return times if inner == 1 else min(times * int(inner ** min(most, 64)), _ENDLESS)
    return 1
