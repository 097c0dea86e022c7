# SPDX-License-Identifier: Apache-2.0
"""A new network configuration, as `config new` and `install` write it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from mycelium_cni.cni.config import CHOICES
from mycelium_ctl.errors import ToolError
from mycelium_ctl.node import conflist, plugins, runtimes
from mycelium_ctl.node.runtimes import CniDirs

PORTMAP: Final[dict[str, Any]] = {"type": "portmap", "capabilities": {"portMappings": True}}

# IPv4 for Nomad's allocations. The subnet is the one after that of Nomad's own bridge.
BRIDGE: Final[dict[str, Any]] = {
    "type": "bridge",
    "bridge": "nomad-cni",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "172.26.80.0/20"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}


class Needs(NamedTuple):
    """What a runtime's network needs beside our plugin. `before`: the plugins that come first;
    `leads_out`: pods leave the overlay through ours; `ports`: the runtime publishes ports;
    `keys`: of the list itself."""

    before: tuple[dict[str, Any], ...]
    leads_out: bool
    ports: bool
    keys: dict[str, Any]


# As the pods' first network ours is the same for every runtime that takes it (docs/adr/0012).
FIRST: Final = Needs(before=(), leads_out=True, ports=True, keys={})
RUNTIMES: Final = {
    **dict.fromkeys(("kubeadm", "k3s", "rke2", "microk8s", "containerd", "cri-o", "podman"), FIRST),
    # Nomad takes no network without IPv4 and leaves `lo` down. It calls CHECK when it restarts,
    # which fails in `bridge` as soon as another plugin of the list adds an address.
    "nomad": FIRST._replace(
        before=({"type": "loopback"}, BRIDGE), leads_out=False, keys={"disableCheck": True}
    ),
    "multus": FIRST._replace(leads_out=False, ports=False),
}


class Made(NamedTuple):
    """A new network configuration, the executables that it needs beside ours, and notes on it."""

    network: dict[str, Any]
    needs: list[str]
    notes: list[str]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what a new network configuration holds; each is None if not given."""
    flag = argparse.BooleanOptionalAction
    group = parser.add_argument_group("the network configuration")
    group.add_argument(
        "--for", dest="runtime", type=_runtime, choices=RUNTIMES, help="where the pods run"
    )
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
        help="with --ingress cluster: let these connect, too",
    )
    group.add_argument(
        "--transit", action=flag, help="let the overlay reach what is behind the node"
    )
    group.add_argument("--peering", action=flag, help="let pods be peers of the node's daemon")
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
        "--interface-name", metavar="NAME", help="of the pod link, after another plugin (mycelium0)"
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


def _runtime(text: str) -> str:
    """A name of RUNTIMES, however it is written: crio, RKE2."""
    plain = text.casefold().replace("-", "")
    return next((name for name in RUNTIMES if name.replace("-", "") == plain), text)


def arguments() -> list[str]:
    """The names of these arguments, and of those about the node that end up in a configuration."""
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    return [*vars(parser.parse_args([])), "mode", "interface", "bridge", "netseed"]


def new(wanted: argparse.Namespace, dirs: CniDirs) -> Made:
    """The network configuration that the arguments ask for, for the runtime of these directories.
    Raises ToolError if it would be refused."""
    runtime = RUNTIMES.get(wanted.runtime or dirs.whose, FIRST)
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
        "defaultRoute": _default(wanted.default_route, runtime),
        "ipMasq": _default(wanted.ip_masq, runtime),
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
    chain, notes = [*runtime.before, plugin], []
    there = runtimes.find_executable("portmap", dirs) is not None
    if wanted.portmap or (runtime.ports and wanted.portmap is None and there):
        chain.append(PORTMAP)
    elif runtime.ports and wanted.portmap is None:
        notes.append(f"hostPort will not work: there is no portmap in {_looked(dirs)}")
    kinds = [one["type"] for one in chain]
    network = {
        **plugins.offer(kinds, dirs),
        "name": wanted.name or "mycelium",
        **runtime.keys,
        "plugins": chain,
    }
    checked = conflist.check(json.dumps(network).encode(), Path("new.conflist"))
    fatal = [fault for fault in checked.faults if fault.fatal]
    if fatal:
        raise ToolError(f"{fatal[0].what}; {fatal[0].remedy}")
    return Made(network, [kind for kind in checked.needs if kind != conflist.TYPE], notes)


def lacking(kinds: Sequence[str], dirs: CniDirs) -> str:
    """Which of these plugins the runtime would not find, and what to do; "" if it finds all."""
    names = [kind for kind in kinds if runtimes.find_executable(kind, dirs) is None]
    if not names:
        return ""
    return (
        f"there is no {' and no '.join(dict.fromkeys(names))} in {_looked(dirs)}, which the "
        "runtime calls for every pod: install the CNI plugins (containernetworking/plugins) there"
    )


def _looked(dirs: CniDirs) -> str:
    return " or ".join(str(directory) for directory in dirs.bins)


def _default(said: bool | None, runtime: Needs) -> bool | None:
    """A key of a network that leads out: on unless it was switched off, and left out when off."""
    return (runtime.leads_out if said is None else said) or None
