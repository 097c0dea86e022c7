# SPDX-License-Identifier: Apache-2.0
"""A node of a lab as a machine: with processes, mounts, /etc, /opt and /var/lib of its own.

A lab's node is a network namespace. Runtimes need more: fixed paths (/etc/cni/net.d, /opt/cni/bin,
/var/lib/cni, /run/containerd), and an end that takes every process and mount with it. The machine's
first process holds all that; when it dies, as it does when pytest is killed, so does the machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mycelium_lab.errors import LabError
from mycelium_lab.lab import STATE_DIRECTORY, Lab, Namespace, Node, OverlayKind, Process

PLUGIN = "mycelium-cni"
DEBIAN_PLUGINS = Path("/usr/lib/cni")  # package containernetworking-plugins
OWNER = "owner"  # in a lab's directory; locked for as long as the process that made the lab lives

# Overlays, not bind mounts: what the machine has there stays readable, nothing is written to it.
HOLD = """
set -e
cd "$1"
for top in etc opt var/lib; do
    mkdir -p "upper/$top" "work/$top"
    mount -t overlay -o "lowerdir=/$top,upperdir=$1/upper/$top,workdir=$1/work/$top" overlay "/$top"
done
mkdir -p /run/containerd /etc/cni/net.d /opt/cni/bin
mount --bind run-containerd /run/containerd
mount --bind run-netns /run/netns
mount --bind net.d /etc/cni/net.d
mount --bind cni-bin /opt/cni/bin
cd /
echo ready
exec "$2"
"""


@contextmanager
def owned_lab(command: Sequence[str], overlay: OverlayKind | None = None) -> Iterator[Lab]:
    """A lab that the next run of these tests removes if this process is killed."""
    remove_abandoned()
    with ExitStack() as until_the_lab_is_gone:
        with Lab(command, overlay=overlay) as lab:
            owner = until_the_lab_is_gone.enter_context((lab.directory / f".{OWNER}").open("w"))
            fcntl.flock(owner, fcntl.LOCK_EX)
            Path(owner.name).rename(lab.directory / OWNER)
            yield lab
        remove_cgroups(lab.name)


def remove_abandoned() -> list[str]:
    """Remove the labs whose owner was killed. Returns their names."""
    removed = []
    for name in Lab.names():
        with suppress(FileNotFoundError), (STATE_DIRECTORY / name / OWNER).open() as owner:
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its tests run
            with suppress(LabError):  # another process is cleaning up
                Lab.remove(name)
            remove_cgroups(name)
            removed.append(name)
    return removed


def remove_cgroups(prefix: str) -> None:
    """Remove the empty control groups whose name begins so."""
    folders = [folder for folder, _, _ in os.walk("/sys/fs/cgroup")]
    for folder in sorted(folders, key=len, reverse=True):
        if any(part.startswith(prefix) for part in Path(folder).parts):
            with suppress(OSError):  # a process is in it after all
                Path(folder).rmdir()


class Machine:
    """What a node is to the programs on it.

    Args:
        node: the node, whose network namespace the machine has.
        init: the machine's first process, which adopts and reaps orphans (`Images.init`).
        plugins: directories of CNI plugins that the machine finds in /opt/cni/bin. Of two plugins
            with one name the first counts.
        directory: that of a machine which was switched off: this one starts from its disk.
    """

    def __init__(
        self,
        node: Node,
        init: Path,
        plugins: Sequence[Path] = (DEBIAN_PLUGINS,),
        directory: Path | None = None,
    ) -> None:
        self.node = node
        # Short: the path of a Unix socket has at most 107 bytes.
        self.directory = directory or node.lab.directory / node.name
        self.bin = self.directory / "cni-bin"
        self.net_d = self.directory / "net.d"
        self._pods: list[NamedPod] = []
        for name in ("cni-bin", "net.d", "run-containerd", "run-netns", "logs"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        if directory is None:
            for folder in plugins:
                for plugin in folder.iterdir():
                    link = self.bin / plugin.name
                    if not link.is_symlink():
                        link.symlink_to(plugin)
            self.install()
        self._unshare = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={node.path}"),
                *("unshare", "--mount", "--propagation", "slave", "--pid", "--mount-proc"),
                *("--fork", "--kill-child=KILL"),
                *("sh", "-c", HOLD, "sh", str(self.directory), str(init)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._unshare.stdout is not None
        assert self._unshare.stderr is not None
        if self._unshare.stdout.readline() != b"ready\n":
            raise LabError(f"machine {node.name}: {self._unshare.stderr.read().decode()}")
        parent = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self.pid = int(parent.read_text())

    def enter(self, argv: Sequence[str | Path]) -> list[str]:
        """The argument vector that runs `argv` on the machine."""
        entrance = f"nsenter --target={self.pid} --mount --net --pid"
        return [*entrance.split(), *map(str, argv)]

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end. LabError if it fails, unless `check` is false."""
        done = subprocess.run(
            self.enter(argv),
            env={**os.environ, **(env or {})},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())
            what = " ".join(map(str, argv))
            raise LabError(f"{what} on {self.node.name}: exit {done.returncode}: {said}")
        return done

    def start(self, *argv: str | Path) -> Process:
        """Start a program that runs until it is stopped, or the machine is switched off."""
        return self.node.lab.start(self.enter(argv), self.node.netns)

    def shell(self, script: str, check: bool = True) -> str:
        """What the lines of a shell session on the machine print."""
        return self.run("sh", "-exc", script, check=check).stdout

    # The plugin

    def install(self, script: str | None = None) -> None:
        """Put the executable under test into /opt/cni/bin, or a shell script in its place, in which
        $PLUGIN is the executable."""
        argv = self.node.lab.command
        executable = self.bin / PLUGIN
        made = self.bin / f".{PLUGIN}"
        if script is None and len(argv) == 1:
            made.symlink_to(argv[0])
        else:
            words = script or 'exec $PLUGIN "$@"'
            made.write_text(f"#!/bin/sh\nPLUGIN={shlex.quote(shlex.join(argv))}\n{words}\n")
            made.chmod(0o755)
        made.rename(executable)

    def uninstall(self) -> None:
        """Take the executable out of /opt/cni/bin."""
        (self.bin / PLUGIN).unlink()

    def record(self) -> Path:
        """Have every call of the plugin written to a file: `calls` reads it."""
        log = self.directory / "calls"
        log.unlink(missing_ok=True)
        self.install(
            'input=$(cat)\nprintf "%s\\0%s\\0%s\\0%s\\n" "$CNI_COMMAND" "$CNI_NETNS" "$CNI_IFNAME" '
            f'"$(printf %s "$input" | tr -d "\\n")" >>{log}\nprintf %s "$input" | $PLUGIN'
        )
        return log

    def configure(self, document: Mapping[str, Any] | str, name: str = "10-test.conflist") -> None:
        """Make a file the only one in /etc/cni/net.d. A watching runtime sees one rename."""
        text = document if isinstance(document, str) else json.dumps(document)
        made = self.net_d / ".new"
        made.write_text(text)
        made.rename(self.net_d / name)
        for other in self.net_d.iterdir():
            if other.name != name:
                other.unlink()

    # Pods without a runtime

    def pod(self, name: str) -> NamedPod:
        """A new named network namespace in the machine's own /run/netns."""
        self._pods.append(NamedPod(self, name))
        return self._pods[-1]

    def remove_pods(self) -> None:
        """End what runs in such pods, and the pods."""
        while self._pods:
            self._pods.pop().remove()

    # The end

    def power_off(self) -> None:
        """End it as a power cut does; the disk stays. Idempotent."""
        if self._unshare.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait(10)
        for stream in (self._unshare.stdout, self._unshare.stderr):
            if stream is not None:
                stream.close()


class Inside(Namespace):
    """A network namespace that somebody else made, known by its path."""

    def __init__(self, lab: Lab, name: str, path: str) -> None:
        self.lab = lab
        self.name = name
        self.netns = name
        self.path = path

    def ip(self, *arguments: str) -> Any:
        """What `ip -j` says, parsed; None where it says nothing."""
        printed = self.run(["ip", "-j", *arguments]).stdout
        return json.loads(printed) if printed.strip() else None

    def configure(self, *lines: str) -> None:
        """Several `ip` commands in one go."""
        self.run(["ip", "-batch", "-"], input="\n".join(lines))


class NamedPod(Inside):
    """A pod as somebody with a shell makes one. `cni_netns` is what the machine calls it."""

    def __init__(self, machine: Machine, name: str) -> None:
        machine.run("ip", "netns", "add", name)
        machine.run("ip", "-n", name, "link", "set", "lo", "up")
        self.machine = machine
        self._processes: list[Process] = []
        self.cni_netns = f"/var/run/netns/{name}"
        super().__init__(machine.node.lab, name, f"/proc/{machine.pid}/root/run/netns/{name}")

    def start(self, argv: Sequence[str]) -> Process:
        """Start a program that runs until it is stopped, or the pod is removed."""
        self._processes.append(super().start(argv))
        return self._processes[-1]

    def remove(self) -> None:
        """End its processes, its links and its name. (The kernel ends a namespace without a name,
        and its links, when it finds the time.)"""
        for process in self._processes:
            process.stop()
        links = [link["ifname"] for link in self.ip("link")]
        self.configure(*(f"link delete {name}" for name in links if name != "lo"))
        self.machine.run("ip", "netns", "del", self.name)
