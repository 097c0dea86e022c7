# SPDX-License-Identifier: Apache-2.0
"""What a node sees of its overlay: the stand-in and, where there is one, the real daemon.

Every test here runs against both, so the other tests can use either. Three nodes in a line: what
`a` and `c` send each other passes through `b`.
"""

from __future__ import annotations

import http.client
import ipaddress
import signal
import socket
import stat
import struct
import time
from collections.abc import Iterator

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mycelium_lab import overlay
from mycelium_lab.lab import Lab, Node, OverlayKind, await_fact, find_daemon

KINDS: list[OverlayKind] = ["stand-in", "daemon"] if find_daemon() else ["stand-in"]
OVERLAY = ipaddress.IPv6Network("400::/7")
LONGEST_RESOLVE_S = 20  # the daemon looks for a route for 15 s before it gives up


class Line:
    """Nodes a - b - c and their overlay addresses."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.a, self.b, self.c = (lab.node(name) for name in "abc")
        lab.connect(self.a, self.b, self.c)
        self.addresses = {node: node.overlay_address or "" for node in (self.a, self.b, self.c)}

    def subnet(self, node: Node) -> ipaddress.IPv6Network:
        return ipaddress.IPv6Network(f"{self.addresses[node]}/64", strict=False)

    def host(self, node: Node, number: int) -> str:
        """Another address of the node's subnet."""
        return str(self.subnet(node)[0xFF0F << 48 | number])


@pytest.fixture(scope="module", params=KINDS)
def line(request: pytest.FixtureRequest, command: list[str]) -> Iterator[Line]:
    """Shared by the tests that leave it as it is."""
    with Lab(command, overlay=request.param) as lab:
        yield Line(lab)


@pytest.fixture(params=KINDS)
def own_lab(request: pytest.FixtureRequest, command: list[str]) -> Iterator[Lab]:
    with Lab(command, overlay=request.param) as lab:
        yield lab


def ping_errors(node: Node, destination: str, *options: str) -> str:
    """The line in which ping shows the ICMPv6 error that came back."""
    wait = ("-n", "-c", "1", "-W", str(LONGEST_RESOLVE_S))
    output = node.run(["ping", *wait, *options, destination], check=False).stdout
    return next(text for text in output.splitlines() if text.startswith("From "))


def test_the_interface_is_the_daemons(line: Line) -> None:
    for node in (line.a, line.b, line.c):
        (link,) = node.ip("-d", "addr", "show", "dev", "mycelium")
        assert link["mtu"] == 1400
        assert link["linkinfo"]["info_data"]["type"] == "tun"
        (address,) = [entry for entry in link["addr_info"] if entry["scope"] == "global"]
        assert address["prefixlen"] == 7
        assert not address.get("tentative")
        assert ipaddress.ip_address(address["local"]) in OVERLAY
        (route,) = node.ip("-6", "route", "show", "dev", "mycelium", "match", "400::")
        assert route["dst"] == "400::/7"


def test_the_address_is_the_hash_of_the_public_key(line: Line) -> None:
    private = X25519PrivateKey.from_private_bytes(line.a.key_file.read_bytes()[:32])
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    digest = blake3(private.public_key().public_bytes(*raw)).digest()[:16]
    first = 0x04 | digest[0].bit_count() % 2
    address = ipaddress.IPv6Address(bytes([first]) + digest[1:])
    assert line.addresses[line.a] == str(address)


def test_a_missing_key_is_made_for_its_owner_only(line: Line) -> None:
    status = line.a.key_file.stat()
    assert status.st_size == 32
    assert stat.S_IMODE(status.st_mode) & (stat.S_IRWXO | stat.S_IWGRP) == 0


def test_neighbours_answer_each_other(line: Line) -> None:
    assert line.a.ping(line.addresses[line.b]) is not None
    assert line.b.ping(line.addresses[line.a]) is not None


def test_the_node_in_the_middle_relays(line: Line) -> None:
    assert line.a.ping(line.addresses[line.c]) is not None
    assert line.c.ping(line.addresses[line.a]) is not None


def test_a_packet_of_the_full_mtu_passes_unfragmented(line: Line) -> None:
    full = 1400 - 40 - 8
    assert line.a.ping(line.addresses[line.c], size=full) is not None
    done = line.a.run(
        ["ping", "-c1", "-W1", "-Mdo", f"-s{full + 1}", line.addresses[line.c]], check=False
    )
    assert "mtu: 1400" in done.stdout + done.stderr


def test_each_node_on_the_way_takes_one_from_the_hop_limit(line: Line) -> None:
    answer = line.a.run(["ping", "-n", "-c1", "-W1", line.addresses[line.c]]).stdout
    assert "ttl=61" in answer  # 64, less one each on c, b and a


def test_hop_limits_that_run_out_are_told_by_the_node_where_they_do(line: Line) -> None:
    destination = line.addresses[line.c]
    own = line.addresses[line.a]
    assert f"From {own} " in ping_errors(line.a, destination, "-t1")
    for hops, node in ((2, line.b), (3, line.c)):
        error = ping_errors(line.a, destination, f"-t{hops}")
        assert f"From {line.subnet(node).network_address} " in error
        assert "Time exceeded: Hop limit" in error
    assert line.a.run(["ping", "-c1", "-W1", "-t4", destination])


def test_no_route_is_told_in_the_senders_own_name(line: Line) -> None:
    nowhere, node, pod = "4aa:bbcc::1", line.addresses[line.a], line.host(line.a, 1)
    line.a.ip("addr", "add", f"{pod}/128", "dev", "lo", "nodad")
    of_node = line.a.start(["ping", "-n", "-c1", f"-W{LONGEST_RESOLVE_S}", nowhere])
    error = ping_errors(line.a, nowhere, "-I", pod)
    line.a.ip("addr", "del", f"{pod}/128", "dev", "lo")
    assert error.startswith(f"From {pod} ")
    assert "Destination unreachable: No route" in error
    await_fact(lambda: not of_node.running, "the end of the node's ping", within_s=5)
    assert f"From {node} icmp_seq=1 Destination unreachable: No route" in of_node.output()


@pytest.mark.timing("a refusal within a second")
def test_a_free_address_of_the_own_subnet_is_unreachable_at_once(line: Line) -> None:
    free = line.host(line.a, 2)
    start = time.monotonic()
    error = ping_errors(line.a, free)
    assert time.monotonic() - start < 1
    assert error.startswith(f"From {line.addresses[line.a]} ")
    assert "Destination unreachable: Address unreachable" in error


def test_a_source_outside_the_overlay_fails_policy(line: Line) -> None:
    error = ping_errors(line.a, line.addresses[line.c], "-I", line.a.underlay_address)
    assert error.startswith(f"From {line.addresses[line.a]} ")
    assert "Destination unreachable: Unknown code 5" in error  # ping has no name for it


@pytest.mark.parametrize("line", ["stand-in"], indirect=True)
def test_the_stand_in_delivers_packets_of_any_source_and_destination(line: Line) -> None:
    """The guard exists because of this weakness, so the stand-in must have it.

    The daemon has it too (data.rs: the decrypted packet is not compared with its envelope), but
    only a peer with a modified daemon can use it, so this cannot be shown with the real one.
    """
    udp = struct.pack("!4H", 9, 9, 8, 0)
    source, destination = (socket.inet_pton(socket.AF_INET6, f"2001:db8:ff::{n}") for n in "12")
    packet = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + source + destination + udp
    watch = ["tcpdump", "-n", "-l", "-c1", "-i", "mycelium", "src 2001:db8:ff::1"]
    capture = line.c.start(watch)
    await_fact(lambda: "listening on" in capture.output(), "tcpdump listening")
    with line.a.inside():
        attacker = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with attacker:
        subnet = line.subnet(line.c).network_address.packed[:8]
        attacker.sendto(overlay.carry(subnet, packet), (line.b.underlay_address, 9651))
    await_fact(lambda: not capture.running, "the packet on the interface of c, through b")
    assert "2001:db8:ff::1.9 > 2001:db8:ff::2.9" in capture.output()


def test_tcp_carries_a_big_answer_in_segments_of_the_mtu(line: Line) -> None:
    address, size = line.addresses[line.c], 3_000_000
    blob = line.lab.directory / "www" / "blob"
    blob.parent.mkdir()
    blob.write_bytes(b"x" * size)
    serve = ["python3", "-m", "http.server", "--bind", "::", "-d", str(blob.parent), "8080"]
    server = line.c.start(serve)
    capture = line.c.start(["tcpdump", "-n", "-l", "-i", "mycelium", "ip6 and tcp port 8080"])
    await_fact(lambda: "listening on" in capture.output(), "tcpdump listening")

    def fetch() -> bytes | None:
        try:
            return line.a.get(address, 8080, "/blob", timeout_s=30)
        except (OSError, http.client.HTTPException):
            return None

    body = await_fact(fetch, "the answer of the HTTP server on c", within_s=40)
    assert body is not None
    assert len(body) == size
    await_fact(lambda: capture.output().count("mss 1340") >= 2, "SYNs with MSS 1340 both ways")
    server.stop()
    capture.stop()


def test_the_api_tells_who_the_node_is(line: Line) -> None:
    info = line.a.api("admin")
    assert info["nodeSubnet"] == str(line.subnet(line.a))
    assert info["nodeIp"] == line.addresses[line.a]
    assert len(bytes.fromhex(info["nodePubkey"])) == 32
    assert abs(time.time() - info["nodeStartTime"]) < 600


def test_the_api_tells_the_peers(line: Line) -> None:
    (peer,) = line.c.api("admin/peers")
    assert peer["endpoint"] == {
        "proto": "tcp",
        "addr": {"socket": f"[{line.b.underlay_address}]:9651"},
    }
    assert peer["type"] == "static"
    assert peer["connectionState"] == "alive"
    assert peer["txBytes"] > 0
    assert peer["rxBytes"] > 0
    assert peer["discovered"] >= peer["lastConnected"] >= 0
    assert [peer["type"] for peer in line.b.api("admin/peers")].count("inbound") == 1


def test_the_api_tells_the_routes(line: Line) -> None:
    routes = {route["subnet"]: route for route in line.a.api("admin/routes/selected")}
    near, far = str(line.subnet(line.b)), str(line.subnet(line.c))
    assert routes.keys() >= {near, far}
    for route in routes.values():
        assert route.keys() == {"subnet", "nextHop", "metric", "seqno"}
        assert f"[{line.b.underlay_address}]:" in route["nextHop"]
    assert routes[far]["metric"] > routes[near]["metric"]


def test_an_unknown_page_of_the_api_is_not_found(line: Line) -> None:
    with pytest.raises(http.client.HTTPException, match="404"):
        line.a.api("nothing")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_interface_goes_with_the_process_and_comes_back_with_its_address(
    own_lab: Lab, number: signal.Signals
) -> None:
    left, right = own_lab.node("left"), own_lab.node("right")
    own_lab.connect(left, right)
    address = right.overlay_address
    right.stop_overlay(number)
    assert "mycelium" not in [link["ifname"] for link in right.ip("link")]
    assert right.ip("-6", "route", "show", "match", "400::") == []
    right.start_overlay()
    assert right.overlay_address == address
    await_fact(lambda: left.ping(str(address)) is not None, "right answers again", within_s=20)


def test_a_new_key_is_a_new_address(own_lab: Lab) -> None:
    node = own_lab.node("a")
    own_lab.connect(node)
    before = node.overlay_address
    node.stop_overlay()
    node.key_file.unlink()
    node.start_overlay()
    assert node.overlay_address not in (None, before)


def test_a_key_longer_than_32_bytes_counts_with_its_first_32(own_lab: Lab) -> None:
    node = own_lab.node("a")
    own_lab.connect(node)
    before = node.overlay_address
    node.stop_overlay()
    with node.key_file.open("ab") as file:
        file.write(b"more")
    node.start_overlay()
    assert node.overlay_address == before
