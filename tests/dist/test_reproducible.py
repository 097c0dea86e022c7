# SPDX-License-Identifier: Apache-2.0
"""A build of the same commit elsewhere gives the same bytes."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

# Fetched, not built; nothing is fetched twice.
FETCHED = ("packages", "python3.11-*", "*.dsc", "*.tar.*")


@pytest.mark.timeout(600)
def test_a_build_in_another_folder_has_the_same_bytes(executable: Path, tmp_path: Path) -> None:
    there = tmp_path / "a folder/elsewhere"
    for name in ("launcher", "src"):
        shutil.copytree(ROOT / name, there / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", there)
    for pattern in FETCHED:
        for path in (ROOT / "build/launcher").glob(pattern):
            target = there / "build/launcher" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target, symlinks=True)
            else:
                shutil.copy(path, target)
    newest = max(path.stat().st_mtime for path in ROOT.joinpath("src").rglob("*.py"))
    if newest > executable.stat().st_mtime:
        pytest.fail("src is newer than the executable: make dist")
    subprocess.run(
        [sys.executable, there / "launcher/build.py"],
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert filecmp.cmp(there / "dist" / executable.name, executable, shallow=False)
