# SPDX-License-Identifier: Apache-2.0
"""A new network configuration, as `config new` and `install` write it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from mycelium_cni.cni.config import CHOICES
from mycelium_ctl.errors import ToolError
from mycelium_ctl.node import conflist, plugins, runtimes
from mycelium_ctl.node.runtimes import CniDirs

PORTMAP: Final[dict[str, Any]] = {"type": "portmap", "capabilities": {"portMappings": True}}

# As the pods' first network ours is the same for all of these (docs/adr/0012).
RUNTIMES: Final = (
    *("kubeadm", "k3s", "rke2", "microk8s", "containerd", "cri-o", "podman", "nomad"),
    "multus",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what a new network configuration holds; each is None if not given."""
    flag = argparse.BooleanOptionalAction
    group = parser.add_argument_group("the network configuration")
    group.add_argument("--for", dest="runtime", choices=RUNTIMES, help="where the pods run")
    group.add_argument("--name", help="of the network (mycelium)")
    group.add_argument("--default-route", action=flag, help="give pods a default route")
    group.add_argument(
        "--ip-masq", action=flag, help="let pods leave the overlay with the node's address"
    )
    group.add_argument(
        "--service-network", action="append", metavar="PREFIX", help="of Kubernetes' Services"
    )
    group.add_argument("--route", action="append", metavar="PREFIX", help="instead of 400::/7")
    group.add_argument("--portmap", action=flag, help="chain portmap, for hostPort")
    group.add_argument(
        "--ingress", choices=CHOICES["ingress"], help="who may open connections to the pods (open)"
    )
    group.add_argument(
        "--allow-from",
        action="append",
        metavar="PREFIX",
        help="with --ingress cluster: these may, too",
    )
    group.add_argument(
        "--transit", action=flag, help="let the overlay reach what is behind the node"
    )
    group.add_argument("--peering", action=flag, help="pods may be peers of the node's daemon")
    group.add_argument(
        "--guard",
        choices=CHOICES["guard"],
        help="whether ADD needs the packet filter rules (required)",
    )
    group.add_argument(
        "--addressing",
        choices=CHOICES["addressing"],
        help="a new address for each pod, or one that is kept by name (random)",
    )
    group.add_argument("--mtu", type=int, metavar="BYTES", help="of the pod link (the interface's)")
    group.add_argument(
        "--interface-name", metavar="NAME", help="of the pod link behind another plugin (mycelium0)"
    )
    group.add_argument(
        "--capability",
        action="append",
        choices=("ips", "mac", "dns"),
        help="what pods may ask for; may be repeated",
    )
    group.add_argument(
        "--log-level",
        choices=CHOICES["logLevel"],
        help="the least severe event that is logged (warning)",
    )
    group.add_argument("--log-file", metavar="FILE", help="where the plugin logs (standard error)")


def arguments() -> list[str]:
    """The names of these arguments, and of those about the node that end up in a configuration."""
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    return [*vars(parser.parse_args([])), "mode", "interface", "bridge", "netseed"]


def new(wanted: argparse.Namespace, dirs: CniDirs) -> tuple[dict[str, Any], list[str]]:
    """The network configuration that the arguments ask for, for the runtime of these directories;
    and notes on it. Raises ToolError if it would be refused."""
    first = wanted.runtime != "multus"
    said = {
        "mode": wanted.mode,
        "myceliumInterface": wanted.interface,
        "bridge": wanted.bridge,
        "netseed": wanted.netseed,
        "addressing": wanted.addressing,
        "mtu": wanted.mtu,
        "interfaceName": wanted.interface_name,
        "routes": [{"dst": prefix} for prefix in wanted.route or ()] or None,
        "serviceNetworks": wanted.service_network,
        "defaultRoute": _default(wanted.default_route, first),
        "ipMasq": _default(wanted.ip_masq, first),
        "ingress": wanted.ingress,
        "allowFrom": wanted.allow_from,
        "transit": wanted.transit,
        "peering": wanted.peering,
        "guard": wanted.guard,
        "logLevel": wanted.log_level,
        "logFile": wanted.log_file,
    }
    plugin: dict[str, Any] = {"type": conflist.TYPE}
    plugin |= {key: value for key, value in said.items() if value is not None}
    if wanted.capability:
        plugin["capabilities"] = dict.fromkeys(sorted(wanted.capability), True)
    chain, notes = [plugin], []
    there = runtimes.find_executable("portmap", dirs) is not None
    if wanted.portmap or (first and wanted.portmap is None and there):
        chain.append(PORTMAP)
    elif first and wanted.portmap is None:
        looked = " or ".join(str(directory) for directory in dirs.bins)
        notes.append(f"hostPort will not work: there is no portmap in {looked}")
    kinds = [one["type"] for one in chain]
    network = {
        **plugins.offer(kinds, dirs),
        "name": wanted.name or "mycelium",
        "plugins": chain,
    }
    checked = conflist.check(json.dumps(network).encode(), Path("new.conflist"))
    fatal = [fault for fault in checked.faults if fault.fatal]
    if fatal:
        raise ToolError(f"{fatal[0].what}; {fatal[0].remedy}")
    return network, notes


def _default(said: bool | None, first: bool) -> bool | None:
    """A key of the pods' first network: on unless it was switched off, and left out when off."""
    return (first if said is None else said) or None
