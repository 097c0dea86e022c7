# SPDX-License-Identifier: Apache-2.0
"""One screen about this node: would a pod get its address now, and if not, what to do?

Daemon, node, attachments and the configuration that counts, each with what `doctor` has to say of
it in a line. The exit code is 0 only when ADD would work, even if something else is amiss.

    mycelium-cni status
    mycelium-cni status --json | jq .ready
    mycelium-cni status --picture node.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from mycelium_cni.kernel.address import format_address
from mycelium_ctl import files
from mycelium_ctl.checks.catalogue import Check, Finding, examine
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.state import State
from mycelium_ctl.view import Mark, Page, worst

SECTIONS: Final = {
    "Daemon": ("daemon", "interface", "api", "peers", "identity"),
    "Node": ("ipv6", "forwarding", "guard", "bridge", "mtu", "groundwork"),
    "Pods": ("pod-links", "subnet"),
    "Runtime": ("conf", "plugin", "chain"),
}
VERDICTS: Final[dict[Mark, str]] = {
    "ok": "ready: a pod would get its address now",
    "warn": "ready, but not all is well",
    "fail": "not ready: ADD would fail",
}

Findings = dict[str, tuple[Check, Finding]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="also draw the node")
    nodestate.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the node; 0 only when ADD would work."""
    state = State(nodestate.options(arguments))
    findings: Findings = {check.name: (check, found) for check, found in examine(state)}
    ready = not any(check.needed and found.mark == "fail" for check, found in findings.values())
    if arguments.picture:
        from mycelium_ctl import picture

        files.write(arguments.picture, picture.draw([picture.read_node(state)]))
    if arguments.json:
        print(json.dumps(_document(state, findings, ready=ready), indent=2))
    else:
        _report(state, findings, ready=ready)
    return 0 if ready else 1


def next_step(findings: Findings) -> tuple[Check, Finding] | None:
    """The one thing to do first: what keeps ADD from working, else what fails, else a warning."""

    def urgency(pair: tuple[Check, Finding]) -> int:
        check, found = pair
        return 0 if found.mark == "fail" and check.needed else 1 if found.mark == "fail" else 2

    amiss = [pair for pair in findings.values() if pair[1].mark in ("fail", "warn")]
    return min(amiss, key=urgency, default=None)  # of several, the first in the order of CHECKS


def _overall(findings: Findings, *, ready: bool) -> Mark:
    if not ready:
        return "fail"
    return "warn" if worst([found.mark for _, found in findings.values()]) != "ok" else "ok"


def _report(state: State, findings: Findings, *, ready: bool) -> None:
    page = Page()
    overall = _overall(findings, ready=ready)
    page.fact(overall, "status", VERDICTS[overall])
    for title, names in SECTIONS.items():
        mode = "bridge" if state.bridged else "routed"
        page.heading(f"{title}, {mode} mode" if title == "Node" else title)
        for name in names:
            _, found = findings[name]
            page.fact(found.mark, name, found.found)
    shown = {name for names in SECTIONS.values() for name in names}
    for name, (_, found) in findings.items():
        if name not in shown and found.mark in ("fail", "warn"):
            page.fact(found.mark, name, found.found)
    step = next_step(findings)
    if step:
        page.heading("Next step")
        page.say(f"{step[0].name}: {step[1].mend}")


def _document(state: State, findings: Findings, *, ready: bool) -> dict[str, object]:
    answers, address = state.daemon, state.address
    step = next_step(findings)
    ours = next((one.ours for one in state.confs if one.ours), None)
    return {
        "ready": ready,
        "state": _overall(findings, ready=ready),
        "nextStep": step[1].mend if step else None,
        "daemon": {
            "interface": state.config.interface if state.interface else None,
            "address": format_address(address) if address else None,
            "subnet": nodestate.show_subnet(address[:8]) if address else None,
            "process": state.process,
            "version": state.version or None,
            "apiReachable": answers.subnet is not None,
            "apiTrouble": answers.trouble or None,
            "peers": None if answers.peers is None else len(answers.peers),
            "peersConnected": None if answers.peers is None else answers.alive_peers,
            "routes": None if answers.routes is None else len(answers.routes),
        },
        "node": {
            "mode": "bridge" if state.bridged else "routed",
            "forwarding": nodestate.switch("all", "forwarding") == "1",
            "guard": findings["guard"][1].mark == "ok",
            "bridge": state.config.bridge_name if state.bridged and state.bridge else None,
            "mtu": state.interface.mtu if state.interface else None,
        },
        "attachments": {
            "total": len(state.attachments),
            "gone": len(state.silent),
            "oldSubnet": len(state.stranded),
        },
        "configuration": str(ours.path) if ours else None,
        "checks": {name: found.mark for name, (_, found) in findings.items()},
    }
