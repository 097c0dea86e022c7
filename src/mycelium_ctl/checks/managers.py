# SPDX-License-Identifier: Apache-2.0
"""Programs that manage links, and keep off what they were told to keep off."""

from __future__ import annotations

from mycelium_ctl import units
from mycelium_ctl.checks.finding import Finding, ok, own
from mycelium_ctl.node.state import State


def managers(state: State) -> Finding:
    """systemd-networkd and NetworkManager keep off what they were told to keep off."""
    root = state.where.root
    lacking = []
    for running, wanted, name in (
        ("run/systemd/netif", ("networkd.network", "networkd.conf"), "systemd-networkd"),
        ("run/NetworkManager", ("NetworkManager.conf",), "NetworkManager"),
    ):
        if (root / running).is_dir():
            missing = [path for path in wanted if not (root / units.UNITS[path]).is_file()]
            lacking += [name] if missing else []
    if lacking:
        return Finding(
            "warn",
            f"{' and '.join(lacking)} may take routes and addresses of pods away",
            run=(own("setup", "--install-units"),),
        )
    return ok("no other program manages our links")
