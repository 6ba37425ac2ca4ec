"""What the tests of settings and commands start from: an environment without Millpond's variables, an empty folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from millpond.config import ENVIRONMENT_PREFIX


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in list(os.environ):
        if variable.upper().startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
