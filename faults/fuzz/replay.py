"""`python -m faults.fuzz.replay TARGET BASE64`: one input once more, to a decoder or to a new broker."""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from faults.fuzz.conversations import PROTOCOLS, replay_conversation
from faults.fuzz.targets import TARGETS, Broken
from faults.fuzz.targets.target import judge, judge_memory


def main(
    name: Annotated[str, typer.Argument(help=f"of {', '.join([*TARGETS, *PROTOCOLS])}")],
    encoded: Annotated[str, typer.Argument(help="the input in base64")],
) -> None:
    """Do it again, and say what becomes of it."""
    data = base64.b64decode(encoded)
    if name in PROTOCOLS:
        with tempfile.TemporaryDirectory(prefix="millpond-replay-") as folder:
            wrong = replay_conversation(Path(folder), name, data)
    else:
        wrong = []
        try:
            print(judge(TARGETS[name], data))
            judge_memory(TARGETS[name], data)
        except Broken as broken:
            wrong = [*broken.history, broken.what]
    print("\n".join(wrong) if wrong else "nothing is wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
