"""Write the tables of Kafka's APIs and of topics' configuration into the documents, from what the broker has.

    PYTHONPATH=src python tools/kafka_tables.py

A table lies between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. A test in tests/docs fails where one is not what
this would write.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from millpond.broker.streams.topic_settings import LONG_MAX, TOPIC_CONFIGS
from millpond.protocols.kafka import registry

ROOT = Path(__file__).resolve().parents[1]


def kafka_apis() -> list[str]:
    """Each API with its key and its versions."""
    registry.load(1)
    rows = ["| API | key | versions |", "| --- | --- | --- |"]
    for key, api in sorted(registry.APIS.items()):
        rows.append(f"| {api.name} | {key} | {api.least} to {api.most} |")
    return rows


def topic_configs() -> list[str]:
    """Each entry of a topic's configuration."""
    rows = ["| entry | default | acts | |", "| --- | --- | --- | --- |"]
    for name, entry in TOPIC_CONFIGS.items():
        default = "2^63 - 1" if entry.default == str(LONG_MAX) else f"`{entry.default}`" if entry.default else ""
        rows.append(f"| `{name}` | {default} | {'yes' if entry.acts else 'no'} | {entry.text} |")
    return rows


TABLES: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "kafka-apis": ("docs/kafka.md", kafka_apis),
    "topic-configs": ("docs/streams.md", topic_configs),
}


def with_table(text: str, name: str, rows: list[str]) -> str:
    """A document's text with another table of this name. ValueError where it has no place for it."""
    place = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not place.search(text):
        raise ValueError(f"there is no place for the table {name}")
    table = "".join(f"{row}\n" for row in rows)
    return place.sub(lambda found: found[1] + table + found[2], text)


def main() -> int:
    for name, (document, rows) in TABLES.items():
        path = ROOT / document
        path.write_text(with_table(path.read_text(encoding="utf-8"), name, rows()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
