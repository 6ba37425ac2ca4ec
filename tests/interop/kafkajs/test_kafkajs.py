"""kafkajs, the client that Node services use. What is tried out is written in its own language, beside this file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.foreign_client import names_in, play

HERE = Path(__file__).parent
SCENARIOS = HERE / "scenarios.js"


@pytest.fixture(scope="session")
def node_path(packages: Path) -> str:
    """Where Node finds kafkajs; fetched by npm when it is not there, or not the one that is asked for."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on the PATH: install Node 18 or newer")
    folder = packages / "kafkajs"
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
            pytest.skip(f"npm could not fetch kafkajs: {done.stderr.strip().splitlines()[-1:]}")
        shutil.rmtree(folder / "node_modules", ignore_errors=True)
        shutil.move(asked / "node_modules", folder / "node_modules")
        stamp.write_text(wanted)
    return str(folder / "node_modules")


@pytest.mark.parametrize("name", names_in(SCENARIOS))
def test_scenario(name: str, node_path: str, kafka: str) -> None:
    play(["node", str(SCENARIOS), kafka, name], {"NODE_PATH": node_path, "KAFKAJS_NO_PARTITIONER_WARNING": "1"})
