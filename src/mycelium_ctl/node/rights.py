# SPDX-License-Identifier: Apache-2.0
"""What a process may change in the network, and what this one can see of the machine.

Without root, or in a container, parts of a node cannot be read: they are reported as unknown and
skipped, never taken for missing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mycelium_ctl.errors import ToolError

CAP_NET_ADMIN, CAP_SYS_PTRACE = 12, 19  # linux/capability.h
PROC_PID_INIT_INO: Final = 0xEFFFFFFC  # linux/proc_ns.h


def may_configure(process: str) -> bool:
    """Whether a process, by its path in /proc, may change the network of its namespace."""
    return _may(process, CAP_NET_ADMIN)


def _may(process: str, capability: int) -> bool:
    for line in Path(process, "status").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> capability & 1)
    return False


def blindness() -> str:
    """Why this process cannot see whether a pod lives, and what to do; "" if it can."""
    if not may_configure("/proc/self"):
        return "only root can see pods' ends of their links"
    if os.stat("/proc/self/ns/pid").st_ino != PROC_PID_INIT_INO:  # noqa: PTH116
        return (
            "this is a container that does not see the machine's processes: run it on the host, or "
            "with its PID namespace (hostPID)"
        )
    if not _may("/proc/self", CAP_SYS_PTRACE):
        return "only root with CAP_SYS_PTRACE can see other users' processes"
    return ""


def require_rights() -> None:
    """Raise ToolError if this process may not change the network, before it changes half of it."""
    if not may_configure("/proc/self"):
        raise ToolError("changing the network takes CAP_NET_ADMIN: run it as root")
