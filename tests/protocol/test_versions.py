# SPDX-License-Identifier: Apache-2.0
"""The supported versions, and the VERSION verb."""

from __future__ import annotations

import os
import subprocess

import pytest

from .calls import Outcome, Plugin, attachment_env, network
from .conftest import WatchedNode
from .hosts import Pod
from .schema import NEWEST, VERSIONS, one_document

UNSUPPORTED = ["9.9.9", "1.2.0", "2.0.0", "0.0.0", "0.5.0", "1.0", "1.1", "1", "01.1.0"]
NOT_VERSIONS = ["abc", "v1.1.0", "1.1.0 ", " 1.1.0", "1.1.0\n", "1.1.0-rc1", "1.1.0.0", "1..0", "-"]


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("version", [*UNSUPPORTED, *NOT_VERSIONS])
def test_any_other_version_is_incompatible(watched: WatchedNode, verb: str, version: str) -> None:
    error = watched.plugin.call(verb, network(version), watched.pod).error(1)
    assert error["msg"].startswith("incompatible CNI versions")
    assert version.strip() in error["details"]
    for supported in VERSIONS:
        assert f'"{supported}"' in error["details"]
    assert error["cniVersion"] == NEWEST


@pytest.mark.parametrize("verb", ["CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("version", NOT_VERSIONS)
def test_a_version_that_cannot_be_read_is_refused_by_the_newer_verbs(
    watched: WatchedNode, verb: str, version: str
) -> None:
    watched.plugin.call(verb, network(version), watched.pod).error(1, 6, says="version")


@pytest.mark.parametrize(
    ("verb", "version"),
    [("CHECK", version) for version in (None, "", "0.1.0", "0.2.0", "0.3.0", "0.3.1")]
    + [
        (verb, version)
        for verb in ("GC", "STATUS")
        for version in (None, "", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")
    ],
)
def test_a_verb_newer_than_the_configuration_is_refused(
    watched: WatchedNode, verb: str, version: str | None
) -> None:
    conf = network(version, **{"cni.dev/valid-attachments": []})
    error = watched.plugin.call(verb, conf, watched.pod).error(1)
    assert error["msg"].startswith(f"config version does not allow {verb}")


@pytest.mark.parametrize("verb", ["CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("version", ["1.2.0", "2.0.0", "9.9.9"])
def test_a_configuration_newer_than_the_plugin_is_refused(
    watched: WatchedNode, verb: str, version: str
) -> None:
    conf = network(version, **{"cni.dev/valid-attachments": []})
    error = watched.plugin.call(verb, conf, watched.pod).error(1)
    assert error["msg"].startswith(f"plugin version does not allow {verb}")


@pytest.mark.parametrize("version", [None, "", "null"])
def test_a_configuration_without_a_version_is_of_the_first_one(
    plugin: Plugin, pod: Pod, version: str | None
) -> None:
    conf = network(None) if version is None else network(version)
    if version == "null":
        conf["cniVersion"] = None
    plugin.add(pod, conf).result("0.1.0")


def answer(outcome: Outcome) -> str:
    """The version in a well-formed answer to VERSION."""
    assert outcome.code == 0, outcome
    document = one_document(outcome.out)
    assert set(document) == {"cniVersion", "supportedVersions"}
    assert document["supportedVersions"] == list(VERSIONS)
    version = document["cniVersion"]
    assert isinstance(version, str)
    return version


@pytest.mark.parametrize("version", VERSIONS)
def test_version_echoes_a_supported_version(watched: WatchedNode, version: str) -> None:
    conf = f'{{"cniVersion":"{version}"}}'.encode()
    assert answer(watched.plugin.version(conf)) == version


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"garbage",
        b"{}",
        b"[]",
        b"null",
        b"5",
        b'{"cniVersion":null}',
        b'{"cniVersion":5}',
        b'{"cniVersion":["1.0.0"]}',
        b'{"cniVersion":"9.9.9"}',
        b'{"cniVersion":"1.0"}',
        b'{"cniVersion":"1.0.0"',
        b'{"cniVersion":"1.0.0"} trailing',
        b'{"cniVersion":"\\ud800"}',
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf{}",
        b"[" * 200_000,
    ],
    ids=[
        "empty",
        "garbage",
        "no-version",
        "list",
        "null",
        "number",
        "null-version",
        "number-version",
        "list-version",
        "unsupported",
        "short",
        "truncated",
        "trailing",
        "surrogate",
        "binary",
        "bom",
        "deep",
    ],
)
def test_version_answers_the_newest_to_anything_else(watched: WatchedNode, stdin: bytes) -> None:
    assert answer(watched.plugin.version(stdin)) == NEWEST


def test_version_answers_with_standard_input_closed(watched: WatchedNode) -> None:
    argv = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *watched.plugin.command]
    assert answer(watched.plugin.run({"CNI_COMMAND": "VERSION"}, argv=argv)) == NEWEST


def test_version_answers_with_the_dummies_of_libcni(watched: WatchedNode) -> None:
    names = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
    dummies = dict.fromkeys(names, "dummy")
    assert answer(watched.plugin.version(b'{"cniVersion":"1.1.0"}', **dummies)) == "1.1.0"


@pytest.mark.parametrize("sent", [b"", b'{"cniVersion":"0.4.0"}'], ids=["nothing", "a-document"])
def test_version_does_not_wait_for_the_end_of_standard_input(
    watched: WatchedNode, sent: bytes
) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, sent)
        done = subprocess.run(
            watched.plugin.host.argv(*watched.plugin.command),
            check=False,
            env={"CNI_COMMAND": "VERSION"},
            stdin=reader,
            capture_output=True,
            timeout=10,  # for ever, if it waited
        )
    finally:
        os.close(reader)
        os.close(writer)
    outcome = Outcome("VERSION", done.returncode, done.stdout, done.stderr)
    assert answer(outcome) in ({NEWEST, "0.4.0"} if sent else {NEWEST})


def test_version_needs_no_privileges(watched: WatchedNode) -> None:
    argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *watched.plugin.command]
    env = {"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"}
    assert answer(watched.plugin.run(env, b'{"cniVersion":"0.3.1"}', argv=argv)) == "0.3.1"


@pytest.mark.parametrize("version", VERSIONS)
def test_an_error_speaks_the_version_of_its_configuration(
    watched: WatchedNode, version: str
) -> None:
    error = watched.plugin.add(watched.pod, network(version, mtu=100)).error(7)
    assert error["cniVersion"] == version


@pytest.mark.parametrize("version", VERSIONS)
def test_an_environment_error_speaks_a_supported_version(
    watched: WatchedNode, version: str
) -> None:
    env = {**attachment_env(watched.pod), "CNI_IFNAME": "a/b"}
    error = watched.plugin.call("ADD", network(version), env=env).error(4)
    assert error["cniVersion"] in (version, NEWEST)
