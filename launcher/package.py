# SPDX-License-Identifier: Apache-2.0
"""Everything that is published, in dist/: Debian packages, wheel, sdist, SBOMs, checksums.

    launcher/package.py        # after both executables were built

Runs under the project's own virtual environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from archive import BuildError, run
from mycelium_cni.cni.errors import __version__
from mycelium_ctl import shells, units

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
ARCHITECTURES = ("amd64", "arm64")
EXECUTABLE = "/opt/cni/bin/mycelium-cni"

CONTROL = """\
Package: mycelium-cni
Version: {version}
Architecture: {architecture}
Maintainer: mycelium-cni <mycelium-cni@localhost>
Section: net
Priority: optional
Installed-Size: {size}
Description: CNI plugin for the Mycelium overlay network
 Gives Kubernetes pods, and any container a CNI runtime starts, an address on
 Mycelium: an end-to-end encrypted IPv6 network in 400::/7. One static
 executable, which is the plugin and the operator's tool.
"""
# base-files makes /opt without owning it, so dpkg removes it with the last thing in it.
POSTRM = """\
#!/bin/sh
set -e
mkdir -p /opt
"""


def epoch() -> int:
    """The time of files in packages: the last commit's, so that equal commits give equal bytes."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    try:
        return int(run("git", "log", "-1", "--format=%ct", cwd=ROOT))
    except BuildError:  # no git, or no checkout: a source archive
        return 0


def deb(
    executable: Path, architecture: str, conflist: str, licences: str, output: Path = DIST
) -> Path:
    """A Debian package of one executable, in the folder `output`."""
    root = ROOT / f"build/deb-{architecture}"
    shutil.rmtree(root, ignore_errors=True)
    doc = root / "usr/share/doc/mycelium-cni"

    _put(root / EXECUTABLE[1:], executable.read_bytes(), 0o755)
    link = root / "usr/bin/mycelium-cni"
    link.parent.mkdir(parents=True)
    link.symlink_to(EXECUTABLE)
    for unit, text in units.texts(EXECUTABLE, ()).items():
        # What a package ships is below /usr/lib, where the administrator's /etc overrides it.
        # OpenRC and zinit are not Debian's.
        if unit.reader in ("etc/systemd", "etc/NetworkManager"):
            _put(root / unit.place.replace("etc/", "usr/lib/", 1), text.encode())
    for file in shells.INSTALLED:
        _put(root / file.packaged, file.octets)
    _put(doc / "examples/10-mycelium.conflist", conflist.encode())
    _put(doc / "copyright", licences.encode())
    _put(doc / "sbom.cdx.json", executable.with_name(f"{executable.name}.cdx.json").read_bytes())

    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) // 1024
    control = CONTROL.format(version=__version__, architecture=architecture, size=size)
    _put(root / "DEBIAN/control", control.encode())
    _put(root / "DEBIAN/postrm", POSTRM.encode(), 0o755)
    package = output / f"mycelium-cni_{__version__}_{architecture}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", root, package)
    return package


def wheel_and_sdist() -> list[Path]:
    """The Python package in its two forms."""
    tool = ROOT / "build/build-venv"
    if not tool.is_dir():
        run(sys.executable, "-m", "venv", tool)
        run(tool / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "build")
    run(tool / "bin/python", "-m", "build", "--outdir", DIST, ROOT)
    return [
        DIST / f"mycelium_cni-{__version__}-py3-none-any.whl",
        DIST / f"mycelium_cni-{__version__}.tar.gz",
    ]


def main() -> None:
    """Make them all, and SHA256SUMS over them."""
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch())
    os.environ["TZ"] = "UTC"
    time.tzset()
    native = DIST / "mycelium-cni-linux-amd64"
    conflist = run(native, "config", "new")
    licences = run(native, "version", "--licenses")
    files = wheel_and_sdist()
    for architecture in ARCHITECTURES:
        executable = DIST / f"mycelium-cni-linux-{architecture}"
        files += [executable, executable.with_name(f"{executable.name}.cdx.json")]
        files.append(deb(executable, architecture, conflist, licences))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]
    (DIST / "SHA256SUMS").write_text("\n".join(sorted(lines)) + "\n")
    print(subprocess.run(["ls", "-l", DIST], check=True, capture_output=True, text=True).stdout)


def _put(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


if __name__ == "__main__":
    try:
        main()
    except BuildError as error:
        sys.exit(f"launcher: error: {error}")
