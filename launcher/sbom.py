# SPDX-License-Identifier: Apache-2.0
"""What is inside the executable, for people, for scanners and for the update check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

# SPDX expressions, read from the packages' copyright files, for the parts that are linked in or
# bundled. A package that is not listed stops the build: somebody has to read its terms first.
LICENCES = {
    "libc6-dev": "LGPL-2.1-or-later",
    "libgcc-12-dev": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libpython3.11-dev": "PSF-2.0",
    "libpython3.11-minimal": "PSF-2.0",
    "libpython3.11-stdlib": "PSF-2.0",
    "libssl-dev": "Apache-2.0",
    "linux-libc-dev": "GPL-2.0-only WITH Linux-syscall-note",
    "mypy": "MIT AND PSF-2.0",
    "rich": "MIT",
    "libzstd-dev": "BSD-3-Clause OR GPL-2.0-only",
    "zlib1g-dev": "Zlib",
}


class Component(NamedTuple):
    """One part of the executable that was made elsewhere."""

    name: str
    version: str
    purl: str
    sha256: str
    remarks: dict[str, str]


def debian(name: str, version: str, architecture: str, sha256: str, **remarks: str) -> Component:
    """A Debian package."""
    where = f"arch={architecture}&distro=debian-12"
    purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?{where}"
    return Component(name, version, purl, sha256, remarks)


def pypi(name: str, version: str, sha256: str) -> Component:
    """A package of the Python index."""
    return Component(name, version, f"pkg:pypi/{name}@{version}", sha256, {})


def document(version: str, architecture: str, components: list[Component]) -> str:
    """A CycloneDX document. It has no date and no serial number: equal builds give equal bytes."""
    product = {
        "type": "application",
        "bom-ref": "mycelium-cni",
        "name": "mycelium-cni",
        "version": version,
        "purl": f"pkg:generic/mycelium-cni@{version}?arch={architecture}",
        "licenses": [{"expression": "Apache-2.0"}],
    }
    ordered = sorted(components)
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": product},
        "components": [_component(each) for each in ordered],
        "dependencies": [{"ref": "mycelium-cni", "dependsOn": [each.purl for each in ordered]}],
    }
    return json.dumps(bom, indent=2) + "\n"


def debian_versions(document: str) -> dict[str, str]:
    """The Debian packages of an SBOM."""
    return {
        each["name"]: each["version"]
        for each in json.loads(document)["components"]
        if each["purl"].startswith("pkg:deb/")
    }


def licence_file(doc: Path, name: str) -> bytes:
    """A Debian package's copyright file; `doc` is /usr/share/doc of where it was unpacked."""
    return (doc / name / "copyright").read_bytes()


def _component(each: Component) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "library",
        "bom-ref": each.purl,
        "name": each.name,
        "version": each.version,
        "purl": each.purl,
        "hashes": [{"alg": "SHA-256", "content": each.sha256}],
        "licenses": [{"expression": LICENCES[each.name]}],
    }
    if each.remarks:
        entry["properties"] = [
            {"name": f"mycelium-cni:{key}", "value": value}
            for key, value in sorted(each.remarks.items())
        ]
    return entry
