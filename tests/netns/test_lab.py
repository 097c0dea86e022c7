# SPDX-License-Identifier: Apache-2.0
"""The lab changes nothing outside of itself, and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mycelium_lab.errors import LabError
from mycelium_lab.lab import Lab, Node, await_fact

LeftOf = Callable[[str], list[str]]
OWN_NETNS = Path("/proc/thread-self/ns/net")


def machine() -> list[object]:
    """What a lab could change on the machine itself, without what changes there by itself."""

    def still(value: object) -> object:
        moving = ("valid_life_time", "preferred_life_time", "expires", "age")
        if isinstance(value, dict):
            return {key: still(value[key]) for key in value if key not in moving}
        return [still(item) for item in value] if isinstance(value, list) else value

    state: list[object] = []
    for question in ("addr", "route show table all", "-6 route show table all", "rule"):
        argv = ["ip", "-j", *question.split()]
        state.append(still(json.loads(subprocess.check_output(argv))))
    for family in ("ipv4", "ipv6"):
        settings = sorted(Path(f"/proc/sys/net/{family}/conf").glob("*/*forwarding"))
        state.append([(str(path), path.read_text()) for path in settings])
    return state


def test_a_lab_changes_nothing_on_the_machine_and_leaves_nothing(
    command: list[str], left_of: LeftOf
) -> None:
    before = machine()
    with Lab(command) as lab:
        left, right = lab.node("left"), lab.node("right")
        lab.connect(left, right)
        left.pod("web").start(["sleep", "1000"])
        assert machine() == before
        assert left_of(lab.name)
    assert machine() == before
    assert left_of(lab.name) == []


def test_a_lab_goes_also_when_its_body_fails(command: list[str], left_of: LeftOf) -> None:
    with pytest.raises(RuntimeError, match="in the middle"), Lab(command) as lab:
        lab.connect(lab.node("a"))
        raise RuntimeError("in the middle of it")
    assert left_of(lab.name) == []


def test_close_twice_does_no_harm(lab: Lab, left_of: LeftOf) -> None:
    lab.node("a").pod("web")
    lab.close()
    lab.close()
    assert left_of(lab.name) == []


PROGRAM = """
import sys
from mycelium_lab.lab import Lab
with Lab(sys.argv[1:], overlay="stand-in") as lab:
    node = lab.node("a")
    lab.connect(node)
    node.pod("web")
    print(lab.name, flush=True)
    node.run(["sleep", "1000"], timeout_s=1000)
"""


def _busy(namespace: str) -> bool:
    """Whether `sleep` runs in it."""
    pids = subprocess.check_output(["ip", "netns", "pids", namespace], text=True).split()
    return any(Path(f"/proc/{pid}/comm").read_text() == "sleep\n" for pid in pids)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_signal_ends_a_lab_cleanly(
    command: list[str], number: signal.Signals, code: int, left_of: LeftOf
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        name = program.stdout.readline().strip()
        assert name in Lab.names()
        await_fact(partial(_busy, f"{name}-a"), "the program's own program")
        program.send_signal(number)
        program.communicate(timeout=20)
        assert program.returncode == code
    assert left_of(name) == []


STARTING = """
from mycelium_lab.lab import Lab
with Lab(["true"], overlay="stand-in") as lab:
    node = lab.node("a")
    print(lab.name, flush=True)
    node.start(["sleep", "100"])
"""


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_a_process_starts_ends_it_too(tmp_path: Path, left_of: LeftOf) -> None:
    """The signal comes right after fork; the child takes a while to enter its namespace.

    strace ends when everything has that the program started.
    """
    forks = tmp_path / "forks"
    program = [sys.executable, "-c", STARTING]
    subprocess.run(["strace", "-o", str(forks), "-e", "trace=vfork", *program], check=True)
    start = len(re.findall(r"^vfork\(", forks.read_text(), re.MULTILINE)) - 1  # `netns del` is last
    strace = ["strace", "-f", "-o", "/dev/null", "-e", f"inject=vfork:signal=INT:when={start}"]
    strace += ["-e", "inject=setns:delay_enter=200ms", "-e", "trace=vfork,setns"]
    done = subprocess.run(
        [*strace, *program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGINT
    assert left_of(done.stdout.strip()) == []


def test_what_a_killed_lab_left_goes_with_the_next_lab(command: list[str], left_of: LeftOf) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        name = program.stdout.readline().strip()
        with Lab(command):
            assert name in Lab.names()
        program.kill()
        program.communicate()
    with Lab(command):
        pass
    # A lab of another test may have begun with it.
    await_fact(lambda: not left_of(name), f"the end of {name}")


def test_a_kept_lab_stands_until_it_is_removed(command: list[str], left_of: LeftOf) -> None:
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        lab.keep()
    with Lab(command):
        assert node.overlay_address
    Lab.remove(lab.name)
    assert left_of(lab.name) == []
    assert node.overlay is not None
    assert not node.overlay.running


@pytest.mark.parametrize("name", ["nothing", "", "..", "netns", "myclab-"])
def test_only_a_lab_can_be_removed(name: str) -> None:
    with pytest.raises(LabError, match="there is no lab"):
        Lab.remove(name)
    assert Path("/run/netns").exists()


def test_two_labs_side_by_side_do_not_meet(command: list[str]) -> None:
    with Lab(command) as one, Lab(command) as other:
        for lab in (one, other):
            lab.connect(lab.node("a"), lab.node("b"))
        address = other.nodes[0].overlay_address
        assert address is not None
        assert other.nodes[1].ping(address) is not None
        assert one.nodes[1].ping(address, wait_s=0.5) is None


def test_a_program_sees_the_machine_but_the_nodes_network(lab: Lab) -> None:
    node = lab.node("a")
    links = json.loads(node.run(["ip", "-j", "link"]).stdout)
    assert {link["ifname"] for link in links} == {"lo", "under0"}
    # `ip netns exec` would have mounted another /sys here
    assert lasting(node.run(["cat", "/proc/self/mounts"]).stdout) == lasting(
        Path("/proc/self/mounts").read_text()
    )


def lasting(mounts: str) -> list[str]:
    """Without the namespaces, of which other tests make and remove some all the time."""
    return [line for line in mounts.splitlines() if not line.startswith("nsfs ")]


def test_a_program_gets_its_input_and_only_the_environment_given(lab: Lab) -> None:
    node = lab.node("a")
    assert node.run(["/usr/bin/env"], env={"A": "b"}).stdout == "A=b\n"
    assert node.run(["cat"], input="in and out").stdout == "in and out"


def test_a_failing_program_is_an_error_that_names_it(lab: Lab) -> None:
    node = lab.node("a")
    with pytest.raises(LabError, match=r"ls /nowhere in .*-a: exit 2: .*No such file"):
        node.run(["ls", "/nowhere"])
    assert node.run(["ls", "/nowhere"], check=False).returncode == 2


def test_a_refused_ip_command_is_an_error_that_names_it(lab: Lab) -> None:
    node = lab.node("a")
    with pytest.raises(LabError, match=r"link set nothing up.*nothing"):
        node.ip("link", "set", "nothing", "up")
    with pytest.raises(LabError, match="nothing"):
        node.configure("link set lo up", "link set nothing up")


def test_nodes_reach_each_other_on_the_underlay_at_once(lab: Lab) -> None:
    left, right = lab.node("left"), lab.node("right")
    assert left.ping(right.underlay_address) is not None


def test_a_pod_begins_with_lo_alone(lab: Lab) -> None:
    (link,) = lab.node("a").pod("web").ip("addr", "show")
    assert link["ifname"] == "lo"
    assert "UP" in link["flags"]


def test_a_socket_opened_inside_stays_inside(lab: Lab) -> None:
    node = lab.node("a")
    home = OWN_NETNS.readlink()
    with node.inside():
        assert OWN_NETNS.readlink() != home
    assert OWN_NETNS.readlink() == home
    with pytest.raises(ZeroDivisionError), node.inside():
        _ = 1 / 0
    assert OWN_NETNS.readlink() == home


def test_the_plugin_is_called_as_a_runtime_calls_it(lab: Lab, tmp_path: Path) -> None:
    """The plugin is replaced by a program that prints what it was given."""
    spy = tmp_path / "spy"
    spy.write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys\n"
        "json.dump({'env': dict(os.environ), 'argv': sys.argv[1:], 'stdin': sys.stdin.read(),"
        " 'net': os.readlink('/proc/self/ns/net')}, sys.stdout)\n"
        "print('noted', file=sys.stderr)\nsys.exit(3)\n"
    )
    spy.chmod(0o755)
    lab.command[:] = [str(spy)]
    node = lab.node("a")
    pod = node.pod("web")
    call = node.plugin("ADD", {"name": "n"}, pod, args="K=v", CNI_PATH="/opt/cni/bin")
    environment = call.result["env"]
    environment.pop("LC_CTYPE", None)  # Python's own doing
    assert environment == {
        "CNI_COMMAND": "ADD",
        "CNI_NETNS": pod.path,
        "CNI_CONTAINERID": pod.container_id,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "K=v",
        "CNI_PATH": "/opt/cni/bin",
    }
    assert call.result["argv"] == []
    assert json.loads(call.result["stdin"]) == {"name": "n"}
    assert call.result["net"] == node.run(["readlink", "/proc/self/ns/net"]).stdout.strip()
    assert (call.code, call.stderr) == (3, "noted\n")
    assert 0 < call.seconds < 10

    status = node.plugin("STATUS", "{}").result["env"]
    status.pop("LC_CTYPE", None)
    assert status == {"CNI_COMMAND": "STATUS"}
    late = node.plugin("DEL", "{}", container_id="c", CNI_NETNS="").result["env"]
    assert (late["CNI_CONTAINERID"], late["CNI_IFNAME"], late["CNI_NETNS"]) == ("c", "eth0", "")


def test_a_failed_call_speaks_in_the_plugins_words(node: Node) -> None:
    call = node.plugin("ADD", "not JSON", node.pod("web"))
    with pytest.raises(LabError, match=call.result["msg"]):
        call.succeeded()


def test_a_fact_that_does_not_come_is_an_error_that_names_it() -> None:
    with pytest.raises(LabError, match=r"not within 0.1 s: the moon"):
        await_fact(lambda: False, "the moon", within_s=0.1)


def test_a_fact_is_awaited_no_longer_than_it_takes() -> None:
    start = time.monotonic()
    assert await_fact(lambda: time.monotonic() - start > 0.05, "50 ms", within_s=5)
    assert time.monotonic() - start < 1


def test_an_overlay_that_cannot_start_says_why(lab: Lab) -> None:
    node = lab.node("a")
    node.key_file.write_bytes(b"short")
    with pytest.raises(LabError, match=r"the overlay of a ended; it last said: .+"):
        node.start_overlay([])


def refusal(wrapper: list[str], **env: str) -> str:
    """The one line of a program that is not allowed to make a lab."""
    program = (
        "import sys\nfrom mycelium_lab.errors import LabError\nfrom mycelium_lab.lab import Lab\n"
        "try:\n    with Lab() as lab: lab.node('a')\n"
        "except LabError as error: sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | env,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_who_is_not_root_is_told_so() -> None:
    assert "sudo" in refusal(["unshare", "--user"])


def test_a_machine_without_tun_is_told_how_to_get_it() -> None:
    hide = 'mount -t tmpfs none /dev/net && exec "$@"'
    assert "modprobe tun" in refusal(["unshare", "--mount", "sh", "-c", hide, "sh"])


def test_a_container_that_may_not_unshare_is_told_how_to_allow_it() -> None:
    line = refusal(["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"])
    assert "--privileged" in line


@pytest.mark.parametrize("missing", ["ip", "nsenter", "ping"])
def test_a_missing_program_is_named_with_its_package(tmp_path: Path, missing: str) -> None:
    for program in {"ip", "nsenter", "ping"} - {missing}:
        (tmp_path / program).symlink_to("/bin/true")
    line = refusal([], PATH=str(tmp_path))
    assert f"`{missing}` is missing" in line
    assert "apt-get install" in line
