# SPDX-License-Identifier: Apache-2.0
"""A failed ADD leaves node and pod exactly as they were, whichever step failed.

Four kinds of failure: a system call that fails (injected by strace), a netlink message that
the kernel refuses, the process killed, and a result that cannot be written.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Literal

import pytest
from attaching import Attached, Mode, at_once, attach, both_modes, network, reaches, refused, silent
from observe import difference, kernel_state, set_sysctl

import mycelium_cni
from mycelium_lab.lab import UNDERLAY, Lab, PluginCall, await_fact

pytestmark = pytest.mark.timeout(300)  # some of it is a few hundred executions of the plugin

# The first pod of a node; one on a node that has another; a pod's second interface.
State = Literal["bare", "prepared", "second"]
STATES: tuple[State, ...] = ("bare", "prepared", "second")
every_state = pytest.mark.parametrize("state", STATES)

# System calls, and how they fail on a machine short of resources.
FAULTS = {
    "sendto": "ENOBUFS",
    "openat": "EACCES",
    "read": "EIO",
    "pread64": "EIO",
    "write": "EIO",
    "setns": "EPERM",
    "socket": "EMFILE",
    "setsockopt": "ENOPROTOOPT",
    "ioctl": "EPERM",
}
_CALL = re.compile(r"^(\w+)\(")
_END_OF_STDIN = re.compile(r"^read\(0\b.*\) += 0$")


class Stage:
    """A node, and a pod that one failing ADD after the other tries to attach."""

    def __init__(self, lab: Lab, mode: Mode, state: State, *, ipv6: bool = False) -> None:
        """`ipv6`: whether the pod has it already. Docker switches it off, and the plugin then has
        one more step to undo."""
        self.lab = lab
        self.node = lab.node("a")
        lab.connect(self.node)
        self.conf = network(mode, defaultRoute=True)
        if state == "prepared":
            attach(self.node, "earlier", self.conf)
        self.pod = self.node.pod("pod")
        self.ifname = "eth0"
        if state == "second":
            attach(self.node, self.pod, self.conf)
            self.ifname = "net1"
        await_fact(self._settled, "a local route for each address")
        for link in () if ipv6 else ("all", "default", "lo"):
            set_sysctl(self.pod, f"ipv6/conf/{link}/disable_ipv6", "1")
        self.before = kernel_state(self.node, self.pod)
        self._known = {link["ifname"] for link in self.node.ip("link")}
        self._trace = lab.directory / "strace"

    def _settled(self) -> bool:
        """Whether node and pod have a local route for each address: a worker of the kernel makes
        them. The lab's own link is not looked at by `kernel_state` either."""
        return all(
            {(link["ifname"], entry["local"]) for entry in link["addr_info"]}
            <= {(route.get("dev"), route["dst"]) for route in routes}
            for space in (self.node, self.pod)
            for routes in [space.ip("-6", "route", "show", "table", "local")]
            for link in space.ip("-6", "addr", "show")
            if link["ifname"] != UNDERLAY
        )

    def run(self, argv: list[str]) -> PluginCall:
        """ADD with this command line."""
        env = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": self.pod.container_id,
            "CNI_NETNS": self.pod.path,
            "CNI_IFNAME": self.ifname,
        }
        done = self.node.run(argv, env=env, input=json.dumps(self.conf), check=False)
        return PluginCall(done.returncode, done.stdout, done.stderr, 0)

    def strace(self, *options: str) -> PluginCall:
        """ADD under strace."""
        strace = ["strace", "-qq", "-o", str(self._trace), *options]
        return self.run([*strace, *self.lab.command])

    def trace(self) -> list[str]:
        """What strace saw."""
        return self._trace.read_text().splitlines()

    def await_host_link(self) -> str:
        """The host link of an ADD in progress."""

        def new_link() -> str | None:
            found = [link["ifname"] for link in self.node.ip("link")]
            return next((name for name in found if name not in self._known), None)

        name = await_fact(new_link, "the host link")
        assert name
        return name

    def changes(self) -> list[str]:
        """What has changed."""
        return difference(self.before, kernel_state(self.node, self.pod))


@contextmanager
def staged(command: list[str], mode: Mode, state: State, *, ipv6: bool = False) -> Iterator[Stage]:
    with Lab(command) as lab:
        yield Stage(lab, mode, state, ipv6=ipv6)


@cache
def calls_of_add(
    command: tuple[str, ...], mode: Mode, state: State, *, ipv6: bool = False
) -> list[tuple[str, int]]:
    """The system calls of a successful ADD from the end of its standard input on: each with its
    number among those of its name, counted from the start of the process."""
    counts: Counter[str] = Counter()
    calls = []
    started = False
    with staged([*command], mode, state) as stage:  # Python has compiled all of it after this
        assert stage.run(stage.lab.command).code == 0
    with staged([*command], mode, state, ipv6=ipv6) as stage:
        assert stage.strace("-y", "-e", f"trace={','.join(FAULTS)},recvfrom").code == 0
        for line in stage.trace():
            match = _CALL.match(line)
            if match:
                counts[match[1]] += 1
                # Python tries several files for a module: a call that fails there changes nothing.
                if started and "/mycelium_cni/" not in line:
                    calls.append((match[1], counts[match[1]]))
                started = started or bool(_END_OF_STDIN.match(line))
    assert len(calls) > 50, calls
    return calls


@every_state
@both_modes
def test_whichever_system_call_fails_everything_is_undone(
    command: list[str], mode: Mode, state: State
) -> None:
    fail_each(command, mode, state, FAULTS)


@both_modes
def test_whichever_answer_of_the_kernel_is_lost_everything_is_undone(
    command: list[str], mode: Mode
) -> None:
    """The request was carried out, but its answer is lost.

    On a prepared node: preparation whose answer is lost stays, because every ADD makes the same.
    """
    fail_each(command, mode, "prepared", {"recvfrom": "EIO"})


def fail_each(command: list[str], mode: Mode, state: State, faults: Mapping[str, str]) -> None:
    """ADD once for each call of these names, in which that call fails; nothing may be left of it.

    Each name ends with the first ADD in which none fails, because it makes so few calls of it, or
    the next one is Python's, reading a module.
    """
    known = calls_of_add(tuple(command), mode, state)
    failures: list[str] = []
    with ExitStack() as stack:
        stage = stack.enter_context(staged(command, mode, state))
        for name, error in faults.items():
            counted = [number for call, number in known if call == name]
            assert counted, name
            for number in chain(counted, count(counted[-1] + 1)):
                fault = f"inject={name}:error={error}:when={number}"
                call = stage.strace("-y", "-e", f"trace={name}", "-e", fault)
                injected = [line for line in stage.trace() if "(INJECTED)" in line]
                injected = [line for line in injected if "/mycelium_cni/" not in line]
                if injected:
                    changes = stage.changes()
                    if call.code == 1 and not changes:
                        refused(call)
                        continue
                    # The datagram for the agent, sent last, may be lost.
                    if call.code != 0 or "AF_UNIX" not in injected[0]:
                        failures.append("\n".join([*injected, str(call), *changes]))
                else:
                    assert call.code == 0, call
                # Something is left now, rightly or not: the next one needs a new stage.
                stack.close()
                stage = stack.enter_context(staged(command, mode, state))
                if not injected:
                    break
    assert not failures, "\n\n".join(failures)


@both_modes
def test_a_message_of_the_kernel_that_something_was_dropped_fails_nothing(
    command: list[str], mode: Mode
) -> None:
    calls = calls_of_add(tuple(command), mode, "prepared")
    with staged(command, mode, "prepared") as stage:
        for name, number in calls:
            if name == "recvfrom":
                fault = f"inject=recvfrom:error=ENOBUFS:when={number}"
                call = stage.strace("-e", "trace=recvfrom", "-e", fault)
                assert call.code == 0, (number, call)
                attached = Attached(stage.node, stage.pod, stage.conf, call.result, stage.ifname)
                silent(attached.check())
                silent(attached.delete())
                set_sysctl(stage.pod, "ipv6/conf/lo/disable_ipv6", "1")
                assert stage.changes() == [], number


SOURCE = str(Path(mycelium_cni.__file__).parents[1])

# The plugin, with one change: message number argv[1] of all that it sends is replaced by one of a
# type that no kernel has. It writes to argv[2] how many there were.
SABOTEUR = """
import struct, sys
sys.path.insert(0, sys.argv[3])
from mycelium_cni.kernel import netlink

doomed, told, sent = int(sys.argv[1]), sys.argv[2], 0

class Socket(netlink.socket):
    def send(self, batch):
        global sent
        changed = b""
        while batch:
            length, kind, flags, sequence, port = struct.unpack_from("=IHHII", batch)
            # Nobody refuses the end of an nf_tables batch (NFNL_MSG_BATCH_END).
            counts = (self.proto, kind) != (12, 17)
            if sent == doomed and counts:
                kind = 0x0FFF
            changed += struct.pack("=IHHII", length, kind, flags, sequence, port)
            changed += batch[16 : length + 3 & ~3]
            batch = batch[length + 3 & ~3 :]
            sent += counts
        return super().send(changed)

netlink.socket = Socket
from mycelium_cni.main import main
status = main()
open(told, "w").write(str(sent))
sys.exit(status)
"""


@pytest.mark.parametrize("state", ["bare", "second"])
@both_modes
def test_whichever_message_the_kernel_refuses_everything_is_undone(
    command: list[str], mode: Mode, state: State
) -> None:
    """A pod's first interface on a prepared node: test_errnos.py."""
    with staged(command, mode, state) as stage:
        told = stage.lab.directory / "sent"

        def add(doomed: int) -> PluginCall:
            return stage.run([sys.executable, "-c", SABOTEUR, str(doomed), str(told), SOURCE])

        doomed = 0
        while (call := add(doomed)).code != 0:
            refused(call)
            assert stage.changes() == [], f"message {doomed}: {call}"
            assert "not undone" not in call.stdout
            doomed += 1
        # The first that succeeds is one in which no message was refused. It may have asked less
        # often than the one before whether the kernel is done.
        assert doomed >= int(told.read_text()), stage.changes()
        assert doomed > 15


@both_modes
def test_del_removes_what_an_add_killed_at_any_moment_has_made(
    command: list[str], mode: Mode
) -> None:
    # Every other call, different ones in each mode: all of them would find little more.
    points = calls_of_add(tuple(command), mode, "prepared", ipv6=True)[mode == "bridge" :: 2]
    failures, kills = [], 0
    with staged(command, mode, "prepared", ipv6=True) as stage:
        for name, number in points:
            killed = stage.strace("-e", f"trace={name}", "-e", kill(name, number))
            kills += killed.code == -signal.SIGKILL
            deleted = stage.node.plugin("DEL", stage.conf, stage.pod)
            changes = stage.changes()
            if (deleted.code, deleted.stdout) != (0, "") or changes:
                failures.append("\n".join([f"{name} {number}: {deleted}", *changes]))
                break
    assert not failures, "\n\n".join(failures)
    # Some calls are not made each time.
    assert kills > 0.9 * len(points) > 30, (kills, len(points))


@both_modes
def test_an_add_killed_at_any_moment_is_no_obstacle_to_the_next(
    command: list[str], mode: Mode
) -> None:
    """On nodes that it prepares as the first ADD."""
    for name, number in calls_of_add(tuple(command), mode, "bare", ipv6=True)[::12]:
        with staged(command, mode, "bare", ipv6=True) as stage:
            killed = stage.strace("-e", f"trace={name}", "-e", kill(name, number))
            assert killed.code in (-signal.SIGKILL, 0), killed  # 0: it made fewer calls this time
            silent(stage.node.plugin("DEL", stage.conf, stage.pod))
            attached = attach(stage.node, stage.pod, stage.conf)
            silent(attached.check())
            assert reaches(stage.node, attached.address), (name, number)
            assert reaches(stage.pod, str(stage.node.overlay_address)), (name, number)


@both_modes
def test_an_add_that_runs_out_of_file_descriptors_is_undone(command: list[str], mode: Mode) -> None:
    """On a node and in a pod where there is most to undo."""
    with staged(command, mode, "bare") as stage:
        for limit in range(4, 40):
            script = f'ulimit -n {limit}; exec "$@"'
            call = stage.run(["sh", "-c", script, "sh", *command])
            if call.code == 0:
                break
            assert stage.changes() == [], (limit, call)
            if call.stdout:  # else Python could not start
                refused(call, 11, says="Too many open files")
        assert 8 < limit < 39, call


def test_an_add_whose_host_link_is_moved_away_meanwhile_is_undone(command: list[str]) -> None:
    """By a manager that moves links to a namespace of its own. The runtime is told to try again."""
    with staged(command, "routed", "prepared") as stage, ThreadPoolExecutor(1) as pool:
        elsewhere = stage.node.pod("elsewhere")
        slow = "inject=sendto:delay_enter=100000:when=5+"
        call = pool.submit(stage.strace, "-e", "trace=sendto", "-e", slow)
        host_link = stage.await_host_link()
        stage.node.configure(f"link set {host_link} netns {elsewhere.path}")
        refused(call.result(), 11, says="moved")
        assert elsewhere.link(host_link) is None
        assert stage.changes() == []


def keep_down(stage: Stage, call: Future[PluginCall]) -> None:
    """As a link that waits for its authentication: it never passes packets."""
    stage.node.configure(f"link set {stage.await_host_link()} mode dormant")


def flap(stage: Stage, call: Future[PluginCall]) -> None:
    """The host link goes down and up again as long as ADD runs."""
    link = stage.await_host_link()
    while not call.done():
        stage.node.run(["ip", "link", "set", link, "down"], check=False)
        stage.node.run(["ip", "link", "set", link, "up"], check=False)


def leave_it(stage: Stage, call: Future[PluginCall]) -> None:
    """Nothing more: the pod has been changed before."""


def test_an_add_waits_seven_seconds_in_all_and_is_undone(command: list[str]) -> None:
    """Its requests take long, and then what it waits for does not come: a pod without the rule of
    the table `local` never has a usable address."""

    def judge(mode: Mode, spoil: Callable[[Stage, Future[PluginCall]], None], says: str) -> None:
        with staged(command, mode, "prepared") as stage, ThreadPoolExecutor(1) as pool:
            if spoil is not keep_down:
                # A rule of somebody's own: without one the kernel asks no rules.
                stage.pod.run(["ip", "-6", "rule", "add", "preference", "9", "lookup", "main"])
                stage.pod.run(["ip", "-6", "rule", "delete", "preference", "0"])
                stage.before = kernel_state(stage.node, stage.pod)
            slow = "inject=sendto:delay_enter=200000:when=5..16"
            watch = ("-ttt", "-e", "trace=sendto,clock_nanosleep", "-e", slow)
            call = pool.submit(stage.strace, *watch)
            spoil(stage, call)
            refused(call.result(), says=says)
            # What a busy kernel takes for requests is its own affair; the waits are ours.
            first, *others = stage.trace()
            waits = [line for line in others if "clock_nanosleep" in line]
            moments = [float(line.split()[0]) for line in (first, *waits)]
            assert moments[-1] - moments[0] < 8
            assert stage.changes() == []

    at_once(
        [
            partial(judge, "routed", leave_it, "not usable in the pod after 7 s"),
            partial(judge, "bridge", leave_it, "not usable in the pod after 7 s"),
            partial(judge, "routed", flap, ""),
            partial(judge, "bridge", keep_down, "has no carrier after 7 s"),
        ]
    )


def kill(name: str, number: int) -> str:
    return f"inject={name}:signal=KILL:when={number}"


@every_state
@both_modes
def test_an_add_whose_result_cannot_be_written_is_undone(
    command: list[str], mode: Mode, state: State
) -> None:
    with staged(command, mode, state) as stage:
        pipe = stage.lab.directory / "pipe"
        # Closed; full; and a pipe whose reader has gone.
        made = f"mkfifo {pipe}; exec 4<>{pipe}; exec 5>{pipe}; exec 4>&-; rm {pipe}"
        for outlet in (">&-", ">/dev/full", ">&5"):
            script = f'{made}; "$@" {outlet}; echo $? >&2'
            call = stage.run(["sh", "-c", script, "sh", *command])
            assert call.stderr.splitlines()[-1] == "1", (outlet, call)
            assert stage.changes() == [], outlet
