# SPDX-License-Identifier: Apache-2.0
"""Files and processes of unprivileged users never decide what the operator's command runs, opens or
waits for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tool import NODE, Tool

from mycelium_lab.lab import Namespace, Node, Process, await_fact

# Usually everybody may open /dev/net/tun; in a container only root may.
AS_NOBODY = """
mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""


class FakeDaemon:
    """A program of an unprivileged user that looks like the daemon; it writes the file `marker`
    when it is asked for its version."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "mycelium"
        self.marker = folder / "open-to-all" / "marker"
        self.marker.parent.mkdir()
        self.marker.parent.chmod(0o777)
        source = str(Path(__file__).with_name("fakedaemon.c"))
        marker = f'-DMARKER="{self.marker}"'
        gcc = ["gcc", "-O1", "-Wall", "-Werror", marker, source, "-o", str(self.program)]
        subprocess.run(gcc, check=True)

    def run(self, node: Node, *arguments: str) -> Process:
        """Run it in the node's namespace, as nobody."""
        shell = ["unshare", "--mount", "sh", "-ec", AS_NOBODY, "sh"]
        return node.start([*shell, str(self.program), *arguments])

    def hold_a_tun(self, node: Node) -> None:
        """Have it hold a TUN of the daemon's name that was made elsewhere."""
        process = self.run(node, "mycelium")
        await_fact(lambda: "ready" in process.output(), what="the fake daemon holds its TUN")


@pytest.fixture
def fake_daemon() -> Iterator[FakeDaemon]:
    folder = Path(tempfile.mkdtemp(prefix="fakedaemon-"))  # tmp_path is root's alone
    folder.chmod(0o755)
    yield FakeDaemon(folder)
    shutil.rmtree(folder)


def test_a_tun_of_another_user_with_the_same_name_is_not_the_daemons(
    node: Node, root: Path, fake_daemon: FakeDaemon
) -> None:
    tool = Tool(node, root)
    node.stop_overlay()
    fake_daemon.hold_a_tun(node)
    alone = tool.json("status")["daemon"]
    tool("doctor")
    node.start_overlay()
    assert node.overlay
    beside = tool.json("status")["daemon"]
    assert not fake_daemon.marker.exists(), fake_daemon.marker.read_text()
    assert alone["process"] is None
    assert beside["process"] == node.overlay.pid


@pytest.mark.parametrize("owner", ["", "user root"])
def test_an_interface_that_any_user_can_take_is_named(
    tool: Tool, fake_daemon: FakeDaemon, owner: str
) -> None:
    """The kernel refuses users other than its owner, and nobody if it has none."""
    tool.node.configure("tuntap del mycelium mode tun", f"tuntap add mycelium mode tun {owner}")
    tool.node.configure("link set mycelium mtu 1400 up", f"address add {NODE}/7 dev mycelium")
    process = fake_daemon.run(tool.node, "mycelium", "here")
    says = "TUNSETIFF: Operation not permitted" if owner else "ready"
    await_fact(lambda: says in process.output(), what=says)
    assert ("any user" in tool.doctor("interface")["found"]) == (owner == "")
    assert tool.json("status")["daemon"]["process"] is None
    assert not fake_daemon.marker.exists()


def install_daemon(fake_daemon: FakeDaemon, node: Node, path: Path) -> Process:
    """The program, as root's, with the node's own TUN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(fake_daemon.program, path)
    process = node.start([str(path), "mycelium"])
    await_fact(lambda: "ready" in process.output(), what="the daemon holds its TUN")
    return process


@pytest.mark.parametrize("place", ["usr/bin/mycelium", "opt/overlay/daemon"])
def test_the_daemon_that_root_installed_tells_its_version(
    tool: Tool, fake_daemon: FakeDaemon, place: str
) -> None:
    """But not when others may write to its directory, or when the file was replaced."""
    unit = tool.root / "etc/systemd/system/mycelium.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(f"[Service]\nExecStart=/{place} --tun-name mycelium\n")
    path = tool.root / place
    process = install_daemon(fake_daemon, tool.node, path)
    shown = tool.json("status")["daemon"]
    assert (shown["process"], shown["version"]) == (process.pid, "6.6.6")
    fake_daemon.marker.unlink()
    for changed in (path, path.parent):
        mode = changed.stat().st_mode
        changed.chmod(0o777)
        assert tool.json("status")["daemon"]["version"] is None
        changed.chmod(mode)
    path.rename(path.with_name("old"))
    shutil.copy(fake_daemon.program, path)
    shown = tool.json("status")["daemon"]
    assert (shown["process"], shown["version"]) == (process.pid, None)
    assert not fake_daemon.marker.exists()


def test_a_daemon_from_anywhere_is_not_asked_for_its_version(
    tool: Tool, fake_daemon: FakeDaemon
) -> None:
    process = install_daemon(fake_daemon, tool.node, tool.root / "home/somebody/mycelium")
    shown = tool.json("status")["daemon"]
    assert (shown["process"], shown["version"]) == (process.pid, None)
    assert not fake_daemon.marker.exists()


def trap(path: Path, marker: Path) -> None:
    path.write_text(f"#!/bin/sh\nid >>{marker}\n")
    path.chmod(0o755)


def test_programs_in_a_directory_that_others_may_write_are_not_run(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, open_to_all = tmp_path / "marker", tmp_path / "open-to-all"
    open_to_all.mkdir()
    for name in ("unshare", "ip", "nft", "ip6tables-legacy-save", "mycelium"):
        trap(open_to_all / name, marker)
    monkeypatch.setenv("PATH", f"{open_to_all}:{os.environ['PATH']}")
    tool("setup")
    tool("test")
    assert "uid=0" in marker.read_text()  # so it would be if root owned the directory
    marker.unlink()
    open_to_all.chmod(0o777)
    assert "all that was tried works" in tool("test").stdout
    tool("doctor")
    monkeypatch.setenv("PATH", str(open_to_all))
    monkeypatch.chdir(open_to_all)  # an empty PATH would mean this
    argv = [*tool.node.lab.command, "test", "--root", str(tool.root)]
    with tool.node.inside():
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "all that was tried works" in done.stdout
    assert not marker.exists()


def test_a_configuration_that_others_may_write_is_said(tool: Tool) -> None:
    """The runtime runs what it names, as root."""
    assert tool.doctor("conf")["state"] == "ok"
    confs = tool.root / "etc/cni/net.d"
    confs.chmod(0o777)
    finding = tool.doctor("conf")
    assert finding["state"] == "warn"
    assert f"others may write {confs}" in finding["found"]


def test_a_plugin_that_others_may_replace_is_not_run(tool: Tool, tmp_path: Path) -> None:
    marker, bins = tmp_path / "marker", tool.root / "opt/cni/bin"
    trap(bins / "mycelium-cni", marker)
    tool.doctor("plugin")
    assert "uid=0" in marker.read_text()
    marker.unlink()
    for changed in (bins / "mycelium-cni", bins, tool.root / "opt"):
        mode = changed.stat().st_mode
        changed.chmod(0o775)
        os.chown(changed, 0, 65534)
        finding = tool.doctor("plugin")
        assert finding["state"] == "warn"
        assert str(changed) in finding["found"]
        os.chown(changed, 0, 0)
        changed.chmod(mode)
        os.chown(changed, 65534, 0)
        assert "belongs to user 65534" in tool.doctor("plugin")["found"]
        os.chown(changed, 0, 0)
    # The same behind a symbolic link of another user.
    real = bins.rename(tool.root / "real")
    bins.symlink_to(real)
    os.chown(bins, 65534, 0, follow_symlinks=False)
    assert "belongs to user 65534" in tool.doctor("plugin")["found"]
    assert not marker.exists()


# What answers at the daemon's API: any user's program can while the daemon is away.


@contextmanager
def api(
    place: Namespace, body: bytes, port: int = 8989, *, asked: list[str] | None = None
) -> Iterator[None]:
    """Something that answers every request with this body, and adds it to `asked`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            with suppress(OSError):  # the tool has seen enough
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with place.inside():
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_a_pod_that_is_looked_into_is_not_asked_in_the_daemons_place(tool: Tool) -> None:
    pod = tool.attach("web")
    asked: list[str] = []
    with api(pod, b"{}", asked=asked):
        for check in ("pods", "pod-routes", pod.container_id):
            tool("doctor", check)
    assert asked == []


ESCAPE = "\x1b]0;owned\x07"
LONG = "A" * (4 << 20)
ANSWERS = {
    "deep": b"[" * 200_000,
    "deep objects": b'{"nodeSubnet":' * 200_000,
    "long number": b'{"nodeSubnet": "5a1::/64", "nodeStartTime": ' + b"9" * 5000 + b"}",
    "no JSON": b"<html>" + LONG.encode(),
    "long subnet": json.dumps({"nodeSubnet": LONG, "nodeIp": LONG, "nodePubkey": LONG}).encode(),
    "escapes": json.dumps({"nodeSubnet": ESCAPE, "nodeIp": ESCAPE, "nodePubkey": ESCAPE}).encode(),
    "peers": json.dumps(
        [
            {
                "endpoint": {"proto": LONG, "addr": {"socket": place}},
                "type": LONG,
                "connectionState": LONG,
                "subnet": f"{place}/64",
                "metric": 10**100,
            }
            for place in (LONG, ESCAPE)
        ]
    ).encode(),
    "strange kinds": b'[null, 1, "x", [], {"endpoint": [{"addr": 1}]}, {"endpoint": {"addr": []}}]',
}


@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS)
def test_an_api_with_invalid_answers_is_no_daemon(tool: Tool, body: bytes) -> None:
    with api(tool.node, body):
        for argv in (["status"], ["status", "--json"], ["doctor", "api", "peers"], ["inspect"]):
            done = tool(*argv)
            assert done.stderr == "", argv
            assert len(done.stdout) < 10_000, argv
            assert "\x1b" not in done.stdout
        shown = tool.json("status")["daemon"]
    assert not shown["apiReachable"]
    assert not shown["routes"]


# Mounts of containers

NAMED = """
touch "$1/ns"
unshare --net mount --bind /proc/self/ns/net "$1/ns"
mount -t tmpfs none "$1"
ln -s "$2" "$1/ns"
echo ready
exec sleep infinity
"""


@pytest.mark.parametrize("whose", ["root", "nobody"])
def test_a_path_in_a_container_is_not_opened_before_it_is_known_what_is_there(
    tool: Tool, fake_daemon: FakeDaemon, whose: str
) -> None:
    """Its mounts may name a path as a namespace, and a link there may lead to a device of the host.
    Mounts of a user namespace, where anybody may mount, are skipped."""
    pod = tool.attach("web")
    folder = fake_daemon.marker.parent / "mounts"
    folder.mkdir()
    folder.chmod(0o777)
    rights = [] if whose == "root" else ["setpriv", "--reuid=65534", "--regid=65534"]
    user = [] if whose == "root" else ["--clear-groups", "unshare", "--user", "--map-root-user"]
    shell = ["unshare", "--mount", "sh", "-ec", NAMED, "sh", str(folder), tool.node.path]
    process = pod.start([*rights, *user, *shell])
    await_fact(lambda: "ready" in process.output(), what="the mounts are there")
    log = fake_daemon.marker.parent / "calls"
    trace = ["strace", "-f", "-e", "trace=openat", "-o", str(log)]
    done = tool.node.run([*trace, *tool.node.lab.command, "gc", "--dry-run"], check=False)
    assert "every attachment has its pod" in done.stdout
    opened = [line for line in log.read_text().splitlines() if str(folder) in line]
    assert [line for line in opened if "O_PATH" not in line] == []
    assert bool(opened) == (whose == "root")


def test_a_key_file_that_is_no_file_is_not_waited_for(tool: Tool) -> None:
    key = tool.root / "netseed"
    os.mkfifo(key)
    for argv in (["status"], ["doctor"], ["setup", "--dry-run"], ["inspect"], ["list"]):
        done = tool(*argv, "--mode", "bridge")
        assert "Traceback" not in done.stderr, argv
    done = tool("inspect", "--key-file", str(key))
    assert done.returncode == 1
    assert str(key) in done.stderr


def test_the_boot_unit_starts_nothing_that_others_may_replace(
    tool: Tool, tmp_path: Path, command: list[str]
) -> None:
    (tool.root / "etc/systemd").mkdir()
    copy = tmp_path / "home" / "mycelium-cni"
    copy.parent.mkdir()
    shutil.copy(command[-1], copy)
    argv = [*command[:-1], str(copy), "setup", "--install-units", "--root", str(tool.root)]
    copy.parent.chmod(0o777)
    done = tool.node.run(argv, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "others may write" in done.stderr
    assert not list((tool.root / "etc/systemd").rglob("*.service"))
    copy.parent.chmod(0o755)
    tool.node.run(argv)
    unit = tool.root / "etc/systemd/system/mycelium-cni-setup.service"
    assert f"ExecStart={copy} setup" in unit.read_text()
