# SPDX-License-Identifier: Apache-2.0
"""A node whose TUN the test holds instead of a daemon; a host on its LAN, and any pods."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

import rawpackets as raw
from rawpackets import Capture, Tun, Wire

from mycelium_lab.lab import UNDERLAY, Lab, Namespace, PluginCall, Pod

SUBNET = "5a1:2b3c:4d5e:6f70"
NODE = f"{SUBNET}:1111:2222:3333:4444"
REMOTE, OTHER_PEER = "4aa:1:2::9", "4bb:7:8::9"
LAN_NODE, LAN_HOST = "2001:db8::1", "2001:db8::2"
SERVICES = "fd00:10:96::1"


def conf(name: str = "net", mode: str = "routed", **keys: Any) -> dict[str, Any]:
    base = {"cniVersion": "1.1.0", "type": "mycelium-cni", "netseed": "/nonexistent"}
    return {**base, "name": name, "mode": mode, **keys}


class Site:
    def __init__(self, lab: Lab, address: str = NODE) -> None:
        self.lab = lab
        self.node, self.lan = lab.node("a"), lab.node("lan")
        for own, there, whose in (
            (self.node, self.lan, LAN_HOST),
            (self.lan, self.node, LAN_NODE),
        ):
            # A new link cannot ask for its neighbours in its first second.
            shown = there.link(UNDERLAY)
            assert shown
            own.configure(f"neigh replace {whose} lladdr {shown['address']} dev {UNDERLAY}")
        self.lan.configure(f"route add {SUBNET}::/64 via {LAN_NODE}")
        self.tun = Tun(self.node, address)
        self._pods = 0

    def attach(self, network: dict[str, Any], address: str = "", **env: str) -> tuple[Pod, str]:
        """A new pod, and its address."""
        self._pods += 1
        pod = self.node.pod(f"pod{self._pods}")
        args = f"IP={address}" if address else ""
        result = self.node.plugin("ADD", network, pod, args=args, **env).succeeded()
        text: str = result["ips"][0]["address"]
        return pod, text.partition("/")[0]

    def translate(self, *rules: str, hook: str = "prerouting") -> None:
        """Translate destinations as kube-proxy or portmap does, by rules of nftables."""
        body = f"type nat hook {hook} priority -100; {'; '.join(rules)}"
        table = f"table ip6 services {{ chain {hook} {{ {body}; }}; }}"
        self.node.run(["nft", "-f", "-"], input=table)

    def status(self, network: dict[str, Any]) -> PluginCall:
        return self.node.plugin("STATUS", network)

    def table(self, family: str = "inet") -> str:
        """The table as `nft list` prints it; '' if there is none."""
        shown = self.node.run(["nft", "-s", "list", "table", family, "mycelium-cni"], check=False)
        return shown.stdout

    def reaches(self, pod: Pod, address: str, source: str) -> bool:
        """Whether a UDP packet that the daemon delivers arrives in the pod."""
        return self.delivers(pod, [raw.udp(source, address, os.urandom(16))])

    def delivers(self, pod: Namespace, packets: list[bytes], link: str = "eth0") -> bool:
        token = packets[0][-16:]
        capture = Capture()
        capture.watch_wire("there", Wire(pod, link))
        self.tun.write(packets)
        found = capture.find(token)
        capture.close()
        return found

    def remake_tun(self, address: str) -> None:
        """Remove the TUN and make it again, as a daemon's restart does."""
        self.tun.close()
        self.tun = Tun(self.node, address)


def answers(there: Namespace, address: str, here: Namespace, *, port: int = 4242) -> str:
    """The source that a UDP server in `there`, on port 4242, sees of a client in `here`; '' if it
    sees none, or its answer does not come back."""
    with there.inside():
        server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        server.bind(("::", 4242))
    with here.inside():
        client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with server, client:
        server.settimeout(0.4)
        client.settimeout(0.4)
        with suppress(OSError):
            client.sendto(b"question", (address, port))
            data, peer = server.recvfrom(100)
            server.sendto(data, peer)
            if client.recv(100) == b"question":
                return str(peer[0])
    return ""


def connects(there: Namespace, address: str, here: Namespace, port: int = 4243) -> bool:
    """Whether TCP from `here` to a listener in `there` is established, at the second try at the
    latest: a busy machine loses a packet now and then, and the kernel repeats it after a second."""
    with there.inside():
        server = socket.create_server(("::", port), family=socket.AF_INET6)
    with server:
        for _ in range(2):
            with here.inside():
                client = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            with client, suppress(OSError):
                client.settimeout(0.4)
                client.connect((address, port))
                return True
    return False
