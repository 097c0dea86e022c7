# SPDX-License-Identifier: Apache-2.0
"""The demo as a newcomer runs it: in a pipe, in a terminal, and interrupted."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mycelium_lab.lab import PREFIX, OverlayKind, find_daemon

KINDS: list[OverlayKind] = ["stand-in", "daemon"] if find_daemon() else ["stand-in"]
OVERLAY = ipaddress.IPv6Network("400::/7")


def environment(kind: OverlayKind) -> dict[str, str]:
    """This process's environment, in which the demo finds only the requested overlay."""
    here = {key: value for key, value in os.environ.items() if key != "MYCELIUM_BIN"}
    if kind == "daemon":
        return here | {"MYCELIUM_BIN": str(find_daemon())}
    places = here["PATH"].split(":")
    return here | {"PATH": ":".join(p for p in places if not Path(p, "mycelium").exists())}


Clean = Callable[[str], None]


@pytest.fixture
def clean(left_of: Callable[[str], list[str]]) -> Clean:
    """A function that finds the lab's name in an output, and makes sure that nothing is left."""

    def check(output: str) -> None:
        names = set(re.findall(rf"{PREFIX}\w+", output))
        assert len(names) == 1
        assert left_of(names.pop()) == []

    return check


def run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_everybody_answers_in_both_modes_within_seconds(
    command: list[str], kind: OverlayKind, clean: Clean
) -> None:
    done = run([*command, "demo", "--json"], env=environment(kind))
    assert (done.returncode, done.stderr) == (0, "")
    clean(done.stdout)
    document = json.loads(done.stdout)
    assert document["overlay"] == kind
    assert document["ok"] is True
    assert document["seconds"] < 20
    left, right = document["nodes"]
    assert (left["mode"], right["mode"]) == ("routed", "bridge")
    node_of = {pod["name"]: node["name"] for node in document["nodes"] for pod in node["pods"]}
    node_of |= {"left": "left", "right": "right"}
    asked = {(answer["what"], answer["source"], answer["target"]) for answer in document["answers"]}
    assert all(answer["ok"] and answer["milliseconds"] > 0 for answer in document["answers"])
    pings = {(source, target) for what, source, target in asked if what == "ping"}
    pods = node_of.keys() - {"left", "right"}
    for mode_home in ("left", "right"):
        assert any(
            {source, target} <= pods and node_of[source] == node_of[target] == mode_home
            for source, target in pings
        ), f"pod to pod on {mode_home}"
        assert any((mode_home, pod) in pings for pod in pods), f"node {mode_home} to a pod"
    for what in ("ping", "http"):
        ways = {
            (node_of[source], node_of[target]) for kind, source, target in asked if kind == what
        }
        assert {("left", "right"), ("right", "left")} <= ways, f"{what} both ways across"


def test_in_a_pipe_it_prints_plain_lines(command: list[str], clean: Clean) -> None:
    done = run([*command, "demo"])
    assert (done.returncode, done.stderr) == (0, "")
    clean(done.stdout)
    assert all(line.isprintable() and line.isascii() for line in done.stdout.splitlines())
    assert re.search(r"^ping  web -> api  [0-9.]+ ms$", done.stdout, re.MULTILINE)
    assert re.search(r"^left/web  eth0  [45][0-9a-f:]+/128  myc\w{12}$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1].startswith("All answered")


@pytest.mark.parametrize(("columns", "beside"), [(130, True), (80, False), (60, False)])
def test_a_terminal_shows_the_nodes_as_a_picture(
    command: list[str], columns: int, beside: bool, clean: Clean
) -> None:
    code, shown = in_terminal([*command, "demo"], columns)
    assert code == 0
    clean(shown)
    frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).rpartition("two nodes")[2]
    assert "left · routed mode" in frame
    assert "right · bridge mode" in frame
    assert "mycelium-br" in frame
    assert ("◀─ overlay ─▶" in frame) is beside
    for pod in ("web", "db", "api", "cache"):
        assert re.search(rf"── eth0 {pod}\b", frame)
    assert "All answered" in frame
    assert all(len(line) <= columns for line in frame.splitlines()[1:])


def in_terminal(argv: list[str], columns: int) -> tuple[int, str]:
    """Run a program in a terminal of that width; its exit code and all that it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, columns, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    env |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, env=env) as program:
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # EIO: the last process at the other end has closed it
                break
            shown += chunk
        program.wait(10)
    os.close(ours)
    return program.returncode, shown.decode()


MOMENTS = ("two nodes", "an overlay", "pods web", "pods api", "ping  left", "HTTP", "http  right")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_ends_it_clean(command: list[str], moment: str, clean: Clean) -> None:
    with subprocess.Popen(
        [*command, "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        first = line = program.stdout.readline()
        while not line.startswith(moment):
            line = program.stdout.readline()
            assert line, "the demo ended too early"
        os.killpg(program.pid, signal.SIGINT)  # as the terminal does: to all in the foreground
        _, errors = program.communicate(timeout=20)
        assert program.returncode == 130
        assert errors.strip() == ""
    clean(first)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_it_enters_a_node_ends_it_clean(command: list[str], clean: Clean) -> None:
    interrupt = ["-e", "trace=setns", "-e", "inject=setns:signal=INT:when=1"]
    done = run(["strace", "-qq", "-o", "/dev/null", *interrupt, *command, "demo"])
    assert (done.returncode, done.stderr.strip()) == (130, "")
    clean(done.stdout)


def test_sigterm_ends_it_clean(command: list[str], clean: Clean) -> None:
    with subprocess.Popen([*command, "demo"], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        first = program.stdout.readline()
        program.terminate()
        program.communicate(timeout=20)
        assert program.returncode == 128 + signal.SIGTERM
    clean(first)


def test_what_is_kept_is_as_shown_until_it_is_removed(command: list[str], clean: Clean) -> None:
    document = json.loads(run([*command, "demo", "--json", "--keep"]).stdout)
    try:
        for node in document["nodes"]:
            links = addresses(node["netns"])
            assert node["address"] in links[node["interface"]]
            assert (node["bridge"] in links) is (node["mode"] == "bridge")
            for pod in node["pods"]:
                assert pod["address"] in addresses(pod["netns"])[pod["link"]]
                assert pod["host_link"] in links
                assert ipaddress.ip_interface(pod["address"]).ip in ipaddress.ip_network(
                    re.sub("/7$", "/64", node["address"]), strict=False
                )
    finally:
        done = run([*command, "demo", "--remove", document["name"]])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    clean(document["name"])


def addresses(netns: str) -> dict[str, list[str]]:
    shown = subprocess.check_output(["nsenter", f"--net={netns}", "ip", "-j", "addr"])
    return {
        link["ifname"]: [f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"]]
        for link in json.loads(shown)
    }


def test_the_commands_that_it_prints_work_as_printed(command: list[str]) -> None:
    lines = run([*command, "demo", "--keep"]).stdout.splitlines()
    told = [line.strip() for line in lines if line.startswith("  ")]
    enter = [shlex.split(line, comments=True) for line in told if line.startswith("nsenter")]
    (ping,) = [line for line in told if line.startswith("ping")]
    (curl,) = [line for line in told if line.startswith("curl")]
    (remove,) = [line for line in told if line.startswith("mycelium-cni demo --remove")]
    try:
        assert len(enter) == 4
        for argv in enter:
            assert run([*argv, "-c", "ip -j link"]).returncode == 0
        (web,) = [argv for argv in enter if argv[1].endswith("-left-web")]
        assert run([*web, "-c", f"{ping} -c1 -W1"]).returncode == 0
        assert "This is api" in run([*web, "-c", curl]).stdout
    finally:
        done = run([*command, *remove.split()[1:]])
    assert done.returncode == 0


def test_a_missing_answer_is_shown_and_is_exit_code_1(
    command: list[str], tmp_path: Path, clean: Clean
) -> None:
    """The pings to pods fail, and nothing else."""
    ping = tmp_path / "ping"
    ping.write_text('#!/bin/sh\ncase "$*" in *:ff0f:*) exit 1;; esac\nexec /bin/ping "$@"\n')
    ping.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = run([*command, "demo"], env=env)
    assert done.returncode == 1
    assert "ping  web -> db  no answer" in done.stdout
    assert "8 of 11 did not answer" in done.stdout
    clean(done.stdout)
    document = json.loads(run([*command, "demo", "--json"], env=env).stdout)
    assert document["ok"] is False


def refusal(argv: list[str], **options: Any) -> str:
    """The one line on standard error of a demo that cannot run."""
    done = run(argv, **options)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_an_add_that_fails_is_told_in_the_plugins_words(command: list[str], clean: Clean) -> None:
    """/proc/sys is read-only, as in a container: the node's forwarding cannot be switched on."""
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    done = run(["unshare", "--mount", "sh", "-c", script, "sh", *command, "demo"])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("mycelium-cni demo: the plugin failed: ")
    assert "Read-only file system" in line
    clean(done.stdout)


def test_without_root_it_is_refused(command: list[str]) -> None:
    assert "sudo" in refusal(["unshare", "--user", *command, "demo"])


def test_without_tun_it_is_refused(command: list[str]) -> None:
    hide = 'mount -t tmpfs none /dev/net && exec "$@"'
    line = refusal(["unshare", "--mount", "sh", "-c", hide, "sh", *command, "demo"])
    assert "modprobe tun" in line


def test_without_namespaces_it_is_refused(command: list[str]) -> None:
    drop = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    assert "--privileged" in refusal([*drop, *command, "demo"])


def test_a_missing_daemon_is_reported(command: list[str]) -> None:
    line = refusal([*command, "demo"], env=os.environ | {"MYCELIUM_BIN": "/nowhere/mycelium"})
    assert "MYCELIUM_BIN=/nowhere/mycelium" in line


def test_a_missing_lab_cannot_be_removed(command: list[str]) -> None:
    assert "there is no lab" in refusal([*command, "demo", "--remove", "myclab-nothing"])
