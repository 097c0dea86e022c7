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
from mycelium_ctl.checks import NAMES, examine
from mycelium_ctl.checks.finding import Check, Finding
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.state import Options, State
from mycelium_ctl.view import Mark, Page, count

Findings = list[tuple[Check, list[Finding]]]


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
    mended = Mended()
    if arguments.fix:
        mended.fix(findings)
        if mended.done or mended.failed:
            # What was mended may have hidden something, and packets have the last word.
            findings = _examine(where, list(dict.fromkeys([*wanted, "reach"])))
    if arguments.json:
        documents = [_document(check, found, mended) for check, all_ in findings for found in all_]
        print(json.dumps(documents, indent=2))
    else:
        _report(findings, mended)
    return 1 if _marks(findings).count("fail") else 0


def _examine(where: Options, wanted: list[str]) -> Findings:
    return list(examine(State(where), wanted))


def _marks(findings: Findings) -> list[Mark]:
    return [found.mark for _, listed in findings for found in listed]


class Mended:
    """What --fix has done, by check: the findings it mended, and why it could not mend others."""

    def __init__(self) -> None:
        self.done: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}

    def fix(self, findings: Findings) -> None:
        """Mend each finding that can be mended without harm to what runs."""
        for check, listed in findings:
            for found in listed:
                if found.fix is None or found.mark not in ("fail", "warn"):
                    continue
                try:
                    found.fix()
                except (CniError, ToolError) as error:
                    self.failed[check.name] = str(error)
                except OSError as error:
                    self.failed[check.name] = refused(error)
                else:
                    self.done.setdefault(check.name, []).append(found.found)


def _document(check: Check, found: Finding, mended: Mended) -> dict[str, object]:
    return {
        "name": check.name,
        "state": found.mark,
        "found": found.found,
        "why": check.why,
        "run": list(found.run),
        "advice": found.advice or None,
        "fixable": found.fix is not None,
        "fixed": check.name in mended.done and found.mark == "ok",
    }


def _report(findings: Findings, mended: Mended) -> None:
    page = Page()
    for check, listed in findings:
        for found in listed:
            below = []
            if found.mark in ("fail", "warn"):
                below = [("why", check.why), *(("run", command) for command in found.run)]
                below += [("advice", found.advice)] if found.advice else []
            if check.name in mended.failed:
                below.append(("not mended", mended.failed[check.name]))
            for what in mended.done.get(check.name, ()):
                below.append(("was mended", what))
            page.fact(found.mark, check.name, found.found, *below)
    marks = _marks(findings)
    failed, warned = marks.count("fail"), marks.count("warn")
    fixable = sum(
        found.fix is not None and found.mark in ("fail", "warn")
        for _, listed in findings
        for found in listed
    )
    if failed or warned:
        hint = f"; --fix can mend {fixable}" if fixable and not mended.done else ""
        page.say(f"{count(failed, 'check fails', 'checks fail')}, {count(warned, 'warning')}{hint}")
    else:
        page.say("all is well")
