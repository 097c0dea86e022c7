# SPDX-License-Identifier: Apache-2.0
"""Remove attachments whose pod is gone, for runtimes that never call GC.

A pod is gone when its end of the link is, or when no process is in its network namespace and no
file such as /run/netns/cni-… names it any more. With --empty also when the namespace still has a
name but no process, as a crashed runtime leaves it: it is looked at twice, because a runtime makes
the namespace, and calls the plugin, before the pod's first process starts.

    mycelium-cni gc --dry-run
    mycelium-cni gc --empty
"""

from __future__ import annotations

import argparse
import json
import time

from mycelium_cni import guard
from mycelium_cni.pod import removal
from mycelium_ctl.arguments import seconds
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import options
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.options import Options
from mycelium_ctl.node.rights import blindness, require_rights
from mycelium_ctl.node.stale import Gone, find_gone, find_left_over
from mycelium_ctl.node.state import State
from mycelium_ctl.view import Page, count


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="print them, remove none")
    parser.add_argument("--empty", action="store_true", help="also named namespaces, if empty")
    parser.add_argument(
        "--grace",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="between the two looks of --empty (%(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Remove what is gone; 0 when nothing is left of it."""
    where = options.read(arguments)
    if unseen := blindness():
        raise ToolError(f"cannot tell which pods are gone: {unseen}")
    gone, left_over = _look_twice(where, arguments)
    removed = [one.attached.link.index for one in gone] + [link.index for link in left_over]
    if not arguments.dry_run:
        require_rights()
        host = State(where).host
        try:
            if removed:
                removal.delete_links(host, removed)
            guard.sweep(host)  # also what pods left that ended without DEL
            removal.sweep_neighbours(host)
        except OSError as error:
            raise ToolError(refused(error)) from error
    if arguments.json:
        found = [
            {
                "hostLink": one.attached.link.name,
                "namespace": one.attached.namespace,
                "pod": one.attached.pod,
                "container": one.attached.container,
                "address": one.attached.address,
                "why": one.why,
            }
            for one in gone
        ]
        print(json.dumps({"removed": not arguments.dry_run, "attachments": found}, indent=2))
        return 0
    _report(gone, left_over, dry_run=arguments.dry_run)
    return 0


def _look_twice(
    where: Options, arguments: argparse.Namespace
) -> tuple[list[Gone], list[nodestate.LinkFacts]]:
    state = State(where)
    gone = find_gone(state, empty=arguments.empty)
    # An empty namespace may be that of a pod that is just starting: look again.
    if gone and arguments.empty:
        time.sleep(arguments.grace)
        again = State(where)
        still = {one.attached.link.index for one in find_gone(again, empty=True)}
        gone = [one for one in gone if one.attached.link.index in still]
    return gone, find_left_over(state)


def _report(gone: list[Gone], left_over: list[nodestate.LinkFacts], *, dry_run: bool) -> None:
    page = Page()
    for one in gone:
        page.say(f"{one.attached.link.name}  {one.attached.who}  {one.attached.address}: {one.why}")
    for link in left_over:
        page.say(f"{link.name}: a deletion of it was interrupted")
    total = len(gone) + len(left_over)
    if not total:
        page.say("nothing to do: every attachment has its pod")
    else:
        page.say(f"{count(total, 'link')} {'to remove, none removed' if dry_run else 'removed'}")
