"""Compiles the hot modules with mypyc; everything else about the package is in pyproject.toml.

`MILLPOND_PURE=1` builds the same source uncompiled. `MILLPOND_OPT` is the C compiler's optimization level (default 3).
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import toolchain  # noqa: E402  (a build starts without the project's folder on the path)

# The commands that make something to run. Others (metadata, source archives) need no compiler.
BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}
EXTENSION_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def compiled_modules() -> list[str]:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    modules: list[str] = configuration["tool"]["millpond"]["compiled"]
    return modules


def source_path(module: str) -> Path:
    stem = Path("src", *module.split("."))
    package = stem / "__init__.py"
    return package if package.exists() else stem.with_suffix(".py")


def remove_left_overs(modules: list[str]) -> None:
    """Take away what earlier builds left: an extension beside the source, or in the build folder, would be imported
    or packed in place of today's source. The objects of modules that are still compiled stay, to be reused."""
    for left_over in Path("src").rglob(f"*{EXTENSION_SUFFIX}"):
        left_over.unlink()
    kept = {Path(*module.split(".")).as_posix() for module in modules}
    for library in Path("build").glob("lib*"):
        for path in library.rglob("*"):
            relative = path.relative_to(library)
            if path.is_dir():
                continue
            stale_source = path.suffix == ".py" and not (Path("src") / relative).exists()
            stem = relative.as_posix().removesuffix(EXTENSION_SUFFIX).removesuffix("/__init__")
            stale_extension = path.name.endswith(EXTENSION_SUFFIX) and (
                not modules or ("/" in stem and stem not in kept)
            )
            if stale_source or stale_extension:
                path.unlink()


def extensions() -> list[Any]:
    if not BUILDING.intersection(sys.argv):
        return []
    os.chdir(ROOT)
    modules = [] if os.environ.get("MILLPOND_PURE", "") not in {"", "0"} else compiled_modules()
    remove_left_overs(modules)
    if not modules:
        return []
    missing = toolchain.missing()
    if missing:
        sys.exit(missing)
    from mypyc.build import mypycify

    # Strictness is the lint's business: a build must not fail on the types of a library that it does not need.
    options = ["--config-file=", "--ignore-missing-imports", "--cache-dir=.mypy_cache/mypyc"]
    sources = [source_path(module).as_posix() for module in modules]
    return mypycify([*options, *sources], opt_level=os.environ.get("MILLPOND_OPT", "3"), group_name="millpond")


setup(ext_modules=extensions())
