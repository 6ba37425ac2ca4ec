"""Apache Kafka's own Java clients. What is tried out is written in their own language, beside this file."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.foreign_client import names_in, play

HERE = Path(__file__).parent
SCENARIOS = HERE / "Scenarios.java"
FETCH_DEADLINE_S = 300

pytestmark = pytest.mark.timeout(2 * FETCH_DEADLINE_S)


@pytest.fixture(scope="session")
def class_path(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The scenarios, compiled, and the clients; these are fetched by Maven when they are not there."""
    for tool in ("java", "javac", "mvn"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on the PATH: install a JDK 17 or newer, and Maven")
    folder = packages / "kafka_clients"
    folder.mkdir(exist_ok=True)
    wanted = (HERE / "pom.xml").read_text()
    stamp = folder / "pom.xml"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder / "jars", ignore_errors=True)
        maven = ["mvn", "--batch-mode", "--quiet", "--file", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
        maven += ["-DincludeScope=runtime", f"-DoutputDirectory={folder / 'jars'}"]
        done = subprocess.run(maven, capture_output=True, text=True, timeout=FETCH_DEADLINE_S)
        if done.returncode != 0:
            pytest.skip(f"Maven could not fetch Apache Kafka's clients: {done.stdout.strip().splitlines()[:1]}")
        stamp.write_text(wanted)
    jars, classes = str(folder / "jars" / "*"), tmp_path_factory.mktemp("classes")
    javac = ["javac", "-Xlint:all,-processing,-classfile", "-Werror", "-cp", jars, "-d", str(classes), str(SCENARIOS)]
    compiled = subprocess.run(javac, capture_output=True, text=True, timeout=FETCH_DEADLINE_S)
    assert compiled.returncode == 0, compiled.stderr
    return f"{classes}{os.pathsep}{jars}"


@pytest.mark.parametrize("name", names_in(SCENARIOS))
def test_scenario(name: str, class_path: str, kafka: str) -> None:
    # A scenario lives for seconds: the second compiler would only keep the cores busy.
    play(["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", class_path, "Scenarios", kafka, name], {})
