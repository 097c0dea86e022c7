# SPDX-License-Identifier: Apache-2.0
"""Every trap a node is known to fall into: checked, explained, and mended if you say so.

Each check says what it found; one that fails also why it matters and what mends it. --fix mends
those that can be mended without harm to what runs, and looks again. The exit code is 1 if a check
fails; a warning alone leaves it 0.

    mycelium-cni doctor
    mycelium-cni doctor --fix
    mycelium-cni doctor mtu firewall
    mycelium-cni doctor --json | jq '.[] | select(.state == "fail")'
"""

from __future__ import annotations

import argparse
import json

from mycelium_cni.cni.errors import CniError
from mycelium_ctl.checks.catalogue import NAMES, Check, Finding, examine
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.state import Options, State
from mycelium_ctl.view import Page, count

Findings = list[tuple[Check, Finding]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "check", nargs="*", metavar="CHECK", help=f"only these, of {', '.join(NAMES)}"
    )
    parser.add_argument("--fix", action="store_true", help="mend what can be mended without harm")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    nodestate.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, maybe mend, report; 1 if a check fails at the end."""
    for name in arguments.check:
        if name not in NAMES:
            raise ToolError(f"there is no check {name!a}; there are {', '.join(NAMES)}")
    wanted = arguments.check or list(NAMES)
    where = nodestate.options(arguments)
    findings = _examine(where, wanted)
    mended: dict[str, str] = {}
    if arguments.fix:
        for check, finding in findings:
            if finding.fix and finding.mark in ("fail", "warn"):
                mended[check.name] = _mend(finding)
        if mended:
            findings = _examine(where, wanted)
    if arguments.json:
        print(json.dumps([_document(*pair, mended) for pair in findings], indent=2))
    else:
        _report(findings, mended)
    return 1 if any(finding.mark == "fail" for _, finding in findings) else 0


def _examine(where: Options, wanted: list[str]) -> Findings:
    return list(examine(State(where), wanted))


def _mend(finding: Finding) -> str:
    """Mend it; "" or why that was not possible."""
    try:
        if finding.fix:
            finding.fix()
    except (CniError, ToolError) as error:
        return str(error)
    except OSError as error:
        return refused(error)
    return ""


def _document(check: Check, finding: Finding, mended: dict[str, str]) -> dict[str, object]:
    return {
        "name": check.name,
        "state": finding.mark,
        "found": finding.found,
        "why": check.why,
        "mend": finding.mend or None,
        "fixable": finding.fix is not None,
        "fixed": mended.get(check.name) == "" and finding.mark == "ok",
    }


def _report(findings: Findings, mended: dict[str, str]) -> None:
    page = Page()
    for check, finding in findings:
        below = []
        if finding.mark in ("fail", "warn"):
            below = [("why", check.why), ("mend", finding.mend)]
        if mended.get(check.name):
            below.append(("not mended", mended[check.name]))
        found = finding.found
        if mended.get(check.name) == "" and finding.mark == "ok":
            found = f"mended: {found}"
        page.fact(finding.mark, check.name, found, *below)
    failed = sum(finding.mark == "fail" for _, finding in findings)
    warned = sum(finding.mark == "warn" for _, finding in findings)
    fixable = sum(f.fix is not None and f.mark in ("fail", "warn") for _, f in findings)
    if failed or warned:
        hint = f"; --fix can mend {fixable}" if fixable and not mended else ""
        page.say(f"{count(failed, 'check fails', 'checks fail')}, {count(warned, 'warning')}{hint}")
    else:
        page.say("all is well")
