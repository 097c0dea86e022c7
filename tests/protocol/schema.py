# SPDX-License-Identifier: Apache-2.0
"""The documents a CNI plugin may print, one strict reading per spec version.

Each reader raises AssertionError with the place and the reason. A key that the version does not
know is an error, as it is to the Go programs that read the result next.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any, NoReturn

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
LEGACY = ("0.1.0", "0.2.0")
WITH_IP_VERSION = ("0.3.0", "0.3.1", "0.4.0")
WITH_CHECK = ("0.4.0", "1.0.0", "1.1.0")

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_ROUTE_EXTRAS = {"mtu", "advmss", "priority", "table", "scope"}


def one_document(text: bytes) -> Any:
    """The one JSON document that is all of `text`: no constants of Python's own, no doubled key."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        assert len(document) == len(pairs), f"a key is there twice: {[key for key, _ in pairs]}"
        return document

    return json.loads(text.decode(), parse_constant=refuse, object_pairs_hook=once_each)


def check_error(document: Any) -> None:
    """An error object that stands alone: the runtime drops standard error when it shows one."""
    _keys(document, "error", {"cniVersion", "code", "msg"}, {"details"})
    assert document["cniVersion"] in VERSIONS, document
    assert type(document["code"]) is int, document
    assert document["code"] > 0, document
    for key in ("msg", "details"):
        if key in document:
            assert isinstance(document[key], str), document
            assert document[key].strip(), f"{key} says nothing: {document}"
            assert "\n" not in document[key], f"{key} is more than one line: {document}"


def check_result(document: Any, version: str) -> None:
    """An ADD result in the shape of that version."""
    if version in LEGACY:
        _check_legacy(document)
    else:
        _check_current(document, version)
    assert document["cniVersion"] == version


def _check_legacy(document: Any) -> None:
    _keys(document, "result", {"cniVersion"}, {"ip4", "ip6", "dns"})
    families = [key for key in ("ip4", "ip6") if key in document]
    assert families, "an old result needs at least one address"
    for key in families:
        entry = document[key]
        _keys(entry, key, {"ip"}, {"gateway", "routes"})
        address = _address_with_length(entry["ip"], f"{key}.ip")
        assert address.version == int(key[-1])
        if "gateway" in entry:
            _address(entry["gateway"], f"{key}.gateway")
        for route in _list(entry, "routes", key):
            _route(route, f"{key}.routes", set())
    _dns(document)


def _check_current(document: Any, version: str) -> None:
    newest = version == "1.1.0"
    _keys(document, "result", {"cniVersion", "interfaces", "ips"}, {"routes", "dns"})
    interfaces = _list(document, "interfaces", "result")
    for entry in interfaces:
        optional = {"mac", "sandbox"} | ({"mtu", "socketPath", "pciID"} if newest else set())
        _keys(entry, "interfaces", {"name"}, optional)
        assert 1 <= len(_text(entry, "name", "interfaces").encode()) <= 15
        if "mac" in entry:
            assert _MAC.fullmatch(_text(entry, "mac", "interfaces")), entry
        if "sandbox" in entry:
            assert _text(entry, "sandbox", "interfaces"), "an empty sandbox is left out"
        if "mtu" in entry:
            _number(entry, "mtu", "interfaces")
    ips = _list(document, "ips", "result")
    assert ips, "a result needs an address"
    for entry in ips:
        needed = {"address"} | ({"version"} if version in WITH_IP_VERSION else set())
        _keys(entry, "ips", needed, {"interface", "gateway"})
        address = _address_with_length(entry["address"], "ips.address")
        if "version" in needed:
            assert entry["version"] == str(address.version), "ips.version is a string"
        if "interface" in entry:
            index = _number(entry, "interface", "ips")
            assert index < len(interfaces), f"ips.interface {index}: no such interface"
            assert interfaces[index].get("sandbox"), "ips.interface points at the host's side"
        if "gateway" in entry:
            _address(entry["gateway"], "ips.gateway")
    for route in _list(document, "routes", "result"):
        _route(route, "routes", _ROUTE_EXTRAS if newest else set())
    _dns(document)


def _route(route: Any, where: str, extras: set[str]) -> None:
    _keys(route, where, {"dst"}, {"gw"} | extras)
    text = _text(route, "dst", where)
    assert "/" in text, f"{where}.dst {text}: no length"
    network = ipaddress.ip_network(text, strict=True)
    assert network.with_prefixlen == text, f"{where}.dst {text}: not in canonical form"
    assert getattr(network.network_address, "ipv4_mapped", None) is None, text
    if "gw" in route:
        _address(route["gw"], f"{where}.gw")
    for key in extras & route.keys():
        _number(route, key, where)


def _dns(document: dict[str, Any]) -> None:
    if "dns" not in document:
        return
    _keys(document["dns"], "dns", set(), {"nameservers", "domain", "search", "options"})
    if "domain" in document["dns"]:
        _text(document["dns"], "domain", "dns")
    for key in ("nameservers", "search", "options"):
        for entry in _list(document["dns"], key, "dns"):
            assert isinstance(entry, str), f"dns.{key}: {entry!r} is not a string"


def _address(text: Any, where: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    assert isinstance(text, str), f"{where}: {text!r} is not a string"
    assert "%" not in text, f"{where} {text}: Go refuses a zone"
    address = ipaddress.ip_address(text)
    assert str(address) == text, f"{where} {text}: not in canonical form"
    assert getattr(address, "ipv4_mapped", None) is None, f"{where} {text}: Go reads IPv4"
    return address


def _address_with_length(text: Any, where: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    assert isinstance(text, str), f"{where}: {text!r} is not a string"
    address, slash, length = text.partition("/")
    assert slash, f"{where} {text}: no prefix length"
    assert ipaddress.ip_interface(text).with_prefixlen == text, f"{where} {text}: length {length}"
    return _address(address, where)


def _keys(entry: Any, where: str, needed: set[str], optional: set[str]) -> None:
    assert isinstance(entry, dict), f"{where}: {entry!r} is not an object"
    assert needed <= entry.keys(), f"{where} lacks {sorted(needed - entry.keys())}: {entry}"
    unknown = entry.keys() - needed - optional
    assert not unknown, f"{where} has keys of another version: {sorted(unknown)}"


def _list(entry: dict[str, Any], key: str, where: str) -> list[Any]:
    value = entry.get(key, [])
    assert isinstance(value, list), f"{where}.{key}: {value!r} is not a list"
    return value


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry[key]
    assert isinstance(value, str), f"{where}.{key}: {value!r} is not a string"
    return value


def _number(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry[key]
    assert type(value) is int, f"{where}.{key}: {value!r} is not a whole number"
    assert value >= 0, f"{where}.{key}: {value}"
    return value
