# SPDX-License-Identifier: Apache-2.0
"""The operator's command, run on a node of the lab with files of the test's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from mycelium_lab.lab import Node, Pod

NODE = "5a1:2b3c:4d5e:6f70:ff0f::1"
SUBNET = "5a1:2b3c:4d5e:6f70"
OTHER_NODE = "4dd:1:2:3:4:5:6:7"


class Tool:
    """`mycelium-cni COMMAND` on a node; files are looked for below `root`."""

    def __init__(self, node: Node, root: Path) -> None:
        self.node = node
        self.root = root

    def __call__(
        self, name: str, *argv: str, looks: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its exit code. `looks`: it takes --root."""
        where = ["--root", str(self.root)] if looks else []
        env = {"PATH": os.environ["PATH"]}
        return self.node.run([*self.node.lab.command, name, *argv, *where], check=False, env=env)

    def json(self, name: str, *argv: str, looks: bool = True) -> Any:
        done = self(name, "--json", *argv, looks=looks)
        assert done.stderr == ""
        return json.loads(done.stdout)

    def doctor(self, check: str, *argv: str) -> dict[str, Any]:
        """The finding of one check of `doctor`; its exit code must agree."""
        done = self("doctor", check, "--json", *argv)
        assert done.stderr == ""
        finding: dict[str, Any] = json.loads(done.stdout)[0]
        assert finding["name"] == check
        assert done.returncode == (1 if finding["state"] == "fail" else 0)
        amiss = finding["state"] in ("fail", "warn")
        assert bool(finding["run"] or finding["advice"]) == amiss, finding
        return finding

    def conf(self, text: str | dict[str, Any], name: str = "10-mycelium.conflist") -> Path:
        """Write a network configuration."""
        path = self.root / "etc/cni/net.d" / name
        path.write_text(text if isinstance(text, str) else json.dumps(text, indent=2))
        return path

    def attach(
        self, name: str, *, mode: str = "routed", namespace: str = "default", **keys: Any
    ) -> Pod:
        """A pod of the node, attached by the plugin."""
        pod = self.node.pod(name)
        conf = {"cniVersion": "1.1.0", "name": "mycelium", "type": "mycelium-cni", "mode": mode}
        conf |= {"netseed": str(self.root / "netseed"), **keys}
        args = f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"
        self.node.plugin("ADD", conf, pod, args=args).succeeded()
        return pod

    def host_link(self, pod: str) -> str:
        """The host link of a pod, as `list` has it."""
        links: list[dict[str, Any]] = self.json("list")
        return next(str(link["hostLink"]) for link in links if link["pod"] == pod)


def state(node: Node) -> list[str]:
    """All that a command could change in the node's network, as `ip` and /proc show it, without
    what changes by itself: carrier, link-local addresses that come up, and local routes, which a
    worker of the kernel makes some time after their addresses."""
    lines = []
    for question in (
        "-o link",
        "-o -6 address",
        "-6 route show table all",
        "-6 neighbour show proxy",
    ):
        for line in node.run(["ip", *question.split()]).stdout.splitlines():
            if not any(word in line for word in ("fe80:", "ff00::/8", "table local proto kernel")):
                words = re.sub(r"<.*?>|state \w+|tentative|\d+sec|linkdown", "", line)
                lines.append(" ".join(words.split()))
    switches = "/proc/sys/net/ipv6/conf/*/{forwarding,accept_ra,proxy_ndp,disable_ipv6}"
    lines += node.run(["bash", "-c", f"grep -s . {switches}"], check=False).stdout.splitlines()
    rules = re.sub(r"packets \d+ bytes \d+", "", node.run(["nft", "list", "ruleset"]).stdout)
    rules = re.sub(r"\s*elements = {[^}]* expires [^}]*}", "", rules)  # what packets put in sets
    lines += rules.splitlines()
    return sorted(lines)


def command_lines(printed: str) -> list[str]:
    """The `ip`, `sysctl` and `nft` lines of setup's output, without their explanations."""
    lines = [line.partition("  # ")[0] for line in printed.splitlines()]
    return [line for line in lines if line.startswith(("ip ", "sysctl ", "nft "))]
