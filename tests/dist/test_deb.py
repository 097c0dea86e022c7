# SPDX-License-Identifier: Apache-2.0
"""The Debian package: installs into a bare Debian, works there, and its removal leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mycelium_ctl import parsers, shells

from .conftest import ROOT

# One at a time: they share the bare Debian.
pytestmark = pytest.mark.xdist_group("debootstrap")

BOOTSTRAPPED = ROOT / "build/debootstrap"


class Root:
    """A bare Debian in a folder; changes are kept in memory and discarded."""

    def __init__(self, below: Path) -> None:
        self._below = below

    def run(self, script: str, *files: Path) -> str:
        """What a shell script prints that runs in it, with these files in /root."""
        copies = "".join(f"cp {file} /mnt/root/\n" for file in files)
        enter = f"""
            mount -t tmpfs tmpfs /media && mkdir /media/upper /media/work
            mount -t overlay overlay /mnt \\
                -o lowerdir={self._below},upperdir=/media/upper,workdir=/media/work
            {copies}
            exec chroot /mnt sh -ec "$1"
        """
        done = subprocess.run(
            ["unshare", "--mount", "--propagation=private", "sh", "-ec", enter, "sh", script],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def debian() -> Root:
    """A bare Debian 12, made once."""
    if not (BOOTSTRAPPED / "ready").exists():
        BOOTSTRAPPED.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", "bookworm", BOOTSTRAPPED],
            check=True,
            capture_output=True,
        )
        (BOOTSTRAPPED / "ready").touch()
    return Root(BOOTSTRAPPED)


@pytest.fixture(scope="session")
def package(executable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the executable, made by the function that `make release` uses."""
    folder = tmp_path_factory.mktemp("deb")
    script = (
        "import sys; from pathlib import Path; import package\n"
        "print(package.deb(Path(sys.argv[1]), 'amd64', '{}', 'licences', Path(sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, executable, folder],
        env={"PYTHONPATH": str(ROOT / "launcher"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip())


INSTALL = "dpkg -i /root/mycelium-cni_*.deb >&2"


@pytest.mark.timeout(600)
def test_it_installs_and_works(debian: Root, package: Path) -> None:
    done = debian.run(
        f"""{INSTALL}
        CNI_COMMAND=VERSION /opt/cni/bin/mycelium-cni </dev/null
        mycelium-cni version --json
        """,
        package,
    )
    plugin, tool = done.split("\n", 1)
    assert json.loads(plugin)["supportedVersions"]
    assert json.loads(tool)["form"] == "static executable"


@pytest.mark.timeout(600)
def test_removal_leaves_nothing(debian: Root, package: Path) -> None:
    everything = "find / -xdev -not -path '/var/*' -not -path '/root/*' | sort"
    done = debian.run(
        f"""{everything} >/root/before
        {INSTALL}
        {everything} >/root/between
        dpkg -P mycelium-cni >&2
        {everything} | diff /root/before -
        diff /root/before /root/between || true
        """,
        package,
    )
    arrived = {line[2:] for line in done.splitlines() if line.startswith("> ")}
    assert arrived >= {
        "/opt/cni/bin/mycelium-cni",
        "/usr/bin/mycelium-cni",
        "/usr/lib/systemd/system/mycelium-cni-setup.service",
        "/usr/lib/systemd/networkd.conf.d/05-mycelium-cni.conf",
        "/usr/lib/systemd/network/05-mycelium-cni.network",
        "/usr/lib/NetworkManager/conf.d/05-mycelium-cni.conf",
    }
    assert not [line for line in done.splitlines() if line.startswith("< ")]


def test_it_holds_what_a_package_should(package: Path) -> None:
    listing = subprocess.run(
        ["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True
    ).stdout
    assert not [line for line in listing.splitlines() if " root/root " not in line]
    for path in (
        "/usr/share/man/man8/mycelium-cni.8.gz",
        *(f"/{file.packaged}" for file in shells.INSTALLED),
        "/usr/share/doc/mycelium-cni/copyright",
        "/usr/share/doc/mycelium-cni/sbom.cdx.json",
        "/usr/share/doc/mycelium-cni/examples/10-mycelium.conflist",
    ):
        assert f" .{path}\n" in listing
    # /etc is the administrator's.
    assert " ./etc" not in listing


def test_the_manual_page_has_every_command(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", package, tmp_path], check=True)
    page = subprocess.run(
        ["zcat", tmp_path / "usr/share/man/man8/mycelium-cni.8.gz"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in parsers.COMMANDS:
        assert f"\n.SS {name}\n" in page
