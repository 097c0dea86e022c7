# SPDX-License-Identifier: Apache-2.0
"""What is compared: how each candidate is built, and how a runtime would call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bench.recording import STRACE, Recording, environment, names_of, read
from bench.testbed import SUBNET, BenchError, Call, Testbed
from mycelium_lab.lab import find_daemon

ROOT: Final = Path(__file__).parent.parent
BUILD: Final = ROOT / "build/bench"
_STATIC: Final = ROOT / "dist/mycelium-cni-linux-amd64"
_REFERENCE: Final = ROOT / ".tools/cni"
REFERENCE_RELEASE: Final = "v1.9.1"
_PLUGINS: Final = ("main/bridge", "main/ptp", "main/loopback", "ipam/host-local")
_SPEC: Final = "1.1.0"


@dataclass(frozen=True)
class Executables:
    """Everything that is started, built."""

    static: Path
    pip: Path
    reference: Path  # the folder of the Go plugins
    floor: Path
    spawner: Path
    daemon: Path | None  # where there is one
    grid: Path | None  # the ThreeFold Grid's plugin, which needs the daemon


def build() -> Executables:
    """Build what is not there yet; BenchError for what another target has to build."""
    BUILD.mkdir(parents=True, exist_ok=True)
    static = Path(os.environ.get("MYCELIUM_CNI_STATIC", _STATIC))
    if not static.exists():
        raise BenchError(f"{static} is missing: run `make dist`")
    _reference_plugins()
    daemon = Path(found).absolute() if (found := find_daemon()) else None
    installed = BUILD / "installed"
    installed.mkdir(exist_ok=True)
    for executable in (static, *(_REFERENCE / Path(name).name for name in _PLUGINS)):
        _install(executable, installed)
    return Executables(
        installed / static.name,
        _venv() / "bin/mycelium-cni",
        installed,
        _compile("floor"),
        _compile("spawn"),
        daemon,
        _grid(installed) if daemon else None,
    )


def _grid(installed: Path) -> Path | None:
    """The grid's plugin, which is in no module proxy: MYCELIUM_GRID_CNI names a build of it."""
    given = os.environ.get("MYCELIUM_GRID_CNI")
    if not given:
        return None
    if not os.access(given, os.X_OK):
        raise BenchError(f"MYCELIUM_GRID_CNI={given}: no such executable; correct or unset it")
    _install(Path(given), installed)
    return installed / Path(given).name


def _install(executable: Path, folder: Path) -> None:
    """A copy, written in one go: whether the page cache holds a file in large pieces or in small
    ones makes a tenth of a short process's time, and depends on when and how it was written."""
    copy = folder / executable.name
    copy.unlink(missing_ok=True)
    copy.write_bytes(executable.read_bytes())
    copy.chmod(0o755)


def _reference_plugins() -> None:
    """The Go plugins, built from the module proxy where the tests have not done so."""
    module = "github.com/containernetworking/plugins/plugins"
    missing = [name for name in _PLUGINS if not (_REFERENCE / Path(name).name).exists()]
    if missing:
        _REFERENCE.mkdir(parents=True, exist_ok=True)
        packages = [f"{module}/{name}@{REFERENCE_RELEASE}" for name in missing]
        _run(["go", "install", "-trimpath", "-ldflags=-s -w", *packages], GOBIN=str(_REFERENCE))


def _compile(name: str) -> Path:
    source, program = Path(__file__).with_name(f"{name}.c"), BUILD / name
    flags = ("-std=gnu17", "-O2", "-Wall", "-Wextra", "-static")
    _run(["gcc", *flags, "-o", str(program), str(source)])
    return program


def _venv() -> Path:
    """Our wheel in an environment of its own: an editable install would add to every start."""
    venv = ROOT / "build/bench-venv"
    if not (venv / "bin/pip").exists():
        _run([sys.executable, "-m", "venv", str(venv)])
    pip = [str(venv / "bin/pip"), "--quiet", "--disable-pip-version-check"]
    _run([*pip, "install", "--force-reinstall", "--no-deps", str(ROOT)])
    return venv


def _run(argv: Sequence[str], **environment: str) -> None:
    try:
        done = subprocess.run(
            argv,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    except FileNotFoundError:
        raise BenchError(f"the program `{argv[0]}` is missing: install it") from None
    if done.returncode:
        raise BenchError(f"{' '.join(argv)} failed:\n{done.stdout.decode()}")


@dataclass(frozen=True)
class Pod:
    """A pod to be attached; its number makes its names."""

    number: int
    netns: str


@dataclass(frozen=True)
class Candidate:
    """A plugin with its configuration, on nodes of its own."""

    name: str
    argv: Sequence[str]
    configuration: dict[str, object]
    cni_path: str = ""
    path: str = ""  # where it looks for programs
    files: dict[str, Path] = field(default_factory=dict)

    def call(
        self, testbed: Testbed, verb: str, node: str, pod: Pod | None = None, /, **more: object
    ) -> Call:
        """The process that a runtime would start for `verb`."""
        network = _network(node)
        stdin = self._stdin(testbed, network, more)
        if pod is None:
            return Call(node, self.argv, {"CNI_COMMAND": verb, "CNI_PATH": self.cni_path}, stdin)
        names = names_of(pod.number, network, pod.netns, SUBNET)
        variables = environment(names, verb) | {"CNI_PATH": self.cni_path}
        if self.path:
            variables["PATH"] = self.path
        return Call(node, self.argv, variables, stdin)

    def _stdin(self, testbed: Testbed, network: str, more: dict[str, object]) -> Path:
        document = {"cniVersion": _SPEC, "name": network, **self.configuration, **more}
        text = json.dumps(document)
        if text not in self.files:
            path = f"conf-{self.name.replace(' ', '-').replace('/', '-')}-{len(self.files)}"
            self.files[text] = testbed.file(path, text.encode())
        return self.files[text]


class Floor(Candidate):
    """The C program, which reads its system calls where others read their configuration."""

    recordings: dict[str, Recording]

    def call(
        self, testbed: Testbed, verb: str, node: str, pod: Pod | None = None, /, **_: object
    ) -> Call:
        assert pod is not None
        names = names_of(pod.number, _network(node), pod.netns, SUBNET)
        recording = testbed.file(
            f"recording-{pod.number}-{verb}", self.recordings[verb].encode(names)
        )
        return Call(node, self.argv, {"CNI_COMMAND": verb}, recording)


def _network(node: str) -> str:
    return Path(node).name


def ours(name: str, executable: Path, **configuration: object) -> Candidate:
    # The grid's plugin needs a key in the usual place; its owner is not this node.
    plugin = {"type": "mycelium-cni", "netseed": "/nonexistent"}
    return Candidate(name, [str(executable)], {**plugin, **configuration})


def grid(name: str, testbed: Testbed, executable: Path, daemon: Path) -> Candidate:
    """The ThreeFold Grid's plugin. It asks the daemon's program for the subnet of the node's key,
    and checks nothing else."""
    testbed.etc("netseed", os.urandom(32))
    plugin: dict[str, object] = {"type": "mycelium-cni"}
    folder = str(executable.parent)
    return Candidate(name, [str(executable)], plugin, folder, path=str(daemon.parent))


def bridge_of_grid(testbed: Testbed, node: str) -> None:
    """What the grid makes on a node before its plugin is called."""
    with testbed.inside(node):
        _run(["ip", "link", "add", "mycelium-br", "type", "bridge"])
        _run(["ip", "link", "set", "mycelium-br", "up"])


def reference(name: str, folder: Path, **configuration: object) -> Candidate:
    """A reference plugin with an IPv6 /64 from host-local, which keeps its files in memory here."""
    ipam = {
        "type": "host-local",
        "dataDir": "/run/netns/host-local",
        "ranges": [[{"subnet": "fd00:be:c4::/64"}]],
        "routes": [{"dst": "::/0"}],
    }
    plugin = {"type": name, "ipam": ipam, **configuration}
    return Candidate(f"{name} + host-local", [str(folder / name)], plugin, str(folder))


def floor(testbed: Testbed, executable: Path, plugin: Candidate, node: str, pod: Pod) -> Floor:
    """The floor beneath `plugin`, whose calls for `pod` on `node` are recorded. The node must
    have had a pod before, so that no call is recorded that only the first pod needs."""
    names = names_of(pod.number, _network(node), pod.netns, SUBNET)
    while True:
        # Without a wish for an address, which takes more calls; one in five is a shorter text.
        reply, added = _record(testbed, plugin.call(testbed, "ADD", node, pod))
        _, deleted = _record(testbed, plugin.call(testbed, "DEL", node, pod))
        address = json.loads(reply)["ips"][0]["address"].partition("/")[0]
        if len(address) == len(names.address):
            break
    names = replace(names, address=address)
    mode = plugin.configuration.get("mode")
    found = Floor(f"C floor, {mode} mode" if mode else "C floor", [str(executable)], {})
    recordings = {"ADD": read(*added, names), "DEL": read(*deleted, names)}
    object.__setattr__(found, "recordings", recordings)
    return found


def _record(testbed: Testbed, call: Call) -> tuple[bytes, tuple[Path, int]]:
    """What the call prints; and where strace has left its system calls, and its process."""
    verb = call.environment["CNI_COMMAND"]
    folder = testbed.folder / f"strace-{verb}"
    folder.mkdir(exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    argv = [*STRACE, str(folder / "strace"), *call.argv]
    with call.stdin.open("rb") as stdin, testbed.inside(call.netns):
        done = subprocess.run(
            argv,
            env=call.environment | {"PATH": os.environ["PATH"]},
            stdin=stdin,
            stdout=subprocess.PIPE,
            check=False,
        )
    if done.returncode:
        raise BenchError(f"strace of {verb} failed: {done.stdout.decode()}")
    # The plugin is strace's first child; what the plugin forks comes after.
    pids = sorted(int(path.suffix[1:]) for path in folder.iterdir())
    return done.stdout, (folder, pids[0])
