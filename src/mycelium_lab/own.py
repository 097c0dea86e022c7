# SPDX-License-Identifier: Apache-2.0
"""The path of this program, for commands that start it or name it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

OWN_FILE: Final = "/proc/self/exe"  # of a program that has no name below its root directory


def own_executable() -> str:
    """The running program if it is ours, else what was installed beside this Python."""
    running = shutil.which(sys.argv[0])
    if running is not None and Path(running).name.startswith("mycelium-cni"):
        return str(Path(running).absolute())
    beside = Path(sys.executable).with_name("mycelium-cni")
    return str(beside) if beside.exists() else OWN_FILE
