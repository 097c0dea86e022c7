# SPDX-License-Identifier: Apache-2.0
"""A throw-away network: nodes, an underlay, an overlay and pods, all of them network namespaces.

The demo, the tests and the benchmark share it. Nothing of it is in the machine's own namespace:
links, addresses and sysctls live in namespaces that the lab made, and go with them.

    with Lab() as lab:
        left, right = lab.node("left"), lab.node("right")
        lab.connect(left, right)
        web = left.pod("web")
        left.plugin("ADD", {"cniVersion": "1.1.0", "name": "net", "type": "mycelium-cni"}, web)
"""

from __future__ import annotations

import errno
import fcntl
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO, Final, Literal, NoReturn, Self, TypeVar

from mycelium_cni.kernel import netns
from mycelium_lab.errors import LabError
from mycelium_lab.own import own_executable

OverlayKind = Literal["daemon", "stand-in"]
T = TypeVar("T")

PREFIX: Final = "myclab-"
NETNS_DIRECTORY: Final = Path("/run/netns")
STATE_DIRECTORY: Final = Path("/run")  # keys and logs: root's alone, and gone after a reboot
UNDERLAY: Final = "under0"  # a node's link to the others
UNDERLAY_PREFIX: Final = "2001:db8::"
OVERLAY_PORT: Final = 9651
API_PORT: Final = 8989
POLL_S: Final = 0.01
OWNER: Final = "owner"  # a file that the process that made a lab keeps locked


def await_fact(fact: Callable[[], T], what: str, *, within_s: float = 10.0) -> T:
    """The first true value of `fact`, asked again and again; LabError when the time is over.

    `what` completes the sentence "not within 10 s: …".
    """
    deadline = time.monotonic() + within_s
    while True:
        value = fact()
        if value:
            return value
        if time.monotonic() > deadline:
            raise LabError(f"not within {within_s:g} s: {what}")
        time.sleep(POLL_S)


def find_daemon() -> str | None:
    """The real Mycelium daemon: $MYCELIUM_BIN, else `mycelium` in PATH.

    Raises LabError if MYCELIUM_BIN names something that cannot be run.
    """
    given = os.environ.get("MYCELIUM_BIN")
    if not given:
        return shutil.which("mycelium")
    if not os.access(given, os.X_OK):
        raise LabError(f"MYCELIUM_BIN={given}: no such executable; correct or unset it")
    return given


def _program(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise LabError(f"the program `{name}` is missing: install it (apt-get install {package})")
    return path


def _check_machine() -> None:
    """Raise LabError, with the remedy, for what the machine lacks."""
    if os.geteuid() != 0:
        raise LabError("making network namespaces takes root: run it again with sudo")
    for name, package in (("ip", "iproute2"), ("nsenter", "util-linux"), ("ping", "iputils-ping")):
        _program(name, package)
    if not Path("/proc/sys/net/ipv6").is_dir():
        raise LabError("this kernel runs without IPv6: remove ipv6.disable=1 from its command line")
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise LabError(
            f"/dev/net/tun cannot be opened ({error.strerror}): run `modprobe tun`,"
            " or start the container with --device /dev/net/tun"
        ) from error


def _ip(*arguments: str, lines: Sequence[str] = ()) -> str:
    """Run iproute2's `ip`, with `lines` as its batch; what it printed."""
    done = subprocess.run(
        ["ip", *arguments], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        asked = "; ".join(lines) or " ".join(arguments)
        raise LabError(f"ip {asked}: {' '.join(done.stderr.split())}")
    return done.stdout


@dataclass(frozen=True)
class PluginCall:
    """What one execution of the plugin gave back."""

    code: int
    stdout: str
    stderr: str
    seconds: float  # the whole process, and about 1 ms to enter the namespace

    @property
    def result(self) -> Any:
        """The JSON document on standard output; None where there is none."""
        return json.loads(self.stdout) if self.stdout else None

    def succeeded(self) -> Any:
        """The result; LabError in the plugin's words when the call failed."""
        if self.code == 0:
            return self.result
        try:
            reason = f"{self.result['msg']} {self.result.get('details', '')}"
        except (KeyError, TypeError, ValueError):  # no error object: killed, or a bug of ours
            reason = f"exit code {self.code}, {self.stdout or self.stderr or 'no output'}"
        raise LabError(f"the plugin failed: {' '.join(reason.split())}")


class Process:
    """A program that runs on in a namespace; its output goes to a file."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self.argv: Final = list(argv)
        self.log: Final = log
        with log.open("wb") as output:
            self._child: Final = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the lab, which then ends its processes
            )
        self.pid: Final = self._child.pid

    @property
    def running(self) -> bool:
        return self.code is None

    @property
    def code(self) -> int | None:
        """Its exit code, minus the number of the signal that ended it; None while it runs."""
        return self._child.poll()

    def output(self) -> str:
        """What it has printed so far, errors included."""
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End it and wait for its end; its whole output. It may be called again."""
        if self.running:
            self._child.send_signal(number)
            try:
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        return self.output()


class Namespace:
    """A named network namespace with `lo` up, and what can be done in it."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab: Final = lab
        self.name: Final = name
        self.netns: Final = f"{lab.name}-{name}"  # as `ip netns` lists it
        self.path: Final = str(NETNS_DIRECTORY / self.netns)
        try:
            _ip("netns", "add", self.netns)
        except LabError as error:
            raise LabError(
                f"cannot make a network namespace ({error}):"
                " run it on a machine of its own, or in a container with --privileged"
            ) from error
        self.configure("link set lo up")

    def __repr__(self) -> str:
        return f"<{self.netns}>"

    def _enter(self, argv: Sequence[str]) -> list[str]:
        # Not `ip netns exec`: it would remount /sys and hide the machine's /etc from the program.
        return [_program("nsenter", "util-linux"), f"--net={self.path}", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - subprocess.run's word for it
        check: bool = True,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end. LabError if it fails, unless `check` is false."""
        done = subprocess.run(
            self._enter(argv),
            env=env,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())
            raise LabError(f"{' '.join(argv)} in {self.netns}: exit {done.returncode}: {said}")
        return done

    def start(self, argv: Sequence[str]) -> Process:
        """Start a program that runs until it is stopped, or the lab is closed."""
        return self.lab.start(self._enter(argv), self.netns)

    def ip(self, *arguments: str) -> Any:
        """What `ip -j` says, parsed; None where it says nothing, as after `link add`."""
        printed = _ip("-n", self.netns, "-j", *arguments)
        return json.loads(printed) if printed.strip() else None

    def configure(self, *lines: str) -> None:
        """Several `ip` commands in one go; the first failing one ends it with LabError."""
        _ip("-n", self.netns, "-batch", "-", lines=lines)

    def link(self, name: str) -> dict[str, Any] | None:
        """A link and its addresses as `ip -j -d addr` shows them; None if there is none."""
        shown: list[dict[str, Any]] = self.ip("-d", "addr", "show")
        return next((link for link in shown if link.get("ifname") == name), None)

    def ping(
        self, address: str, *, size: int = 56, wait_s: float = 1.0, source: str | None = None
    ) -> float | None:
        """Send one echo request; the round trip in milliseconds, None without an answer."""
        options = ["-n", "-c", "1", "-W", f"{wait_s:g}", "-s", str(size)]
        if source is not None:
            options += ["-I", source]
        answer = self.run(["ping", *options, address], check=False).stdout
        _, found, rest = answer.partition(" time=")
        return float(rest.split()[0]) if found else None

    def inside(self) -> AbstractContextManager[None]:
        """Let this thread be in the namespace: sockets that it opens stay there."""
        return visit(self.path)

    def get(self, host: str, port: int, path: str = "/", *, timeout_s: float = 5.0) -> bytes:
        """The body of an HTTP answer, asked for from in here. OSError or HTTPException."""
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            with self.inside():
                connection.connect()
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise http.client.HTTPException(f"{path}: {answer.status} {answer.reason}")
        return body

    def remove(self) -> None:
        """Delete the namespace's name, as a runtime does when the pod ends."""
        _ip("netns", "del", self.netns)


class Pod(Namespace):
    """An empty pod: what a runtime makes before it calls the plugin."""

    def __init__(self, node: Node, name: str) -> None:
        super().__init__(node.lab, f"{node.name}-{name}")
        self.pod_name: Final = name
        self.container_id: Final = self.netns


class Node(Namespace):
    """A machine of the lab: an underlay link, and maybe an overlay, pods, and the plugin's work."""

    def __init__(self, lab: Lab, name: str, number: int, wire: Namespace) -> None:
        super().__init__(lab, name)
        self.underlay_address: Final = f"{UNDERLAY_PREFIX}{number:x}"
        self.key_file: Final = lab.directory / f"{name}.key"
        self.tun: Final = "mycelium"
        self.overlay: Process | None = None
        self._peers: Sequence[Node] = ()
        port = f"port{number}"
        self.configure(
            f"link add {UNDERLAY} type veth peer name {port} netns {wire.netns}",
            f"address add {self.underlay_address}/64 dev {UNDERLAY} nodad",
            f"link set {UNDERLAY} up",
        )
        wire.configure(f"link set {port} master wire", f"link set {port} up")

    def pod(self, name: str) -> Pod:
        """A new pod's namespace. The plugin is not called."""
        return Pod(self, name)

    # The overlay

    @property
    def overlay_address(self) -> str | None:
        """The node's address, as soon as it can be used; None before, and without an overlay."""
        link = self.link(self.tun)
        if link is None or "UP" not in link["flags"]:
            return None
        for entry in link["addr_info"]:
            if entry["prefixlen"] == 7 and not entry.get("tentative"):
                address: str = entry["local"]
                return address
        return None

    def start_overlay(self, peers: Sequence[Node] | None = None) -> None:
        """Start the daemon or the stand-in, and return when it is connected.

        `peers` are nodes whose overlay runs; None: those of the last time. The key file, and with
        it the address, stays from one start to the next.
        """
        if peers is not None:
            self._peers = peers
        argv = [*self.lab.overlay_command, "--key-file", str(self.key_file)]
        argv += ["--tun-name", self.tun, "--tcp-listen-port", str(OVERLAY_PORT)]
        argv += ["--disable-quic", "--disable-peer-discovery"]
        if self._peers:
            endpoints = [f"tcp://[{peer.underlay_address}]:{OVERLAY_PORT}" for peer in self._peers]
            argv += ["--peers", *endpoints]
        self.overlay = self.start(argv)
        try:
            await_fact(self._overlay_ready, f"the overlay of {self.name} connected to its peers")
        except LabError as error:
            last = "".join(self.overlay.output().splitlines()[-1:])
            raise LabError(f"{error}; it last said: {last or 'nothing'}") from error

    def _overlay_ready(self) -> bool:
        if self.overlay is not None and not self.overlay.running:
            raise LabError(f"the overlay of {self.name} ended")
        if self.overlay_address is None:
            return False
        try:
            peers = self.api("admin/peers")
        except (OSError, http.client.HTTPException):
            return False
        alive = [peer for peer in peers if peer["connectionState"] == "alive"]
        return len([peer for peer in alive if peer["type"] == "static"]) == len(self._peers)

    def stop_overlay(self, number: int = signal.SIGTERM) -> None:
        """End the overlay with a signal, and return when its interface is gone."""
        if self.overlay is not None:
            self.overlay.stop(number)
            self.overlay = None
        await_fact(lambda: self.link(self.tun) is None, f"{self.tun} of {self.name} gone")

    def api(self, path: str) -> Any:
        """What the overlay's HTTP API answers to GET /api/v1/<path>."""
        return json.loads(self.get("127.0.0.1", API_PORT, f"/api/v1/{path}", timeout_s=1))

    # The plugin

    def plugin(
        self,
        verb: str,
        conf: Mapping[str, object] | str,
        pod: Pod | None = None,
        *,
        ifname: str = "eth0",
        container_id: str | None = None,
        args: str = "",
        **env: str,
    ) -> PluginCall:
        """Execute the plugin on this node as a runtime does: CNI_* variables and standard input.

        `verb` is CNI_COMMAND. Without a pod and a container ID, CNI_COMMAND stands alone, as for
        GC, STATUS and VERSION. `env` adds to the variables and overrides them.
        """
        environment = {"CNI_COMMAND": verb}
        if pod is not None:
            environment["CNI_NETNS"] = pod.path
            container_id = container_id or pod.container_id
        if container_id is not None:
            environment |= {"CNI_CONTAINERID": container_id, "CNI_IFNAME": ifname}
        if args:
            environment["CNI_ARGS"] = args
        text = conf if isinstance(conf, str) else json.dumps(conf)
        start = time.perf_counter()
        done = self.run(self.lab.command, env=environment | env, input=text, check=False)
        seconds = time.perf_counter() - start
        return PluginCall(done.returncode, done.stdout, done.stderr, seconds)


class Lab:
    """All of it, under one name; a context manager that removes everything again.

    Also after an exception, Ctrl-C, SIGTERM or SIGHUP. After SIGKILL, the next lab that anybody
    makes does it, or `Lab.remove(name)`.

    Args:
        command: how to start the executable under test; the one beside this Python by default.
        overlay: which overlay to use; the real daemon if there is one by default.

    Raises LabError for what the machine lacks, before anything is made.
    """

    def __init__(
        self, command: Sequence[str] | None = None, *, overlay: OverlayKind | None = None
    ) -> None:
        _check_machine()
        self.command: Final = list(command or [own_executable()])
        daemon = find_daemon() if overlay != "stand-in" else None
        if overlay == "daemon" and daemon is None:
            raise LabError("there is no Mycelium daemon: put it in PATH, or set MYCELIUM_BIN")
        self.overlay_kind: Final[OverlayKind] = "stand-in" if daemon is None else "daemon"
        self.overlay_command: Final = [*self.command, "overlay"] if daemon is None else [daemon]
        _remove_abandoned()
        with _undisturbed():  # the directory of a lab without an owner is that of a kept one
            self.directory: Final = Path(tempfile.mkdtemp(prefix=PREFIX, dir=STATE_DIRECTORY))
            self._owner: Final = _own(self.directory)
        self.name: Final = self.directory.name
        self.nodes: Final[list[Node]] = []
        self._processes: Final[list[Process]] = []
        self._handlers: Final[dict[int, Any]] = {}
        self._wire: Namespace | None = None
        self._kept = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                self._handlers[number] = signal.signal(number, _exit_by_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        finally:
            while self._handlers:
                signal.signal(*self._handlers.popitem())

    def node(self, name: str) -> Node:
        """A new node on the lab's underlay: one Ethernet segment, 2001:db8::/64."""
        if self._wire is None:
            self._wire = Namespace(self, "wire")
            self._wire.configure("link add wire type bridge", "link set wire up")
        node = Node(self, name, len(self.nodes) + 1, self._wire)
        self.nodes.append(node)
        return node

    def connect(self, *line: Node) -> None:
        """Start an overlay on each of the nodes, each the peer of the one before.

        Returns when every node answers every other one; those in the middle then relay.
        """
        for before, node in zip((None, *line), line, strict=False):
            node.start_overlay([] if before is None else [before])
        for node in line:
            for other in line:
                address = other.overlay_address
                if node is not other and address is not None:
                    what = f"an answer of {other.name} to {node.name} over the overlay"
                    await_fact(partial(node.ping, address), what, within_s=20)

    def start(self, argv: Sequence[str], name: str) -> Process:
        """Start a program that ends with the lab; its output goes to a file named after `name`."""
        with _undisturbed():  # a process that is not in the list would outlive the lab
            process = Process(argv, self.directory / f"{name}.{len(self._processes)}.log")
            self._processes.append(process)
        return process

    def keep(self) -> None:
        """Keep everything when the lab is closed; `Lab.remove(name)` removes it."""
        self._kept = True
        (self.directory / OWNER).unlink()
        self._owner.close()

    def close(self) -> None:
        """Remove everything. It may be called again."""
        if self._kept:
            return
        with _undisturbed():
            for process in reversed(self._processes):
                process.stop()
            _remove(self.directory)
            self._owner.close()

    @staticmethod
    def names() -> list[str]:
        """The labs of this machine, running or left behind."""
        return sorted(path.name for path in _directories())

    @staticmethod
    def remove(name: str) -> None:
        """End every process in the namespaces of the lab `name`, and remove the lab."""
        # Only a directory that was found, never one built from the name: it will be deleted.
        directory = next((path for path in _directories() if path.name == name), None)
        if directory is None:
            there = ", ".join(Lab.names()) or "none"
            raise LabError(f"there is no lab {name}; labs on this machine: {there}")
        with _undisturbed():
            _remove(directory)


def _directories() -> list[Path]:
    return [path for path in STATE_DIRECTORY.glob(f"{PREFIX}?*") if path.is_dir()]


def _own(directory: Path) -> BinaryIO:
    """Lock the lab's file OWNER. The kernel ends the lock with the process, whatever ends that."""
    new = directory / f".{OWNER}"
    owner = new.open("wb")
    fcntl.flock(owner, fcntl.LOCK_EX)
    new.rename(directory / OWNER)  # now that it is locked: without the lock, nobody owns the lab
    return owner


def _remove_abandoned() -> None:
    """Remove the labs whose owner was killed."""
    for directory in _directories():
        # A lab that is kept has no such file; of others it is locked while the owner lives.
        with suppress(FileNotFoundError, BlockingIOError), (directory / OWNER).open("rb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(owner.fileno()).st_nlink:  # else it was kept or removed just now
                with _undisturbed():
                    _remove(directory)


def _remove(directory: Path) -> None:
    """Remove the lab of this directory: processes, namespaces, directory."""
    namespaces = sorted(NETNS_DIRECTORY.glob(f"{directory.name}-*"))
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(LabError):  # then the stronger signal
            await_fact(partial(_all_ended, namespaces, number), "the processes' end", within_s=2)
            break
    if namespaces:
        _ip("-batch", "-", lines=[f"netns del {path.name}" for path in namespaces])
    shutil.rmtree(directory, ignore_errors=True)


def _all_ended(namespaces: Sequence[Path], number: int) -> bool:
    """Send a signal to all who are left, also to those who came in since the last time."""
    left = _processes_in(namespaces)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return not left


def _processes_in(namespaces: Sequence[Path]) -> list[int]:
    """The processes, but for this one, whose network namespace is one of these.

    This one is in one of them when Ctrl-C came right after it had entered (`visit`).
    """
    wanted = {_identity(path) for path in namespaces}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                namespace = _identity(entry / "ns/net")
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EACCES):
                    raise
                continue  # it ended just now, or it is a zombie
            if namespace in wanted:
                found.append(int(entry.name))
    return found


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP until the block is done, whole.

    Not with the signal mask: programs that are started in the block would inherit it. Only the main
    thread runs handlers, so nothing disturbs another one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for held in came:
            signal.raise_signal(held)


def _exit_by_signal(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def visit(path: str) -> Iterator[None]:
    """Let this thread be in a network namespace for a while. OSError if there is none."""
    home = netns.open_netns("/proc/thread-self/ns/net")
    there = netns.open_netns(path)
    try:
        with netns.inside(there, home=home):
            yield
    finally:
        os.close(there)
        os.close(home)
