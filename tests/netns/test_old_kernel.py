# SPDX-License-Identifier: Apache-2.0
"""STATUS names what the kernel lacks as the reason, before the first pod."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attaching import network, refused

import mycelium_cni
from mycelium_lab.lab import Lab, Node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node like Linux 5.4, which has no RTM_NEWLINKPROP: the plugin sends a type that this kernel
    does not know either, and gets the same answer."""
    shutil.copytree(Path(mycelium_cni.__path__[0]).parent, tmp_path / "src")
    netlink = tmp_path / "src/mycelium_cni/kernel/netlink.py"
    text = netlink.read_text()
    assert "RTM_DELLINKPROP = 108, 109" in text
    netlink.write_text(text.replace("RTM_DELLINKPROP = 108, 109", "RTM_DELLINKPROP = 250, 251"))
    start = f"import sys; sys.path.insert(0, {str(tmp_path / 'src')!r})"
    lab = Lab(
        [sys.executable, "-Ic", f"{start}; from mycelium_entry import main; sys.exit(main())"]
    )
    try:
        node = lab.node("a")
        node.configure(
            "tuntap add mycelium mode tun",
            "link set mycelium mtu 1400 up",
            "address add 5a1:2b3c:4d5e:6f70::9/7 dev mycelium",
        )
        yield node
    finally:
        lab.close()


def test_a_kernel_without_alternative_names_is_too_old(node: Node) -> None:
    says = "Linux 5.5 or newer is needed"
    refused(node.plugin("STATUS", network()), 50, says=says)
    pod = node.pod("p")
    refused(node.plugin("ADD", network(), pod), 100, says=says)
    assert pod.link("eth0") is None


def test_doctor_says_so_too(node: Node) -> None:
    done = node.run([*node.lab.command, "doctor", "kernel"], check=False)
    assert done.returncode == 1
    assert "does not know alternative names of links" in done.stdout
    assert "Linux 5.5 or newer is needed" in done.stdout
