"""Programs in Java: what Maven fetches for them, and how they are compiled and run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

FETCH_DEADLINE_S = 600


def fetched(pom: Path, folder: Path) -> str:
    """The class path of what `pom` asks for, fetched into `folder` when it is not there. Skips when that cannot be."""
    for tool in ("java", "javac", "mvn"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on the PATH: install a JDK 17 or newer, and Maven")
    folder.mkdir(exist_ok=True)
    wanted = pom.read_text()
    stamp = folder / "pom.xml"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder / "jars", ignore_errors=True)
        maven = ["mvn", "--batch-mode", "--quiet", "--file", str(pom), "dependency:copy-dependencies"]
        maven += ["-DincludeScope=runtime", f"-DoutputDirectory={folder / 'jars'}"]
        done = subprocess.run(maven, capture_output=True, text=True, timeout=FETCH_DEADLINE_S)
        if done.returncode != 0:
            pytest.skip(f"Maven could not fetch what {pom} asks for: {done.stdout.strip().splitlines()[:1]}")
        stamp.write_text(wanted)
    return str(folder / "jars" / "*")


def compiled(sources: Sequence[Path], jars: str, folder: Path) -> str:
    """The class path of `sources`, compiled into `folder`, and of what they need. A warning is an error."""
    javac = ["javac", "-Xlint:all,-processing,-classfile", "-Werror", "-cp", jars, "-d", str(folder)]
    done = subprocess.run([*javac, *map(str, sources)], capture_output=True, text=True, timeout=FETCH_DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return f"{folder}{os.pathsep}{jars}"


def java(class_path: str, *arguments: str) -> list[str]:
    # Such a program lives for seconds: the second compiler would only keep the cores busy.
    return ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", class_path, *arguments]
