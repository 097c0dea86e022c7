# SPDX-License-Identifier: Apache-2.0
"""Check a network configuration as libcni and the plugin would, or write a good one.

`config check` names the line and the mend of everything that is wrong; 1 is its exit code if the
file would be refused. The kind of a file is told by its suffix, as runtimes do; `-` is standard
input and taken for a list. `config new` writes to standard output, or, with --output, to a file
beside its final place, so that a runtime never reads half of it.

    mycelium-cni config check /etc/cni/net.d/10-mycelium.conflist
    mycelium-cni config new --for k3s --output /etc/cni/net.d/10-mycelium.conflist
    mycelium-cni config new --for multus --name overlay --manifest | kubectl apply -f -
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from mycelium_ctl import files
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import conflist, plugins, runtimes
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.conflist import ConfFile
from mycelium_ctl.node.runtimes import CniDirs
from mycelium_ctl.node.state import Options
from mycelium_ctl.view import Mark, Page, count

PORTMAP: Final[dict[str, Any]] = {"type": "portmap", "capabilities": {"portMappings": True}}

# Where the pods' first network is ours it is the same for all of them (docs/adr/0010).
RUNTIMES: Final = (
    *("kubeadm", "k3s", "rke2", "microk8s", "containerd", "cri-o", "podman", "nomad"),
    "multus",
)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what a new network configuration holds; each is None if not given."""
    flag = argparse.BooleanOptionalAction
    group = parser.add_argument_group("the network configuration")
    group.add_argument("--for", dest="runtime", choices=RUNTIMES, help="where the pods run")
    group.add_argument("--name", help="of the network (mycelium)")
    group.add_argument("--default-route", action=flag, help="pods' way to all that is no overlay")
    group.add_argument("--ip-masq", action=flag, help="with the node's address, not the pod's")
    group.add_argument(
        "--service-network", action="append", metavar="PREFIX", help="of Kubernetes' Services"
    )
    group.add_argument("--route", action="append", metavar="PREFIX", help="instead of 400::/7")
    group.add_argument("--portmap", action=flag, help="chain portmap, for hostPort")
    group.add_argument("--ingress", choices=("open", "cluster", "closed"))
    group.add_argument("--allow-from", action="append", metavar="PREFIX", help="with cluster")
    group.add_argument("--guard", choices=("required", "optional"))
    group.add_argument("--addressing", choices=("random", "stable"))
    group.add_argument("--mtu", type=int, metavar="BYTES")
    group.add_argument("--interface-name", metavar="NAME", help="in a chain (mycelium0)")
    group.add_argument(
        "--capability", action="append", choices=("ips", "mac", "dns"), help="let pods ask for it"
    )
    group.add_argument("--log-level", choices=("error", "warning", "info", "debug"))
    group.add_argument("--log-file", metavar="FILE")


def new_network(arguments: argparse.Namespace, dirs: CniDirs) -> tuple[dict[str, Any], list[str]]:
    """The network configuration that the arguments ask for, for the runtime of these directories;
    and what its reader should know. Raises ToolError if there is no such."""
    first = arguments.runtime != "multus"
    said = {
        "mode": arguments.mode,
        "myceliumInterface": arguments.interface,
        "bridge": arguments.bridge,
        "netseed": arguments.netseed,
        "addressing": arguments.addressing,
        "mtu": arguments.mtu,
        "interfaceName": arguments.interface_name,
        "routes": [{"dst": prefix} for prefix in arguments.route or ()] or None,
        "serviceNetworks": arguments.service_network,
        "defaultRoute": _default(arguments.default_route, first),
        "ipMasq": _default(arguments.ip_masq, first),
        "ingress": arguments.ingress,
        "allowFrom": arguments.allow_from,
        "guard": arguments.guard,
        "logLevel": arguments.log_level,
        "logFile": arguments.log_file,
    }
    plugin: dict[str, Any] = {"type": conflist.TYPE}
    plugin |= {key: value for key, value in said.items() if value is not None}
    if arguments.capability:
        plugin["capabilities"] = dict.fromkeys(sorted(arguments.capability), True)
    chain, notes = [plugin], []
    there = runtimes.find_executable("portmap", dirs) is not None
    if arguments.portmap or (first and arguments.portmap is None and there):
        chain.append(PORTMAP)
    elif first and arguments.portmap is None:
        looked = " or ".join(str(directory) for directory in dirs.bins)
        notes.append(f"hostPort will not work: there is no portmap in {looked}")
    kinds = [one["type"] for one in chain]
    network = {
        **plugins.offer(kinds, dirs),
        "name": arguments.name or "mycelium",
        "plugins": chain,
    }
    checked = conflist.check(json.dumps(network).encode(), Path("new.conflist"))
    fatal = [fault for fault in checked.faults if fault.fatal]
    if fatal:
        raise ToolError(f"{fatal[0].what}; {fatal[0].mend}")
    return network, notes


def _default(said: bool | None, first: bool) -> bool | None:
    """A key of the pods' first network: on unless it was switched off, and absent when off."""
    return (first if said is None else said) or None


def manifest(network: dict[str, Any]) -> str:
    """A NetworkAttachmentDefinition for Multus, as YAML."""
    config = json.dumps(network, indent=2).replace("\n", "\n    ")
    return (
        "apiVersion: k8s.cni.cncf.io/v1\n"
        "kind: NetworkAttachmentDefinition\n"
        "metadata:\n"
        f"  name: {network['name']}\n"
        "spec:\n"
        f"  config: |\n    {config}\n"
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="check | new")
    check = actions.add_parser("check", help="a file, or all files of a directory")
    check.add_argument("file", metavar="FILE", help="a file, a directory, or - for standard input")
    check.add_argument("--json", action="store_true", help="print one JSON document")

    new = actions.add_parser("new", help="write one")
    add_network_options(new)
    new.add_argument("--manifest", action="store_true", help="wrapped for Multus, as YAML")
    new.add_argument("--output", type=Path, metavar="FILE", help="instead of standard output")
    for action in (check, new):
        nodestate.add_options(action)


def run(arguments: argparse.Namespace) -> int:
    """Check or write; 0 if all is well."""
    where = nodestate.options(arguments)
    if arguments.action == "check":
        return _check(arguments.file, where, as_json=arguments.json)
    dirs = runtimes.choose_dirs(where, arguments.runtime)
    network, notes = new_network(arguments, dirs)
    for note in notes:
        print(note, file=sys.stderr)
    text = manifest(network) if arguments.manifest else json.dumps(network, indent=2) + "\n"
    if arguments.output is None:
        print(text, end="")
    else:
        files.write(arguments.output, text)
    return 0


def _check(name: str, where: Options, *, as_json: bool) -> int:
    if name == "-" or name.startswith(("/dev/fd/", "/dev/stdin")):  # or the shell's <(…)
        try:
            with open(0 if name == "-" else name, "rb", closefd=name != "-") as stream:
                octets = stream.read(files.SIZE_LIMIT + 1)
        except OSError as error:
            raise ToolError(f"cannot read {name}: {error.strerror}") from error
        confs = [conflist.check(octets, Path("-.conflist"))]
    elif Path(name).is_dir():
        try:
            paths = conflist.list_files(Path(name))
        except OSError as error:
            raise ToolError(f"cannot list {name}: {refused(error)}") from error
        if not paths:
            raise ToolError(f"{name}: no .conf, .conflist or .json file; `config new` writes one")
        confs = [_read(path) for path in paths]
    else:
        confs = [_read(Path(name))]
    dirs = runtimes.choose_dirs(where, None)
    for conf in confs:
        conf.faults.extend(plugins.unfit(conf, dirs, where.root))
    if as_json:
        print(json.dumps([_document(conf) for conf in confs], indent=2))
    else:
        for conf in confs:
            _show(conf)
    return 0 if all(conf.valid and not conf.hidden for conf in confs) else 1


def _read(path: Path) -> ConfFile:
    try:
        return conflist.read(path)
    except FileNotFoundError as error:
        raise ToolError(f"cannot read {path}: {error.strerror}") from error


def _document(conf: ConfFile) -> dict[str, Any]:
    return {
        "file": str(conf.path),
        "valid": conf.valid,
        "network": conf.network or None,
        "plugins": conf.types,
        "faults": [
            {"line": f.line or 1, "what": f.what, "mend": f.mend, "fatal": f.fatal}
            for f in conf.faults
        ],
        "better": json.loads(conf.better) if conf.better else None,
    }


def _show(conf: ConfFile) -> None:
    page = Page()
    name = "standard input" if conf.path.name == "-.conflist" else str(conf.path)
    chain = " → ".join(conf.types)
    if conf.hidden:
        page.say(f"{name}: unknown")
    elif conf.passed_over:
        page.say(f"{name}: passed over")
    elif conf.valid:
        page.say(f"{name}: good, network {conf.network}: {chain}")
        if not conf.entries:
            page.say(f"  (none of its plugins is {conflist.TYPE})")
    else:
        fatal = sum(fault.fatal for fault in conf.faults)
        page.say(f"{name}: refused, {count(fatal, 'fault')}")
    for fault in conf.faults:
        mark: Mark = "fail" if fault.fatal else "warn"
        page.fact(
            mark, f"line {fault.line}" if fault.line else "file", fault.what, ("mend", fault.mend)
        )
    if conf.better:
        page.say("The valid form:")
        page.block(conf.better)
