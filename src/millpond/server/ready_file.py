"""The file that tells a script that the broker is ready, and where it listens.

    {"pid": 4711, "listeners": {"amqp": "127.0.0.1:5672"}, "data": "/var/lib/millpond"}

It appears whole, when all listeners accept, and goes when the broker stops. `data` is null for a broker in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from millpond.base.errors import ConfigurationError


def write(path: Path, listeners: Mapping[str, str], data: Path | None) -> None:
    """Write the file at once, whole. Raises ConfigurationError where that cannot be."""
    facts = {"pid": os.getpid(), "listeners": dict(listeners), "data": None if data is None else str(data.absolute())}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise ConfigurationError(f"ready_file: {path} cannot be written: {error.strerror}") from None


def remove(path: Path) -> None:
    """Take the file away, unless another broker has written its own there since."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        if json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid():
            path.unlink()
