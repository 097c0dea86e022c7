# SPDX-License-Identifier: Apache-2.0
"""One process: its exit code, its three streams, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from .calls import Outcome, Plugin, attachment_env, encoded, network
from .conftest import MakeMonitor, WatchedNode
from .hosts import Host, Pod, kernel_state, tool

UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")


def through_shell(plugin: Plugin, script: str) -> list[str]:
    """A command line that runs `script`, which runs the executable as "$@"."""
    return ["/bin/sh", "-c", script, "sh", *plugin.command]


def unprivileged(plugin: Plugin) -> list[str]:
    """The executable as root without any capability: the kernel refuses all its requests."""
    return [tool(UNPRIVILEGED[0]), *UNPRIVILEGED[1:], *plugin.command]


@pytest.fixture
def attached(plugin: Plugin, pod: Pod) -> Pod:
    """A pod that has its attachment."""
    plugin.add(pod, network()).result()
    return pod


def test_a_change_made_by_add_is_reported_by_the_monitor(
    plugin: Plugin, host: Host, pod: Pod, make_monitor: MakeMonitor
) -> None:
    """So the silence that the bad-input tests rely on is proof."""
    monitors = [make_monitor(host.netns), make_monitor(pod.netns)]
    plugin.add(pod, network()).result()
    for monitor in monitors:
        assert {"a link came or changed", "a route came"} <= set(monitor.changes())


def test_every_verb_succeeds_with_only_cni_variables_in_the_environment(
    plugin: Plugin, pod: Pod
) -> None:
    result = plugin.add(pod, network()).result()
    plugin.check(pod, network(prevResult=result)).is_silent_success()
    plugin.status(network()).is_silent_success()
    valid = [{"containerID": pod.container, "ifname": "eth0"}]
    plugin.gc(network(**{"cni.dev/valid-attachments": valid})).is_silent_success()
    plugin.delete(pod, network()).is_silent_success()
    assert plugin.version(b"{}").code == 0


@pytest.mark.parametrize(
    "extra",
    [
        {"TRACEPARENT": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {"TRACESTATE": "a=b", "BAGGAGE": "k=v"},
        {"LANG": "tr_TR.UTF-8", "LC_ALL": "C", "LANGUAGE": "xx"},
        {"TMPDIR": "/nonexistent", "HOME": "/nonexistent", "PATH": ""},
        {"CNI_SOMETHING_NEW": "1", "NETCONFPATH": "/nonexistent", "CAP_ARGS": "{"},
        {b"JUNK": b"\xff\xfe"},
    ],
    ids=["traceparent", "baggage", "locale", "no-dirs", "foreign-cni", "not-utf8"],
)
def test_foreign_environment_variables_change_nothing(
    plugin: Plugin, pod: Pod, extra: dict[str, str | bytes]
) -> None:
    plugin.call("ADD", network(), pod, extra).result()


@pytest.mark.parametrize(
    "script",
    [
        'cd / && exec "$@"',
        'cd /proc/self/fdinfo && exec "$@"',
        'mkdir /run/netns/gone && cd /run/netns/gone && rmdir /run/netns/gone && exec "$@"',
        'cd /run/netns && for name in json os _json socket; do echo "raise SystemExit(9)"'
        ' >$name.py; done; "$@"; code=$?; rm -f *.py; exit $code',
    ],
    ids=["root", "read-only", "deleted", "with-modules-of-those-names"],
)
def test_the_working_directory_does_not_matter(plugin: Plugin, pod: Pod, script: str) -> None:
    env = {"CNI_COMMAND": "ADD", "PATH": "/bin:/usr/bin", **attachment_env(pod)}
    argv = through_shell(plugin, script)
    plugin.run(env, encoded(network()), argv=argv).result()


def test_the_executable_works_through_a_link_of_another_name(plugin: Plugin, pod: Pod) -> None:
    link = "/run/netns/other-name"
    plugin.host.run("ln", "-sf", plugin.command[0], link)
    env = {"CNI_COMMAND": "ADD", **attachment_env(pod)}
    plugin.run(env, encoded(network()), argv=[link, *plugin.command[1:]]).result()


def test_the_executable_is_a_regular_file_that_may_be_executed(command: list[str]) -> None:
    """libcni looks for nothing else in CNI_PATH."""
    assert Path(command[0]).is_file()
    assert os.access(command[0], os.X_OK)


def test_a_configuration_larger_than_the_pipe_is_read_to_its_end(plugin: Plugin, pod: Pod) -> None:
    plugin.add(pod, network(comment="x" * (1 << 20))).result()


def test_an_environment_error_is_told_even_when_a_large_input_stays_unread(
    watched: WatchedNode,
) -> None:
    conf = network(comment="x" * (1 << 20))
    watched.plugin.add(watched.pod, conf, CNI_IFNAME=None).error(4, says="CNI_IFNAME")


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("redirection", ["0<&-", "0>/dev/null"], ids=["closed", "write-only"])
def test_standard_input_that_cannot_be_read_is_an_io_error(
    watched: WatchedNode, verb: str, redirection: str
) -> None:
    argv = through_shell(watched.plugin, f'exec "$@" {redirection}')
    env = {"CNI_COMMAND": verb, **attachment_env(watched.pod)}
    outcome = watched.plugin.run(env, argv=argv)
    assert outcome.error(5)["msg"].startswith("error reading from stdin")


def test_standard_input_that_never_ends_is_not_waited_for(
    plugin: Plugin, host: Host, pod: Pod
) -> None:
    pipe, env = subprocess.PIPE, {"CNI_COMMAND": "ADD", **attachment_env(pod)}
    argv = host.argv(*plugin.command)
    with subprocess.Popen(argv, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encoded(network()))
        process.stdin.flush()
        code = process.wait(timeout=30)
        outcome = Outcome("ADD", code, process.stdout.read(), b"")
    outcome.error(5, says="error reading from stdin: it does not end: the runtime must close it")
    assert set(pod.links()) == {"lo"}


def test_closed_standard_error_does_not_fail_a_call(plugin: Plugin, pod: Pod) -> None:
    argv = through_shell(plugin, 'exec "$@" 2>&-')
    env = {"CNI_COMMAND": "ADD", **attachment_env(pod)}
    plugin.run(env, encoded(network()), argv=argv).result()


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"], ids=["full", "closed"])
def test_an_add_that_cannot_tell_its_result_fails_and_undoes_itself(
    alone: Plugin, redirection: str
) -> None:
    pod, other_pod = alone.host.pod(), alone.host.pod()
    alone.add(other_pod, network()).result()  # what stays on a node after its first ADD is there
    before = kernel_state(alone.host, pod)
    argv = through_shell(alone, f'exec "$@" {redirection}')
    env = {"CNI_COMMAND": "ADD", **attachment_env(pod)}
    outcome = alone.run(env, encoded(network()), argv=argv)
    assert outcome.code == 1, outcome
    assert kernel_state(alone.host, pod) == before


def test_an_add_whose_reader_is_gone_fails_and_undoes_itself(alone: Plugin) -> None:
    pod, other_pod = alone.host.pod(), alone.host.pod()
    alone.add(other_pod, network()).result()
    before = kernel_state(alone.host, pod)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            alone.host.argv(*alone.command),
            check=False,
            env={"CNI_COMMAND": "ADD", **attachment_env(pod)},
            input=encoded(network()),
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=20,
        )
    finally:
        os.close(writer)
    outcome = Outcome("ADD", done.returncode, b"", done.stderr)
    assert outcome.code == 1, outcome
    assert kernel_state(alone.host, pod) == before


def test_add_without_privileges_is_one_error_and_leaves_nothing(watched: WatchedNode) -> None:
    env = {"CNI_COMMAND": "ADD", **attachment_env(watched.pod)}
    outcome = watched.plugin.run(env, encoded(network()), argv=unprivileged(watched.plugin))
    assert "permitted" in outcome.error()["msg"].lower(), outcome


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_what_cannot_be_removed_for_lack_of_privileges_is_never_reported_as_removed(
    plugin: Plugin, attached: Pod, verb: str
) -> None:
    conf = network(**{"cni.dev/valid-attachments": []})
    env = {"CNI_COMMAND": verb, **attachment_env(attached)}
    plugin.run(env, encoded(conf), argv=unprivileged(plugin)).error()
    assert "eth0" in attached.links()


def output_ends_with_the_process(argv: Sequence[str], env: dict[str, str], conf: bytes) -> bool:
    """Whether nobody holds the pipe any more when the process itself has ended."""
    process = subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout as output:
        process.stdin.write(conf)
        process.stdin.close()
        assert process.wait(timeout=20) == 0
        os.set_blocking(output.fileno(), False)
        try:
            while os.read(output.fileno(), 65536):
                pass
        except BlockingIOError:  # no end of file
            return False
        return True


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_nothing_keeps_the_output_open_after_the_process_has_ended(
    plugin: Plugin, pod: Pod, verb: str
) -> None:
    """Go's exec waits for the end of the pipes, not of the process: a helper must let go."""
    conf = network(**{"cni.dev/valid-attachments": []})
    if verb != "ADD":
        conf["prevResult"] = plugin.add(pod, network()).result()
    env = {"CNI_COMMAND": verb, **attachment_env(pod)}
    argv = plugin.host.argv(*plugin.command)
    assert output_ends_with_the_process(argv, env, encoded(conf))


@pytest.mark.parametrize("argument", ["--help", "ADD", "status", "-x", ""])
def test_arguments_do_not_turn_the_plugin_into_something_else(
    plugin: Plugin, pod: Pod, argument: str
) -> None:
    env = {"CNI_COMMAND": "ADD", **attachment_env(pod)}
    argv = [*plugin.command, argument]
    plugin.run(env, encoded(network()), argv=argv).result()


def test_a_successful_add_says_nothing_on_standard_error(plugin: Plugin, pod: Pod) -> None:
    """libcni copies it raw into the runtime's journal, once per pod."""
    outcome = plugin.add(pod, network())
    outcome.result()
    assert outcome.err == b""


def test_an_error_is_complete_on_standard_output(watched: WatchedNode) -> None:
    """Standard error is dropped when standard output has an error object."""
    error = watched.plugin.add(watched.pod, network(mtu=100)).error(7, says="mtu")
    assert "100" in json.dumps(error)
