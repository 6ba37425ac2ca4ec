"""Streams that AMQP has declared are topics with one partition.

The rows of their queues become such; the ids of their logs, and the bindings to them, stay. Texts of what was declared
are copied as they are.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"

_LONG_MAX: Final = (1 << 63) - 1
_INT_MAX: Final = (1 << 31) - 1
_AGE: Final = re.compile(r"([0-9]{1,18})([YMDhms])", re.ASCII)
_UNITS_MS: Final = {
    "Y": 365 * 86_400_000,
    "M": 30 * 86_400_000,
    "D": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
}
_AGE_MS_MAX: Final = 1 << 53
_SEGMENT_BYTES_MIN: Final = 14


def upgrade() -> None:
    op.add_column("topics", sa.Column("arguments", sa.Text, nullable=True))
    database = op.get_bind()
    streams = []
    for vhost, name, text, log_id in database.exec_driver_sql("SELECT vhost, name, arguments, id FROM queues"):
        try:
            arguments = json.loads(text)
        except ValueError:
            # Whoever reads the catalog will complain of it.
            continue
        if isinstance(arguments, dict) and arguments.get("x-queue-type") == "stream":
            streams.append((vhost, name, text, log_id, _configs(arguments)))
    for vhost, name, text, log_id, configs in streams:
        database.exec_driver_sql("DELETE FROM queues WHERE id = ?", (log_id,))
        database.exec_driver_sql(
            "INSERT INTO topics (vhost, name, id, configs, arguments) VALUES (?, ?, ?, ?, ?)",
            (vhost, name, uuid.uuid4().hex, json.dumps(configs, sort_keys=True, separators=(",", ":")), text),
        )
        database.exec_driver_sql(
            "INSERT INTO partitions (vhost, topic, number, id) VALUES (?, ?, 0, ?)", (vhost, name, log_id)
        )


def _configs(arguments: dict[str, Any]) -> dict[str, str]:
    """What a stream's arguments mean for a topic, which would else have Kafka's retention."""
    age = arguments.get("x-max-age")
    found = _AGE.fullmatch(age) if isinstance(age, str) else None
    age_ms = min(int(found[1]) * _UNITS_MS[found[2]], _AGE_MS_MAX) if found is not None and int(found[1]) else -1
    configs = {"retention.ms": str(age_ms), "segment.ms": str(_LONG_MAX)}
    size = arguments.get("x-max-length-bytes")
    if type(size) is int:
        configs["retention.bytes"] = str(size)
    segment = arguments.get("x-stream-max-segment-size-bytes")
    if type(segment) is int:
        configs["segment.bytes"] = str(min(max(segment, _SEGMENT_BYTES_MIN), _INT_MAX))
    return configs
