# SPDX-License-Identifier: Apache-2.0
"""Programs that manage links, and whether they leave ours alone."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from mycelium_cni.kernel.shell import quoted
from mycelium_ctl import files, units
from mycelium_ctl.checks.finding import Finding, ok, own
from mycelium_ctl.node.state import State


def managers(state: State) -> list[Finding] | Finding:
    """systemd-networkd, NetworkManager and dhcpcd are configured to leave our links alone."""
    root, links = state.where.root, state.own_links
    lacking = []
    for running, wanted, name in (
        ("run/systemd/netif", ("networkd.network", "networkd.conf"), "systemd-networkd"),
        ("run/NetworkManager", ("NetworkManager.conf",), "NetworkManager"),
    ):
        if (root / running).is_dir() and not all(units.covers(root, u, links) for u in wanted):
            lacking.append(name)
    found = []
    if lacking:
        found.append(
            Finding(
                "warn",
                f"{' and '.join(lacking)} may remove pods' routes and addresses",
                run=(own("setup", "--install-units"),),
            )
        )
    found += _dhcpcd(root, links)
    return found or ok("no other program manages our links")


def _dhcpcd(root: Path, links: tuple[str, str]) -> list[Finding]:
    """dhcpcd gives every link that comes up an IPv4 address and routes."""
    if not any((root / "run" / name).exists() for name in ("dhcpcd", "dhcpcd.pid")):
        return []
    path = root / "etc/dhcpcd.conf"
    try:
        lines = files.read(path).decode(errors="replace").splitlines()
    except OSError:
        lines = []
    said: dict[str, list[str]] = {"denyinterfaces": [], "allowinterfaces": []}
    for line in lines:
        key, *words = line.replace(",", " ").split() or [""]
        if key in ("interface", "ssid", "profile"):
            break  # the rest applies to that one only
        said.get(key, []).extend(words)
    taken = [
        name
        for name in ("myc0123456789ab", *links)
        if not any(fnmatchcase(name, word) for word in said["denyinterfaces"])
        and (
            not said["allowinterfaces"]
            or any(fnmatchcase(name, word) for word in said["allowinterfaces"])
        )
    ]
    if not taken:
        return []
    denied = f"denyinterfaces {' '.join(units.patterns(links))}"
    # First in the file: after an `interface` line it would apply to that one only.
    first = f"sed -i {quoted(f'1i {denied}')} {quoted(str(path))}"
    return [
        Finding(
            "warn",
            "dhcpcd gives pods' host links addresses and routes of its own",
            "then restart dhcpcd",
            run=(first if lines else f"echo {quoted(denied)} >{quoted(str(path))}",),
        )
    ]
