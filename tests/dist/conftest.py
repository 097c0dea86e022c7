# SPDX-License-Identifier: Apache-2.0
"""What the tests of the static executable share: the executable itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACTS = ROOT / "build/launcher/facts-amd64.json"


@pytest.fixture(scope="session")
def executable() -> Path:
    """The static executable for this machine."""
    path = ROOT / "dist/mycelium-cni-linux-amd64"
    if not path.is_file():
        pytest.fail(f"{path} is not there: make dist")
    return path


@pytest.fixture(scope="session")
def symbols(executable: Path) -> str:
    """What `nm` says of it, as it was before it was stripped."""
    unstripped = ROOT / "build/launcher/objects-amd64/mycelium-cni"
    return subprocess.run(["nm", unstripped], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def launcher_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The launcher's modules are scripts in a folder, not a package."""
    monkeypatch.syspath_prepend(str(ROOT / "launcher"))
    yield
    for name in ("archive", "bundle", "drift", "native", "sbom"):
        sys.modules.pop(name, None)


@pytest.fixture
def checkout(executable: Path, tmp_path: Path) -> Path:
    """A copy of what the executable is built of, to be changed."""
    for name in ("launcher", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", tmp_path)
    return tmp_path


def assemble(checkout: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Build an executable of it, with what was fetched for this one."""
    interpreter = json.loads(FACTS.read_text())["interpreter"]
    return subprocess.run(
        [interpreter, "-SsE", checkout / "launcher/assemble.py", FACTS, output],
        capture_output=True,
        text=True,
        check=False,
        cwd=checkout,
    )
