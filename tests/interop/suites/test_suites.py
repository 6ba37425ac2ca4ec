"""Other people's tests of their own clients, as their source packages on the registry bring them.

They are fetched once for each version that is installed, and kept beside the virtual environment's packages. Only the
packages of kombu and of py-amqp bring tests that need nothing but a broker.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.endpoint import Endpoint

DOWNLOAD_DEADLINE_S = 120
SUITE_DEADLINE_S = 300

pytestmark = pytest.mark.timeout(DOWNLOAD_DEADLINE_S + SUITE_DEADLINE_S)


@dataclass(frozen=True)
class Suite:
    """Tests in the source package `package`, run in its folder."""

    package: str
    arguments: tuple[str, ...]


SUITES = [
    Suite("kombu", ("t/integration/test_py_amqp.py",)),
    # The others need a listener with the certificates of that repository.
    Suite("amqp", ("t/integration/test_rmq.py", "-k", "not tls and not ssl")),
]


def fetched(package: str, folder: Path) -> Path:
    """The unpacked source package of the installed version; skips the test where the registry cannot be reached."""
    name = f"{package}-{version(package)}"
    if not (folder / name).exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input", "download"]
        fetch = [*pip, "--no-deps", "--no-binary", ":all:", "--dest", str(folder), name.replace("-", "==", 1)]
        done = subprocess.run(fetch, capture_output=True, text=True, timeout=DOWNLOAD_DEADLINE_S)
        if done.returncode != 0:
            pytest.skip(
                f"{name} could not be fetched: {(done.stderr.strip().splitlines() or ['pip says nothing'])[-1]}"
            )
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / name


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.package)
def test_suite(suite: Suite, packages: Path, broker: Endpoint) -> None:
    folder = fetched(suite.package, packages)
    # Marks of plugins that are not installed, reruns of failures among them, are ignored; nothing of ours is read.
    runner = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", "-p", "no:millpond"]
    done = subprocess.run(
        [*runner, *suite.arguments],
        cwd=folder,
        env={**os.environ, "RABBITMQ_HOST": broker.host, "RABBITMQ_5672_TCP": str(broker.port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SUITE_DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout.splitlines()[-1]
