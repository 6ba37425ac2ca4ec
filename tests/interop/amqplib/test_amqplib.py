"""amqplib, the client that Node services use. What is tried out is written in its own language, beside this file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.foreign_client import actions_on, names_in, play

HERE = Path(__file__).parent
SHARED_BROKER = HERE / "scenarios.js"
OWN_BROKER = HERE / "own_broker.js"


@pytest.fixture(scope="session")
def node_path(packages: Path) -> str:
    """Where Node finds amqplib; fetched by npm when it is not there, or not the one that is asked for."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on the PATH: install Node 18 or newer")
    folder = packages / "amqplib"
    folder.mkdir(exist_ok=True)
    wanted = (HERE / "package.json").read_text()
    stamp = folder / "package.json"
    if not stamp.exists() or stamp.read_text() != wanted:
        asked = folder / "asked"
        shutil.rmtree(asked, ignore_errors=True)
        asked.mkdir()
        shutil.copy(HERE / "package.json", asked)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--loglevel", "error", "--prefix", str(asked)]
        done = subprocess.run(npm, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            pytest.skip(f"npm could not fetch amqplib: {done.stderr.strip().splitlines()[-1:]}")
        shutil.rmtree(folder / "node_modules", ignore_errors=True)
        shutil.move(asked / "node_modules", folder / "node_modules")
        stamp.write_text(wanted)
    return str(folder / "node_modules")


@pytest.mark.parametrize("name", names_in(SHARED_BROKER))
def test_scenario(name: str, node_path: str, broker: Endpoint) -> None:
    play(["node", str(SHARED_BROKER), broker.url, name], {"NODE_PATH": node_path})


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker of the scenario's own, that is short of memory soon."""
    with BrokerProcess(tmp_path / "broker", arguments=["--memory-budget", "1MiB"]) as process:
        yield process


@pytest.mark.millpond_only("a broker with a small memory budget, which can be killed")
@pytest.mark.parametrize("name", names_in(OWN_BROKER))
def test_scenario_with_a_broker_of_its_own(name: str, node_path: str, own_broker: BrokerProcess) -> None:
    actions = actions_on(own_broker)
    try:
        play(["node", str(OWN_BROKER), own_broker.amqp_url, name], {"NODE_PATH": node_path}, actions)
    finally:
        # A scenario that failed may have left it stopped, deaf to SIGTERM.
        actions["resume"]()
