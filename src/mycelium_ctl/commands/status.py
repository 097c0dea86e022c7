# SPDX-License-Identifier: Apache-2.0
"""One screen about this node: would a pod get its address now, and if not, what to do?

Daemon, node, attachments and the configuration in use, each with `doctor`'s finding in a line.
The exit code is 0 only when ADD would work, even if something else is wrong.

    mycelium-cni status
    mycelium-cni status --json | jq .ready
    mycelium-cni status --picture node.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from mycelium_cni import verbs
from mycelium_cni.cni.config import Network
from mycelium_cni.cni.errors import CniError
from mycelium_cni.cni.request import Request
from mycelium_cni.kernel.address import format_address
from mycelium_ctl import files
from mycelium_ctl.checks import examine
from mycelium_ctl.checks.finding import Check, Finding
from mycelium_ctl.errors import refused
from mycelium_ctl.node import options
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.stale import find_gone
from mycelium_ctl.node.state import State
from mycelium_ctl.view import Mark, Page, worst

SECTIONS: Final = {
    "Daemon": ("daemon", "interface", "api", "peers", "identity"),
    "Node": ("loopback", "ipv6", "forwarding", "guard", "bridge", "mtu", "standing"),
    "Pods": ("pods", "reach", "subnet"),
    "Runtime": ("conf", "plugin", "chain"),
}
READY: Final = "ready: a pod would get its address now"
WARNED: Final = "ADD would work; there are warnings"
BROKEN: Final = "ADD would work, but pods or the node are broken"
NOT_READY: Final = "not ready: ADD would fail"
UNKNOWN: Final = "unknown: only root can tell whether ADD would work"

Findings = dict[str, tuple[Check, list[Finding]]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="also draw the node")
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the node; 0 only when ADD would work."""
    state = State(options.read(arguments))
    findings: Findings = {check.name: (check, found) for check, found in examine(state)}
    ready: bool | None = not any(
        check.needed and _mark(found) == "fail" for check, found in findings.values()
    )
    refused_as = refusal(state) if state.may_configure else ""
    if ready:
        ready = not refused_as if state.may_configure else None
    if arguments.picture:
        from mycelium_ctl import picture

        files.write(arguments.picture, picture.draw([picture.read_node(state)]))
    if arguments.json:
        print(json.dumps(_document(state, findings, ready=ready), indent=2))
    else:
        _report(state, findings, refused_as, ready=ready)
    return 0 if ready else 1


def refusal(state: State) -> str:
    """What STATUS answers a runtime that asks it with this configuration; "" if it succeeds."""
    try:
        network = Network(json.dumps(state.entry).encode())
        verbs.status(Request({}), network, lambda _: None)
    except CniError as error:
        return error.msg
    except OSError as error:
        return refused(error)
    return ""


def next_step(findings: Findings) -> tuple[Check, Finding] | None:
    """The one thing to do first: what keeps ADD from working, else what fails, else a warning."""

    def urgency(pair: tuple[Check, Finding]) -> int:
        check, found = pair
        return 0 if found.mark == "fail" and check.needed else 1 if found.mark == "fail" else 2

    amiss = [
        (check, found)
        for check, listed in findings.values()
        for found in listed
        if found.mark in ("fail", "warn")
    ]
    return min(amiss, key=urgency, default=None)  # of several, the first in the order of CHECKS


def _mark(found: list[Finding]) -> Mark:
    marks = [each.mark for each in found]
    return "skip" if set(marks) == {"skip"} else worst(marks)


def _overall(findings: Findings, *, ready: bool | None) -> tuple[Mark, str]:
    """The mark of the whole node, and its verdict."""
    mark = worst([_mark(found) for _, found in findings.values()])
    if ready is None:
        return "skip" if mark == "ok" else mark, UNKNOWN
    if not ready:
        return "fail", NOT_READY
    return mark, {"fail": BROKEN, "warn": WARNED}.get(mark, READY)


def _report(state: State, findings: Findings, refused_as: str, *, ready: bool | None) -> None:
    page = Page()
    mark, verdict = _overall(findings, ready=ready)
    page.fact(mark, "status", verdict)
    if refused_as:
        page.fact("fail", "STATUS", refused_as)
    for title, names in SECTIONS.items():
        mode = "bridge" if state.bridged else "routed"
        page.heading(f"{title}, {mode} mode" if title == "Node" else title)
        for name in names:
            _line(page, name, findings[name][1])
    shown = {name for names in SECTIONS.values() for name in names}
    for name, (_, found) in findings.items():
        if name not in shown and _mark(found) in ("fail", "warn"):
            _line(page, name, found)
    step = next_step(findings)
    if step:
        page.heading("Next step")
        check, first = step
        for words in (*first.run, *filter(None, [first.advice])):
            page.say(f"{check.name}: {words}")


def _line(page: Page, name: str, found: list[Finding]) -> None:
    """The worst of what a check found, and how much more there is."""
    mark = _mark(found)
    first = next((each for each in found if each.mark == mark), found[0])
    more = f" (and {len(found) - 1} more: `mycelium-cni doctor {name}`)" if len(found) > 1 else ""
    page.fact(mark, name, first.found + more)


def _document(state: State, findings: Findings, *, ready: bool | None) -> dict[str, object]:
    answers, address = state.daemon, state.address
    step = next_step(findings)
    ours = next((one.ours for one in state.confs if one.ours), None)
    return {
        "ready": ready,
        "state": _overall(findings, ready=ready)[0],
        "nextStep": {"run": list(step[1].run), "advice": step[1].advice or None} if step else None,
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
            "guard": _mark(findings["guard"][1]) == "ok",
            "bridge": state.config.bridge_name if state.bridged and state.bridge else None,
            "mtu": state.interface.mtu if state.interface else None,
        },
        "attachments": {
            "total": len(state.attachments),
            "gone": None if state.blindness else len(find_gone(state)),
            "oldSubnet": len(state.stranded),
        },
        "configuration": str(ours.path) if ours else None,
        "checks": {name: _mark(found) for name, (_, found) in findings.items()},
    }
