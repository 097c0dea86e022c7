# SPDX-License-Identifier: Apache-2.0
"""Whether running pods, or the agent, need what a command is about to remove."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from mycelium_cni.cni.report import ADDRESS
from mycelium_ctl.errors import ToolError
from mycelium_ctl.node.state import Attached
from mycelium_ctl.view import count, visible


def refuse_while_in_use(attachments: Iterable[Attached], consequence: str) -> None:
    """Raises ToolError while pods are attached, with the consequence for them, or while an agent
    listens on this node. Any user can pretend to be one, so the caller has a --force."""
    live = [attached for attached in attachments if attached.answers]
    if live:
        raise ToolError(
            f"{count(len(live), 'pod is', 'pods are')} attached, such as {visible(live[0].who)}, "
            f"and {consequence}: remove them first, or use --force"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        if not agent.connect_ex(ADDRESS):
            raise ToolError(
                "`mycelium-cni agent` runs, and would restore what is removed: stop it first "
                "(systemctl stop mycelium-cni-agent; on a cluster, kubectl apply -f "
                "deploy/uninstall.yaml), or use --force"
            )
