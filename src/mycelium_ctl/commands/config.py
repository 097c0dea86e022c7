# SPDX-License-Identifier: Apache-2.0
"""Check a network configuration as libcni and the plugin would, write a good one, or its schema.

`config check` names the line of every fault, and the remedy. Its exit code is 1 if the file would
be refused. The suffix of a file says what it holds, as for runtimes; `-` is standard input, read as
a list. `config new` writes to standard output, or, with --output, to a file, atomically. `config
schema` is for editors: every key with its meaning, default and limits, as JSON schema.

    mycelium-cni config check /etc/cni/net.d/10-mycelium.conflist
    mycelium-cni config new --for k3s --output /etc/cni/net.d/10-mycelium.conflist
    mycelium-cni config new --for multus --name overlay --manifest | kubectl apply -f -
    mycelium-cni config schema > mycelium-cni.schema.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mycelium_ctl import files
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import conflist, network, options, plugins, runtimes, schema
from mycelium_ctl.node.conflist import ConfFile
from mycelium_ctl.node.options import Options
from mycelium_ctl.view import Mark, Page, count


def manifest(made: dict[str, Any]) -> str:
    """A NetworkAttachmentDefinition for Multus, as YAML."""
    config = json.dumps(made, indent=2).replace("\n", "\n    ")
    return (
        "apiVersion: k8s.cni.cncf.io/v1\n"
        "kind: NetworkAttachmentDefinition\n"
        "metadata:\n"
        f"  name: {made['name']}\n"
        "spec:\n"
        f"  config: |\n    {config}\n"
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="check | new | schema")
    check = actions.add_parser("check", help="a file, or all files of a directory")
    check.add_argument("file", metavar="FILE", help="a file, a directory, or - for standard input")
    check.add_argument("--json", action="store_true", help="print one JSON document")

    new = actions.add_parser("new", help="write one")
    network.add_options(new)
    new.add_argument("--manifest", action="store_true", help="wrapped for Multus, as YAML")
    new.add_argument("--output", type=Path, metavar="FILE", help="instead of standard output")
    actions.add_parser("schema", help="print the JSON schema of a .conflist")
    for action in (check, new):
        options.add(action)


def run(arguments: argparse.Namespace) -> int:
    """Check or write; 0 if all is well."""
    if arguments.action == "schema":
        print(json.dumps(schema.schema(), indent=2))
        return 0
    where = options.read(arguments)
    if arguments.action == "check":
        return _check(arguments.file, where, as_json=arguments.json)
    dirs = runtimes.choose_dirs(where, arguments.runtime)
    made = network.new(arguments, dirs)
    for note in (*made.notes, *filter(None, (network.lacking(made.needs, dirs),))):
        print(note, file=sys.stderr)
    text = (
        manifest(made.network) if arguments.manifest else json.dumps(made.network, indent=2) + "\n"
    )
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
            {"line": f.line or 1, "what": f.what, "remedy": f.remedy, "fatal": f.fatal}
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
    elif conf.skipped:
        page.say(f"{name}: skipped")
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
            mark,
            f"line {fault.line}" if fault.line else "file",
            fault.what,
            ("remedy", fault.remedy),
        )
    if conf.better:
        page.say("The valid form:")
        page.block(conf.better)
