# SPDX-License-Identifier: Apache-2.0
"""Whether pods reach the cluster's API and DNS by their Services, as programs in them would.

Asked from inside a pod, with the addresses it was told: this tests its routes, kube-proxy's rules,
masquerading and the way back at once.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import Final, NamedTuple

from mycelium_ctl.checks import suspects
from mycelium_ctl.checks.finding import Finding, ok, own, skip
from mycelium_ctl.node.clusterservices import DNS_PORT, KINDS, Service, services
from mycelium_ctl.node.state import Attached, State

# A refusal of a connection's first packet often arrives while the kernel is still sending it, and
# is ignored (net/ipv6/tcp_ipv6.c, tcp_v6_err); the second packet goes out a second later.
CONNECT_S: Final = 2.0
ANSWER_S: Final = 1.0
QUESTIONS: Final = 3  # a datagram may be lost, and a new server slow
RECVERR: Final[dict[int, tuple[int, int]]] = {
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),  # IPV6_RECVERR, linux/in6.h
    socket.AF_INET: (socket.IPPROTO_IP, 11),  # IP_RECVERR, linux/in.h
}
TYPE_PTR_CLASS_IN: Final = b"\0\x0c\0\1"  # RFC 1035, section 4.1.2


class Fault(NamedTuple):
    """What keeps a pod from a Service."""

    what: str
    advice: str


def reachable(state: State) -> list[Finding] | Finding:
    """Try from one pod of each network that gives pods eth0."""
    if state.attachments and not state.may_configure:
        return skip("no pod is entered: that takes root")
    faults: list[tuple[Attached, Fault]] = []
    reached = []
    for one, told in _asked(state):
        with state.inside(one) as entered:
            for service in told if entered else ():
                if fault := _fault(service):
                    faults.append((one, fault))
                else:
                    reached.append(f"{service.what} {service.address}")
    if faults:
        # Only here, outside the pod: rules are read in the thread's namespace.
        return [
            Finding("fail", f"{one.who} {f.what}{suspects.of_node(state, one)}", f.advice)
            for one, f in faults
        ]
    if not reached:
        return skip("no pod here was told of a cluster's Services")
    return ok(f"a pod reaches {', '.join(dict.fromkeys(reached))}")


def _asked(state: State) -> list[tuple[Attached, list[Service]]]:
    """For each network, the pod that was told of the most Services."""
    chosen: dict[str, tuple[Attached, list[Service]]] = {}
    for one in state.attachments:
        held = state.netns.get(one.link.nsid) if one.link.nsid is not None else None
        # Behind a primary plugin the pod's way to Services is that plugin's.
        if not one.answers or held is None or one.ifname != "eth0":
            continue
        _, before = chosen.get(one.network, (one, []))
        if len(before) < len(KINDS):
            told = services(held.processes)
            if len(told) > len(before) and one.pod_link == one.ifname:
                chosen[one.network] = one, told
    return list(chosen.values())


def _fault(service: Service) -> Fault | None:
    """What keeps the pod, whose namespace the thread is in, from the Service; None if nothing."""
    place = f"the {service.what}'s Service {service.address} port {service.port}"
    family = socket.AF_INET6 if ":" in service.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as looking:
        try:
            looking.connect((service.address, service.port))  # sends nothing: looks for a route
        except OSError as error:
            return Fault(
                f"has no way to {place}: {error.strerror}",
                'give the network "defaultRoute" and "ipMasq", or "serviceNetworks", as '
                f"`{own('config', 'new')}` does, and restart its pods",
            )
    try:
        (_query if service.port == DNS_PORT else _connect)(family, service)
    except TimeoutError:
        return Fault(
            f"gets no answer from {place}",
            "check that kube-proxy runs on this node and knows its pods by their links "
            '(detectLocalMode: InterfaceNamePrefix, myc), that the network has "ipMasq", and that '
            "what is behind the Service answers this node: `kubectl get endpointslices -A`",
        )
    except OSError as error:
        return Fault(
            f"is refused by {place}: {error.strerror}",
            "it has no endpoint, or kube-proxy does not run on this node: "
            "`kubectl get endpointslices -A`",
        )
    return None


def _connect(family: int, service: Service) -> None:
    """Open a TCP connection. Raises OSError."""
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(CONNECT_S)
        client.connect((service.address, service.port))


def _query(family: int, service: Service) -> None:
    """Ask the cluster's DNS for the name of its own Service's address, which it answers without
    asking servers outside that may be away. Any answer will do. Raises OSError."""
    labels = ip_address(service.address).reverse_pointer.split(".")
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels)
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        # Without it a datagram socket does not report "no route" (net/ipv6/udp.c, udpv6_err).
        level, option = RECVERR[family]
        client.setsockopt(level, option, 1)
        client.settimeout(ANSWER_S)
        client.connect((service.address, service.port))
        for _ in range(QUESTIONS):
            token = os.urandom(2)
            client.send(token + b"\0\0" + b"\0\1" + bytes(6) + name + b"\0" + TYPE_PTR_CLASS_IN)
            with suppress(TimeoutError):
                if client.recv(512)[:2] == token:
                    return
    raise TimeoutError
