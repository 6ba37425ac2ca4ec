"""Rows for people on a terminal, tab-separated lines for a pipe, JSON on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence


def print_table(rows: Sequence[Mapping[str, object]], fields: Sequence[str], as_json: bool, title: str = "") -> None:
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*fields, title=title or None, title_justify="left")
        for row in rows:
            # As Text: a name in square brackets is a name, not markup.
            table.add_row(*(Text(_cell(row[field])) for field in fields))
        Console().print(table)
    else:
        for row in rows:
            print("\t".join(_cell(row[field]) for field in fields))


def _cell(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    # One row is one line, and a name must not steer the terminal.
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
