"""Regular expressions that administrators write: of permissions and of policies.

They are Python's, with ASCII classes, where RabbitMQ's are PCRE; docs/security.md says where the two differ. They come
from administrators, who are trusted not to write one that backtracks without end.
"""

from __future__ import annotations

import re

from millpond.base.limits import PATTERN_CHARACTERS_MAX


def compile_pattern(pattern: str, characters_max: int | None = PATTERN_CHARACTERS_MAX) -> re.Pattern[str]:
    """Raises ValueError, whose text says what is wrong with the pattern."""
    if characters_max is not None and len(pattern) > characters_max:
        raise ValueError(f"more than {characters_max} characters")
    # PCRE has these classes and Python has not: it would take the letters between the colons one by one.
    if re.search(r"\[:\^?\w+:\]", pattern):
        raise ValueError("POSIX classes are not supported")
    try:
        return re.compile(pattern, re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
