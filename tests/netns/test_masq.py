# SPDX-License-Identifier: Apache-2.0
"""`ipMasq`: what leaves the overlay leaves as the node; what stays on it keeps its source."""

from __future__ import annotations

import socket

import pytest
import rawpackets as raw
from sites import LAN_HOST, LAN_NODE, NODE, REMOTE, SUBNET, Site, answers, conf

from mycelium_lab.lab import Lab

both_modes = pytest.mark.parametrize("mode", ("routed", "bridge"))


@pytest.fixture
def site(lab: Lab) -> Site:
    return Site(lab)


@both_modes
def test_only_what_leaves_the_overlay_is_masqueraded(site: Site, mode: str) -> None:
    pod, address = site.attach(conf("masq", mode, ipMasq=True, defaultRoute=True))
    plain, bare = site.attach(conf("plain", mode, defaultRoute=True))
    assert answers(site.lan, LAN_HOST, pod) == LAN_NODE
    assert answers(site.lan, LAN_HOST, plain) == bare, "the other network's is not"
    assert answers(plain, bare, pod) == address
    assert answers(site.node, NODE, pod) == address
    capture = raw.Capture()
    capture.watch_tun("tun", site.tun)
    with pod.inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.sendto(b"to the overlay", (REMOTE, 53))
    capture.look()
    assert [d[8:24] for d in capture.seen["tun"] if b"to the overlay" in d] == [raw.packed(address)]
    capture.close()


@both_modes
def test_services_elsewhere_are_masqueraded_and_pods_are_not(site: Site, mode: str) -> None:
    pod, address = site.attach(conf("masq", mode, ipMasq=True, defaultRoute=True))
    other, there = site.attach(conf("plain", mode))
    site.translate(
        f"ip6 daddr fd00:10:96::1 dnat to {there}",
        f"ip6 daddr fd00:10:96::2 dnat to {LAN_HOST}",
    )
    assert answers(other, "fd00:10:96::1", pod) == address
    assert answers(site.lan, "fd00:10:96::2", pod) == LAN_NODE


@both_modes
def test_it_can_be_switched_on_and_off_under_live_pods(site: Site, mode: str) -> None:
    pod, address = site.attach(conf("net", mode, defaultRoute=True))
    assert answers(site.lan, LAN_HOST, pod) == address
    site.attach(conf("net", mode, ipMasq=True, defaultRoute=True))
    assert answers(site.lan, LAN_HOST, pod) == LAN_NODE
    site.attach(conf("net", mode, defaultRoute=True))
    assert answers(site.lan, LAN_HOST, pod) == address


def test_without_it_no_address_is_translated_and_no_connection_tracked(site: Site) -> None:
    pod, _ = site.attach(conf())
    assert pod.ping(NODE) is not None
    tracked = site.node.run(["sysctl", "-n", "net.netfilter.nf_conntrack_count"])
    assert tracked.stdout == "0\n"
    assert "masquerade" not in site.table()
    assert "ct state" not in site.table()
    assert SUBNET in site.table()
