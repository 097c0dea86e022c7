# SPDX-License-Identifier: Apache-2.0
"""Pods that come and go: what is done to each is random, what must hold for it is fixed."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Final

from observe import difference, kernel_state

from mycelium_lab.errors import LabError
from mycelium_lab.lab import Lab, Pod, await_fact
from soak.runtime import Attachment, Fault, Network, Outcome, Runtime, answers

Command = Sequence[str]

NAMESPACES: Final = 30
ALIVE: Final = 20  # of these, once all is under way
NAMES: Final = 40  # of pods; each has its address on the networks with stable ones
PARALLEL: Final = 8
TRIES: Final = 20  # of a DEL or GC, which a runtime repeats until one is not killed
LONGEST_ADD_S: Final = 10.0
ENOUGH: Final = 20  # faults
BEFORE_UPGRADE: Final = 0.1  # of the pods

BRIDGE: Final = "soak-br"
BASE: Final = {"cniVersion": "1.1.0", "type": "mycelium-cni", "netseed": "/nonexistent"}
NETWORKS: Final = {
    "routed": (
        {"mode": "routed", "name": "soak-routed", "ingress": "cluster"},
        {"mode": "routed", "name": "soak-routed-stable", "addressing": "stable"},
        {"mode": "routed", "name": "soak-routed-closed", "ingress": "closed"},
    ),
    "bridge": (
        {"mode": "bridge", "name": "soak-bridge", "bridge": BRIDGE, "ingress": "closed"},
        {"mode": "bridge", "name": "soak-bridge-stable", "bridge": BRIDGE, "addressing": "stable"},
        {"mode": "bridge", "name": "soak-bridge-cluster", "bridge": BRIDGE, "ingress": "cluster"},
    ),
}
MODES: Final = {"routed": ("routed",), "bridge": ("bridge",), "mixed": ("routed", "bridge")}

# How a pod ends, and how often of ten times.
ENDINGS: Final = {
    "DEL": 4,
    "DEL twice": 1,
    "DEL without CNI_NETNS": 1,
    "DEL with the namespace of another pod": 1,
    "DEL after the namespace": 1,
    "GC": 1,
    "GC after the namespace": 1,
}


@dataclass
class Life:
    """A pod: its interfaces, and those of them that ADD has made."""

    number: int
    chance: Random
    pod: Pod
    name: str
    plain: bool  # one interface, and an end without surprises: the previous release's share
    wanted: list[Attachment]
    made: list[Attachment] = field(default_factory=list)


class Churn:
    """One node, its pods, and all that is done to them."""

    def __init__(
        self,
        lab: Lab,
        command: Command,
        previous: Command,
        report: Callable[[Fault], None],
        *,
        mode: str,
        seed: int,
        total: int,
    ) -> None:
        self.faults = 0
        self._report: Final = report
        self.node: Final = lab.node("a")
        lab.connect(self.node)
        self.runtime: Final = Runtime(self.node, self._found)
        self._command: Final = command
        self._previous: Final = previous
        self._seed: Final = seed
        self._total: Final = total
        confs = [conf for one in MODES[mode] for conf in NETWORKS[one]]
        self.networks: Final = [Network({**BASE, **conf}) for conf in confs]
        self._free: Final = [self.node.pod(f"n{number}") for number in range(NAMESPACES)]
        self._names: Final = [f"web-{number}" for number in range(NAMES)]
        self._alive: Final[list[Life]] = []
        self._residents: Final[list[Life]] = []
        self._hand: Final = threading.Lock()

    # From the outside

    def run(self, ended: Callable[[int], None], go_on: Callable[[], bool]) -> int:
        """Run all pods, then compare what is left. Returns how many attachments were tried.

        `ended` is told their number now and then; no pod begins once `go_on` says no.
        """
        self._each_network_once()
        before = kernel_state(self.node, *self._free)
        self._residents.extend(self._resident(number) for number in range(len(self.networks)))
        tried = 0
        numbers = count(1)
        with ThreadPoolExecutor(PARALLEL) as pool:
            running = {pool.submit(self._one, next(numbers)) for _ in range(PARALLEL)}
            while running:
                done = next(iter([each for each in running if each.done()]), None)
                if done is None:
                    time.sleep(0.002)
                    continue
                running.remove(done)
                tried += done.result()
                ended(tried)
                if tried < self._total and self.faults < ENOUGH and go_on():
                    running.add(pool.submit(self._one, next(numbers)))
            for _ in pool.map(self._end, self._alive[:]):
                pass
        for resident in self._residents:
            self._still_answers(resident)
        for resident in self._residents:
            self._end(resident, looks=False)
        for network in self.networks:
            self._collect(0, network, None)
        self._compare(before)
        return tried

    # A life

    def _one(self, number: int) -> int:
        """Start a pod, and end another one if many are alive. Returns the number of ADDs."""
        life = self._begin(number)
        with self._hand:
            self._alive.append(life)
            last = life.chance.randrange(len(self._alive))
            ending = self._alive.pop(last) if len(self._alive) > ALIVE else None
        if ending:
            self._end(ending)
        return len(life.wanted)

    def _begin(self, number: int) -> Life:
        chance = Random(f"{self._seed}/{number}")
        with self._hand:
            pod = self._free.pop(chance.randrange(len(self._free)))
            name = self._names.pop(chance.randrange(len(self._names)))
        plain = number <= self._total * BEFORE_UPGRADE / 1.4
        life = Life(number, chance, pod, name, plain, [])
        networks = [one for one in self.networks if not (plain and "stable" in one.name)]
        for place in range(1 if plain else chance.choices((1, 2, 3), (7, 2, 1))[0]):
            network = chance.choice(networks)
            container = f"{self.node.lab.name}-{number}"
            life.wanted.append(Attachment(network, pod, container, f"eth{place}", name))
        self.runtime.enter(life.wanted)
        if chance.random() < 0.1:
            self._collect(number, chance.choice(self.networks), chance)
        for attachment in life.wanted:
            if not self._add(life, attachment):
                break  # a runtime gives the whole pod up
            life.made.append(attachment)
        if len(life.made) == len(life.wanted):
            self._still_answers(life)
            for attachment in life.made:
                self._check(life, attachment)
        return life

    def _add(self, life: Life, attachment: Attachment) -> bool:
        command = self._previous if life.plain else self._command
        if not life.plain and life.chance.random() < 0.05:
            self._refused_add(life, attachment)
        done = self.runtime.of(command, "ADD", attachment, life.chance)
        if done.killed and done.seconds < LONGEST_ADD_S:
            return False
        if done.seconds > LONGEST_ADD_S:
            self._fault(life, f"ADD of {attachment} took too long", done)
        if done.code:
            self._fault(life, f"ADD of {attachment} failed", done)
            return False
        attachment.result = done.document
        self.runtime.own(life.number, attachment)
        lost = answers(self.node, attachment)
        if lost:
            self._fault(life, f"the first packet to {attachment}: {lost}")
        return True

    def _refused_add(self, life: Life, attachment: Attachment) -> None:
        """An ADD that has to fail late, and the DEL that follows a failure."""
        resident = life.chance.choice(self._residents)
        arguments = f"IgnoreUnknown=1;IP={resident.made[0].address}"
        attempt = Attachment(
            attachment.network,
            attachment.pod,
            f"{attachment.container}-twice",
            attachment.ifname,
            attachment.name,
        )
        self.runtime.enter([attempt])
        done = self.runtime.of(self._command, "ADD", attempt, life.chance, CNI_ARGS=arguments)
        if done.code == 0:
            self._fault(life, f"ADD of {attempt} with the address of {resident.made[0]}", done)
        self._delete(life, attempt)
        self.runtime.forget([attempt])

    def _check(self, life: Life, attachment: Attachment) -> None:
        command = self._previous if life.plain else self._command
        done = self.runtime.of(command, "CHECK", attachment, life.chance)
        if not done.killed and done.code:
            self._fault(life, f"CHECK of {attachment}", done)

    def _still_answers(self, life: Life) -> None:
        """Check that the pod answers its node, and another pod if the policy allows."""
        for attachment in life.made:
            lost = answers(self.node, attachment)
            if lost:
                self._fault(life, f"{attachment}, from the node: {lost}")
            if attachment.network.for_pods:
                other = life.chance.choice(self._alike(attachment.network))
                lost = "" if other is life else answers(other.pod, attachment)
                if lost:
                    self._fault(life, f"{attachment}, from {other.made[0]}: {lost}")

    def _alike(self, network: Network) -> list[Life]:
        """The residents of the same mode that may ask.

        Pods of two modes on one node do not reach each other, and a closed pod on a bridge gets no
        UDP answers from its neighbours (docs/security.md).
        """
        mode = network.conf["mode"]
        nets = [(one, one.made[0].network) for one in self._residents]
        return [one for one, net in nets if net.conf["mode"] == mode and net.for_pods]

    # The end of a life

    def _end(self, life: Life, *, looks: bool = True) -> None:
        if looks and len(life.made) == len(life.wanted):
            self._still_answers(life)
        for attachment in life.made:
            self.runtime.disown(attachment)
        (ending,) = life.chance.choices(tuple(ENDINGS), tuple(ENDINGS.values()))
        if life.plain:
            ending = "DEL"
        gone = ending.endswith("the namespace")
        if gone:
            life.pod.remove()
        if ending.startswith("GC"):
            self.runtime.forget(life.wanted)
            for network in {one.network.name: one.network for one in life.wanted}.values():
                self._collect(life.number, network, life.chance)
        else:
            environ = {}
            if ending == "DEL without CNI_NETNS":
                environ = {"CNI_NETNS": ""}
            elif ending == "DEL with the namespace of another pod":
                environ = {"CNI_NETNS": life.chance.choice(self._residents).pod.path}
            for attachment in reversed(life.wanted):
                for _ in range(2 if ending == "DEL twice" else 1):
                    self._delete(life, attachment, **environ)
            self.runtime.forget(life.wanted)
        if gone:
            life.pod = self.node.pod(life.pod.pod_name)
        else:
            self._is_empty(life, ending)
        with self._hand:
            self._free.append(life.pod)
            self._names.append(life.name)

    def _delete(self, life: Life, attachment: Attachment, **environ: str) -> None:
        for attempt in range(TRIES):
            chance = life.chance if attempt < TRIES - 1 else None
            done = self.runtime.of(self._command, "DEL", attachment, chance, **environ)
            if not done.killed:
                if done.code or done.out:
                    self._fault(life, f"DEL of {attachment}", done)
                return
        self._fault(life, f"DEL of {attachment} does not end")

    def _collect(self, number: int, network: Network, chance: Random | None) -> None:
        for attempt in range(TRIES):
            maybe = chance if attempt < TRIES - 1 else None
            done = self.runtime.gc(self._command, network, maybe)
            if not done.killed:
                if done.code or done.out:
                    self._found(Fault(number, f"GC of {network.name}: {done}"))
                return
        self._found(Fault(number, f"GC of {network.name} does not end"))

    def _is_empty(self, life: Life, ending: str) -> None:
        """As the runtime made it: `lo`, and the three rules that every namespace has."""
        links = [link["ifname"] for link in life.pod.ip("link")]
        rules = life.pod.ip("-6", "rule")
        if links != ["lo"] or len(rules) > 2:
            self._fault(life, f"after {ending} {life.pod.name} has {links}, {rules}")

    def _fault(self, life: Life, what: str, done: Outcome | None = None) -> None:
        self._found(Fault(life.number, f"{what}: {done}" if done else what))

    def _found(self, fault: Fault) -> None:
        with self._hand:
            self.faults += 1
        self._report(fault)

    # Before and after

    def _each_network_once(self) -> None:
        """Use each network once: what a node then has stays, and does not count as left over."""
        for network in self.networks:
            one = Attachment(network, self._free[0], f"{self.node.lab.name}-0", "eth0", "first")
            for verb in ("ADD", "DEL"):
                done = self.runtime.of(self._command, verb, one)
                if done.code:
                    raise LabError(f"{verb} on a quiet node: {done}")
            self._collect(0, network, None)

    def _resident(self, number: int) -> Life:
        """A pod of the previous release that lives through all of it."""
        pod = self.node.pod(f"resident{number}")
        attachment = Attachment(
            self.networks[number], pod, f"{pod.netns}-0", "eth0", f"resident-{number}"
        )
        chance = Random(f"{self._seed}/resident/{number}")
        life = Life(-number, chance, pod, attachment.name, True, [attachment])
        self.runtime.enter(life.wanted)
        done = self.runtime.of(self._previous, "ADD", attachment)
        if done.code:
            raise LabError(f"ADD of the previous release: {done}")
        attachment.result = done.document
        self.runtime.own(life.number, attachment)
        life.made.append(attachment)
        return life

    def _compare(self, before: dict[str, object]) -> None:
        """Nothing more than before, on the node and in the pods."""
        pods = sorted(self._free, key=lambda pod: pod.name)
        pods = [pod for pod in pods if "resident" not in pod.name]
        left: list[str] = []

        def settled() -> bool:
            # Sets and chains of networks come in the order in which they were last needed.
            lines = difference(before, kernel_state(self.node, *pods))
            left[:] = [line for line in lines if line != f"/{self.node.name}/nft: other order"]
            return not left

        try:
            await_fact(settled, "nothing more than before")
        except LabError:
            for line in left:
                self._found(Fault(0, f"left behind: {line}"))
        overlay = self.node.overlay
        assert overlay is not None
        for space in (self.node, *self._free):
            pids = subprocess.check_output(["ip", "netns", "pids", space.netns], text=True).split()
            pids = [pid for pid in pids if int(pid) != overlay.pid]
            if pids:
                self._found(Fault(0, f"processes left in {space.name}: {pids}"))
