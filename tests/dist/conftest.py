# SPDX-License-Identifier: Apache-2.0
"""What the tests of the static executable share: the executable itself."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def executable() -> Path:
    """The static executable for this machine."""
    path = ROOT / "dist/mycelium-cni-linux-amd64"
    if not path.is_file():
        pytest.fail(f"{path} is not there: make dist")
    return path
