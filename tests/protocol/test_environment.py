# SPDX-License-Identifier: Apache-2.0
"""The CNI_* variables are checked before anything is read (CNI SPEC.md, section "Parameters")."""

from __future__ import annotations

import re
from itertools import combinations

import pytest

from .calls import Plugin, encoded, network
from .conftest import WatchedNode
from .hosts import Pod
from .schema import VERSIONS

REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
}
LACKING = [
    (verb, names)
    for verb, required in REQUIRED.items()
    for size in range(1, len(required) + 1)
    for names in combinations(required, size)
]
JUNK = b"this is not JSON"


@pytest.mark.parametrize("nothing", [None, ""], ids=["unset", "empty"])
@pytest.mark.parametrize(
    ("verb", "names"), LACKING, ids=[f"{verb}-{'-'.join(names)}" for verb, names in LACKING]
)
def test_all_missing_variables_are_named_in_order(
    watched: WatchedNode, verb: str, names: tuple[str, ...], nothing: str | None
) -> None:
    outcome = watched.plugin.call(verb, network(), watched.pod, dict.fromkeys(names, nothing))
    assert outcome.error(4)["msg"] == f"required env variables [{','.join(names)}] missing"


@pytest.mark.parametrize("nothing", [None, ""], ids=["unset", "empty"])
def test_without_a_command_the_about_text_goes_to_standard_error(
    watched: WatchedNode, nothing: str | None
) -> None:
    outcome = watched.plugin.run({"CNI_COMMAND": nothing})
    assert outcome.code == 0, outcome
    assert outcome.out == b"", outcome
    first, second, *_ = outcome.err.decode().splitlines()
    # As the reference plugins: Nomad looks for the first word that is a version.
    assert re.fullmatch(r"CNI mycelium-cni plugin v\d+\.\d+\.\d+", first)
    assert second == f"CNI protocol versions supported: {', '.join(VERSIONS)}"


@pytest.mark.parametrize(
    "verb", ["NOPE", "add", "Add", "ADD ", " ADD", "ADD\n", "UPDATE", "ADDDEL", "-h", "é", "\t"]
)
def test_an_unknown_command_is_refused_by_its_name(watched: WatchedNode, verb: str) -> None:
    error = watched.plugin.call(verb, network(), watched.pod).error(4)
    assert error["msg"].startswith("unknown CNI_COMMAND:")
    assert verb.strip() in error["msg"]


def test_a_command_that_is_not_utf8_is_refused(watched: WatchedNode) -> None:
    stdin = encoded(network())
    watched.plugin.run({"CNI_COMMAND": b"\xff\xfe"}, stdin).error(4, says="CNI_COMMAND")


BAD_CONTAINER_IDS = {
    "starts-with-dash": "-a",
    "starts-with-underscore": "_a",
    "starts-with-dot": ".a",
    "space": "a b",
    "leading-space": " a",
    "slash": "a/b",
    "backslash": "a\\b",
    "parent": "../a",
    "accent": "é",
    "accent-inside": "aéb",
    "arabic-digit": "\u0661a",
    "fullwidth-letter": "\uff21",
    "trailing-newline": "a\n",
    "newline-inside": "a\nb",
    "percent": "some-%%id",
    "colon": "a:b",
    "semicolon": "a;reboot",
    "dollar": "$(reboot)",
    "quote": 'a"b',
    "escape": "a\x1b[31m",
    "plus": "a+b",
    "not-utf8": b"a\xff",
    "surrogate-bytes": b"a\xed\xa0\x80",
}


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize(
    "value", list(BAD_CONTAINER_IDS.values()), ids=list(BAD_CONTAINER_IDS.keys())
)
def test_a_container_id_with_other_characters_is_refused(
    watched: WatchedNode, verb: str, value: str | bytes
) -> None:
    outcome = watched.plugin.call(verb, network(), watched.pod, {"CNI_CONTAINERID": value})
    assert outcome.error(4)["msg"].startswith("invalid characters in containerID")


@pytest.mark.parametrize(
    "value",
    ["0123456789abcdef" * 4, "A.b_c-D9", "default-" + "f" * 64, "c" * 300, "0"],
    ids=["hex64", "all-characters", "nerdctl", "300-long", "one-character"],
)
def test_a_container_id_of_any_runtime_is_accepted(plugin: Plugin, pod: Pod, value: str) -> None:
    plugin.add(pod, network(), CNI_CONTAINERID=value).result()
    plugin.delete(pod, network(), CNI_CONTAINERID=value).is_silent_success()
    assert "eth0" not in pod.links()


CHARACTERS = "interface name contains / or : or whitespace characters"
BAD_INTERFACE_NAMES = {
    "16-bytes": ("a" * 16, "interface name is too long"),
    "8-accents-are-16-bytes": ("é" * 8, "interface name is too long"),
    "very-long": ("x" * 4000, "interface name is too long"),
    "dot": (".", "interface name is . or .."),
    "two-dots": ("..", "interface name is . or .."),
    "slash": ("a/b", CHARACTERS),
    "colon": ("eth0:1", CHARACTERS),
    "space": ("a b", CHARACTERS),
    "tab": ("a\tb", CHARACTERS),
    "newline": ("a\nb", CHARACTERS),
    "trailing-newline": ("eth0\n", CHARACTERS),
    "vertical-tab": ("a\vb", CHARACTERS),
    "next-line": ("a\u0085b", CHARACTERS),
    "no-break-space": ("a\u00a0b", CHARACTERS),
    "em-space": ("a\u2003b", CHARACTERS),
    "ideographic-space": ("a\u3000b", CHARACTERS),
}


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize(
    ("value", "says"), list(BAD_INTERFACE_NAMES.values()), ids=list(BAD_INTERFACE_NAMES.keys())
)
def test_an_interface_name_that_linux_cannot_hold_is_refused(
    watched: WatchedNode, verb: str, value: str, says: str
) -> None:
    outcome = watched.plugin.call(verb, network(), watched.pod, {"CNI_IFNAME": value})
    assert outcome.error(4)["msg"].startswith(says)


@pytest.mark.parametrize(
    "value",
    ["eth%d", "%d", "a%", "a%b", "lo", "all", "default", "à", b"a\xff", b"\xed\xa0\x80"],
    ids=[
        "template",
        "bare-template",
        "last",
        "inside",
        "lo",
        "all",
        "default",
        "letter-with-byte-a0-which-the-kernel-takes-for-a-space",
        "latin1",
        "wtf8",
    ],
)
def test_add_refuses_an_interface_name_that_means_something_else_to_the_kernel(
    watched: WatchedNode, value: str | bytes
) -> None:
    watched.plugin.add(watched.pod, network(), CNI_IFNAME=value).error(4, says="interface name")


@pytest.mark.parametrize("value", ["eth0", "net1", "a" * 15, "é", "éèùôïç", "a.b-c_d", "@!{}"])
def test_an_interface_name_that_linux_can_hold_is_given_to_the_pod_link(
    plugin: Plugin, pod: Pod, value: str
) -> None:
    result = plugin.add(pod, network(), CNI_IFNAME=value).result()
    assert result["interfaces"][1]["name"] == value
    assert value in pod.links()


@pytest.mark.parametrize("value", ["lo", "all", "default", "eth%d"])
def test_del_of_a_name_that_add_refuses_removes_nothing(watched: WatchedNode, value: str) -> None:
    outcome = watched.plugin.delete(watched.pod, network(), CNI_IFNAME=value)
    if outcome.code:
        outcome.error(4)
    else:
        outcome.is_silent_success()
    assert "lo" in watched.pod.links()


@pytest.mark.parametrize(
    "junk",
    [
        {"CNI_CONTAINERID": "-/ %", "CNI_IFNAME": "much/too/long/a/name", "CNI_NETNS": "/absent"},
        {"CNI_CONTAINERID": "", "CNI_IFNAME": "", "CNI_NETNS": "", "CNI_ARGS": ""},
        {"CNI_CONTAINERID": "dummy", "CNI_IFNAME": "dummy", "CNI_NETNS": "dummy"},
        {"CNI_ARGS": "IP=junk;;="},
        {"CNI_PATH": "dummy"},
    ],
    ids=["junk", "empty", "dummy", "args", "path"],
)
def test_variables_that_a_verb_does_not_use_are_not_judged(
    watched: WatchedNode, junk: dict[str, str]
) -> None:
    valid = network(**{"cni.dev/valid-attachments": []})
    watched.plugin.gc(valid, **junk).is_silent_success()
    watched.plugin.status(network(), **junk).is_silent_success()
    assert watched.plugin.version(b'{"cniVersion":"1.1.0"}', **junk).code == 0


@pytest.mark.parametrize(
    "env",
    [
        {"CNI_IFNAME": None},
        {"CNI_CONTAINERID": "-a"},
        {"CNI_IFNAME": "a/b"},
        {"CNI_IFNAME": "a/b", "CNI_CONTAINERID": None},
        {"CNI_CONTAINERID": "-a", "CNI_IFNAME": ""},
    ],
    ids=["missing", "bad-id", "bad-name", "bad-name-and-missing-id", "bad-id-and-empty-name"],
)
@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK"])
def test_environment_errors_come_before_those_of_standard_input(
    watched: WatchedNode, verb: str, env: dict[str, str | None]
) -> None:
    watched.plugin.call(verb, JUNK, watched.pod, env).error(4)


def test_cni_path_is_not_required(plugin: Plugin, pod: Pod) -> None:
    result = plugin.add(pod, network(), CNI_PATH=None).result()
    conf = network(prevResult=result)
    plugin.check(pod, conf, CNI_PATH="").is_silent_success()
    plugin.delete(pod, conf, CNI_PATH="/absent:/also absent").is_silent_success()


def test_a_namespace_path_that_is_not_utf8_is_one_error(watched: WatchedNode) -> None:
    watched.plugin.add(watched.pod, network(), CNI_NETNS=b"/run/netns/\xff\xfe").error(8)
