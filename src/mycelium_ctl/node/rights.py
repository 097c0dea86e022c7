# SPDX-License-Identifier: Apache-2.0
"""What a process may change in the network, and what this one can see of the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mycelium_ctl.errors import ToolError

CAP_NET_ADMIN: Final = 12  # linux/capability.h
PROC_PID_INIT_INO: Final = 0xEFFFFFFC  # linux/proc_ns.h


def may_configure(process: str) -> bool:
    """Whether a process, by its path in /proc, may change the network of its namespace."""
    for line in Path(process, "status").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> CAP_NET_ADMIN & 1)
    return False


def sees_all_processes() -> bool:
    """Whether /proc shows the machine's processes, and not just those of a container."""
    return os.stat("/proc/self/ns/pid").st_ino == PROC_PID_INIT_INO  # noqa: PTH116


def require_rights() -> None:
    """Raise ToolError for a process that may not change the network: before it changes half."""
    if not may_configure("/proc/self"):
        raise ToolError("changing the network takes CAP_NET_ADMIN: run it as root")
