# SPDX-License-Identifier: Apache-2.0
"""Which mycelium-cni this is, which CNI versions it speaks and what it is made of.

The static executable carries its list of parts (an SBOM, CycloneDX) and their licences.

    mycelium-cni version
    mycelium-cni version --json
    mycelium-cni version --sbom >mycelium-cni.cdx.json
    mycelium-cni version --licenses | less
"""

from __future__ import annotations

import argparse
import json
import platform
from contextlib import suppress
from typing import Any

from mycelium_cni.cni.errors import __version__
from mycelium_cni.cni.request import VERSIONS
from mycelium_ctl import share
from mycelium_ctl.errors import ToolError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--json", action="store_true", help="print one JSON document")
    one.add_argument("--sbom", action="store_true", help="print the list of parts, CycloneDX")
    one.add_argument("--licenses", action="store_true", help="print the licences of all parts")


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for."""
    if arguments.sbom:
        print(_of_executable("sbom.cdx.json"), end="")
        return 0
    if arguments.licenses:
        for name in facts()["components"]:
            print(f"=== {name} ===\n\n{_of_executable(f'{name}.license')}")
        print(f"=== mycelium-cni ===\n\n{_of_executable('mycelium-cni.license')}")
        return 0
    known = facts()
    if arguments.json:
        print(json.dumps(known, indent=2))
        return 0
    print(f"mycelium-cni {known['version']}, {known['form']}, CPython {known['python']}")
    print(f"CNI {', '.join(known['cniVersions'])}")
    if known["components"]:
        print(f"{known['architecture']}, {known['compiler']}")
        for name, version in known["components"].items():
            print(f"  {name:22} {version}")
    return 0


def facts() -> dict[str, Any]:
    """What is known of this build; of the pip-installed command only what Python knows itself."""
    known: dict[str, Any] = {
        "version": __version__,
        "form": "Python package",
        "python": platform.python_version(),
        "cniVersions": list(VERSIONS),
        "architecture": platform.machine(),
        "compiler": platform.python_compiler(),
        "components": {},
    }
    with suppress(OSError):
        known |= {"form": "static executable", **json.loads(share.read("build.json"))}
    return known


def _of_executable(name: str) -> str:
    try:
        return share.read(name)
    except OSError:
        raise ToolError(
            "only the static executable carries this; of an installed package, ask pip: pip show"
            " --files mycelium-cni"
        ) from None
