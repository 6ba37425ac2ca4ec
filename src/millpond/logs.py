"""How logs read: concise lines on a terminal, one JSON object a line otherwise, always on standard error.

Every module logs through the standard library, `logging.getLogger(__name__)`, with facts as `extra={"queue": name}`: a
broker that is embedded in somebody's program then follows that program's own logging. `configure` is for a process of
our own. What is called a secret is never written, whoever logs it.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final, Literal, TextIO

if TYPE_CHECKING:
    from structlog.types import EventDict, Processor, WrappedLogger

SECRET_NAMES: Final = ("password", "passwd", "secret", "token", "authorization", "credential", "private_key")
HIDDEN: Final = "**********"


def configure(
    log_format: Literal["auto", "human", "json"] = "auto", level: str = "info", stream: TextIO | None = None
) -> None:
    """Send all logs of this process to `stream` (standard error), from `level` up."""
    # Structlog takes 0.1 s to import, and an embedded broker needs none of it.
    import structlog

    target = sys.stderr if stream is None else stream
    human = target.isatty() if log_format == "auto" else log_format == "human"
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _hide_secrets,
    ]
    last: list[Processor]
    if human:
        shared.append(structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False))
        last = [
            structlog.dev.ConsoleRenderer(
                colors=target.isatty(), pad_event_to=40, exception_formatter=structlog.dev.plain_traceback
            )
        ]
    else:
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"))
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Libraries say at INFO what an operator never asked for.
    for noisy in ("alembic", "asyncio", "uvicorn"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


def _hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key in event:
        if any(name in key.lower() for name in SECRET_NAMES):
            event[key] = HIDDEN
    return event
