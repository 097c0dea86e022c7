# SPDX-License-Identifier: Apache-2.0
"""The key file: who may read it, and what happens to the key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mycelium_cni.node import subnet


@pytest.mark.parametrize(
    ("mode", "owner", "words"),
    [
        (0o600, 0, ""),
        (0o640, 0, ""),
        (0o400, 61999, ""),
        (0o644, 0, "every user can read it (mode 0644)"),
        (0o660, 0, "users other than its owner can write it (mode 0660)"),
        (0o602, 0, "users other than its owner can write it (mode 0602)"),
        (0o600, 1000, "it belongs to user 1000"),
    ],
)
def test_who_can_get_at_it(tmp_path: Path, mode: int, owner: int, words: str) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    os.chown(key, owner, 0)
    key.chmod(mode)
    assert subnet.key_exposure(str(key)) == words


@pytest.mark.parametrize("start", ["as high as may be", "0"])
def test_a_process_that_has_read_it_leaves_no_core(tmp_path: Path, start: str) -> None:
    """Whatever limit it starts with. Not every root may raise one (CAP_SYS_RESOURCE), and a test
    of this process that has read a key has lowered ours."""
    key = tmp_path / "key"
    key.write_bytes(b"\1" * 32)
    script = (
        "import resource, sys; from mycelium_cni.node import subnet;"
        "limit = 0 if sys.argv[2] == '0' else resource.getrlimit(resource.RLIMIT_CORE)[1];"
        "resource.setrlimit(resource.RLIMIT_CORE, (limit, limit));"
        "assert subnet.read_key(sys.argv[1]);"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    argv = [sys.executable, "-c", script, str(key), start]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout in ("(1, 1)\n", "(0, 0)\n")  # 0 where it may not be raised
