"""The process that fuzzes decoders: `python -m faults.fuzz.engine --help`.

It imports the uncompiled source, which atheris instruments, and forks for each target in turn: libFuzzer ends its
process. What is found goes to files, and fuzzing goes on. Without atheris, of which there are no builds for every
Python, the inputs are mutations from the seed, and the coverage is not known.

    <folder>/<target>/corpus/     the seeds, and what libFuzzer has found worth keeping
    <folder>/<target>/found.jsonl one object for each bug: what, where, input in base64, history
    <folder>/<target>/log         libFuzzer's own words
    <folder>/<target>/crash-...   inputs that took the whole process down
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from faults.fuzz.targets.target import Target

# Of a whole process: libFuzzer's own limits, for what cannot be ended from within.
INPUT_SECONDS_MAX: Final = 20
RESIDENT_MIB_MAX: Final = 2048
FOUND: Final = "found.jsonl"
LOG: Final = "log"
CORPUS: Final = "corpus"
# What one target may find; more of the same tells nothing.
FOUND_MAX: Final = 20
HISTORY_LINES_MAX: Final = 40
EXECUTED: Final = "stat::number_of_executed_units: "


def has_coverage() -> bool:
    """Whether atheris is there."""
    return importlib.util.find_spec("atheris") is not None


def main(
    names: Annotated[list[str], typer.Argument(help="targets, or all of them by the word all")],
    folder: Annotated[Path, typer.Option(help="where to keep what is found")],
    seconds: Annotated[int, typer.Option(help="for each target")] = 10,
    seed: Annotated[int, typer.Option(help="what all chance comes from")] = 1,
) -> None:
    """Fuzz decoders, one after the other."""
    os.nice(10)
    # What decoders of damaged things say of them is not worth a line each.
    logging.disable(logging.WARNING)
    logging.getLogger("millpond").addHandler(logging.NullHandler())
    logging.getLogger("millpond").propagate = False
    if has_coverage():
        import atheris

        with atheris.instrument_imports(include=["millpond"]):
            from faults.fuzz.targets import TARGETS
    else:
        from faults.fuzz.targets import TARGETS
    for name in TARGETS if names == ["all"] else names:
        _fuzz_in_child(TARGETS[name], folder / name, seconds, seed)


def write_seeds(one: Target, corpus: Path) -> None:
    """A target's seeds as files."""
    corpus.mkdir(parents=True, exist_ok=True)
    for data in one.seeds():
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def _fuzz_in_child(one: Target, folder: Path, seconds: int, seed: int) -> None:
    write_seeds(one, folder / CORPUS)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _fuzz(one, folder, seconds, seed)
            code = 0
        finally:
            os._exit(code)
    os.waitpid(child, 0)


def _fuzz(one: Target, folder: Path, seconds: int, seed: int) -> None:
    from faults.fuzz.targets.target import INPUT_BYTES_MAX, watch_time

    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    watch_time()
    finder = _Finder(one, folder / FOUND)
    if not has_coverage():
        _fuzz_without_coverage(finder, one.seeds(), seconds, seed)
        return
    import atheris

    corpus = folder / CORPUS
    arguments = [
        "fuzz",
        str(corpus),
        f"-max_total_time={seconds}",
        # 0 would be a random one.
        f"-seed={seed % 0x7FFF_FFFF + 1}",
        f"-artifact_prefix={folder}/",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={RESIDENT_MIB_MAX}",
        "-print_final_stats=1",
    ]
    atheris.Setup(arguments, finder.look)
    atheris.Fuzz()


def _fuzz_without_coverage(finder: _Finder, seeds: Sequence[bytes], seconds: int, seed: int) -> None:
    from faults.fuzz.mutate import mutations

    chance = random.Random(f"{seed}/{finder.target.name}")
    count = 0
    end_at = time.monotonic() + seconds
    for data in seeds:
        finder.look(data)
    for data in mutations(seeds, chance):
        finder.look(data)
        count += 1
        if time.monotonic() > end_at:
            break
    print(f"{EXECUTED}{count}", flush=True)


class _Finder:
    """Looks at one input after the other, and writes down each bug once."""

    def __init__(self, one: Target, path: Path) -> None:
        self.target: Final = one
        self._path: Final = path
        self._known: Final[set[str]] = set()

    def look(self, data: bytes) -> None:
        from faults.fuzz.targets.target import Broken, judge_within_time

        try:
            judge_within_time(self.target, data)
        except Broken as broken:
            if broken.where in self._known or len(self._known) >= FOUND_MAX:
                return
            self._known.add(broken.where)
            line = {
                "what": broken.what,
                "where": broken.where,
                "input": base64.b64encode(data).decode(),
                "history": broken.history[-HISTORY_LINES_MAX:],
            }
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        typer.run(main)
    sys.exit(0)
