# SPDX-License-Identifier: Apache-2.0
"""The agent restores what others remove from a node and its pods, within a second or so."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attaching import BRIDGE, MODES, Mode, at_once, reaches
from checked_node import CheckedNode, CheckedNodes
from observe import difference, kernel_state, set_sysctl
from test_faults import FAULTS, Fault
from tool import Tool

from mycelium_lab.lab import Lab, Node
from mycelium_lab.lab import await_fact as await_soon

PORT = 9654
MOST_MEMORY = 30 << 20  # bytes

# Faults that the kernel reports, one of every kind of fact that a node and a pod have.
TOLD = {
    "pod address flushed",
    "pod routes flushed",
    "pod link down",
    "pod MAC",
    "host link down",
    "host link down and up",
    "host link renamed",
    "host link MTU",
    "host link flushed",
    "host link in another group",
    "address no longer reserved",
    "route to the pod elsewhere",
    "routes of ours flushed",
    "port off its bridge",
    "port learns",
    "forwarding entry deleted",
    "bridge deleted",
    "bridge flushed",
    "lo down",
    "node's address off lo",
    "forwarding off",
    "overlay's route deleted",
    "table of the guard flushed",
    "rules flushed",
}
CHECKED = {"lo down", "overlay's route deleted"}  # what `setup` and ADD require, and do not make
UNTOLD = "host link takes advertisements"
NEIGHBOUR = Fault("neighbour deleted", "ip -6 neigh del $ADDR dev $WAY", "", "fix")
CASES = [
    pytest.param(
        fault, mode, id=f"{fault.name}-{mode}", marks=pytest.mark.xdist_group(f"agent-{mode}")
    )
    for mode in MODES
    for fault in [*(each for each in FAULTS if each.name in TOLD), NEIGHBOUR]
    if mode in fault.modes
]


class Watched:
    """A node with two pods, and its agent."""

    def __init__(self, checked: CheckedNode, *argv: str) -> None:
        self.checked = checked
        self.agent = checked.node.start(
            [*checked.lab.command, "agent", "--root", str(checked.root), *argv]
        )
        self.await_word("watches")
        self.before = self.kernel_state()

    def kernel_state(self) -> dict[str, Any]:
        """The state of the node and of one pod, sorted: what is restored comes in another order."""
        seen = kernel_state(self.checked.node, self.checked.web)
        for space in seen.values():
            space["nft"].sort()
        links = json.loads(self.checked.node.run(["bridge", "-d", "-j", "link", "show"]).stdout)
        entries = json.loads(self.checked.node.run(["bridge", "-j", "fdb", "show"]).stdout)
        seen["ports"] = {each["ifname"]: each["learning"] for each in links}
        seen["entries"] = sorted((e["ifname"], e["mac"]) for e in entries if e["state"] == "static")
        return seen

    def await_word(self, word: str) -> None:
        def said() -> bool:
            assert self.agent.running, self.agent.output()
            return word in self.agent.output()

        await_fact(said, f"the agent says {word!r}")

    def await_whole(self) -> None:
        """Wait until everything is as before."""
        try:
            await_fact(lambda: self.kernel_state() == self.before, "the node is whole again")
        except Exception:
            left = difference(self.before, self.kernel_state())
            pytest.fail("\n".join([*left, self.agent.output()]))

    def signal(self, number: int) -> None:
        os.kill(self.agent.pid, number)

    def slept(self) -> int:
        """How often the agent's threads have gone to sleep: context switches of any kind."""
        tasks = Path(f"/proc/{self.agent.pid}/task").glob("*/status")
        lines = [line for task in tasks for line in task.read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if "_ctxt_switches" in line)

    def sleeps(self, for_s: float = 0.5) -> bool:
        """Whether it sleeps that long without waking: none of its threads polls."""
        before = self.slept()
        await_fact(_after(for_s), "the time has passed")
        return self.slept() == before


def await_fact(fact: Callable[[], bool], what: str) -> None:
    """Wait as long as a loaded machine may take; the agent itself needs a fraction of a second."""
    await_soon(fact, what, within_s=30)


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


@pytest.fixture
def watched(checked_nodes: CheckedNodes, mode: Mode) -> Iterator[Watched]:
    with checked_nodes.of(mode) as checked:
        watched = Watched(checked)
        try:
            yield watched
            assert watched.agent.running, watched.agent.output()
        finally:
            watched.agent.stop()


@pytest.mark.parametrize(("fault", "mode"), CASES)
def test_what_is_removed_is_restored(watched: Watched, fault: Fault) -> None:
    injected = watched.checked.shell(fault.inject)
    assert injected.stderr == "", injected
    watched.await_word(": fixed: " if fault.name in CHECKED else ": restored ")
    watched.await_whole()
    # Awaited: on a busy machine two echo requests in a row can go unanswered.
    await_fact(lambda: not watched.checked.lost(), "packets pass on every way")


def in_mode(*modes: Mode) -> pytest.MarkDecorator:
    cases = [
        pytest.param(mode, marks=pytest.mark.xdist_group(f"agent-{mode}"))
        for mode in modes or MODES
    ]
    return pytest.mark.parametrize("mode", cases)


@in_mode("routed")
def test_what_the_kernel_does_not_report_is_restored_on_request(
    watched: Watched,
) -> None:
    link = watched.checked.words["LINK"]
    set_sysctl(watched.checked.node, f"ipv6/conf/{link}/accept_ra", "1")
    watched.signal(signal.SIGHUP)
    watched.await_whole()


@in_mode("bridge")
def test_at_rest_it_only_sleeps_and_is_small(watched: Watched) -> None:
    numbers(watched)
    await_fact(lambda: watched.sleeps(2), "the agent sleeps")
    pages = int(Path(f"/proc/{watched.agent.pid}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < MOST_MEMORY


@pytest.mark.timing("six repairs before the first pause")
@in_mode("routed")
def test_what_is_removed_again_and_again_is_restored_less_and_less_often(watched: Watched) -> None:
    node, address = watched.checked.node, watched.checked.address
    taken = 0

    def given_up() -> bool:
        nonlocal taken
        if node.ip("-6", "route", "show", address):
            taken += 1
            node.configure(f"route del {address}")
        return "something undoes it" in watched.agent.output()

    await_fact(given_up, "the agent says that it does not last")
    assert taken <= 6
    assert watched.agent.output().count("something undoes it") == 1
    watched.await_whole()


@in_mode()
def test_messages_that_the_kernel_dropped_are_no_loss(watched: Watched) -> None:
    """The kernel drops messages for which a listener's buffer has no room, and reports that."""
    checked = watched.checked
    watched.signal(signal.SIGSTOP)
    numbers = range(2000)
    checked.node.configure(
        *[f"route add 2001:db8:1::{i:x} dev under0" for i in numbers],
        *[f"route del 2001:db8:1::{i:x} dev under0" for i in numbers],
    )
    checked.shell("ip -6 route flush proto 77")
    watched.signal(signal.SIGCONT)
    watched.await_whole()


@in_mode()
def test_add_and_del_go_on_beside_it_and_leave_nothing(watched: Watched) -> None:
    checked = watched.checked
    pods = [checked.node.pod(f"new{i}") for i in range(4)]
    plugin = {"type": "mycelium-cni", "mode": checked.mode, "netseed": "/nonexistent"}
    conf = {"cniVersion": "1.1.0", "name": "mycelium", **plugin}
    for _ in range(2):
        added = at_once([partial(checked.node.plugin, "ADD", conf, pod) for pod in pods])
        for pod, call in zip(pods, added, strict=True):
            address = call.succeeded()["ips"][0]["address"].partition("/")[0]
            assert reaches(checked.node, address)
            prev = {**conf, "prevResult": call.result}
            assert checked.node.plugin("CHECK", prev, pod).code == 0
        for call in at_once([partial(checked.node.plugin, "DEL", conf, pod) for pod in pods]):
            assert call.code == 0, call
    for pod in pods:
        pod.remove()
    watched.await_whole()
    await_fact(watched.sleeps, "the agent sleeps")
    assert watched.kernel_state() == watched.before
    assert "warning" not in watched.agent.output()


@in_mode("routed")
def test_an_attachment_in_the_making_is_left_alone(watched: Watched) -> None:
    """Its host link as ADD leaves it before it is set up: named, and down."""
    node = watched.checked.node
    (web,) = node.ip("-d", "link", "show", watched.checked.words["LINK"])
    pod, address = node.pod("half"), f"{watched.checked.words['SUB']}:ff0f::2"
    alias = web["ifalias"].replace(watched.checked.address, address).replace("web", "half")
    node.configure(
        f"link add mycffffffffffff group {web['group']} type veth peer eth0 netns {pod.netns}",
        f"link set mycffffffffffff alias '{alias}'",
        f"link property add dev mycffffffffffff altname {address}",
    )
    watched.checked.shell("ip -6 route flush proto 77")
    watched.await_word("unreachable 400::/7")
    watched.await_word(watched.checked.address)
    made = node.link("mycffffffffffff")
    assert made
    assert "UP" not in made["flags"]
    assert not node.ip("-6", "route", "show", address)
    pod.remove()
    watched.await_whole()


@in_mode("bridge")
def test_what_a_pod_left_that_ended_without_del_is_swept(watched: Watched) -> None:
    tool = watched.checked.tool
    pod = tool.attach("brief", mode="bridge", netseed="/nonexistent")
    (address,) = [each["address"] for each in tool.json("list") if each["pod"] == "brief"]

    def known() -> bool:
        listed = watched.checked.node.run(["nft", "list", "ruleset"]).stdout
        return address in listed or bool(watched.checked.node.ip("-6", "neigh", "show", address))

    assert known()
    pod.remove()
    await_fact(lambda: not known(), "guard and bridge have forgotten the pod")
    watched.await_whole()


@in_mode("routed")
def test_a_link_whose_pod_is_gone_is_removed_after_a_while(watched: Watched) -> None:
    """Only an open file holds its namespace, as with a process that hangs."""
    tool = watched.checked.tool
    pod = tool.attach("leaked")
    link = tool.host_link("leaked")
    await_fact(watched.sleeps, "the agent has seen the pod")
    held = os.open(pod.path, os.O_RDONLY)
    try:
        pod.remove()
        watched.signal(signal.SIGHUP)
        await_fact(lambda: watched.checked.node.link(link) is None, "the link is gone")
    finally:
        os.close(held)
    watched.await_whole()
    assert "default/leaked" in watched.agent.output()


@in_mode()
def test_a_restart_of_the_daemon_loses_nothing(watched: Watched) -> None:
    node = watched.checked.node
    node.stop_overlay()
    watched.await_word("failed to find interface mycelium")
    node.start_overlay()
    watched.await_word("node: recovered")
    await_fact(lambda: watched.checked.lost() == [], "the pods are back on the overlay")


def test_a_changed_key_is_followed(lab: Lab, bare: Node, root: Path) -> None:
    other = "4dd:1:2:3:4:5:6:7"
    tool = Tool(bare, root)
    tool("setup", "--mode", "bridge")
    tool.attach("web", mode="bridge")
    agent = bare.start([*lab.command, "agent", "--root", str(root)])
    await_fact(lambda: "watches" in agent.output(), "the agent watches")
    bare.configure("address flush dev mycelium", f"address add {other}/7 dev mycelium")

    def carried(link: str) -> list[str]:
        shown = bare.link(link)
        return [each["local"] for each in shown["addr_info"]] if shown else []

    await_fact(lambda: "4dd:1:2:3::1" in carried(BRIDGE), "the bridge has the new gateway")
    await_fact(lambda: other in carried("lo"), "lo has the new address")
    assert not [each for each in carried(BRIDGE) if each.startswith("5a1:")]
    await_fact(lambda: "key has changed" in agent.output(), "it is said")
    assert "default/web" in agent.output()
    agent.stop()


def numbers(watched: Watched) -> dict[str, float]:
    """What /metrics says; each name with its labels must appear once."""
    found: dict[str, float] = {}
    for line in watched.checked.node.get("127.0.0.1", PORT, "/metrics").decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            label = r'[a-z]+="[^"\n]*"'
            assert re.fullmatch(f"[a-z_]+({{{label}(,{label})*}})?", name), line
            assert name not in found
            found[name] = float(value)
    return found


@in_mode()
def test_a_probe_that_asks_with_head_gets_the_head_of_the_page(watched: Watched) -> None:
    def asked(verb: str, page: str) -> list[str]:
        with watched.checked.node.inside():
            connection = socket.create_connection(("127.0.0.1", PORT), 5)
        with connection, connection.makefile("rw") as stream:
            stream.write(f"{verb} {page} HTTP/1.0\r\n\r\n")
            stream.flush()
            return [line for line in stream.read().splitlines() if not line.startswith("Date:")]

    for page in ("/healthz", "/readyz"):
        head, whole = asked("HEAD", page), asked("GET", page)
        assert "200" in head[0]
        assert head == whole[: len(head)]
        assert (len(whole) - len(head), head[-1]) == (1, "")
    assert "404" in asked("HEAD", "/")[0]


def dropped(watched: Watched) -> float:
    name = "mycelium_cni_guard_dropped_packets_total"
    return sum(value for key, value in numbers(watched).items() if key.startswith(name))


@in_mode()
def test_metrics_count_pods_repairs_drops_and_the_daemon(watched: Watched) -> None:
    seen = numbers(watched)
    assert seen["mycelium_cni_ready"] == 1
    assert seen[f'mycelium_cni_attachments{{mode="{watched.checked.mode}"}}'] == 2
    assert seen["mycelium_daemon_up"] == 1
    assert seen['mycelium_daemon_peers{state="connected"}'] == 1
    assert seen["mycelium_daemon_routes"] >= 1
    assert not [name for name in seen if "repairs" in name]
    watched.checked.shell("nft flush ruleset")
    await_fact(
        lambda: numbers(watched).get('mycelium_cni_repairs_total{kind="guard"}') == 1,
        "the repair is counted",
    )
    watched.await_whole()
    before = dropped(watched)
    foreign = "2001:db8:77::1"
    watched.checked.web.configure(f"address add {foreign}/128 dev eth0 nodad")
    try:
        own = str(watched.checked.node.overlay_address)
        assert watched.checked.web.ping(own, source=foreign, wait_s=0.2) is None
    finally:
        watched.checked.web.configure(f"address del {foreign}/128 dev eth0")
    assert dropped(watched) > before


@in_mode("routed")
def test_metrics_count_calls_by_outcome(watched: Watched) -> None:
    node, pod = watched.checked.node, watched.checked.node.pod("counted")
    conf = {"cniVersion": "1.1.0", "name": "mycelium", "type": "mycelium-cni", "mode": "routed"}
    assert node.plugin("ADD", conf, pod).code == 0
    assert node.plugin("ADD", conf, pod).code == 1
    assert node.plugin("DEL", conf, pod).code == 0
    assert node.plugin("STATUS", conf).code == 0
    pod.remove()
    # Anybody may send there. Only datagrams of processes of root count.
    nobody = struct.pack("iII", os.getpid(), 65534, 65534)
    with node.inside(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
        beside = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, nobody)]
        teller.sendmsg([b"ADD 0 1"], beside, 0, b"\0mycelium-cni calls")
    for garbage in (b"", b"ADD", b"ADD 0 x", b"\xff 0 1", b"EAT 0 1", b"ADD 0 1 1"):
        with node.inside(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
            teller.sendto(garbage, b"\0mycelium-cni calls")
    await_fact(
        lambda: 'mycelium_cni_calls_total{verb="DEL",code="0"}' in numbers(watched),
        "the calls are counted",
    )
    seen = {name: value for name, value in numbers(watched).items() if "call" in name}
    took = [
        seen.pop(f'mycelium_cni_call_seconds_total{{verb="{verb}"}}') for verb in ("ADD", "DEL")
    ]
    assert all(0 < each < 60 for each in took)
    failed = [name for name in seen if name.startswith('mycelium_cni_calls_total{verb="ADD",')]
    assert len(failed) == 2
    assert seen == dict.fromkeys([*failed, 'mycelium_cni_calls_total{verb="DEL",code="0"}'], 1)


@in_mode("routed")
def test_probes_answer_as_status_would(watched: Watched) -> None:
    node = watched.checked.node

    def answer(page: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
        with node.inside():
            connection.connect()
        connection.request("GET", page)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    assert answer("/healthz") == (200, "ok\n")
    assert answer("/readyz") == (200, "ready\n")
    assert answer("/else")[0] == 404
    node.configure("link set mycelium down")
    try:
        status, said = answer("/readyz")
        assert status == 503
        assert said.startswith("interface mycelium is down")
        assert answer("/healthz") == (200, "ok\n")
    finally:
        node.stop_overlay()
        node.start_overlay()
    await_fact(lambda: answer("/readyz")[0] == 200, "the node is ready again")


@in_mode("routed")
def test_slow_clients_do_not_delay_its_work_nor_keep_others_out(watched: Watched) -> None:
    node = watched.checked.node
    with node.inside():
        slow = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(40)]

    def answers() -> bool:
        for each in slow:
            with suppress(OSError):
                each.send(b"G")
        with suppress(OSError, http.client.HTTPException):
            return node.get("127.0.0.1", PORT, "/healthz") == b"ok\n"
        return False

    watched.checked.shell("nft flush ruleset")
    watched.await_whole()
    await_fact(answers, "it answers others")
    for each in slow:
        each.close()


ENDLESS = b"HTTP/1.1 100 Continue\r\n\r\n"


@contextmanager
def in_place_of_the_daemon(node: Node, answer: bytes, *, again_s: float = 0) -> Iterator[None]:
    """Whatever is asked, at the daemon's API: what any user can do while the daemon is down."""
    with node.inside():
        api = socket.create_server(("127.0.0.1", 8989))

    def tell(client: socket.socket) -> None:
        with client, suppress(OSError):
            client.sendall(answer)
            while again_s:
                time.sleep(again_s)
                client.sendall(answer)

    def listen() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=tell, args=api.accept()[:1], daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    yield
    api.close()


def test_an_endless_answer_of_the_api_holds_nothing(lab: Lab, bare: Node, root: Path) -> None:
    with in_place_of_the_daemon(bare, ENDLESS, again_s=0.05):
        agent = bare.start([*lab.command, "agent", "--root", str(root)])
        try:
            await_fact(lambda: "watches" in agent.output(), "the agent watches")
            tasks = Path(f"/proc/{agent.pid}/task")
            before = len(list(tasks.iterdir()))
            assert b"mycelium_daemon_up 0" in bare.get("127.0.0.1", PORT, "/metrics")
            await_fact(lambda: len(list(tasks.iterdir())) == before, "none of its threads is left")
        finally:
            agent.stop()


@pytest.mark.parametrize("number", [2_000_000, 5_500_000])  # the first is read
def test_a_huge_answer_of_the_api_does_not_exceed_its_memory(
    lab: Lab, bare: Node, root: Path, number: int
) -> None:
    lists = b"[" + b"[]," * number + b"0]"
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(lists)}\r\n\r\n".encode()
    with in_place_of_the_daemon(bare, head + lists):
        agent = bare.start([*lab.command, "agent", "--root", str(root)])
        try:
            await_fact(lambda: "watches" in agent.output(), "the agent watches")
            assert b"mycelium_daemon_up 0" in bare.get("127.0.0.1", PORT, "/metrics", timeout_s=30)
            status = Path(f"/proc/{agent.pid}/status").read_text()
            (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
            assert int(peak) < 256 << 10  # as deploy/mycelium-cni.yaml limits it
        finally:
            agent.stop()


def test_an_address_that_is_in_use_is_reported(lab: Lab, bare: Node, root: Path) -> None:
    with bare.inside():
        taken = socket.create_server(("127.0.0.1", PORT))
    with taken:
        done = Tool(bare, root)("agent")
    assert done.returncode == 1
    assert f"127.0.0.1 port {PORT}: Address already in use" in done.stderr
    assert Tool(bare, root)("agent", "--listen", "127.0.0.1").returncode == 2


def test_nothing_is_removed_that_it_would_restore(lab: Lab, bare: Node, root: Path) -> None:
    tool = Tool(bare, root)
    agent = bare.start([*lab.command, "agent", "--root", str(root)])
    await_fact(lambda: "watches" in agent.output(), "the agent watches")
    refused = tool("teardown")
    assert refused.returncode == 1
    assert "`mycelium-cni agent` runs, and would restore" in refused.stderr
    agent.stop()
    assert tool("teardown").returncode == 0


@in_mode("routed")
def test_it_ends_when_it_is_told_to_and_pods_run_on(watched: Watched) -> None:
    second = Watched(watched.checked, "--log-format", "json", "--listen", "[::1]:9655")
    second.agent.stop(signal.SIGTERM)
    assert second.agent.code == 0
    for line in second.agent.output().splitlines():
        assert {"time", "level", "event"} <= json.loads(line).keys()
    assert watched.kernel_state() == watched.before
    assert watched.checked.lost() == []
