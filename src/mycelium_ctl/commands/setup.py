# SPDX-License-Identifier: Apache-2.0
"""Prepare this node for pods, or check that nothing is missing. Run it again at any time.

It waits for the Mycelium interface, then makes what is missing: routes that keep packets for the
overlay from leaving by another way while the daemon is down, the node's own address on lo,
forwarding (without losing routes learned from router advertisements), and in bridge mode the bridge
with the first address of the subnet, which answers for the node's own address. Every change is
printed as the `ip` or `sysctl` line that would do the same; --dry-run prints them and changes
nothing. After the daemon's key has changed it removes what the old subnet left.

The guard, tables of the packet filter, is loaded before the node forwards; its rules are not
printed, docs/security.md shows them. All else that is made carries protocol 77, the bridge a link
group: `mycelium-cni teardown` finds it by these.

    mycelium-cni setup --wait 60                   # as the service does at boot
    mycelium-cni setup --mode bridge --dry-run     # what would it change?
    mycelium-cni setup --install-units             # the service, and drop-ins for networkd and NM
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mycelium_cni.cni.errors import TRY_AGAIN_LATER, CniError
from mycelium_cni.kernel.address import format_address
from mycelium_cni.node import subnet
from mycelium_ctl import programs, units
from mycelium_ctl.arguments import seconds
from mycelium_ctl.errors import ToolError
from mycelium_ctl.node import options
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.expected import Expected
from mycelium_ctl.node.state import State
from mycelium_ctl.view import count, visible

POLL_S: Final = 0.02


def await_interface(make_state: Callable[[], State], within_s: float) -> State:
    """The state of the node as soon as its interface can be used.

    Raises ToolError when that takes longer, or waiting will not help.
    """
    deadline = time.monotonic() + within_s
    while True:
        state = make_state()
        try:
            subnet.find(state.host, state.interface_config)
        except CniError as error:
            if error.code != TRY_AGAIN_LATER or time.monotonic() > deadline:
                waited = f" (waited {within_s:g} s)" if within_s else ""
                raise ToolError(error.msg + waited) from error
            time.sleep(POLL_S)
        else:
            return state


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="print the changes, make none")
    parser.add_argument(
        "--wait", type=seconds, default=0, metavar="SECONDS", help="for the interface (%(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    units = parser.add_mutually_exclusive_group()
    units.add_argument("--print-units", action="store_true", help="print all shipped files")
    units.add_argument(
        "--install-units", action="store_true", help="write those this node needs, as install does"
    )
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prepare the node; 0 if nothing is missing afterwards, or with --dry-run."""
    where = options.read(arguments)
    if arguments.print_units:
        from mycelium_lab.own import own_executable

        for unit, text in units.texts(own_executable(), State(where).own_links).items():
            print(f"# /{unit.place}\n{text}")
        return 0
    if arguments.install_units:
        return _install(State(where), dry_run=arguments.dry_run, as_json=arguments.json)

    state = await_interface(lambda: State(where), arguments.wait)
    try:
        expected = Expected(state)
    except CniError as error:
        raise ToolError(error.msg) from error
    if not expected.complete and not arguments.dry_run:
        expected.make()
        left = Expected(State(where))
        if not left.complete:
            raise ToolError(f"still missing after setup: {left.changes[0].command}")
    _report(expected, dry_run=arguments.dry_run, as_json=arguments.json)
    return 0


def _report(expected: Expected, *, dry_run: bool, as_json: bool) -> None:
    changes, state, node = expected.changes, expected.state, expected.node
    stranded = [one for one in state.attachments if one.subnet not in (node.subnet, b"")]
    if as_json:
        document = {
            "mode": "bridge" if node.bridged else "routed",
            "interface": state.config.interface,
            "address": format_address(node.address),
            "subnet": nodestate.show_subnet(node.subnet),
            "changed": bool(changes) and not dry_run,
            "changes": [{"why": c.why, "command": c.command} for c in changes],
            "stranded": [one.who for one in stranded],
        }
        print(json.dumps(document, indent=2))
        return
    for change in changes:
        print(f"{visible(change.command)}  # {change.why}")
    if not state.may_configure:
        print("# only root can read the packet filter: its changes are not listed")
    mode = "bridge" if node.bridged else "routed"
    summary = f"{mode} mode, subnet {nodestate.show_subnet(node.subnet)}"
    if not changes:
        print(f"nothing to do: the node is ready ({summary})")
    elif dry_run:
        print(f"# {count(len(changes), 'change')} to make, none made ({summary})")
    else:
        print(f"# {count(len(changes), 'change')} made, the node is ready ({summary})")
    if stranded:
        names = ", ".join(visible(one.who) for one in stranded[:5])
        more = " …" if len(stranded) > 5 else ""
        print(
            f"# the daemon's key has changed under {count(len(stranded), 'live pod')}: "
            f"delete {names}{more} to get {'it' if len(stranded) == 1 else 'them'} new addresses"
        )


def _install(state: State, *, dry_run: bool, as_json: bool) -> int:
    from mycelium_ctl.receipt import Receipt
    from mycelium_lab.own import own_executable

    executable = Path(own_executable()).resolve()
    if doubt := programs.doubt(executable):
        raise ToolError(
            f"the unit would start {executable} as root at boot, and {doubt}: "
            "`mycelium-cni install` puts it where nobody else can replace it"
        )
    steps, notes = units.steps(Receipt(state.where.root), str(executable), state.own_links)
    for step in steps if not dry_run else ():
        step.do()
    if as_json:
        told = {"steps": [step.words for step in steps], "notes": notes}
        print(json.dumps({"changed": bool(steps) and not dry_run, **told}, indent=2))
        return 0
    for line in [step.words for step in steps] + [f"# {note}" for note in notes]:
        print(visible(line))
    if not steps:
        print("# nothing to do")
    return 0
