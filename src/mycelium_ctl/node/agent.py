# SPDX-License-Identifier: Apache-2.0
"""Whether the agent runs, which restores what others remove."""

from __future__ import annotations

import socket

from mycelium_cni.cni.report import ADDRESS
from mycelium_ctl.errors import ToolError


def refuse_beside_agent() -> None:
    """Raises ToolError if an agent listens on this node. Any user can pretend to be one, so the
    caller has a --force."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
        if not teller.connect_ex(ADDRESS):
            raise ToolError(
                "`mycelium-cni agent` runs, and would restore what is removed: stop it first "
                "(systemctl stop mycelium-cni-agent; on a cluster, kubectl apply -f "
                "deploy/uninstall.yaml), or use --force"
            )
