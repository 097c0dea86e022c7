# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the executable under test."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def command() -> list[str]:
    """The argument vector that starts the executable under test.

    MYCELIUM_CNI_COMMAND (split as a shell would) names another build of it, such as the static
    file; without it the one that was installed beside this Python.
    """
    given = os.environ.get("MYCELIUM_CNI_COMMAND")
    argv = shlex.split(given) if given else [str(Path(sys.executable).with_name("mycelium-cni"))]
    if not Path(argv[0]).is_file():
        pytest.exit(f"{argv[0]}: no such executable; run `make venv` first", returncode=2)
    return argv
