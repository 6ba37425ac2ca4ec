"""Checks that the hot modules are what they should be in this environment: `compiled` (the default) or `pure`.

A stale or missing extension does not fail any test, it only makes the broker slow: so it is looked at here.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(expected: str) -> int:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    modules: list[str] = configuration["tool"]["millpond"]["compiled"]
    suffixes = (".py",) if expected == "pure" else (".so", ".pyd")
    wrong = []
    for name in modules:
        file = importlib.import_module(name).__file__ or "no file"
        if not file.endswith(suffixes):
            wrong.append(f"{name} was loaded from {file}")
    for line in wrong:
        print(f"check-compiled: {line}, which is not {expected}", file=sys.stderr)
    if not wrong:
        print(f"check-compiled: {len(modules)} hot modules, all {expected}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "compiled"))
