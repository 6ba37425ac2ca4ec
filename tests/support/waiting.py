"""Waiting for a condition with a deadline: what the tests use where others would sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

# Far longer than anything takes on an idle machine, so that a loaded one does not fail a test.
DEADLINE_S = 20.0
POLL_INTERVAL_S = 0.01


def eventually(
    condition: Callable[[], Value],
    what: str,
    *,
    deadline_s: float = DEADLINE_S,
    step: Callable[[], object] | None = None,
) -> Value:
    """Return the first truthy value of `condition`, or fail with `what` after `deadline_s`.

    `step` runs between two looks: a client that has to be driven (pika's `process_data_events`) is driven there.
    """
    give_up_at = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {deadline_s:g} s: {what} (last seen: {value!r})")
        if step is None:
            time.sleep(POLL_INTERVAL_S)
        else:
            step()
