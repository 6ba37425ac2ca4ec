"""The build: without a compiler it says what is missing, and the same source builds uncompiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a build reads, so that it writes nothing into the project's folder."""
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for folder in ("src", "tools"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    return tree


def _build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", "wheels"],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_without_a_compiler_one_line_says_what_is_missing(tree: Path) -> None:
    built = _build(tree, CC="no-such-compiler")
    assert built.returncode != 0
    told = built.stderr.splitlines()[-1]
    assert told.startswith("millpond: cannot compile: a C compiler (`no-such-compiler`) missing.")
    assert "MILLPOND_PURE=1" in told


def test_the_same_source_builds_uncompiled_and_left_over_extensions_do_not_get_in(tree: Path) -> None:
    left_over = tree / "src" / "millpond" / "broker" / f"message{_extension_suffix()}"
    left_over.write_bytes(b"of another day")
    built = _build(tree, MILLPOND_PURE="1", CC="no-such-compiler")
    assert built.returncode == 0, built.stderr
    [wheel] = (tree / "wheels").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    expected = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "millpond").rglob("*")
        if path.suffix in {".py", ".mako"} or path.name == "py.typed"
    }
    assert {name for name in packed if ".dist-info/" not in name} == expected
    assert not left_over.exists()


def test_every_compiled_module_is_a_module_of_the_source() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_compiled.py"), "pure"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr


def _extension_suffix() -> str:
    import sysconfig

    return str(sysconfig.get_config_var("EXT_SUFFIX"))
