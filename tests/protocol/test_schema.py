# SPDX-License-Identifier: Apache-2.0
"""The strict readers refuse what a Go program would refuse: they can fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from .schema import LEGACY, NEWEST, VERSIONS, check_error, check_result, one_document

Document = dict[str, Any]


def golden(version: str) -> Document:
    """A correct result in the shape of that version."""
    route = {"dst": "400::/7", "gw": "fe80::1"}
    if version in LEGACY:
        ip6 = {"ip": "5a1::2/128", "gateway": "fe80::1", "routes": [route]}
        return {"cniVersion": version, "ip6": ip6, "dns": {}}
    ip: Document = {"interface": 1, "address": "5a1::2/128", "gateway": "fe80::1"}
    if version < "1":
        ip["version"] = "6"
    interfaces: list[Document] = [
        {"name": "myc0123456789ab", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"},
    ]
    if version == NEWEST:
        interfaces[1]["mtu"] = 1400
        route["priority"] = 0  # type: ignore[assignment]
    return {
        "cniVersion": version,
        "interfaces": interfaces,
        "ips": [ip],
        "routes": [route],
        "dns": {},
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_shape_of_each_version_is_accepted(version: str) -> None:
    check_result(golden(version), version)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_that_announces_another_version_is_refused(version: str) -> None:
    other = VERSIONS[(VERSIONS.index(version) + 1) % len(VERSIONS)]
    with pytest.raises(AssertionError):
        check_result({**golden(version), "cniVersion": other}, version)


def change(path: str, value: Any) -> Callable[[Document], None]:
    """Sets the value at a dotted path; the value `...` removes it."""

    def apply(document: Document) -> None:
        *parents, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        target: Any = document
        for step in parents:
            target = target[step]
        if value is ...:
            del target[last]
        else:
            target[last] = value

    return apply


@pytest.mark.parametrize(
    ("version", "path", "value"),
    [
        ("0.2.0", "ips", []),
        ("0.2.0", "interfaces", []),
        ("0.2.0", "ip6", ...),
        ("0.2.0", "ip6.routes.0.mtu", 1400),
        ("0.2.0", "ip6.ip", "10.0.0.1/24"),
        ("0.3.0", "ips.0.version", 6),
        ("0.3.1", "ips.0.version", ...),
        ("0.4.0", "ips.0.version", "4"),
        ("0.4.0", "interfaces.1.mtu", 1400),
        ("1.0.0", "ips.0.version", "6"),
        ("1.0.0", "interfaces.1.mtu", 1400),
        ("1.0.0", "interfaces.1.socketPath", "/x"),
        ("1.0.0", "routes.0.priority", 0),
        ("1.1.0", "interfaces.1.mtu", "1400"),
        ("1.1.0", "routes.0.mtu", True),
        ("1.1.0", "routes.0.dst", "default"),
        ("1.1.0", "routes.0.dst", "400::"),
        ("1.1.0", "routes.0.dst", "400::1/7"),
        ("1.1.0", "routes.0.dst", "0400::/7"),
        ("1.1.0", "routes.0.gw", "fe80::1%eth0"),
        ("1.1.0", "routes.0.gw", ""),
        ("1.1.0", "ips.0.address", "5a1::2"),
        ("1.1.0", "ips.0.address", "5A1::2/128"),
        ("1.1.0", "ips.0.address", "::ffff:10.0.0.1/128"),
        ("1.1.0", "ips.0.address", "5a1:0:0:0:0:0:0:2/128"),
        ("1.1.0", "ips.0.gateway", "fe80::1%eth0"),
        ("1.1.0", "ips.0.interface", 0),
        ("1.1.0", "ips.0.interface", 2),
        ("1.1.0", "ips.0.interface", -1),
        ("1.1.0", "ips.0.interface", "1"),
        ("1.1.0", "interfaces.1.mac", "02:00:00:00:00:0A"),
        ("1.1.0", "interfaces.0.sandbox", ""),
        ("1.1.0", "interfaces.0.name", ""),
        ("1.1.0", "dns", None),
        ("1.1.0", "dns.nameservers", None),
        ("1.1.0", "ip6", {}),
        ("1.1.0", "cniVersion", ...),
    ],
)
def test_a_result_that_strays_from_its_version_is_refused(
    version: str, path: str, value: Any
) -> None:
    document = copy.deepcopy(golden(version))
    change(path, value)(document)
    with pytest.raises((AssertionError, ValueError)):
        check_result(document, version)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}{}",
        b"log line\n{}",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b"\xef\xbb\xbf{}",
        b'{"a":"\xff"}',
    ],
)
def test_anything_but_one_json_document_is_refused(text: bytes) -> None:
    with pytest.raises((AssertionError, ValueError)):
        one_document(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cniVersion", "9.9.9"),
        ("code", "7"),
        ("code", True),
        ("code", 0),
        ("msg", ""),
        ("msg", "two\nlines"),
        ("details", None),
        ("error", "x"),
    ],
)
def test_an_error_object_that_cannot_stand_alone_is_refused(key: str, value: Any) -> None:
    error = {"cniVersion": NEWEST, "code": 7, "msg": "invalid mtu"}
    check_error(error)
    with pytest.raises(AssertionError):
        check_error({**error, key: value})
