"""Runs seeds until its time is over: `python -m faults.power.worker FIRST STEP SECONDS FOLDER`. Tells by JSON lines."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Final

from faults.power.lives import Trace, simulate

# With so many failures there is enough to look at.
FAILURES_MAX: Final = 5


def main(first: int, step: int, seconds: float, folder: Path) -> None:
    until = time.monotonic() + seconds
    done: Counter[str] = Counter()
    failures = 0
    seed = first
    while time.monotonic() < until and failures < FAILURES_MAX:
        trace = Trace()
        try:
            simulate(seed, folder, trace, done)
        except Exception as error:  # noqa: BLE001
            failures += 1
            lines = [*trace.lines, *traceback.format_exc().splitlines()]
            what = str(error).partition("\n")[0] or type(error).__name__
            print(json.dumps({"seed": seed, "what": what, "history": lines, "digest": trace.digest}), flush=True)
        seed += step
    print(json.dumps({"done": done}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
