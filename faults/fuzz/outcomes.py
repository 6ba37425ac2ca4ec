"""What becomes of the inputs that were worth keeping, by the broker that Python finds: the compiled and the uncompiled
one must agree, and memory be in proportion. `python -m faults.fuzz.outcomes FOLDER --seed N` prints JSON."""

from __future__ import annotations

import base64
import json
import logging
import random
from pathlib import Path
from typing import Annotated, Final

import typer

from faults.fuzz.engine import CORPUS
from faults.fuzz.targets import TARGETS, Broken, Target
from faults.fuzz.targets.target import judge, judge_memory

INPUTS_MAX: Final = 60


def main(
    folder: Annotated[Path, typer.Argument(help="as the engine has left it")],
    seed: Annotated[int, typer.Option(help="which of the inputs are looked at")] = 1,
) -> None:
    """Judge some of the inputs of each target."""
    logging.disable(logging.WARNING)
    logging.getLogger("millpond").addHandler(logging.NullHandler())
    logging.getLogger("millpond").propagate = False
    found: dict[str, dict[str, str]] = {}
    for one in TARGETS.values():
        if (folder / one.name / CORPUS).is_dir():
            paths = sorted((folder / one.name / CORPUS).iterdir())
            random.Random(f"{seed}/{one.name}").shuffle(paths)
            inputs = [path.read_bytes() for path in paths[:INPUTS_MAX]]
            found[one.name] = {base64.b64encode(data).decode(): _outcome(one, data) for data in inputs}
    print(json.dumps(found))


def _outcome(one: Target, data: bytes) -> str:
    try:
        shown = judge(one, data)
        judge_memory(one, data)
    except Broken as broken:
        return f"broken: {broken.what}"
    return shown


if __name__ == "__main__":
    typer.run(main)
