# SPDX-License-Identifier: Apache-2.0
"""Do pods of this node reach each other, the node, and the overlay? Tried with two real ones.

Two throw-away pods are attached by the plugin itself, called as a runtime calls it, with the
configuration in use here. It sends small packets, and the largest that must pass unfragmented,
between them, the node and the overlay. On the overlay it asks --peer, or the nearest nodes that the
daemon knows: these answer a packet whose hop limit ends there. A packet with a false source must
not leave a pod, and a hostile peer's packets must not get in; the latter is tried on a replica of
the node with the same rules. Then the pods are detached. Nothing is left, even if the test is
killed: the pods live in processes that end with it.

    mycelium-cni test
    mycelium-cni test --peer 54b:83ab:6cb5:7b38:44ae:cd14:53f3:a907
    mycelium-cni test --json | jq '.[] | select(.state != "ok")'
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from mycelium_cni import guard
from mycelium_cni.cni.config import NODE_SWITCHES
from mycelium_cni.cni.errors import CniError
from mycelium_cni.kernel.address import format_address
from mycelium_cni.kernel.link import find_link
from mycelium_cni.pod.attachment import Attachment
from mycelium_ctl.checks import examine
from mycelium_ctl.checks.finding import Check, Finding
from mycelium_ctl.echo import (
    ALL_HOPS,
    ECHO_REPLY,
    ERRORS,
    HOPS_TO_PEER,
    OVERLAY_S,
    Pinger,
    Question,
)
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import options
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.expected import Expected
from mycelium_ctl.node.rights import require_rights
from mycelium_ctl.node.state import State, show_subnet
from mycelium_ctl.view import Mark, Page, count, worst
from mycelium_lab import intruder
from mycelium_lab.lab import visit
from mycelium_lab.own import own_executable

TEST: Final = "mycelium-cni-test"
POD_IFNAME: Final = "eth0"
PEERS_ASKED: Final = 2
# The checks of `doctor` that tell why packets of a pod are lost.
SUSPECTS: Final = (
    *("loopback", "ipv6", "forwarding", "bridge", "standing", "guard", "overlay-routes"),
    *("pod-ways", "pod-routes", "pods", "firewall"),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing that was tried. `milliseconds` is None where there is nothing to measure."""

    what: str
    source: str
    target: str
    mark: Mark
    milliseconds: float | None = None
    note: str = ""


class TestPod:
    """A network namespace with one process in it, which ends with this one."""

    __test__ = False  # pytest takes the name for its own

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.container: Final = f"{TEST}-{os.getpid()}-{name}"
        self.address = ""
        self.result: dict[str, Any] = {}
        try:
            # `cat` ends with its input, which the kernel closes when we end, even if killed.
            self._process: Final = subprocess.Popen(
                ["unshare", "--net", "cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for us: we still want to call DEL
            )
        except FileNotFoundError:
            raise ToolError("the program `unshare` is missing: install util-linux") from None
        if self._process.stdin and self._process.stdout:
            with suppress(BrokenPipeError):
                self._process.stdin.write(b"\n")
            if self._process.stdout.read(1) != b"\n":  # its echo comes from the new namespace
                raise ToolError("cannot make a network namespace: run it as root")
        self.path: Final = f"/proc/{self._process.pid}/ns/net"

    def close(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._process.wait()

    def inside(self) -> AbstractContextManager[None]:
        """Let this thread be in the namespace: sockets that it opens stay there."""
        return visit(self.path)


class LiveTest:
    """The trials, in order. Every one is recorded, whatever its result."""

    def __init__(self, state: State, peers: list[str]) -> None:
        self._state: Final = state
        self._peers: Final = peers
        self.trials: Final[list[Trial]] = []
        self.causes: Final[list[tuple[Check, Finding]]] = []
        # The network's own name and policy: another one would leave rules of its own behind. What
        # else the network is configured with is not for throw-away pods.
        wanted = (
            *("name", "mode", "myceliumInterface", "bridge", "netseed", "mtu"),
            *("ingress", "allowFrom", "clusterFile", "guard", "ipMasq", *NODE_SWITCHES),
        )
        entry = {key: value for key, value in state.entry.items() if key in wanted}
        self._conf: Final = {"cniVersion": "1.1.0", "type": "mycelium-cni", **entry}
        self._closed: Final = state.config.policy.ingress == "closed"

    def run(self) -> None:
        with ExitStack() as stack:
            pods = []
            for name in ("a", "b"):
                pod = TestPod(name)
                stack.callback(pod.close)
                stack.callback(self._detach, pod)
                if not self._attach(pod):
                    return
                pods.append(pod)
            pingers = {}
            for place in (*pods, None):
                if place:
                    with place.inside():
                        pinger = Pinger()
                else:
                    pinger = Pinger()
                stack.callback(pinger.close)
                pingers[f"pod {place.name}" if place else "node"] = pinger
            self._talk(pingers, {f"pod {pod.name}": pod.address for pod in pods})
            self._attack(stack, *pods)
            self._check(pods[0])
            if any(trial.mark == "fail" for trial in self.trials):
                self._ask_doctor()

    def _ask_doctor(self) -> None:
        """Find why packets were lost, while the pods are still there."""
        for check, listed in examine(State(self._state.where), SUSPECTS):
            for found in listed:
                if found.mark == "fail":
                    self.causes.append((check, found))

    def _plugin(self, verb: str, pod: TestPod, **more: Any) -> tuple[dict[str, Any], float]:
        """Call the plugin; its document and the milliseconds it took. Raises ToolError."""
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod.container,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": POD_IFNAME,
            "CNI_ARGS": f"K8S_POD_NAMESPACE={TEST};K8S_POD_NAME={pod.name}",
            "PATH": os.environ.get("PATH", ""),
        }
        start = time.perf_counter()
        done = subprocess.run(
            [own_executable()],
            env=env,
            input=json.dumps(self._conf | more),
            capture_output=True,
            text=True,
            check=False,
        )
        took = (time.perf_counter() - start) * 1000
        try:
            document = json.loads(done.stdout) if done.stdout.strip() else {}
        except ValueError:
            document = {"msg": done.stdout}
        if done.returncode != 0:
            raise ToolError(str(document.get("msg") or done.stderr or f"exit {done.returncode}"))
        return document, took

    def _attach(self, pod: TestPod) -> bool:
        name = f"pod {pod.name}"
        try:
            pod.result, took = self._plugin("ADD", pod)
        except ToolError as error:
            self.trials.append(Trial("attach", "node", name, "fail", note=str(error)))
            return False
        pod.address = str(pod.result["ips"][-1]["address"]).partition("/")[0]
        self.trials.append(Trial("attach", "node", name, "ok", took, pod.address))
        return True

    def _check(self, pod: TestPod) -> None:
        try:
            _, took = self._plugin("CHECK", pod, prevResult=pod.result)
        except ToolError as error:
            self.trials.append(Trial("check", "node", f"pod {pod.name}", "fail", note=str(error)))
        else:
            self.trials.append(Trial("check", "node", f"pod {pod.name}", "ok", took))

    def _detach(self, pod: TestPod) -> None:
        name = f"pod {pod.name}"
        try:
            _, took = self._plugin("DEL", pod)
        except ToolError as error:
            self.trials.append(Trial("detach", "node", name, "fail", note=str(error)))
            return
        link = Attachment(self._state.network, pod.container, POD_IFNAME).host_link
        if find_link(self._state.host, link):
            note = f"{link} is still there: ip link del {link}"
            self.trials.append(Trial("detach", "node", name, "fail", note=note))
        else:
            self.trials.append(Trial("detach", "node", name, "ok", took, "nothing is left"))

    def _talk(self, pingers: dict[str, Pinger], addresses: dict[str, str]) -> None:
        node = self._state.node
        if node is None:
            return
        places = addresses | {"node": format_address(node.address)}
        pairs = (("pod a", "pod b"), ("pod b", "pod a"), ("pod a", "node"), ("node", "pod a"))
        mtu = int(self._conf.get("mtu") or node.mtu)
        small, large = ("packet", 64), (f"{mtu} bytes", mtu)
        for size in (small, large):
            for source, target in pairs:
                self._ask(pingers[source], Question(*size, source, target, places[target]))
        for name, address, hops in self._overlay():
            self._ask(pingers["pod a"], Question(*small, "pod a", name, address, hops, OVERLAY_S))
            if hops == ALL_HOPS:
                self._ask(
                    pingers["pod a"], Question(*large, "pod a", name, address, hops, OVERLAY_S)
                )
            else:  # the daemon answers no large packet whose hop limit has run out
                note = "not tried: name an address with --peer"
                self.trials.append(Trial(large[0], "pod a", name, "skip", note=note))

    def _attack(self, stack: ExitStack, pod: TestPod, other: TestPod) -> None:
        """What should not pass does not, and the same packets with true addresses do."""
        node = self._state.node
        if node is None:
            return
        if not self._closed:  # else nothing at all gets from pod to pod
            with other.inside():
                capture = intruder.Icmpv6Capture()
            stack.callback(capture.close)
            free = format_address(node.subnet + b"\xff\x0f" + bytes(5) + b"\xfe")
            sightings = intruder.spoof(pod.inside(), capture, pod.address, free, other.address)
            self._judge(sightings, "pod a", "pod b")
        replica = TestPod("replica")
        stack.callback(replica.close)
        wanted = guard.Wanted(self._state.network, self._state.config, node)
        try:
            sightings = intruder.inject(
                replica.inside(), wanted, format_address(node.address), pod.address
            )
        except (OSError, CniError) as error:
            note = f"not tried: {error}"
            self.trials.append(Trial("injected", "overlay", "replica", "skip", note=note))
        else:
            self._judge(sightings, "overlay", "replica")

    def _judge(self, sightings: list[intruder.Sighting], source: str, target: str) -> None:
        for what, allowed, arrived in sightings:
            note = "arrives" if arrived else "stopped"
            mark: Mark = "ok" if allowed == arrived else "fail"
            self.trials.append(Trial(what, source, target, mark, note=note))

    def _overlay(self) -> Iterator[tuple[str, str, int]]:
        """Whom to ask over the overlay: name, address, hop limit.

        The daemon knows subnets of other nodes, not their addresses. Any address there will do when
        the hop limit ends at that node: its daemon answers from `<subnet>::`.
        """
        for peer in self._peers:
            yield f"peer {peer}", peer, ALL_HOPS
        if self._peers:
            return
        routes = self._state.daemon.routes
        if not routes:
            known = self._state.daemon.trouble or "the daemon knows no other node"
            note = f"not tried: {known}; name one with --peer"
            self.trials.append(Trial("packet", "pod a", "overlay", "warn", note=note))
        for subnet, _ in (routes or [])[:PEERS_ASKED]:
            with suppress(ValueError):
                prefix = nodestate.subnet_of(subnet.partition("/")[0])
                address = format_address(prefix + bytes(7) + b"\x01")
                yield f"node of {show_subnet(prefix)}", address, HOPS_TO_PEER

    def _ask(self, pinger: Pinger, asked: Question) -> None:
        mark: Mark = "fail"
        took, note = None, f"no answer within {asked.within_s:g} s"
        try:
            answer = pinger.ask(asked)
        except OSError as error:
            note = error.strerror or str(error)
        else:
            if answer:
                took, note = answer.milliseconds, ""
                # With few hops the answer is an error, which counts if it comes from another node.
                own = self._state.address or bytes(16)
                other = nodestate.subnet_of(answer.source) != own[:8]
                mark = "ok"
                if answer.kind != ECHO_REPLY and not (asked.hops == HOPS_TO_PEER and other):
                    mark, note = "fail", f"{ERRORS[answer.kind]}, says {answer.source}"
        between_pods = asked.source.startswith("pod") and asked.target.startswith("pod")
        if self._closed and between_pods:
            mark, note = ("fail", "arrives") if took else ("ok", "stopped: ingress is closed")
        self.trials.append(Trial(asked.what, asked.source, asked.target, mark, took, note))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--peer", action="append", default=[], metavar="ADDRESS", help="ask it over the overlay"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Try it all; 0 if all that matters was tried and nothing failed."""
    require_rights()
    state = State(options.read(arguments))
    for peer in arguments.peer:
        try:
            nodestate.subnet_of(peer)
        except ValueError as error:
            raise ToolError(f"--peer: {error}") from error
    try:
        lacking = Expected(state).changes
    except CniError as error:
        raise ToolError(error.msg) from error
    if lacking:
        raise ToolError(
            f"{count(len(lacking), 'thing')} that the first pod would make on this node and "
            "leave: run `mycelium-cni setup` first"
        )
    signal.signal(signal.SIGTERM, _stop)
    test = LiveTest(state, arguments.peer)
    page = Page()
    try:
        with page.busy("two throw-away pods, and packets between them, the node and the overlay"):
            test.run()
    except OSError as error:
        raise ToolError(refused(error)) from error
    if arguments.json:
        document: list[dict[str, object]] = [
            {
                "what": trial.what,
                "source": trial.source,
                "target": trial.target,
                "state": trial.mark,
                "milliseconds": trial.milliseconds and round(trial.milliseconds, 3),
                "note": trial.note or None,
            }
            for trial in test.trials
        ]
        print(json.dumps(document, indent=2))
    else:
        _report(page, test)
    return 0 if worst([trial.mark for trial in test.trials]) not in ("fail", "warn") else 1


def _stop(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # the pods are detached on the way out


def _report(page: Page, test: LiveTest) -> None:
    trials = test.trials
    rows = []
    for trial in trials:
        took = "" if trial.milliseconds is None else f"{trial.milliseconds:.2f} ms"
        rows.append(
            (trial.mark, (trial.what, f"{trial.source} → {trial.target}", took, trial.note))
        )
    page.table(("what", "way", "after", "note"), rows, right=("after",))
    for check, found in test.causes:
        below = [("run", command) for command in found.run]
        below += [("advice", found.advice)] if found.advice else []
        page.fact(found.mark, check.name, found.found, *below)
    failed = sum(trial.mark == "fail" for trial in trials)
    untried = sum(trial.mark == "warn" for trial in trials)
    if failed:
        known = "" if test.causes else "; `mycelium-cni doctor` finds no cause"
        page.say(f"{failed} of {count(len(trials), 'trial')} failed{known}")
    elif untried:
        page.say("all that was tried works, but the overlay was not tried: not a pass")
    else:
        page.say("all answered, nothing is left behind")
