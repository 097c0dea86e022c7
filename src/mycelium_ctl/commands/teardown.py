# SPDX-License-Identifier: Apache-2.0
"""Remove what setup and ADD made on this node, and nothing else.

That is what carries our mark: routes, addresses and proxy entries of protocol 77, a bridge whose
group says so, and the guard's tables, which have our name. Forwarding and accept_ra stay as they
are: switches carry no mark, and others may rely on them by now. Addresses carry their mark from
Linux 5.18 on; on older kernels they stay.

It refuses while pods are attached, because they would be cut off, and while the agent runs, which
would restore what is removed; --force does it anyway.

    mycelium-cni teardown --dry-run
    mycelium-cni teardown
"""

from __future__ import annotations

import argparse
import json

from mycelium_cni import guard
from mycelium_cni.guard import rules
from mycelium_cni.kernel import nftables
from mycelium_cni.kernel.facts import Object
from mycelium_cni.node.facts import Bridge
from mycelium_cni.node.marks import BRIDGE_GROUP, GROUP, GROUP_MASK
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import options
from mycelium_ctl.node.expected import Change, stale
from mycelium_ctl.node.inuse import refuse_while_in_use
from mycelium_ctl.node.rights import require_rights
from mycelium_ctl.node.state import State
from mycelium_ctl.view import count, visible


def plan(state: State) -> list[Object]:
    """What to remove, in order: the bridge last, with whatever is still on it."""
    steps = list(stale(state, None))
    for bridge in state.links:
        if bridge.kind != "bridge" or bridge.group != BRIDGE_GROUP:
            continue
        ports = [link for link in state.links if link.master == bridge.index]
        foreign = [port.name for port in ports if port.group & GROUP_MASK != GROUP]
        if foreign:
            raise ToolError(
                f"bridge {bridge.name} is ours, its port {foreign[0]} is not: "
                f"run `ip link set {foreign[0]} nomaster` first"
            )
        steps.append(Bridge(bridge.name, bytes(8)))
    return steps


def guard_tables() -> list[Change]:
    """The guard's tables that are loaded; empty also where the kernel has no packet filter."""
    try:
        found = nftables.Socket().ask(rules.INET.get(), rules.BRIDGE.get())
    except OSError:
        return []
    return [
        Change(f"nft delete table {family} {guard.TABLE_NAME}", "the guard")
        for family, table in zip(("inet", "bridge"), found, strict=True)
        if table is not None
    ]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="print the changes, make none")
    parser.add_argument(
        "--force", action="store_true", help="also while pods are attached or the agent runs"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Remove; 0 when nothing of ours is left."""
    state = State(options.read(arguments))
    if not (arguments.force or arguments.dry_run):
        refuse_while_in_use(state.attachments, "would be cut off")
    steps, tables = plan(state), guard_tables()
    if not arguments.dry_run:
        require_rights()
        try:
            for fact in steps:
                state.host.request(fact.drop())
            guard.remove()
        except OSError as error:
            raise ToolError(refused(error)) from error
    changes = [Change(fact.removal, fact.why) for fact in steps] + tables
    if arguments.json:
        document = {
            "changed": bool(changes) and not arguments.dry_run,
            "changes": [{"why": c.why, "command": c.command} for c in changes],
        }
        print(json.dumps(document, indent=2))
        return 0
    for change in changes:
        print(f"{visible(change.command)}  # {change.why}")
    if not changes:
        print("nothing to do: setup has made nothing here")
    elif arguments.dry_run:
        print(f"# {count(len(changes), 'change')} to make, none made")
    else:
        print(f"# {count(len(changes), 'change')} made; forwarding stays as it is")
    return 0
