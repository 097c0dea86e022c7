# SPDX-License-Identifier: Apache-2.0
"""Fail when the archive has a newer version of a package than an executable was built from.

    launcher/drift.py dist/mycelium-cni-linux-amd64.cdx.json

A static executable gets no security updates from the machine it runs on: its builder must watch for
them. Run weekly, and before a release.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import sbom
from archive import Archive, BuildError

ROOT = Path(__file__).resolve().parent.parent


def stale(document: str, archive: Archive) -> list[str]:
    """One line for each package of an SBOM that the archive has a newer version of."""
    lines = []
    for name, built in sbom.debian_versions(document).items():
        current = archive.version(name)
        if current != built:
            lines.append(f"{name} {built}: the archive has {current}")
    return lines


def main() -> int:
    """Print what is out of date; 1 if anything is."""
    path = Path(sys.argv[1])
    document = path.read_text()
    architecture = re.findall(r"pkg:generic/mycelium-cni@[^?]+\?arch=(\w+)", document)[0]
    try:
        archive = Archive(ROOT / "build/launcher", architecture)
        archive.refresh()
        lines = stale(document, archive)
    except BuildError as error:
        sys.exit(f"launcher: error: {error}")
    for line in lines:
        print(f"launcher: {line}", file=sys.stderr)
    if lines:
        print(f"launcher: {path.name} is out of date: make dist", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
