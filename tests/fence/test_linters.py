# SPDX-License-Identifier: Apache-2.0
"""The linters pass, and they notice imports that the plugin must not have.

`make lint` runs the same linters; it cannot show that they would notice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent


def run(tool: str, *argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TOOLS / tool), *argv],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(cwd / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("tool", "argv"),
    [
        ("ruff", ["format", "--check", "--no-cache", "src", "tests", "launcher", "bench"]),
        ("ruff", ["check", "--no-cache", "src", "tests", "launcher", "bench"]),
        ("mypy", ["--strict"]),
        ("lint-imports", ["--config", "pyproject.toml", "--no-cache"]),
    ],
    ids=["format", "check", "types", "imports"],
)
def test_linter_passes(tool: str, argv: list[str]) -> None:
    done = run(tool, *argv)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sources, to be broken."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def spoil(copy: Path, module: str, line: str) -> None:
    """Insert a line after the module's `from __future__` imports."""
    path = copy / "src" / module
    text = path.read_text()
    mark = "from __future__ import annotations\n"
    assert mark in text
    path.write_text(text.replace(mark, f"{mark}\n{line}  # noqa: F401\n", 1))


@pytest.mark.parametrize(
    "line",
    [
        "import argparse",
        "import json",
        "import logging",
        "import os.path",
        "import re",
        "import socket",
        "import subprocess",
        "from dataclasses import dataclass",
        "from pathlib import Path",
        "from typing import Any",
    ],
)
def test_a_module_that_costs_milliseconds_is_refused(copy: Path, line: str) -> None:
    spoil(copy, "mycelium_cni/verbs.py", line)
    done = run("ruff", "check", "--no-cache", "src/mycelium_cni", cwd=copy)
    assert done.returncode == 1
    assert "TID25" in done.stdout  # banned-api, banned-module-level-imports


def test_a_module_that_costs_milliseconds_is_refused_inside_a_function_too(copy: Path) -> None:
    path = copy / "src/mycelium_cni/verbs.py"
    path.write_text(
        path.read_text() + "\n\ndef _late() -> None:\n    import json\n\n    json.loads\n"
    )
    done = run("ruff", "check", "--no-cache", "src/mycelium_cni", cwd=copy)
    assert "TID251" in done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("mycelium_cni/pod/attachment.py", "import mycelium_lab.lab"),
        ("mycelium_cni/verbs.py", "import mycelium_entry"),
        ("mycelium_cni/cni/config.py", "import json"),
    ],
)
def test_a_plugin_that_needs_what_is_outside_the_fence_is_refused(
    copy: Path, module: str, line: str
) -> None:
    spoil(copy, module, line)
    done = run("lint-imports", "--config", "pyproject.toml", "--no-cache", cwd=copy)
    assert done.returncode == 1, done.stdout
    assert "BROKEN" in done.stdout
