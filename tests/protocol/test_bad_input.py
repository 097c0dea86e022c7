# SPDX-License-Identifier: Apache-2.0
"""The corpus of malformed input.

Every row is one fault: a name, the change, the codes that may answer it, and a word that the
message must contain, so that its reader knows where to look. Always: one error object on standard
output, exit code 1, no traceback, and not one event in the kernel (the `watched` fixture listens).
DEL accepts every fault that does not hide which attachment is meant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .calls import Plugin, encoded, network
from .conftest import WatchedNode
from .hosts import NODE, PREFIX, Host, kernel_state

UNREADABLE = "error unmarshall network config:"
VALID = json.dumps(network()).encode()
OPEN = VALID[:-1]  # the valid configuration without its last brace


def with_(text: bytes) -> bytes:
    """The valid configuration with one more member, written as it stands."""
    return OPEN + b", " + text + b"}"


# ── standard input that is no JSON object ────────────────────────────────────────────────────────
NOT_JSON: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\t ",
    "list": b"[]",
    "list-of-it": b"[" + VALID + b"]",
    "string": b'"x"',
    "number": b"5",
    "true": b"true",
    "truncated-object": OPEN,
    "truncated-string": b'{"name": "over',
    "truncated-key": b'{"na',
    "truncated-literal": with_(b'"a": tru'),
    "open-brace": b"{",
    "closing-brace": b"}",
    "trailing-garbage": VALID + b" x",
    "trailing-brace": VALID + b"}",
    "trailing-nul": VALID + b"\0",
    "two-documents": VALID + VALID,
    "two-lines": VALID + b"\n" + VALID,
    "leading-garbage": b"x " + VALID,
    "leading-nul": b"\0" + VALID,
    "line-comment": b"// a comment\n" + VALID,
    "hash-comment": b"# a comment\n" + VALID,
    "block-comment": with_(b'/* a comment */ "a": 1'),
    "comma-after-member": OPEN + b",}",
    "comma-after-item": with_(b'"a": [1,]'),
    "comma-first": b"{," + VALID[1:],
    "comma-missing": OPEN + b' "a": 1}',
    "colon-missing": with_(b'"a" 1'),
    "value-missing": with_(b'"a":'),
    "key-missing": with_(b": 1"),
    "equals-sign": with_(b'"a" = 1'),
    "single-quotes": VALID.replace(b'"', b"'"),
    "bare-key": with_(b"a: 1"),
    "bare-value": with_(b'"a": b'),
    "nan": with_(b'"a": NaN'),
    "infinity": with_(b'"a": Infinity'),
    "minus-infinity": with_(b'"a": -Infinity'),
    "python-none": with_(b'"a": None'),
    "python-true": with_(b'"a": True'),
    "leading-zero": with_(b'"a": 01400'),
    "hexadecimal": with_(b'"a": 0x578'),
    "plus-sign": with_(b'"a": +1400'),
    "no-digit-before-dot": with_(b'"a": .5'),
    "no-digit-after-dot": with_(b'"a": 1.'),
    "lone-minus": with_(b'"a": -'),
    "underscore": with_(b'"a": 1_400'),
    "raw-newline-in-string": with_(b'"a": "x\ny"'),
    "raw-tab-in-string": with_(b'"a": "x\ty"'),
    "raw-nul-in-string": with_(b'"a": "x\0y"'),
    "unknown-escape": with_(b'"a": "\\x41"'),
    "short-unicode-escape": with_(b'"a": "\\u12"'),
    "bad-unicode-escape": with_(b'"a": "\\u12g4"'),
    "utf8-mark": b"\xef\xbb\xbf" + VALID,
    "utf16": VALID.decode().encode("utf-16"),
    "utf16-little": VALID.decode().encode("utf-16-le"),
    "utf16-big": VALID.decode().encode("utf-16-be"),
    "utf32": VALID.decode().encode("utf-32"),
    "bad-utf8-outside-strings": b"\xff\xfe" + VALID,
    "binary": bytes(range(256)),
    "elf": b"\x7fELF\x02\x01\x01" + bytes(57),
    "yaml": b"name: overlay\ntype: mycelium-cni\n",
    "deep-lists": b"[" * 100_000,
    "deep-closed-lists": with_(b'"a": ' + b"[" * 100_000 + b"]" * 100_000),
    "deep-closed-objects": with_(b'"a": ' + b'{"b":' * 100_000 + b"1" + b"}" * 100_000),
    "no-break-space": b"\xc2\xa0" + VALID,
    "form-feed": b"\x0c" + VALID,
}

# ── JSON that only a careless reader takes for a configuration ───────────────────────────────────
DOUBTFUL_JSON: dict[str, bytes] = {
    "number-of-5000-digits": with_(b'"mtu": ' + b"9" * 5000),
    "exponent-beyond-floats": with_(b'"mtu": 1e999'),
    "minus-exponent-beyond-floats": with_(b'"mtu": -1e999'),
    "lone-surrogate-in-mode": with_(b'"mode": "\\ud800"'),
    "bad-utf8-in-mode": with_(b'"mode": "\xff\xfe"'),
    "surrogate-bytes-in-mode": with_(b'"mode": "\xed\xa0\x80"'),
    "overlong-utf8-in-mode": with_(b'"mode": "\xc0\xae"'),
    "deep-value": with_(b'"mtu": ' + b"[" * 700 + b"]" * 700),
    "larger-than-16-MiB": with_(b'"a": "' + b"x" * (17 << 20) + b'"'),
    "larger-than-16-MiB-of-nothing": b" " * (17 << 20),
}

OTHER_VERBS = ("DEL", "CHECK", "GC", "STATUS")
SOME_NOT_JSON = ("empty", "list", "truncated-object", "two-documents", "nan", "utf8-mark")
EVERYWHERE = [
    (verb, kind)
    for kind in NOT_JSON
    for verb in ("ADD", *(OTHER_VERBS if kind in SOME_NOT_JSON else ()))
]


@pytest.mark.parametrize(
    ("verb", "kind"), EVERYWHERE, ids=[f"{verb}-{kind}" for verb, kind in EVERYWHERE]
)
def test_standard_input_that_is_no_json_object_cannot_be_decoded(
    watched: WatchedNode, verb: str, kind: str
) -> None:
    error = watched.plugin.call(verb, NOT_JSON[kind], watched.pod).error(6)
    assert error["msg"].startswith(UNREADABLE)


@pytest.mark.parametrize("kind", list(DOUBTFUL_JSON))
def test_json_that_cannot_be_meant_is_refused(watched: WatchedNode, kind: str) -> None:
    watched.plugin.add(watched.pod, DOUBTFUL_JSON[kind]).error(6, 7)


@pytest.mark.parametrize("text", [b"null", b"{}", b'{"cniVersion":"1.1.0"}', b"{ }\n"])
@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_a_configuration_without_a_name_is_refused(
    watched: WatchedNode, verb: str, text: bytes
) -> None:
    version = b"cniVersion" in text
    codes = (7,) if version or verb in ("ADD", "DEL") else (1, 7)
    error = watched.plugin.call(verb, text, watched.pod).error(*codes)
    if error["code"] == 7:
        assert error["msg"].startswith("missing network name")


# ── the name and the version: what every verb must be able to read ───────────────────────────────
Rows = dict[str, tuple[dict[str, Any], tuple[int, ...], str]]
IDENTITY: Rows = {
    "name-empty": ({"name": ""}, (7,), "missing network name"),
    "name-null": ({"name": None}, (7,), "missing network name"),
    "name-number": ({"name": 5}, (6,), UNREADABLE),
    "name-true": ({"name": True}, (6,), UNREADABLE),
    "name-list": ({"name": ["overlay"]}, (6,), UNREADABLE),
    "name-object": ({"name": {}}, (6,), UNREADABLE),
    "name-space": ({"name": "a b"}, (7,), "invalid characters found in network name"),
    "name-leading-space": ({"name": " a"}, (7,), "invalid characters found in network name"),
    "name-leading-dash": ({"name": "-a"}, (7,), "invalid characters found in network name"),
    "name-leading-dot": ({"name": ".a"}, (7,), "invalid characters found in network name"),
    "name-leading-underscore": ({"name": "_a"}, (7,), "invalid characters found in network name"),
    "name-trailing-newline": ({"name": "a\n"}, (7,), "invalid characters found in network name"),
    "name-slash": ({"name": "a/b"}, (7,), "invalid characters found in network name"),
    "name-path": ({"name": "../../etc"}, (7,), "invalid characters found in network name"),
    "name-accent": ({"name": "é"}, (7,), "invalid characters found in network name"),
    "name-digit-of-another-script": ({"name": "\u0661"}, (7,), "invalid characters"),
    "name-percent": ({"name": "a%b"}, (7,), "invalid characters found in network name"),
    "name-nul": ({"name": "a\0b"}, (7,), "invalid characters found in network name"),
    "name-escape": ({"name": "a\x1b[31m"}, (7,), "invalid characters found in network name"),
    "name-surrogate": ({"name": "a\ud800"}, (6, 7), "network"),
    "name-long-and-bad": ({"name": "a" * 100_000 + "/"}, (7,), "invalid characters"),
    "version-number": ({"cniVersion": 1}, (6,), UNREADABLE),
    "version-fraction": ({"cniVersion": 1.1}, (6,), UNREADABLE),
    "version-true": ({"cniVersion": True}, (6,), UNREADABLE),
    "version-list": ({"cniVersion": ["1.1.0"]}, (6,), UNREADABLE),
    "version-object": ({"cniVersion": {}}, (6,), UNREADABLE),
    "version-surrogate": ({"cniVersion": "\ud800"}, (1, 6), "version"),
    "version-nul": ({"cniVersion": "1.1.0\0"}, (1, 6), "version"),
    "version-long": ({"cniVersion": "1" * 100_000}, (1, 6), "version"),
}


def parametrize(*tables: Rows, step: int = 1) -> pytest.MarkDecorator:
    """One test per row, or per `step` rows, called by the row's name."""
    rows = {name: row for table in tables for name, row in table.items()}
    assert len(rows) == sum(map(len, tables)), "two rows have the same name"
    rows = dict(list(rows.items())[::step])
    return pytest.mark.parametrize(
        ("change", "codes", "says"), list(rows.values()), ids=list(rows.keys())
    )


@parametrize(IDENTITY)
@pytest.mark.parametrize("verb", ["ADD", "DEL", "GC"])
def test_a_configuration_of_unreadable_identity_is_refused_by_every_verb(
    watched: WatchedNode, verb: str, change: dict[str, Any], codes: tuple[int, ...], says: str
) -> None:
    conf = network(**{"cni.dev/valid-attachments": []}) | change
    watched.plugin.call(verb, conf, watched.pod).error(*codes, says=says)


# ── the keys: what ADD refuses and DEL forgives ──────────────────────────────────────────────────
def key(name: str, values: dict[str, Any], *codes: int) -> Rows:
    """Rows for values of one key; the message must name the key."""
    return {f"{name}-{kind}": ({name: value}, codes, name) for kind, value in values.items()}


NOT_A_STRING = {"number": 5, "true": True, "list": ["x"], "object": {"a": "b"}}
NOT_A_LINK = {
    **NOT_A_STRING,
    "too-long": "x" * 16,
    "too-long-in-bytes": "é" * 8,
    "dot": ".",
    "two-dots": "..",
    "slash": "a/b",
    "colon": "a:b",
    "space": "a b",
    "newline": "a\n",
    "nul": "a\0b",
    "surrogate": "a\ud800",
}
NOT_BOOLEAN = {"string": "true", "one": 1, "zero": 0, "empty": "", "list": [], "object": {}}
NOT_A_ROUTE_NUMBER = {
    "string": "1400",
    "true": True,
    "minus": -1,
    "fraction": 1.5,
    "too-large": 1 << 32,
    "list": [1],
}
ROUTE_DST = {
    "missing": {},
    "null": {"dst": None},
    "number": {"dst": 5},
    "empty": {"dst": ""},
    "word": {"dst": "default"},
    "no-length": {"dst": "400::"},
    "length-129": {"dst": "400::/129"},
    "length-minus": {"dst": "400::/-1"},
    "length-empty": {"dst": "400::/"},
    "length-word": {"dst": "400::/x"},
    "length-twice": {"dst": "400::/7/7"},
    "length-plus": {"dst": "400::/+7"},
    "length-digit-of-another-script": {"dst": "400::/\u0667"},
    "ipv4": {"dst": "10.0.0.0/8"},
    "ipv4-default": {"dst": "0.0.0.0/0"},
    "ipv4-mapped": {"dst": "::ffff:10.0.0.0/104"},
    "zone": {"dst": "400::%eth0/7"},
    "junk": {"dst": "gggg::/16"},
    "leading-space": {"dst": " 400::/7"},
    "trailing-space": {"dst": "400::/7 "},
    "trailing-newline": {"dst": "400::/7\n"},
    "nul": {"dst": "400::\0/7"},
    "nine-groups": {"dst": "1:2:3:4:5:6:7:8:9/128"},
    "two-gaps": {"dst": "1::2::3/64"},
    "surrogate": {"dst": "\ud800"},
}
ROUTE_GW = {
    "other-link-local": "fe80::2",
    "overlay": f"{PREFIX}::2",
    "zone": "fe80::1%eth0",
    "ipv4": "10.0.0.1",
    "number": 5,
    "word": "gateway",
    "list": ["fe80::1"],
}

KEYS: Rows = {
    **key("mode", {**NOT_A_STRING, "word": "turbo", "capital": "Routed", "space": "routed "}, 7),
    **key("myceliumInterface", NOT_A_LINK, 7),
    **key("bridge", NOT_A_LINK, 7),
    **key("interfaceName", NOT_A_LINK, 7),
    **key(
        "interfaceName",
        {"template": "eth%d", "lo": "lo", "all": "all", "default": "default"},
        7,
    ),
    **key("netseed", {**NOT_A_STRING, "nul": "/etc/\0"}, 7),
    **key("addressing", {**NOT_A_STRING, "word": "sequential", "capital": "Stable"}, 7),
    **key(
        "mtu",
        {
            "string": "1400",
            "true": True,
            "false": False,
            "minus": -1,
            "one": 1,
            "below-ipv6": 1279,
            "just-below": 1279.5,
            "fraction": 1400.5,
            "above-16-bits": 65536,
            "huge": 10**30,
            "huge-fraction": 1e300,
            "list": [1400],
            "object": {"mtu": 1400},
        },
        7,
    ),
    **key("routes", {"object": {}, "string": "400::/7", "number": 5, "true": True}, 7),
    **key(
        "routes",
        {
            "number-inside": [5],
            "string-inside": ["400::/7"],
            "null-inside": [None],
            "list-inside": [["400::/7"]],
            "second-is-bad": [{"dst": "400::/7"}, {"dst": "junk"}],
        },
        7,
    ),
    **{
        f"routes-dst-{kind}": ({"routes": [route]}, (7,), "dst")
        for kind, route in ROUTE_DST.items()
    },
    **{
        f"routes-gw-{kind}": ({"routes": [{"dst": "400::/7", "gw": gateway}]}, (7,), "gw")
        for kind, gateway in ROUTE_GW.items()
    },
    **{
        f"routes-{attribute}-{kind}": (
            {"routes": [{"dst": "400::/7", attribute: value}]},
            (7,),
            attribute,
        )
        for attribute in ("mtu", "advmss", "priority", "table", "scope")
        for kind, value in NOT_A_ROUTE_NUMBER.items()
    },
    "routes-scope-beyond-a-byte": ({"routes": [{"dst": "400::/7", "scope": 256}]}, (7,), "scope"),
    **key("defaultRoute", NOT_BOOLEAN, 7),
    **key("ipMasq", NOT_BOOLEAN, 7),
    **key("transit", NOT_BOOLEAN, 7),
    **key("peering", NOT_BOOLEAN, 7),
    **key("ingress", {**NOT_A_STRING, "word": "half-open", "capital": "Open"}, 7),
    **key(
        "allowFrom", {"without-ingress": ["400::/7"], "junk": ["junk"], "address": ["400::1"]}, 7
    ),
    **key("allowFrom", {"string": "400::/7", "object": {"a": 1}, "number": 5, "true": True}, 7),
    **key("allowFrom", {"too-many": [f"400:{n:x}::/32" for n in range(1025)]}, 7),
    **key("clusterFile", {**NOT_A_STRING, "nul": "/etc/\0", "relative": "cluster"}, 7),
    **key("guard", {**NOT_A_STRING, "word": "off", "false": False}, 7),
    **key("dns", {"string": "10.0.0.53", "list": ["10.0.0.53"], "number": 5, "true": True}, 6, 7),
    **{
        f"dns-{name}-{kind}": ({"dns": {name: value}}, (6, 7), name)
        for name in ("nameservers", "search", "options")
        for kind, value in {
            "string": "x",
            "object": {"a": "b"},
            "number": 5,
            "number-inside": [5],
            "null-inside": [None],
        }.items()
    },
    "dns-domain-number": ({"dns": {"domain": 5}}, (6, 7), "domain"),
    "dns-domain-list": ({"dns": {"domain": ["x"]}}, (6, 7), "domain"),
    **key("logLevel", {**NOT_A_STRING, "word": "loud"}, 7),
    **key("logFile", NOT_A_STRING, 7),
    **key("capabilities", {"list": ["ips"], "string": "ips", "number": 5, "true": True}, 6, 7),
    **{
        f"capabilities-{kind}": ({"capabilities": {"ips": value}}, (6, 7), "capabilities")
        for kind, value in {"word": "yes", "one": 1, "list": [], "object": {}}.items()
    },
}

# ── what other plugins can do, declared for ours and asked of it ─────────────────────────────────
ASKED_OF_OTHERS: dict[str, Any] = {
    "portMappings": [{"HostPort": 80, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
    "bandwidth": {"IngressRate": 0, "IngressBurst": 0, "EgressRate": 1, "EgressBurst": 1},
    "ipRanges": [[{"subnet": "10.0.0.0/8"}]],
    "aliases": ["web"],
    "infinibandGUID": "c2:11:22:33:44:55:66:77",
    "deviceID": "0000:03:00.0",
}
CAPABILITIES: Rows = {
    f"capabilities-{name}": (
        {
            "capabilities": {"ips": True, name: True},
            "runtimeConfig": {name[:1].upper() + name[1:] if capital else name: asked},
        },
        (2,),
        name,
    )
    for capital, (name, asked) in enumerate([*ASKED_OF_OTHERS.items()])
}

# ── what the runtime asks of one pod ─────────────────────────────────────────────────────────────
OURS = {"ips": True, "mac": True}
NOT_A_LIST_OF_ADDRESSES = {
    "string": f"{PREFIX}:1::1",
    "number": 5,
    "true": True,
    "object": {"a": "b"},
    "number-inside": [5],
    "null-inside": [None],
    "object-inside": [{"address": f"{PREFIX}:1::1"}],
}
NOT_AN_ADDRESS_FOR_A_POD = {
    "empty-inside": [""],
    "word": ["junk"],
    "ipv4": ["10.0.0.1"],
    "ipv4-with-length": ["10.0.0.1/24"],
    "ipv4-mapped": ["::ffff:10.0.0.1"],
    "other-subnet": ["5a1:2b3c:4d5e:6f71:ff0f::1"],
    "other-node": ["4aa:1:2:3::9"],
    "global": ["2001:db8::1"],
    "unspecified": ["::"],
    "loopback": ["::1"],
    "link-local": ["fe80::5"],
    "gateway": ["fe80::1"],
    "multicast": ["ff02::1"],
    "zone": [f"{PREFIX}:1::1%eth0"],
    "zone-and-length": [f"{PREFIX}:1::1%eth0/64"],
    "length-129": [f"{PREFIX}:1::1/129"],
    "length-minus": [f"{PREFIX}:1::1/-1"],
    "length-word": [f"{PREFIX}:1::1/x"],
    "length-empty": [f"{PREFIX}:1::1/"],
    "length-twice": [f"{PREFIX}:1::1/64/64"],
    "space": [f" {PREFIX}:1::1"],
    "newline": [f"{PREFIX}:1::1\n"],
    "nul": [f"{PREFIX}:1::1\0"],
    "twice": [f"{PREFIX}:1::1", f"{PREFIX}:1::1"],
    "twice-in-two-spellings": [f"{PREFIX}:1::1", f"{PREFIX.upper()}:0001::0001/64"],
    "good-then-bad": [f"{PREFIX}:1::1", "junk"],
    "surrogate": ["\ud800"],
    "long": ["1" * 100_000],
}
NOT_A_MAC = {
    "number": 5,
    "true": True,
    "list": ["c2:11:22:33:44:55"],
    "word": "junk",
    "zero": "00:00:00:00:00:00",
    "multicast": "01:00:5e:00:00:01",
    "broadcast": "ff:ff:ff:ff:ff:ff",
    "five-bytes": "c2:11:22:33:44",
    "seven-bytes": "c2:11:22:33:44:55:66",
    "eight-bytes": "c2:11:22:33:44:55:66:77",
    "no-hex": "c2:11:22:33:44:gg",
    "short-byte": "c2:11:22:33:44:5",
    "long-byte": "c2:11:22:33:44:055",
    "empty-byte": "c2:11::33:44:55",
    "space": " c2:11:22:33:44:55",
    "newline": "c2:11:22:33:44:55\n",
    "sign": "c2:11:22:33:44:+5",
    "digit-of-another-script": "c2:11:22:33:44:\u0661\u0661",
    "surrogate": "\ud800",
}


def asked(word: str, values: dict[str, Any], codes: tuple[int, ...], name: str) -> Rows:
    """Rows for values that the runtime may ask for; each third one is asked for in args too."""
    rows: Rows = {}
    for number, (kind, value) in enumerate(values.items()):
        capability = {"capabilities": OURS, "runtimeConfig": {word: value}}
        rows[f"runtimeConfig-{word}-{kind}"] = (capability, codes, name)
        if number % 3 == 0:
            rows[f"args-{word}-{kind}"] = ({"args": {"cni": {word: value}}}, codes, name)
    return rows


REQUESTS: Rows = {
    **key("runtimeConfig", {"list": ["a"], "string": "x", "number": 5, "true": True}, 6, 7),
    "runtimeConfig-ips-node": (
        {"capabilities": OURS, "runtimeConfig": {"ips": [NODE]}},
        (101,),
        NODE,
    ),
    "runtimeConfig-ips-subnet-router": (
        {"capabilities": OURS, "runtimeConfig": {"ips": [f"{PREFIX}::"]}},
        (7, 101),
        f"{PREFIX}::",
    ),
    "args-ips-node": ({"args": {"cni": {"ips": [NODE]}}}, (101,), NODE),
    **asked("ips", NOT_A_LIST_OF_ADDRESSES, (6, 7), "ips"),
    **asked("ips", NOT_AN_ADDRESS_FOR_A_POD, (7,), ""),
    **asked("mac", NOT_A_MAC, (6, 7), "mac"),
}


@parametrize(KEYS, CAPABILITIES, REQUESTS)
def test_add_refuses_what_it_cannot_do_and_names_it(
    watched: WatchedNode, change: dict[str, Any], codes: tuple[int, ...], says: str
) -> None:
    watched.plugin.add(watched.pod, network(**change)).error(*codes, says=says)


@parametrize(KEYS, CAPABILITIES, REQUESTS, step=3)
def test_del_forgives_a_configuration_that_add_refused(
    watched: WatchedNode, change: dict[str, Any], codes: tuple[int, ...], says: str
) -> None:
    """A pod must be able to end after its network's configuration was edited wrongly."""
    assert codes, says
    watched.plugin.delete(watched.pod, network(**change)).is_silent_success()


BAD_KEYS_OF_GC = {
    "mtu": 100,
    "mode": "turbo",
    "routes": 5,
    "runtimeConfig": [],
    "prevResult": "x",
    "args": 5,
}


@pytest.mark.parametrize("name", list(BAD_KEYS_OF_GC))
def test_gc_forgives_what_it_does_not_need_or_names_it(watched: WatchedNode, name: str) -> None:
    conf = network(**{"cni.dev/valid-attachments": [], name: BAD_KEYS_OF_GC[name]})
    outcome = watched.plugin.gc(conf)
    if outcome.code:
        outcome.error(6, 7, says=name)
    else:
        outcome.is_silent_success()


# ── the same, asked for in CNI_ARGS ──────────────────────────────────────────────────────────────
BAD_ARGS = {
    "ip-word": ("IP=junk", "junk"),
    "ip-ipv4": ("IP=10.0.0.1", "10.0.0.1"),
    "ip-ipv4-mapped": ("IP=::ffff:10.0.0.1", ""),
    "ip-other-subnet": ("IP=4aa:1:2:3::9", "4aa:1:2:3::9"),
    "ip-zone": (f"IP={PREFIX}:1::1%eth0", "eth0"),
    "ip-length-129": (f"IP={PREFIX}:1::1/129", "129"),
    "ip-length-word": (f"IP={PREFIX}:1::1/x", "IP"),
    "ip-list-with-junk": (f"IP={PREFIX}:1::1,junk", "junk"),
    "ip-unspecified": ("IP=::", "::"),
    "ip-link-local": ("IP=fe80::1", "fe80::1"),
    "ip-two-equals": (f"IP=={PREFIX}:1::1", "IP"),
    "ip-space": ("IP= ", "IP"),
    "ip-newline": (f"IP={PREFIX}:1::1\n", "IP"),
    "ip-not-utf8": (b"IP=\xff", ""),
    "ip-last-is-junk": (f"IP={PREFIX}:1::1;IP=junk", "junk"),
    "ip-junk-and-ignore-unknown": ("IP=junk;IgnoreUnknown=1", "junk"),
    "mac-word": ("MAC=junk", "junk"),
    "mac-zero": ("MAC=00:00:00:00:00:00", "MAC"),
    "mac-multicast": ("MAC=01:00:5e:00:00:01", "MAC"),
    "mac-short": ("MAC=c2:11:22:33:44", "MAC"),
    "mac-space": ("MAC= ", "MAC"),
    "mac-not-utf8": (b"MAC=\xff", ""),
}
bad_args = pytest.mark.parametrize(
    ("args", "says"), list(BAD_ARGS.values()), ids=list(BAD_ARGS.keys())
)


@bad_args
def test_add_refuses_cni_args_it_knows_with_values_it_cannot_use(
    watched: WatchedNode, args: str | bytes, says: str
) -> None:
    watched.plugin.add(watched.pod, network(), CNI_ARGS=args).error(4, 7, says=says)


def test_add_refuses_the_address_of_the_node_in_cni_args(watched: WatchedNode) -> None:
    watched.plugin.add(watched.pod, network(), CNI_ARGS=f"IP={NODE}").error(101, says=NODE)


@bad_args
def test_del_forgives_cni_args_that_add_refused(
    watched: WatchedNode, args: str | bytes, says: str
) -> None:
    assert isinstance(says, str)
    watched.plugin.delete(watched.pod, network(), CNI_ARGS=args).is_silent_success()


# ── a malformed previous result ──────────────────────────────────────────────────────────────────
PREVIOUS: dict[str, Any] = {
    "number": 5,
    "string": "x",
    "list": [],
    "true": True,
    "false": False,
    "empty-string": "",
    "of-another-version": {"cniVersion": "0.4.0", "interfaces": [], "ips": []},
    "of-an-old-version": {"cniVersion": "0.2.0", "ip6": {"ip": "fd00::1/64"}},
    "of-an-unknown-version": {"cniVersion": "9.9.9"},
    "of-a-number-as-version": {"cniVersion": 5},
    "interfaces-number": {"interfaces": 5},
    "interfaces-string": {"interfaces": "eth0"},
    "interfaces-object": {"interfaces": {"name": "eth0"}},
    "interfaces-number-inside": {"interfaces": [5]},
    "interfaces-string-inside": {"interfaces": ["eth0"]},
    "ips-number": {"ips": 5},
    "ips-string": {"ips": "fd00::1/64"},
    "ips-object": {"ips": {"address": "fd00::1/64"}},
    "ips-number-inside": {"ips": [5]},
    "routes-number": {"routes": 5},
    "routes-string": {"routes": "400::/7"},
    "routes-number-inside": {"routes": [5]},
}
DEEP_IN_PREVIOUS: dict[str, Any] = {
    "interfaces-name-number": {"interfaces": [{"name": 5}]},
    "interfaces-sandbox-number": {"interfaces": [{"name": "eth0", "sandbox": 5}]},
    "ips-address-number": {"ips": [{"address": 5}]},
    "ips-interface-string": {"ips": [{"address": "fd00::1/64", "interface": "0"}]},
    "dns-number": {"dns": 5},
    "dns-list": {"dns": ["10.0.0.53"]},
}
previous = pytest.mark.parametrize("kind", list(PREVIOUS))


@previous
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_a_previous_result_that_is_none_is_refused(
    watched: WatchedNode, verb: str, kind: str
) -> None:
    conf = network(prevResult=PREVIOUS[kind])
    watched.plugin.call(verb, conf, watched.pod).error(6, 7, says="prevResult")


@pytest.mark.parametrize("kind", list(DEEP_IN_PREVIOUS))
def test_add_does_not_pass_on_a_previous_result_that_no_runtime_can_read(
    watched: WatchedNode, kind: str
) -> None:
    watched.plugin.add(watched.pod, network(prevResult=DEEP_IN_PREVIOUS[kind])).error(6, 7)


@previous
def test_del_ignores_a_previous_result_that_is_none(watched: WatchedNode, kind: str) -> None:
    watched.plugin.delete(watched.pod, network(prevResult=PREVIOUS[kind])).is_silent_success()


DOUBTFUL_PREVIOUS: dict[str, Any] = {
    **DEEP_IN_PREVIOUS,
    "address-word": {"ips": [{"address": "junk"}]},
    "address-missing": {"ips": [{}]},
    "address-without-length": {"ips": [{"address": "10.0.0.1"}]},
    "interface-out-of-range": {"ips": [{"address": "10.0.0.1/24", "interface": 7}]},
    "interface-minus-one": {"ips": [{"address": "10.0.0.1/24", "interface": -1}]},
    "destination-word": {"routes": [{"dst": "default"}]},
    "destination-missing": {"routes": [{}]},
    "name-missing": {"interfaces": [{}]},
    "gateway-empty": {"ips": [{"address": "10.0.0.1/24", "gateway": ""}]},
    "surrogate": {"interfaces": [{"name": "\ud800"}]},
    "many": {"interfaces": [{"name": f"veth{number}"} for number in range(3000)]},
}


@pytest.mark.parametrize("kind", list(DOUBTFUL_PREVIOUS))
def test_check_never_takes_a_doubtful_previous_result_for_the_attachment(
    watched: WatchedNode, kind: str
) -> None:
    watched.plugin.check(watched.pod, network(prevResult=DOUBTFUL_PREVIOUS[kind])).error(6, 7, 103)


# ── bridge mode's key file ───────────────────────────────────────────────────────────────────────
SEEDS = {"empty": 0, "31-bytes": 31}


@pytest.mark.parametrize("kind", [*SEEDS, "folder", "device-without-end-that-is-another-key"])
def test_a_key_file_that_is_no_key_of_this_node_is_refused(watched: WatchedNode, kind: str) -> None:
    if kind in SEEDS:
        path = watched.plugin.host.write(f"/run/netns/seed-{kind}", "k" * SEEDS[kind])
    else:
        path = "/run/netns" if kind == "folder" else "/dev/zero"
    conf = network(mode="bridge", netseed=path)
    watched.plugin.add(watched.pod, conf).error(5, 7, 11, 100, says=path)


# ── the whole corpus once more: the state before and after ────────────────────────────────────
@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_of_the_whole_corpus(shared_watched_node: Any) -> Iterator[None]:
    """The kernel's state as `ip` shows it, before the first case and after the last."""
    node = shared_watched_node.get()
    before = kernel_state(node.plugin.host, node.pod)
    yield
    if shared_watched_node.get() is node:  # a test that changed it has failed, and has said so
        assert kernel_state(node.plugin.host, node.pod) == before


def test_the_valid_configuration_of_the_corpus_is_valid(plugin: Plugin, host: Host) -> None:
    """Each row fails for what it changes, not for what it keeps."""
    plugin.add(host.pod(), VALID).result()
    plugin.add(host.pod(), with_(b'"a": "b"') + b"\n \t\r\n").result()
    conf = network(capabilities=OURS, runtimeConfig={"ips": [f"{PREFIX}:77::1"]})
    plugin.add(host.pod(), encoded(conf)).result()
