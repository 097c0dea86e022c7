# SPDX-License-Identifier: Apache-2.0
"""The newest libcni, driven by its own tool on a machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mycelium_lab.errors import LabError
from mycelium_lab.lab import Process, await_fact

from .images import need
from .machine import PLUGIN, Inside, Machine, NamedPod

RESULTS = "upper/var/lib/cni/results"  # libcni's cache, in a machine's directory


class CniTool:
    """`cnitool` with the plugins in /opt/cni/bin and the configuration in /etc/cni/net.d."""

    def __init__(self, machine: Machine, tool: Path) -> None:
        self.machine = machine
        self._tool = tool
        self._network = ""

    def configure(self, document: Mapping[str, Any]) -> None:
        """Make `document` the network that the other methods speak of."""
        suffix = "conflist" if "plugins" in document else "conf"
        self.machine.configure(document, f"10-test.{suffix}")
        self._network = document["name"]

    def __call__(
        self,
        verb: str,
        pod: NamedPod | None = None,
        *,
        ifname: str = "eth0",
        capabilities: Mapping[str, Any] | None = None,
        args: str = "",
    ) -> Any:
        """The result of `cnitool <verb>`; None where it prints none.

        Raises LabError in the tool's words.
        """
        environment = {"CNI_PATH": "/opt/cni/bin", "NETCONFPATH": "/etc/cni/net.d"}
        if args:
            environment["CNI_ARGS"] = args
        if capabilities:
            environment["CAP_ARGS"] = json.dumps(capabilities)
        netns = pod.cni_netns if pod is not None else "/proc/self/ns/net"
        argv = [self._tool, "-i", ifname, verb, self._network, netns]
        printed = self.machine.run(*argv, env=environment).stdout
        return json.loads(printed) if printed.strip() else None

    def refusal(self, verb: str, pod: NamedPod | None = None, **options: Any) -> str:
        """What the tool says when it fails, as it must."""
        try:
            self(verb, pod, **options)
        except LabError as error:
            return str(error)
        raise AssertionError(f"{verb} succeeded")

    def check_alone(self, pod: NamedPod, ifname: str = "eth0") -> None:
        """CHECK of our plugin with the cached result, as if it stood alone in the list.

        A list's CHECK ends with the first plugin that fails, and some of the reference fail always.
        """
        wanted = (pod.cni_netns, ifname, self._network)
        (entry,) = (
            entry
            for entry in self.cached().values()
            if (entry["netns"], entry["ifName"], entry["networkName"]) == wanted
        )
        listed = json.loads(base64.b64decode(entry["config"]))
        (ours,) = (plugin for plugin in listed["plugins"] if plugin["type"] == PLUGIN)
        versions = {key: listed[key] for key in ("name", "cniVersion")}
        environment = {
            "CNI_COMMAND": "CHECK",
            "CNI_CONTAINERID": entry["containerId"],
            "CNI_NETNS": pod.cni_netns,
            "CNI_IFNAME": ifname,
            "CNI_PATH": "/opt/cni/bin",
        }
        document = json.dumps({**versions, **ours, "prevResult": entry["result"]})
        done = self.machine.run(
            f"/opt/cni/bin/{PLUGIN}", env=environment, stdin=document, check=False
        )
        assert (done.returncode, done.stdout) == (0, "")

    def cached(self) -> dict[str, Any]:
        """libcni's cached results by file name."""
        files = (self.machine.directory / RESULTS).glob("*")
        return {file.name: json.loads(file.read_text()) for file in files}


def address(result: Mapping[str, Any], index: int = -1) -> str:
    """An address of a result, without its prefix length; ours is the last one."""
    text: str = result["ips"][index]["address"]
    return text.partition("/")[0]


def serve(pod: Inside, text: str, port: int = 80) -> Process:
    """Serve a page that says `text` in the pod."""
    folder = pod.lab.directory / f"www-{pod.name}-{port}"
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text(text)
    httpd = [need("busybox", "busybox-static"), "httpd", "-f", "-p", str(port), "-h", str(folder)]
    process = pod.start(httpd)
    await_fact(lambda: pod.run(["ss", "-Hltn", f"sport = :{port}"]).stdout, f"port {port} open")
    return process
