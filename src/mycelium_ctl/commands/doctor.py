# SPDX-License-Identifier: Apache-2.0
"""Check this node for every known problem: what is wrong, why it matters, what to run.

Each check says what it found; one that fails also why it matters and what to run. --fix makes what
is missing and breaks nothing that works, then checks again and sends packets. It writes no file.
The exit code is 1 if a check fails; a warning alone leaves it 0.

With a pod (its name, container ID, address or link) it tells everything about that one: its facts
on the node and in the pod, which way packets go there and back, and whether test packets arrive.

    mycelium-cni doctor
    mycelium-cni doctor --fix
    mycelium-cni doctor mtu firewall
    mycelium-cni doctor shop/web-0
    mycelium-cni doctor --json | jq '.[] | select(.state == "fail")'
"""

from __future__ import annotations

import argparse
import json

from mycelium_cni.cni.errors import CniError
from mycelium_ctl.checks import NAMES, examine, onepod
from mycelium_ctl.checks.finding import Check, Finding
from mycelium_ctl.checks.pods import ExpectedPod
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import options
from mycelium_ctl.node.options import Options
from mycelium_ctl.node.rights import blindness, require_rights
from mycelium_ctl.node.state import State
from mycelium_ctl.view import Mark, Page, count

Findings = list[tuple[Check, list[Finding]]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        *("check",),
        nargs="*",
        metavar="CHECK|POD",
        help=f"only these checks, of {', '.join(NAMES)}; or one pod",
    )
    parser.add_argument("--fix", action="store_true", help="fix what can be fixed without harm")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, maybe fix, report; 1 if a check fails at the end."""
    where = options.read(arguments)
    strange = [name for name in arguments.check if name not in NAMES]
    if strange:
        return _about_pod(State(where), arguments.check, arguments)
    wanted = arguments.check or list(NAMES)
    findings = _examine(where, wanted)
    fixes = Fixes()
    if arguments.fix:
        fixes.fix(findings)
        if fixes.done or fixes.failed:
            # A fault may have hidden another one; test packets tell.
            findings = _examine(where, list(dict.fromkeys([*wanted, "reach"])))
    if arguments.json:
        documents = [_document(check, found, fixes) for check, all_ in findings for found in all_]
        print(json.dumps(documents, indent=2))
    else:
        _report(findings, fixes)
    return 1 if _marks(findings).count("fail") else 0


def _about_pod(state: State, wanted: list[str], arguments: argparse.Namespace) -> int:
    """Everything about one attachment; 1 if something of it fails."""
    found = onepod.find(state, wanted[0])
    if len(wanted) > 1 or not found:
        name = next(each for each in wanted if each not in NAMES)
        raise ToolError(
            f"there is no pod and no check {name!a}: `mycelium-cni list` shows the pods; the "
            f"checks are {', '.join(NAMES)}"
        )
    if len(found) > 1:
        links = ", ".join(one.link.name for one in found)
        raise ToolError(f"{wanted[0]} has several attachments: name one of the links {links}")
    one = found[0]
    require_rights()
    if arguments.fix:
        try:
            ExpectedPod(state, one).restore()
        except OSError as error:
            raise ToolError(refused(error)) from error
        state = State(state.where)
        one = next(each for each in onepod.find(state, one.link.name))
    sections = onepod.examine_pod(state, one)
    marks = [each.mark for listed in sections.values() for each in listed]
    if arguments.json:
        document = {
            "pod": one.who,
            "container": one.container,
            "network": one.network,
            "address": one.address,
            "hostLink": one.link.name,
            "mode": "bridge" if one.bridged else "routed",
            "findings": [
                {
                    "section": title,
                    "state": each.mark,
                    "found": each.found,
                    "run": list(each.run),
                    "advice": each.advice or None,
                }
                for title, listed in sections.items()
                for each in listed
            ],
        }
        print(json.dumps(document, indent=2))
        return 1 if "fail" in marks else 0
    page = Page()
    mode = "bridge" if one.bridged else "routed"
    page.say(f"{one.who}: {one.address} on {one.link.name}, {mode} mode, network {one.network}")
    page.say(f"container {one.container}, {one.pod_link or one.ifname} in the pod")
    for title, listed in sections.items():
        page.heading(title)
        for each in listed:
            below = [("run", command) for command in each.run]
            below += [("advice", each.advice)] if each.advice else []
            page.fact(each.mark, "", each.found, *below)
    return 1 if "fail" in marks else 0


def _examine(where: Options, wanted: list[str]) -> Findings:
    return list(examine(State(where), wanted))


def _marks(findings: Findings) -> list[Mark]:
    return [found.mark for _, listed in findings for found in listed]


class Fixes:
    """What --fix has done, by check: the findings it fixed, and why it could not fix others."""

    def __init__(self) -> None:
        self.done: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}

    def fix(self, findings: Findings) -> None:
        """Fix each finding that can be fixed without harm to what runs."""
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


def _document(check: Check, found: Finding, fixes: Fixes) -> dict[str, object]:
    return {
        "name": check.name,
        "state": found.mark,
        "found": found.found,
        "why": check.why,
        "run": list(found.run),
        "advice": found.advice or None,
        "fixable": found.fix is not None,
        "fixed": check.name in fixes.done and found.mark == "ok",
    }


def _report(findings: Findings, fixes: Fixes) -> None:
    page = Page()
    for check, listed in findings:
        for found in listed:
            below = []
            if found.mark in ("fail", "warn"):
                below = [("why", check.why), *(("run", command) for command in found.run)]
                below += [("advice", found.advice)] if found.advice else []
            if check.name in fixes.failed:
                below.append(("not fixed", fixes.failed[check.name]))
            for what in fixes.done.get(check.name, ()):
                below.append(("fixed", what))
            page.fact(found.mark, check.name, found.found, *below)
    marks = _marks(findings)
    failed, warned = marks.count("fail"), marks.count("warn")
    fixable = sum(
        found.fix is not None and found.mark in ("fail", "warn")
        for _, listed in findings
        for found in listed
    )
    if failed or warned:
        hint = f"; --fix can repair {fixable}" if fixable and not fixes.done else ""
        page.say(f"{count(failed, 'check fails', 'checks fail')}, {count(warned, 'warning')}{hint}")
    elif blind := blindness():
        page.say(f"nothing wrong in what can be seen: {blind}")
    else:
        page.say("all is well")
