# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the executable under test, and labs of network namespaces.

    command   how to start the executable under test
    lab       an empty lab; everything made in it is removed when the test ends
    node      a node of that lab with a connected overlay
    pair      two nodes of that lab, connected by the overlay
    ctrl_c    what the test starts ends on SIGINT
    reference_plugins  a folder with cnitool and the reference plugins
    left_of   what is left of a lab, by its name

A test that needs root or a TUN fails without it, with a line that says what is missing. It is
never skipped: a green run means that everything ran.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import tools
from mycelium_lab.lab import Lab, Node, find_daemon

pytest_plugins = ["second_try"]

# The verdict depends neither on chance nor on how busy the machine is. `make fuzz` searches.
settings.register_profile(
    "suite",
    deadline=None,
    database=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")


def pytest_report_header() -> str:
    daemon = find_daemon()
    return f"overlay: {daemon or 'stand-in only, no real daemon (PATH, MYCELIUM_BIN)'}"


@pytest.fixture(scope="session")
def command() -> list[str]:
    """The argument vector that starts the executable under test.

    MYCELIUM_CNI_COMMAND (split as a shell would) names another build of it, such as the static
    file; the default is the one installed beside this Python.
    """
    given = os.environ.get("MYCELIUM_CNI_COMMAND")
    argv = shlex.split(given) if given else [str(Path(sys.executable).with_name("mycelium-cni"))]
    if not Path(argv[0]).is_file():
        pytest.exit(f"{argv[0]}: no such executable; run `make venv` first", returncode=2)
    return argv


@pytest.fixture(scope="session")
def left_of() -> Callable[[str], list[str]]:
    """A function that finds the namespaces, directories and processes that carry a lab's name."""

    def find(name: str) -> list[str]:
        found = [str(path) for path in Path("/run/netns").glob(f"{name}*")]
        found += [str(path) for path in Path("/run").glob(f"{name}*")]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes()
            except OSError:  # it ended just now
                continue
            if name.encode() in line:
                found.append(line.replace(b"\0", b" ").decode())
        return found

    return find


@pytest.fixture
def lab(command: list[str]) -> Iterator[Lab]:
    with Lab(command) as lab:
        yield lab


@pytest.fixture
def node(lab: Lab) -> Node:
    node = lab.node("a")
    lab.connect(node)
    return node


@pytest.fixture
def pair(lab: Lab) -> tuple[Node, Node]:
    left, right = lab.node("left"), lab.node("right")
    lab.connect(left, right)
    return left, right


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """What the test starts ends on SIGINT, as it does in a terminal.

    In a background job, under nohup and in some CI the tests start with SIGINT ignored, and child
    processes inherit that. A signal with a handler is reset to its default action by exec.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def reference_plugins() -> Path:
    """A folder with cnitool and the CNI project's own plugins, of their current release."""
    return tools.reference_plugins()
