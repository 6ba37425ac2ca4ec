"""How logs read: concise lines on a terminal, one JSON object a line otherwise, always on standard error.

Every module logs through the standard library, `logging.getLogger(__name__)`, with facts as `extra={"queue": name}`: a
broker that is embedded in somebody's program then follows that program's own logging. `configure` is for a process of
our own. What is called a secret is never written, whoever logs it.

Peers that are refused by the thousand are not worth a line each, nor the disk: of one kind of line, which is a module's
text before its facts are put in, some are written every ten seconds, and how many were not.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final, Literal, TextIO

from millpond.base.limits import LOG_INTERVAL_S, LOG_KINDS_MAX, LOG_LINES_OF_A_KIND_MAX

if TYPE_CHECKING:
    from structlog.types import EventDict, Processor, WrappedLogger

SECRET_NAMES: Final = ("password", "passwd", "secret", "token", "authorization", "credential", "private_key")
HIDDEN: Final = "**********"


class FloodFilter(logging.Filter):
    """Leaves out what is said too often. What is critical is always said."""

    def __init__(self) -> None:
        super().__init__()
        # Of each kind, when its interval began, and how many lines have come since.
        self._counts: Final[dict[tuple[str, int, str], list[float]]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.CRITICAL:
            return True
        kind = (record.name, record.levelno, str(record.msg))
        counted = self._counts.get(kind)
        if counted is None:
            if len(self._counts) >= LOG_KINDS_MAX:
                self._counts.clear()
            counted = self._counts[kind] = [record.created, 0]
        left_out = 0
        if not 0 <= record.created - counted[0] < LOG_INTERVAL_S:
            left_out = int(counted[1]) - LOG_LINES_OF_A_KIND_MAX
            counted[:] = record.created, 0
        counted[1] += 1
        if left_out > 0:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more like this were left out before)", ()
        elif counted[1] == LOG_LINES_OF_A_KIND_MAX:
            record.msg, record.args = f"{record.getMessage()} (more like this are left out for now)", ()
        return counted[1] <= LOG_LINES_OF_A_KIND_MAX


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
    handler.addFilter(FloodFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Libraries say at INFO what an operator never asked for.
    for noisy in ("alembic", "asyncio", "uvicorn"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


def _hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key in event:
        if any(name in key.lower() for name in SECRET_NAMES):
            event[key] = HIDDEN
    return event
