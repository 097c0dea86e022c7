# SPDX-License-Identifier: Apache-2.0
"""A container runtime that kills one call in five with SIGKILL, and then does what runtimes do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from mycelium_lab.lab import Namespace, Node, Pod

AIMED_AT: Final = 0.3  # of the calls; a third of these have ended before they are hit
LONGEST_S: Final = 30.0  # a call that takes longer hangs
ANSWER_S: Final = 2.0


@dataclass(frozen=True)
class Fault:
    """Something that must not happen, as a message."""

    life: int
    what: str

    def __str__(self) -> str:
        return f"pod {self.life}: {self.what}"


@dataclass(frozen=True)
class Network:
    """A network configuration, and who may reach its pods."""

    conf: Mapping[str, Any]

    @property
    def name(self) -> str:
        name: str = self.conf["name"]
        return name

    @property
    def for_pods(self) -> bool:
        return self.conf.get("ingress") != "closed"


@dataclass
class Attachment:
    """One interface of a pod, as the runtime knows it."""

    network: Network
    pod: Pod
    container: str
    ifname: str
    name: str  # of the pod, as Kubernetes has it
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        text: str = self.result["ips"][-1]["address"]
        return text.partition("/")[0]

    def __str__(self) -> str:
        return f"{self.ifname} of {self.name} in {self.pod.name} on {self.network.name}"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call; `code` is -SIGKILL if it was killed."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def __str__(self) -> str:
        return f"exit {self.code} after {self.seconds:.2f} s: {(self.out or self.err).strip()!r}"


class Runtime:
    """Calls the plugin on one node, keeps count, and knows which attachments there are."""

    def __init__(self, node: Node, report: Callable[[Fault], None]) -> None:
        self.node: Final = node
        self.calls: Final[Counter[str]] = Counter()
        self.killed: Final[Counter[str]] = Counter()
        self.took: Final[dict[str, list[float]]] = defaultdict(list)
        self.report: Final = report
        self._attachments: Final[dict[str, set[tuple[str, str]]]] = defaultdict(set)
        self._owners: Final[dict[str, Attachment]] = {}
        # Held during GC, and when an attachment is entered: a runtime that calls GC lists those
        # too whose ADD is running, but cannot list those that it does not know of yet.
        self._known = threading.Lock()
        self._count = threading.Lock()

    # Calls

    def call(
        self,
        command: Sequence[str],
        verb: str,
        conf: Mapping[str, Any],
        environ: Mapping[str, str],
        chance: Random | None,
    ) -> Outcome:
        """Execute the plugin; where a chance is given, maybe kill it at a random moment."""
        usual = self.took[verb][-20:] or [0.05]
        kill_after = LONGEST_S
        if chance is not None and chance.random() < AIMED_AT:
            kill_after = chance.uniform(0, 1.2 * sorted(usual)[len(usual) // 2])
        start = time.monotonic()
        process = subprocess.Popen(
            ["nsenter", f"--net={self.node.path}", *command],
            env={"CNI_COMMAND": verb, "PATH": os.environ["PATH"], **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(json.dumps(conf), timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        seconds = time.monotonic() - start
        with self._count:
            self.calls[verb] += 1
            if process.returncode == -signal.SIGKILL:
                self.killed[verb] += 1
            else:
                self.took[verb].append(seconds)
        return Outcome(process.returncode, out, err, seconds)

    def of(
        self,
        command: Sequence[str],
        verb: str,
        attachment: Attachment,
        chance: Random | None = None,
        **environ: str,
    ) -> Outcome:
        """A call about one attachment; `environ` overrides what the runtime would set."""
        conf = {**attachment.network.conf}
        if attachment.result and verb != "ADD":
            conf["prevResult"] = attachment.result
        kubernetes = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=soak;K8S_POD_NAME={attachment.name}"
        usual = {
            "CNI_CONTAINERID": attachment.container,
            "CNI_NETNS": attachment.pod.path,
            "CNI_IFNAME": attachment.ifname,
            "CNI_ARGS": kubernetes,
        }
        return self.call(command, verb, conf, usual | environ, chance)

    # What a runtime remembers

    def enter(self, attachments: Sequence[Attachment]) -> None:
        """From now on GC lists these as valid."""
        with self._known:
            for one in attachments:
                self._attachments[one.network.name].add((one.container, one.ifname))

    def forget(self, attachments: Sequence[Attachment]) -> None:
        """From now on GC removes these."""
        with self._known:
            for one in attachments:
                self._attachments[one.network.name].discard((one.container, one.ifname))

    def gc(self, command: Sequence[str], network: Network, chance: Random | None) -> Outcome:
        """GC with all that is known, while ADDs and DELs of the same network run."""
        with self._known:
            listed = sorted(self._attachments[network.name])
            valid = [{"containerID": container, "ifname": ifname} for container, ifname in listed]
            conf = {**network.conf, "cni.dev/valid-attachments": valid}
            return self.call(command, "GC", conf, {}, chance)

    def own(self, life: int, attachment: Attachment) -> None:
        """Note that an ADD has assigned this address. Two owners are a fault."""
        with self._count:
            owner = self._owners.setdefault(attachment.address, attachment)
        if owner is not attachment:
            self.report(Fault(life, f"{attachment.address} of {attachment} is that of {owner} too"))

    def disown(self, attachment: Attachment) -> None:
        """To be called before anything that frees the address."""
        with self._count:
            self._owners.pop(attachment.address, None)


def answers(here: Namespace, attachment: Attachment) -> str:
    """Send one datagram from `here` to the pod, who sends it back; "" or what went wrong.

    Not an echo request: the kernel answers those through one socket per CPU for all namespaces,
    and drops an answer when others have filled it.
    """
    token = os.urandom(16)
    with attachment.pod.inside():
        server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with here.inside():
        client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with server, client:
        for each in (server, client):
            each.settimeout(ANSWER_S)
        try:
            server.bind((attachment.address, 0))
            client.sendto(token, server.getsockname())
            with suppress(TimeoutError):
                while True:
                    received, peer = server.recvfrom(100)
                    if received == token:
                        break
                server.sendto(token, peer)
                with suppress(TimeoutError):
                    return "" if client.recv(100) == token else "another answer"
                return "the answer is lost"
        except OSError as error:
            return f"cannot send: {error}"
        return "the question is lost"
