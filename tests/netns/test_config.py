# SPDX-License-Identifier: Apache-2.0
"""config check and config new: libcni's rules, the plugin's own, the line and the remedy."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

GOOD = {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "mycelium-cni"}]}
HOST_DAEMON_SEED = """{
  "cniVersion": "1.0.0",
  "name": "mycelium-network",
  "plugins": [
    {
      "type": "loopback"
    },
    {
      "type": "mycelium-cni",
      "myceliumInterface": "mycelium"
    }
  ]
}
"""
GRID_SEED = '{\n  "cniVersion": "0.4.0",\n  "name": "mycelium",\n  "type": "mycelium-cni"\n}\n'
MULTUS = """{
  "cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus-shim",
  "delegates": [
    {"cniVersion": "0.3.1", "name": "cbr0", "plugins": [{"type": "flannel"}]},
    {"cniVersion": "0.1.0", "name": "mycelium-cni-network", "type": "mycelium-cni"%s}
  ]
}
"""


class Config:
    def __init__(self, command: list[str], directory: Path) -> None:
        self._command = command
        self.directory = directory

    def __call__(self, *argv: str, sent: str | None = None) -> subprocess.CompletedProcess[str]:
        argv_ = [*self._command, "config", *argv]
        return subprocess.run(argv_, input=sent, capture_output=True, text=True, check=False)

    def check(self, text: str | bytes, name: str = "10-a.conflist") -> dict[str, Any]:
        path = self.directory / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        done = self("check", "--json", str(path))
        assert done.stderr == ""
        found: dict[str, Any] = json.loads(done.stdout)[0]
        assert done.returncode == (0 if found["valid"] else 1)
        assert self("check", str(path)).returncode == done.returncode
        return found


@pytest.fixture
def config(command: list[str], tmp_path: Path) -> Config:
    return Config(command, tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (HOST_DAEMON_SEED, "10-mycelium.conflist"),
        (GRID_SEED, "10-mycelium.conf"),
        (GRID_SEED, "10-mycelium.json"),
        (json.dumps(GOOD), "a.conflist"),
        (MULTUS % "", "00-multus.conf"),
    ],
)
def test_good_files(config: Config, text: str, name: str) -> None:
    found = config.check(text, name)
    assert found["valid"], found
    assert not [fault for fault in found["faults"] if fault["fatal"]]


def test_the_grid_seeds_conflist_is_explained_and_its_valid_form_shown(config: Config) -> None:
    found = config.check(GRID_SEED)
    assert not found["valid"]
    assert "no 'plugins' key" in found["faults"][0]["what"]
    better = json.dumps(found["better"])
    assert config.check(better)["valid"]
    assert found["better"]["plugins"] == [{"type": "mycelium-cni"}]
    config.check(GRID_SEED)
    shown = config("check", str(config.directory / "10-a.conflist")).stdout
    assert json.loads(shown[shown.index("\n{") :]) == found["better"]


V1 = '"cniVersion": "1.0.0",'


def lines(*rows: str) -> str:
    return "\n".join(rows)


def plugin(*rows: str) -> str:
    """A list whose second plugin is ours, with these lines from line 6 on."""
    head = ('{ "cniVersion": "1.0.0", "name": "n",', '  "plugins": [', '    {"type": "bridge"},')
    return lines(*head, "    {", '      "type": "mycelium-cni",', *rows, "    }", "  ]", "}")


def beside(members: str) -> str:
    """A list of our plugin, with these members beside `plugins`."""
    return f'{{{V1} "name": "n", "plugins": [{{"type": "mycelium-cni"}}], {members}}}'


GOOD_TEXT = json.dumps(GOOD)
OTHER_FILES = {
    "byte order mark": ("\ufeff" + GOOD_TEXT, 1, "without BOM"),
    "NUL at the end": (GOOD_TEXT + "\0", 1, "NUL byte at the end"),
    "NULs in the middle": (GOOD_TEXT.replace(",", ",\0", 1), 1, "NUL"),
    "word processor": (GOOD_TEXT.replace('"', "\u201c"), 1, 'write "'),
    "no-break space": (GOOD_TEXT.replace(": ", ":\u00a0"), 1, "no-break space"),
    "zero width space": (GOOD_TEXT.replace(": ", ":\u200b "), 1, "zero width space"),
    "} missing": ('{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "x"]}', 1, "a } is"),
    "] missing": ('{"cniVersion": "1.0.0", "plugins": [{"type": "x"}, "name": "n"}', 1, "list"),
    "cut off": (lines("{", V1, '"name": "n",', '"plugins": [{"type": "x"'), 4, "add }]} at the"),
    "} too many": (GOOD_TEXT + "}", 1, "one } too many"),
    "{ missing": (GOOD_TEXT[1:], 1, "a { is missing"),
    "quote of a key": (plugin('"ingress: "closed"'), 6, 'write "ingress":'),
    "quote of a value": (plugin('"mode": "routed, "mtu": 1400'), 6, 'write "routed"'),
    "quote at the end of a line": (plugin('"mode": "routed,', '"mtu": 1400'), 6, 'write "routed"'),
    "quote before a value": (plugin('"mode": routed"'), 6, 'missing before routed'),
    "no quotes at all": (plugin("mode: routed"), 6, 'write "mode"'),
    "colon": (plugin('"mtu" 1400'), 6, "add the colon"),
    "equals sign": (plugin('"mtu" = 1400'), 6, "write a colon"),
    "semicolon": (plugin('"mtu": 1400;', '"mode": "routed"'), 6, "write a comma"),
    "comma between plugins": (lines("{", V1, '"name": "n", "plugins": [', '{"type": "a"}',
                                    '{"type": "b"}]}'), 5, "add the comma"),
    "comma at the end": (plugin('"mtu": 1400,'), 6, "remove the comma"),
    "two commas": (plugin('"mtu": 1400,,', '"mode": "routed"'), 6, "remove the comma"),
    "plugin among keys": (lines("{", V1, '"name": "n", "type": "mycelium-cni",', '{"type": "b"}}'),
                          4, 'plugins belong in "plugins"'),
    "Python": (plugin('"defaultRoute": True'), 6, "write true"),
    "Python's nothing": (plugin('"defaultRoute": None'), 6, "write null"),
    "Python's tuple": (plugin('"allowFrom": ("400::/8",), "ingress": "cluster"'), 6, "write ["),
    "Python's prefix": (plugin('"mode": u"routed"'), 6, "remove the u"),
    "Python's long string": (plugin('"mode": """routed"""'), 6, "write it on one line"),
    "thousands": (plugin('"mtu": 1,400'), 6, "write 1400"),
    "an arrow": (plugin('"mtu" => 1400'), 6, "write a colon"),
    "a quote too many": (plugin('"mode": "routed""'), 6, "remove it"),
    "comment of HTML": (plugin('<!-- bytes --> "mtu": 1400'), 6, "no comments"),
    "escaped quotes": (GOOD_TEXT.replace('"', '\\"'), 1, 'write " for each'),
    "keys of TOML": ('cniVersion = "1.0.0"\nname = "n"\n', 1, "is TOML"),
    "line numbers": ("1 {\n2   " + GOOD_TEXT[1:], 1, "copy it without them"),
    "not a number": (plugin('"mtu": NaN'), 6, "write a number"),
    "infinity": (plugin('"mtu": -Infinity'), 6, "write a number"),
    "a point behind a number": (plugin('"mtu": 1400.'), 6, "write 1400"),
    "full-width comma": (plugin('"mtu": 1400\uff0c', '"mode": "routed"'), 6, "write , everywhere"),
    "full-width colon": (plugin('"mtu"\uff1a1400'), 6, "write : everywhere"),
    "full-width quotes": (plugin('"mode": \uff02routed\uff02'), 6, 'write "'),
    "full-width braces": (plugin('"args": \uff5b\uff5d'), 6, "write { everywhere"),
    "wrapped value": (plugin('"netseed": "/etc/', 'netseed", "mtu": 1400'), 6, "on one line"),
    "wrapped key": (plugin('"allow', 'From": [], "mtu": 1400'), 6, "on one line"),
    "hexadecimal": (plugin('"mtu": 0x578'), 6, "write 1400"),
    "prefix without quotes": (plugin('"routes": [{"dst": 400::/7}]'), 6, 'write "400::/7"'),
    "backslash": (plugin(r'"logFile": "C:\Users"'), 6, "write \\\\ for a backslash"),
    "tab in a string": (plugin('"logFile": "/var/\tlog"'), 6, "write \\t"),
    "comment": (plugin('"mtu": 1400 # bytes'), 6, "no comments"),
    "YAML": ("cniVersion: 1.0.0\nname: n\nplugins:\n- type: mycelium-cni\n", 1, "is YAML"),
    "manifest": ("apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\n", 1,
                 "check the text of spec.config"),
    "JSON manifest": ('{"apiVersion": "v1", "kind": "Pod"}', 1, "Kubernetes manifest"),
    "template": (plugin('"mtu": {{ .Values.mtu }}'), 6, "{{ .Values.mtu }} is not filled in"),
    "placeholder": (plugin('"mtu": __CNI_MTU__'), 6, "__CNI_MTU__ is not filled in"),
    "web page": ("<!DOCTYPE html>\n<html><title>404</title></html>", 1, "fetch it again"),
    "gzip": (gzip.compress(GOOD_TEXT.encode()), 1, "gunzip"),
    "UTF-16": (GOOD_TEXT.encode("utf-16"), 1, "save it as UTF-8"),
    "UTF-16 without a mark": (GOOD_TEXT.encode("utf-16-le"), 1, "save it as UTF-8"),
    "a program": (b"\x7fELF\2\1\1", 1, "is a program"),
    "an archive": (b"conflist" + bytes(92) + b"\x80" * 40, 1, "is not text"),
    "base64": (base64.b64encode(GOOD_TEXT.encode()), 1, "base64 -d"),
    "a server's error": ("404: Not Found", 1, "fetch it again"),
    "headers": (f"HTTP/1.1 200 OK\r\n\r\n{GOOD_TEXT}", 1, "without them"),
    "Markdown": (f"```json\n{GOOD_TEXT}\n```\n", 1, "the lines with ```"),
    "a script": (f"cat >x.conflist <<EOF\n{GOOD_TEXT}\nEOF\n", 1, "commands of a shell"),
    "a diff": (f"+{GOOD_TEXT}\n", 1, "git apply"),
    "a merge": (f"{GOOD_TEXT[:1]}\n<<<<<<< ours\n{GOOD_TEXT[1:]}\n=======\n", 2, "keep one"),
    "TOML": ('[plugins."io.containerd.grpc"]\nbin_dir = "/opt/cni/bin"\n', 1, "is TOML"),
    "YAML's word": (plugin('"defaultRoute": yes'), 6, "write true"),
    "two documents with a line between": (f"{GOOD_TEXT}\n---\n{GOOD_TEXT}", 2, "a second document"),
    "two documents": (f"{GOOD_TEXT}\n{GOOD_TEXT}", 2, "a second document"),
    "here-document": (f"{GOOD_TEXT}\nEOF\n", 2, "here-document"),
    "all in quotes": (json.dumps(GOOD_TEXT), 1, "remove the quotes around it"),
    "list in a list": (f'{{{V1} "name": "n", "plugins": [[{{"type": "x"}}]]}}', 1, "the inner ["),
    "path as type": (f'{{{V1} "name": "n", "plugins": [{{"type": "/opt/cni/bin/x"}}]}}', 1,
                     'write "x"'),
    "name with a slash": (GOOD_TEXT.replace('"n"', '"default/net"'), 1, '"default-net"'),
    "version with a v": ('{"cniVersion": "v1.0.0", "name": "n", "plugins": [{"type": "x"}]}', 1,
                         'write "1.0.0"'),
    "version as a number": ('{"cniVersion": 1.0, "name": "n", "plugins": [{"type": "x"}]}', 1,
                            'write "1.0.0"'),
}  # fmt: skip


ONE_FAULT = [
    plugin('"mode": """routed"""'),
    plugin('"mode": u"routed", "mtu": 1400'),
    plugin('"mtu": 1,400, "mode": "routed"'),
    plugin('"mtu": 1 400, "mode": "routed"'),
    plugin('"mtu" => 1400, "mode": "routed"'),
    plugin('"mode": "routed"", "mtu": 1400'),
    plugin('"mode": "routed", <!-- as before --> "mtu": 1400'),
    GOOD_TEXT.replace('"', '\\"'),
    plugin('"mtu"\uff1a 1400,', '"mode"\uff1a "routed"'),
    plugin('"mode": "routed"\u3001', '"mtu": 1400'),
    plugin('"mtu": Infinity'),
    plugin('"netseed": "/etc/', "  mycelium/", '  netseed"'),
]


@pytest.mark.parametrize("text", ONE_FAULT)
def test_one_fault_is_told_as_one(config: Config, text: str) -> None:
    fatal = [fault for fault in config.check(text)["faults"] if fault["fatal"]]
    assert len(fatal) == 1, fatal


@pytest.mark.parametrize(("text", "line", "words"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_what_people_really_have_is_named_with_its_remedy(
    config: Config, text: str | bytes, line: int, words: str
) -> None:
    found = config.check(text)
    assert not found["valid"], found
    fatal = [fault for fault in found["faults"] if fault["fatal"]]
    assert any(
        fault["line"] == line and words in f"{fault['what']}; {fault['remedy']}" for fault in fatal
    ), fatal
    for fault in fatal:
        assert "look at" not in fault["remedy"]


def test_all_faults_are_told_at_once(config: Config) -> None:
    """Faults in the JSON, in the list and in the plugin's keys."""
    text = lines(
        "{",
        "  // our network",
        '  "cniVersion": "v1.0.0",',
        '  "name": "my net",',
        '  "plugins": [',
        "    {'type': 'mycelium-cni',",
        '     "mtu": 12,',
        '     "mode": "bridged"',
        '     "defaultRoute": True,',
        '     "routes": [{"dst": "10.0.0.0/8"}],',
        "    }",
        "  ]",
    )
    found = config.check(text)
    told = {fault["line"]: fault["what"] for fault in found["faults"] if fault["fatal"]}
    assert set(told) >= {2, 3, 4, 6, 7, 8, 9, 10, 12}, told


def test_all_faults_inside_one_key_are_told(config: Config) -> None:
    text = plugin(
        '"capabilities": {"mac": 1,',
        '  "ips": 2},',
        '"ingress": "cluster", "allowFrom": ["4aa::/16",',
        '  "400::x",',
        '  "10.0.0.0/8"],',
        '"routes": [5,',
        '  {"dst": "10.0.0.0/8",',
        '   "mtu": 7},',
        '  {"dst": "400::/7"},',
        '  {"dst": "400::/7", "priority": 3, "advmss": -1}],',
        '"dns": {"nameservers": 5,',
        '  "search": 6}',
    )
    fatal = [fault for fault in config.check(text)["faults"] if fault["fatal"]]
    named = {fault["what"].split()[1]: fault["line"] for fault in fatal}
    assert named == {
        "capabilities.mac": 6,
        "capabilities.ips": 7,
        "allowFrom[1]": 9,
        "allowFrom[2]": 10,
        "routes[0]": 11,
        "routes[1].dst": 12,
        "routes[1].mtu": 13,
        "routes[3].advmss": 15,
        "dns.nameservers": 16,
        "dns.search": 17,
    }


def test_a_thousand_faults_are_answered_in_time(config: Config) -> None:
    routes = json.dumps([{"dst": str(n)} for n in range(1000)])
    found = config.check(plugin(f'"routes": {routes}'))
    assert len(found["faults"]) == 100


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ('[{"type": "mycelium"}]', 'did you mean "mycelium-cni"?'),
        ('[{"type": "mycelium_cni"}]', 'did you mean "mycelium-cni"?'),
        ('[{"type": "portmap"}, {"type": "mycelium-cni"}]', "move it after mycelium-cni"),
        ('[{"type": "mycelium-cni"}, {"type": "mycelium-cni"}]', "twice"),
        ('[{"type": "multus", "delegates": "[{\\"type\\": \\"mycelium-cni\\"}]"}]', "holds JSON"),
    ],
)
def test_what_cannot_work_is_a_warning(config: Config, plugins: str, words: str) -> None:
    found = config.check(f'{{{V1} "name": "n", "plugins": {plugins}}}')
    assert found["valid"]
    assert any(words in f"{fault['what']}; {fault['remedy']}" for fault in found["faults"]), found


def test_a_text_of_any_shape_is_answered_in_time(config: Config) -> None:
    for text in ("[" * 200_000, '{"a":' * 50_000, '"' * 200_000, ",{" * 100_000):
        assert not config.check(text)["valid"]
    for text in ("{" + "\0" * 200_000, "\n" * 200_000 + "x", '{"a": {{x}} ' + "{{x}}" * 50_000):
        assert not config.check(text)["valid"]
    plugins = ",".join(['{"type": ""}'] * 20_000)
    found = config.check(f'{{{V1} "name": "n", "plugins": [{plugins}]}}')
    assert not found["valid"]
    assert len(found["faults"]) == 100
    keys = ",".join(f'"ingres{n}": 1' for n in range(20_000))
    assert config.check(beside(keys))["valid"]
    assert not config.check('{"name": "' + "n" * 900_000 + '", "plugins": []}')["valid"]
    shown = config("check", str(config.directory / "10-a.conflist")).stdout
    assert len(shown) < 5_000


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "empty"),
        ("{", 1, "not JSON"),
        (lines("{", '  "name": "x",', "}"), 2, "remove the comma"),
        (lines("{", "  // why", '  "name": "x"', "}"), 2, "no comments"),
        (lines("{", "  'name': 'x'", "}"), 2, "double quotes"),
        (lines("{", '  "name": "x"', '  "plugins": []', "}"), 3, "add the comma"),
        ("[]", 1, "no object"),
        (b"\xff\xfe", 1, "UTF-8"),
        (b"\xef\xbb\xbf{}", 1, ""),
        ('{"name": NaN}', 1, "NaN"),
        ("[" * 100_000, 1, "nested too deeply"),
        (lines("{", '"name": "n", "cniVersion": "1.0.0",', '"plugins": []}'), 3, "empty"),
        (lines("{", '"name": "n", "cniVersion": "1.0.0",', '"plugins": {}}'), 3, "not a list"),
        (lines("{", '"cniVersion": "1.0.0", "plugins": [', '{"type": "x"}]}'), 1, "no name"),
        (lines("{", V1, '"name": "a b", "plugins": [{"type": "x"}]}'), 3, "name"),
        (lines("{", '"name": "n",', '"cniVersion": "9.0.0",', '"plugins": []}'), 3, "0.4.0"),
        (lines("{", V1, '"name": "n", "plugins": [', '{"typo": "x"}]}'), 4, "no type"),
        (plugin('"mtu": 12'), 6, "1280"),
        (plugin('"mode": "bridged"'), 6, "routed"),
        (plugin('"routes": [', '{"dst": "400::/7"},', '{"dst": "10.0.0.0/8"}]'), 8, "IPv6"),
        (plugin('"routes": [', '{"dst": "400::/7",', '"mtu": 1}]'), 8, "1280"),
        (plugin('"routes": [', "5]"), 7, "must be an object such as"),
        (plugin('"args": {"cni": 7}'), 6, ""),
        (plugin('"netseed": "etc/netseed"'), 6, "absolute"),
        (plugin('"Ingress": "closed"'), 6, "who may reach the pods"),
    ],
)  # fmt: skip
def test_faults_have_a_line_and_a_remedy(
    config: Config, text: str | bytes, line: int, words: str
) -> None:
    found = config.check(text)
    if words == "" and found["valid"]:
        return  # what only ADD refuses, and what json accepts
    assert not found["valid"], found
    fatal = [fault for fault in found["faults"] if fault["fatal"]]
    assert any(
        fault["line"] == line and (words in fault["what"] or words in fault["remedy"])
        for fault in fatal
    ), fatal
    assert all(fault["remedy"] for fault in fatal)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (plugin('"brige": "x"'), 'did you mean "bridge"?'),
        (plugin('"myceliuminterface": "x"'), 'did you mean "myceliumInterface"?'),
        (plugin('"ipam": {"type": "host-local"}'), "ipam is ignored"),
        (plugin('"capabilities": {"bandwidth": true}'), "the plugin does not have bandwidth"),
        (plugin('"logFile": "/nonexistent/log"'), "mkdir -p /nonexistent"),
        (plugin('"logFile": "/dev/full"'), "/dev/full cannot be written"),
        (beside('"ingress": "closed"'), "into the entry of type mycelium-cni"),
        (beside('"ingress:": "closed"'), 'move it, as "ingress", into'),
        (beside('"disablecheck": true'), 'did you mean "disableCheck"?'),
        (beside('"adapterName": ""'), '"adapterName" beside plugins is ignored'),
        (plugin('"mtu": 1400,', '"mtu": 1300'), "given twice"),
        ('{"name": "n", "plugins": [{"type": "mycelium-cni"}]}', "assume 0.1.0"),
    ],
)
def test_warnings_do_not_refuse(config: Config, text: str, words: str) -> None:
    found = config.check(text)
    assert found["valid"]
    assert any(words in fault["what"] + fault["remedy"] for fault in found["faults"]), found


def test_keys_beside_plugins_that_somebody_reads_are_no_fault(config: Config) -> None:
    read = '"cniVersions": ["1.0.0"], "disableCheck": true, "args": {"podman_labels": {}}'
    assert config.check(beside(read + ', "_comment": "x"'))["faults"] == []


def test_a_delegate_of_multus_is_looked_into(config: Config) -> None:
    found = config.check(MULTUS % ', "mtu": 3', "00-multus.conf")
    assert not found["valid"]
    assert found["faults"][0]["line"] == 5


def test_a_list_in_a_conf_file(config: Config) -> None:
    found = config.check(json.dumps(GOOD), "a.conf")
    assert "rename it to .conflist" in found["faults"][0]["remedy"]


def test_a_directory_and_standard_input(config: Config) -> None:
    config.check(json.dumps(GOOD), "20-good.conflist")
    config.check(GRID_SEED, "10-bad.conflist")
    (config.directory / "readme.txt").write_text("not ours to read")
    done = config("check", str(config.directory))
    assert done.returncode == 1
    assert done.stdout.index("10-bad") < done.stdout.index("20-good")
    for name in ("-", "/dev/stdin"):
        assert config("check", name, sent=json.dumps(GOOD)).returncode == 0
    assert "cannot read" in config("check", "/nonexistent").stderr


def test_escape_sequences_in_a_file_are_shown_spelled_out(config: Config) -> None:
    text = plugin('"mode": "\\u001b[31mred\\u0007"').replace('"n"', '"\\u001b[2J"')
    config.check(text)
    shown = config("check", str(config.directory / "10-a.conflist")).stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown


OLD = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")  # as plugins 1.1.1 of Debian 12
NEW = (*OLD, "1.1.0")


def portmap(directory: Path, *versions: str) -> tuple[str, str]:
    """A plugin that speaks these versions, and the arguments that let it be found."""
    speaking(directory / "portmap", *versions)
    return "--bin-dir", str(directory)


def speaking(plugin: Path, *versions: str) -> None:
    """Write a plugin that speaks these versions."""
    said = json.dumps({"cniVersion": "1.0.0", "supportedVersions": versions})
    plugin.write_text(f"#!/bin/sh\necho '{said}'\n")
    plugin.chmod(0o755)


def made(config: Config, *flags: str) -> dict[str, Any]:
    done = config("new", *flags)
    assert done.returncode == 0, done.stderr
    assert config.check(done.stdout)["valid"]
    network: dict[str, Any] = json.loads(done.stdout)
    return network


FIRST = ("kubeadm", "k3s", "rke2", "microk8s", "containerd", "cri-o", "podman")


@pytest.mark.parametrize("runtime", FIRST)
def test_new_writes_the_same_first_network_for_every_runtime(
    config: Config, runtime: str, tmp_path: Path
) -> None:
    assert made(config, "--for", runtime, *portmap(tmp_path, *NEW)) == {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "mycelium",
        "plugins": [
            {"type": "mycelium-cni", "defaultRoute": True, "ipMasq": True},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def test_a_runtime_is_known_however_its_name_is_written(config: Config) -> None:
    for name in ("crio", "CRI-O", "RKE2", "MicroK8s"):
        assert made(config, "--for", name)["plugins"][0]["type"] == "mycelium-cni"
    refused = config("new", "--for", "docker")
    assert refused.returncode == 2
    assert "cri-o" in refused.stderr


def test_new_gives_nomad_ipv4_before_ours(config: Config, tmp_path: Path) -> None:
    for name in ("loopback", "bridge", "host-local"):
        speaking(tmp_path / name, *NEW)
    flags = ("--for", "nomad", *portmap(tmp_path, *NEW))
    assert config("new", *flags).stderr == ""
    network = made(config, *flags)
    lo, bridge, ours, portmapper = network["plugins"]
    assert lo == {"type": "loopback"}
    assert (bridge["type"], bridge["ipMasq"]) == ("bridge", True)
    assert bridge["ipam"]["ranges"] == [[{"subnet": "172.26.80.0/20"}]]
    assert ours == {"type": "mycelium-cni"}
    assert portmapper["type"] == "portmap"
    assert network["disableCheck"] is True
    assert network["cniVersions"] == ["1.0.0", "1.1.0"]
    out = made(config, *flags, "--default-route", "--no-portmap")["plugins"]
    assert out[2:] == [{"type": "mycelium-cni", "defaultRoute": True}]


def test_new_names_the_plugins_of_nomads_network_that_are_not_there(
    config: Config, tmp_path: Path
) -> None:
    speaking(tmp_path / "loopback", *NEW)
    done = config("new", "--for", "nomad", *portmap(tmp_path, *NEW))
    assert [one["type"] for one in json.loads(done.stdout)["plugins"]][1] == "bridge"
    (said,) = done.stderr.splitlines()
    assert f"no bridge and no host-local in {tmp_path}" in said
    assert "install the CNI plugins" in said


def test_new_writes_a_second_network_for_multus(config: Config, tmp_path: Path) -> None:
    network = made(config, "--for", "multus", *portmap(tmp_path, *OLD))
    assert network["plugins"] == [{"type": "mycelium-cni"}]
    assert network["cniVersions"] == ["1.0.0", "1.1.0"]


@pytest.mark.parametrize("versions", [OLD, ()], ids=["old", "silent"])
def test_new_offers_no_version_that_a_chained_plugin_does_not_speak(
    config: Config, versions: tuple[str, ...], tmp_path: Path
) -> None:
    network = made(config, *portmap(tmp_path, *versions))
    assert network["plugins"][1]["type"] == "portmap"
    assert (network["cniVersion"], network.get("cniVersions")) == ("1.0.0", None)


def test_the_documented_network_is_the_one_that_new_writes(config: Config, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
    shown = page.partition("```json\n")[2].partition("```")[0]
    assert config("new", *portmap(tmp_path, *OLD)).stdout == shown


def test_new_leaves_out_a_portmap_that_is_not_there_and_says_so(
    config: Config, tmp_path: Path
) -> None:
    done = config("new", "--bin-dir", str(tmp_path))
    assert [one["type"] for one in json.loads(done.stdout)["plugins"]] == ["mycelium-cni"]
    assert "hostPort" in done.stderr
    wanted = config("new", "--bin-dir", str(tmp_path), "--portmap")
    assert json.loads(wanted.stdout)["plugins"][1]["type"] == "portmap"
    unwanted = config("new", *portmap(tmp_path, *NEW), "--no-portmap")
    assert (len(json.loads(unwanted.stdout)["plugins"]), unwanted.stderr) == (1, "")


def test_new_has_an_argument_for_every_key(config: Config) -> None:
    wanted = {
        "mode": ("--mode", "routed"),
        "myceliumInterface": ("--interface", "my0"),
        "bridge": ("--bridge", "br9"),
        "netseed": ("--netseed", "/etc/key"),
        "addressing": ("--addressing", "stable"),
        "mtu": ("--mtu", "1380"),
        "interfaceName": ("--interface-name", "over0"),
        "routes": ("--route", "400::/7"),
        "serviceNetworks": ("--service-network", "fd00:10:96::/112"),
        "defaultRoute": ("--default-route",),
        "ipMasq": ("--ip-masq",),
        "transit": ("--transit",),
        "peering": ("--peering",),
        "ingress": ("--ingress", "cluster"),
        "allowFrom": ("--allow-from", "5a1::/64"),
        "guard": ("--guard", "required"),
        "capabilities": ("--capability", "ips"),
        "logLevel": ("--log-level", "debug"),
        "logFile": ("--log-file", "/var/log/my"),
    }
    flags = [word for words in wanted.values() for word in words]
    (plugin,) = made(config, "--for", "multus", *flags)["plugins"]
    assert plugin.keys() == {"type", *wanted}
    assert plugin["serviceNetworks"] == ["fd00:10:96::/112"]
    assert plugin["mtu"] == 1380


def test_check_names_a_plugin_that_is_too_old_for_what_is_offered(
    config: Config, tmp_path: Path
) -> None:
    network = made(config, *portmap(tmp_path, *NEW))
    path = config.directory / "10-a.conflist"
    path.write_text(json.dumps(network))
    bins = portmap(tmp_path, *OLD)
    (found,) = json.loads(config("check", "--json", *bins, str(path)).stdout)
    (fault,) = (one for one in found["faults"] if "portmap" in one["what"])
    assert "1.1.0" in fault["what"]
    assert not fault["fatal"]


def test_check_on_a_kubernetes_node_misses_portmap(config: Config, tmp_path: Path) -> None:
    path = config.directory / "10-a.conflist"
    path.write_text(json.dumps(GOOD))
    root = tmp_path / "node"
    argv = ("check", "--json", "--root", str(root), str(path))
    assert json.loads(config(*argv).stdout)[0]["faults"] == []
    (root / "var/lib/kubelet").mkdir(parents=True)
    (fault,) = json.loads(config(*argv).stdout)[0]["faults"]
    assert "hostPort" in fault["what"]


@pytest.mark.parametrize("flags", [("--mtu", "9"), ("--name", "a b"), ("--netseed", "x")])
def test_new_refuses_what_check_would(config: Config, flags: tuple[str, ...]) -> None:
    done = config("new", *flags)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_output_replaces_a_file_at_once(config: Config) -> None:
    path = config.directory / "10-mycelium.conflist"
    path.write_text("old")
    before = path.stat().st_ino
    assert config("new", "--output", str(path)).returncode == 0
    assert path.stat().st_ino != before
    assert [p.name for p in config.directory.iterdir()] == [path.name]


def test_the_manifest_for_multus_holds_the_same_json(config: Config) -> None:
    manifest = config("new", "--for", "multus", "--manifest").stdout
    head, _, rest = manifest.partition("config: |\n")
    assert "kind: NetworkAttachmentDefinition" in head
    assert config.check(rest)["valid"]
