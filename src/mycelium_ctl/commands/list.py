# SPDX-License-Identifier: Apache-2.0
"""The attachments of this node: which pod, which address, which link, how much traffic.

Everything is read from the kernel. The first column is the verdict: ok if the pod's end of the
link answers and its address is of the node's subnet. The exit code is 1 unless all are ok.

    mycelium-cni list
    mycelium-cni list --watch
    mycelium-cni list --json | jq -r '.[] | select(.namespace == "default") | .address'
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from mycelium_ctl.arguments import seconds
from mycelium_ctl.node import options
from mycelium_ctl.node.stale import verdicts
from mycelium_ctl.node.state import State
from mycelium_ctl.view import Mark, Page, amount, worst

HEADERS = ("pod", "address", "container", "host link", "received", "sent", "pod link")
TRAFFIC = ("received", "sent")  # bytes, packets


def rows(state: State) -> list[tuple[Mark, tuple[str, ...]]]:
    """The table. Traffic is the pod's: what the host link has sent, the pod has received."""
    found: list[tuple[Mark, tuple[str, ...]]] = []
    seen = verdicts(state)
    for one in state.attachments:
        sign, words = seen[one.link.index]
        link = one.link
        received = f"{amount(link.sent_bytes)}, {link.sent_packets}"
        sent = f"{amount(link.received_bytes)}, {link.received_packets}"
        cells = (one.who, one.address, one.container[:13], link.name, received, sent, words)
        found.append((sign, cells))
    return found


def document(state: State) -> list[dict[str, Any]]:
    """The same for programs."""
    seen = verdicts(state)
    return [
        {
            "namespace": one.namespace,
            "pod": one.pod,
            "container": one.container,
            "network": one.network,
            "ifname": one.ifname,
            "address": one.address,
            "hostLink": one.link.name,
            "podLink": one.pod_link or None,
            "podAnswers": bool(one.pod_link),
            "mtu": one.link.mtu,
            "receivedBytes": one.link.sent_bytes,
            "receivedPackets": one.link.sent_packets,
            "sentBytes": one.link.received_bytes,
            "sentPackets": one.link.received_packets,
            "state": seen[one.link.index][0],
            "verdict": seen[one.link.index][1],
        }
        for one in state.attachments
    ]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=1.0,
        metavar="SECONDS",
        help="repeat until Ctrl-C (every %(const)g s)",
    )
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the attachments; 0 if all are well, also if there are none."""
    where = options.read(arguments)
    if arguments.watch is not None:
        every_s = max(arguments.watch, 0.1)
        Page().watch(lambda: (HEADERS, rows(State(where))), every_s, right=TRAFFIC)
    state = State(where)
    if arguments.json:
        print(json.dumps(document(state), indent=2))
    elif not state.attachments:
        Page().say("no pod is attached")
    else:
        Page().table(HEADERS, rows(state), right=TRAFFIC)
    return 0 if worst([sign for sign, _ in verdicts(state).values()]) == "ok" else 1
