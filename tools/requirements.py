"""Prints what pyproject.toml requires, one requirement a line, for the parts named as arguments.

`build` is what a build needs, `runtime` what Millpond itself needs; any other name is a dependency group. It lets the
Makefile fill a virtual environment once and build in it without isolation, with the pip that Python came with.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def requirements(configuration: dict[str, Any], part: str) -> list[str]:
    if part == "build":
        return list(configuration["build-system"]["requires"])
    if part == "runtime":
        return list(configuration["project"]["dependencies"])
    found = []
    for entry in configuration["dependency-groups"][part]:
        if isinstance(entry, str):
            found.append(entry)
        else:
            found.extend(requirements(configuration, entry["include-group"]))
    return found


def main(parts: list[str]) -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for part in parts:
        print("\n".join(requirements(configuration, part)))


if __name__ == "__main__":
    main(sys.argv[1:])
