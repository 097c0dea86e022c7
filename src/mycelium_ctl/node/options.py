# SPDX-License-Identifier: Apache-2.0
"""Where a command looks at the node: the options that all commands share which read it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final, NamedTuple

from mycelium_cni.cni.config import CHOICES

API: Final = "127.0.0.1:8989"


class Options(NamedTuple):
    """What the user said about where to look; see `add`."""

    root: Path
    conf_dirs: tuple[Path, ...]
    bin_dirs: tuple[Path, ...]
    api: str
    said: dict[str, str]  # overrides of the network configuration, by its keys


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of all commands that read the node."""
    group = parser.add_argument_group(
        "where to look", "By default as the configuration in use says, else the built-in defaults."
    )
    group.add_argument("--mode", choices=CHOICES["mode"], help="how pods are attached (auto)")
    group.add_argument("--interface", metavar="NAME", help="the daemon's interface (mycelium)")
    group.add_argument("--bridge", metavar="NAME", help="the bridge of bridge mode (mycelium-br)")
    group.add_argument("--netseed", metavar="FILE", help="the daemon's key file (/etc/netseed)")
    group.add_argument(
        "--api", default=API, metavar="ADDRESS:PORT", help="the daemon's HTTP API (%(default)s)"
    )
    for kind, reads in (("conf", "network configurations"), ("bin", "plugins")):
        group.add_argument(
            f"--{kind}-dir",
            action="append",
            type=Path,
            metavar="DIR",
            default=[],
            help=f"where the runtime looks for {reads}; may be repeated",
        )
    group.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="read files below DIR instead"
    )


def read(arguments: argparse.Namespace) -> Options:
    """The options as they were given, or their defaults."""
    said = {
        "mode": arguments.mode,
        "myceliumInterface": arguments.interface,
        "bridge": arguments.bridge,
        "netseed": arguments.netseed,
    }
    return Options(
        arguments.root,
        tuple(arguments.conf_dir),
        tuple(arguments.bin_dir),
        arguments.api,
        {key: value for key, value in said.items() if value},
    )


def as_arguments(where: Options) -> list[str]:
    """The arguments that have another of our commands look in the same places."""
    flags = {"mode": "--mode", "myceliumInterface": "--interface", "bridge": "--bridge"}
    said = [(flags.get(key, "--netseed"), value) for key, value in where.said.items()]
    folders = [("--conf-dir", each) for each in where.conf_dirs]
    folders += [("--bin-dir", each) for each in where.bin_dirs]
    pairs = [("--root", where.root), ("--api", where.api), *folders, *said]
    return [str(word) for pair in pairs for word in pair]
