# SPDX-License-Identifier: Apache-2.0
"""The log never fails a call and never makes it wait; if it cannot be written, the call says
why."""

from __future__ import annotations

import pytest

from .calls import Plugin, network
from .conftest import WatchedNode
from .hosts import Pod

FOLDER = "/run/netns/log"
PLACES = {
    "in a missing folder": ("true", f"{FOLDER}/missing/log", "No such file or directory"),
    "a folder": (f"mkdir {FOLDER}/log", f"{FOLDER}/log", "Is a directory"),
    "a FIFO": (f"mkfifo {FOLDER}/log", f"{FOLDER}/log", ""),
    "a FIFO that is read": (
        f"mkfifo {FOLDER}/log; sleep 20 3<>{FOLDER}/log >/dev/null 2>&1 & echo $! >{FOLDER}/reader",
        f"{FOLDER}/log",
        "not a regular file",
    ),
    "a link": (f"ln -s /dev/stderr {FOLDER}/log", f"{FOLDER}/log", "symbolic links"),
    "a device": ("true", "/dev/full", "not a regular file"),
    "full": (
        f"mount -t tmpfs -o size=4k none {FOLDER}; cat /dev/zero >{FOLDER}/log 2>/dev/null || :",
        f"{FOLDER}/log",
        "No space left on device",
    ),
}


def shell(plugin: Plugin, script: str) -> None:
    plugin.host.run("sh", "-c", script)


@pytest.fixture(params=list(PLACES))
def place(bare: Plugin, request: pytest.FixtureRequest) -> tuple[Plugin, str, str]:
    """The executable on a node where a log file cannot be; its path, and why."""
    script, path, why = PLACES[request.param]
    shell(bare, f"mkdir -p {FOLDER}; {script}")
    return bare, path, why


def test_an_error_goes_to_standard_error_with_the_reason_where_the_file_cannot_be_written(
    place: tuple[Plugin, str, str],
) -> None:
    plugin, path, why = place
    outcome = plugin.call("STATUS", network(logFile=path))
    shell(plugin, f"if test -e {FOLDER}/reader; then kill $(cat {FOLDER}/reader); fi")
    outcome.error(51, says="failed to find interface")
    first, second = outcome.err.decode().splitlines()
    assert f"cannot write logFile {path}: " in first
    assert why in first
    assert "code 51: failed to find interface" in second


def test_a_log_that_cannot_be_written_does_not_fail_an_add(plugin: Plugin, pod: Pod) -> None:
    outcome = plugin.add(pod, network(logLevel="info", logFile="/nonexistent/log"))
    outcome.result()
    assert b"cannot write logFile /nonexistent/log" in outcome.err


def test_what_can_be_written_is_in_the_file_and_nowhere_else(plugin: Plugin, pod: Pod) -> None:
    conf = network(logLevel="info", logFile="/run/netns/good.log")
    for outcome in (plugin.add(pod, conf), plugin.delete(pod, conf)):
        assert (outcome.code, outcome.err) == (0, b"")
    lines = plugin.host.run("cat", "/run/netns/good.log").splitlines()
    assert ["ADD" in lines[0], "DEL" in lines[1]] == [True, True]


@pytest.mark.parametrize("path", ["/run/\0", "/run/a\nb", "/run/\ud800", "log", 5])
def test_a_log_file_with_an_impossible_name_is_standard_error(
    watched: WatchedNode, path: object
) -> None:
    watched.plugin.delete(watched.pod, network(logFile=path)).is_silent_success()
    outcome = watched.plugin.add(watched.pod, network(logFile=path, logLevel="info"))
    outcome.error(7, says="logFile")
    assert b"code 7" in outcome.err
