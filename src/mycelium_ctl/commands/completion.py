# SPDX-License-Identifier: Apache-2.0
"""Print completions of the command line for a shell, or the manual page.

The Debian package and `install` put them where shells and man look for them.

    source <(mycelium-cni completion bash)
    mycelium-cni completion fish > ~/.config/fish/completions/mycelium-cni.fish
    mycelium-cni completion man | man -l -
"""

from __future__ import annotations

import argparse

from mycelium_ctl import shells


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("what", choices=(*shells.SHELLS, "man"), help="for which program")


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    makers = {**shells.SHELLS, "man": shells.manual}
    print(makers[arguments.what](), end="")
    return 0
