"""Regular expressions of clients: by which members subscribe to topics, and operators choose transactional ids.

Apache Kafka takes RE2's syntax there, and so does this: what matches does so in time that grows with the length of the
name alone, whatever a client has written. An expression matches a whole name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from millpond.base.limits import GROUP_PATTERN_CHARACTERS_MAX, GROUP_PATTERN_MEMORY_BYTES_MAX
from millpond.broker.groups.errors import InvalidPattern


def check_pattern(pattern: str) -> None:
    """InvalidPattern where it cannot be read, or is too much."""
    compiled(pattern)


def matching(pattern: str, names: Iterable[str], may_see: Callable[[str], bool]) -> tuple[str, ...]:
    """The names that a pattern matches, of those that may be seen, in their order."""
    matches = compiled(pattern).fullmatch
    return tuple(sorted([name for name in names if matches(name) is not None and may_see(name)]))


def compiled(pattern: str) -> Any:
    """The expression, whose `fullmatch` says whether it matches a name. InvalidPattern."""
    if len(pattern) > GROUP_PATTERN_CHARACTERS_MAX:
        raise InvalidPattern(f"SubscribedTopicRegex has more than {GROUP_PATTERN_CHARACTERS_MAX} characters.")
    # Few members subscribe by a pattern.
    import re2

    options = re2.Options()
    options.max_mem = GROUP_PATTERN_MEMORY_BYTES_MAX
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        raise InvalidPattern(f"SubscribedTopicRegex `{pattern}` is not a valid regular expression: {error}.") from None
