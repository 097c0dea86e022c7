# SPDX-License-Identifier: Apache-2.0
"""What only the tool uses is compressed in the executable, and costs a call of the plugin nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.calls import Plugin, network
from protocol.hosts import Host, Pod, mycelium_host

from .conftest import assemble


@pytest.fixture
def host() -> Iterator[Host]:
    with mycelium_host() as host:
        yield host


def call(
    host: Host, executable: Path, verb: str, pod: Pod, trace: Path, **keys: object
) -> tuple[dict[str, object], int]:
    """What it prints, and how often it used memory that it did not have."""
    watch = ["strace", "-f", "-e", "trace=none", "-e", "signal=SIGSEGV", "-o", str(trace)]
    plugin = Plugin([*watch, str(executable)], host)
    outcome = plugin.call(verb, network(**keys), pod, {"CNI_PATH": "/opt/cni/bin"})
    return json.loads(outcome.out or "{}"), trace.read_text().count("--- SIGSEGV")


def test_the_executable_has_less_than_10_mb(executable: Path) -> None:
    assert executable.stat().st_size < 10e6


def test_no_verb_uses_what_is_compressed(host: Host, executable: Path, tmp_path: Path) -> None:
    pod = host.pod()
    trace = tmp_path / "trace"
    result, faults = call(host, executable, "ADD", pod, trace)
    assert (bool(result["ips"]), faults) == (True, 0)
    for verb, keys, code in (
        ("CHECK", {"prevResult": result}, None),
        ("STATUS", {}, None),
        ("ADD", {}, 102),  # it is attached
        ("DEL", {"prevResult": result}, None),
        ("CHECK", {"prevResult": result}, 103),
        ("GC", {"cni.dev/valid-attachments": []}, None),
        ("VERSION", {}, None),
        ("ADD", {"mode": "sideways"}, 7),
    ):
        answer, faults = call(host, executable, verb, pod, trace, **keys)
        assert (answer.get("code"), faults) == (code, 0), (verb, answer)
    pod.remove()


@pytest.mark.timeout(300)
def test_a_call_that_uses_it_all_the_same_ends_as_any(
    host: Host, executable: Path, checkout: Path
) -> None:
    script = checkout / "launcher/assemble.py"
    listed = script.read_text()
    script.write_text(listed.replace(" socketmodule ", " "))
    assert script.read_text() != listed
    other = checkout / "mycelium-cni"
    done = assemble(checkout, other)
    assert done.returncode == 0, done.stderr

    pod = host.pod()
    trace = checkout / "trace"
    result, faults = call(host, other, "ADD", pod, trace)
    assert faults == 1
    assert call(host, executable, "CHECK", pod, trace, prevResult=result) == ({}, 0)
    assert call(host, other, "DEL", pod, trace, prevResult=result) == ({}, 1)
    pod.remove()


def test_a_tool_without_memory_for_its_code_says_so(executable: Path) -> None:
    done = subprocess.run(
        ["prlimit", "--as=16000000", executable, "version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("mycelium-cni: no memory for the program's own code: Cannot all")
