# SPDX-License-Identifier: Apache-2.0
"""The build refuses what cannot be in the snapshot; no pod has to find out."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("import posix; fd = posix.open('/', 0)", "mycelium_cni.extra: keeps a file open"),
        ("import _signal", "_signal: crashed: it needs more of an interpreter than there is"),
        ("import sys; sys.warnoptions", "mycelium_cni.extra: cannot be imported"),
    ],
    ids=["file", "signal-handlers", "warning-filters"],
)
@pytest.mark.usefixtures("executable")
def test_a_module_that_cannot_be_stored_is_not_built(
    tmp_path: Path, statement: str, says: str
) -> None:
    for name in ("launcher", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", tmp_path)
    (tmp_path / "src/mycelium_cni/extra.py").write_text(f"{statement}\n")
    facts = ROOT / "build/launcher/facts-amd64.json"
    argv = [json.loads(facts.read_text())["interpreter"], "-SsE", tmp_path / "launcher/assemble.py"]
    built = tmp_path / "mycelium-cni"
    done = subprocess.run(
        [*argv, facts, built], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode != 0
    assert f"launcher: {says}" in done.stderr
    assert not built.exists()
