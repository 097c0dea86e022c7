# SPDX-License-Identifier: Apache-2.0
"""The kernel's state as `ip`, `nft` and /proc show it, and how it has changed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mycelium_lab.lab import UNDERLAY, Namespace

Picture = dict[str, Any]

# What the kernel counts or ages by itself.
_MOVING = {
    *("valid_life_time", "preferred_life_time", "expires", "age", "used", "handle", "tentative"),
    *("qdisc", "operstate", "num_tx_queues", "num_rx_queues", "ifindex", "link_index", "flags"),
}
_LINK = (
    *("ifname", "mtu", "group", "address", "ifalias", "altnames", "master", "link_netnsid"),
    *("promiscuity", "inet6_addr_gen_mode"),
)
_SWITCHES = r"/conf/.*/(forwarding|accept_ra|disable_ipv6|proxy_ndp|keep_addr_on_down)$"
_QUESTIONS = """
ip -j -d addr
printf 'route show table all\nrule\nneigh show nud all\nneigh show proxy\n' | ip -6 -j -batch -
printf 'route show table all\nrule\n' | ip -4 -j -batch -
nft -s -j list ruleset
"""


def kernel_state(*namespaces: Namespace, settings: str = _SWITCHES) -> Picture:
    """Everything of these namespaces that a plugin could change, without what changes by itself.

    `settings` is a pattern for the sysctls below /proc/sys/net to include; `.` is all of them.
    """
    return {space.name: _one(space, settings) for space in namespaces}


def _one(space: Namespace, settings: str) -> Picture:
    asked = space.run(["sh", "-c", _QUESTIONS]).stdout
    addresses, routes, rules, neighbours, proxies, routes4, rules4, nft = _documents(asked)
    links = {}
    for link in addresses:
        shown = {key: link[key] for key in _LINK if key in link}
        shown["up"] = "UP" in link["flags"]
        shown["kind"] = link.get("linkinfo", {}).get("info_kind")
        shown["addresses"] = _still([a for a in link["addr_info"] if not _lab(link["ifname"], a)])
        links[link["ifname"]] = shown
    # What somebody set; other neighbours come and go with the packets.
    lasting = [n for n in neighbours if "protocol" in n or "PERMANENT" in n.get("state", [])]
    for entry in lasting:
        if "PERMANENT" not in entry["state"]:
            del entry["state"]  # whether it was confirmed within the last half minute
    return {
        "links": links,
        "routes": sorted(
            _lines([route for route in routes if not _lab(route.get("dev", ""), route)])
        ),
        "rules": _lines(rules),
        "neighbours": sorted(_lines(lasting)),
        "proxies": sorted(_lines(proxies)),
        "ipv4 routes": sorted(_lines(routes4)),
        "ipv4 rules": _lines(rules4),
        "nft": _lines([_lasting(entry) for entry in nft["nftables"] if "metainfo" not in entry]),
        "sysctls": sysctls(space, settings),
    }


def _lasting(entry: dict[str, Any]) -> dict[str, Any]:
    """A part of the packet filter, without the elements that rules add and that time out."""
    learned = "timeout" in entry.get("set", {})
    return {"set": {**entry["set"], "elem": []}} if learned else entry


def _lab(link: str, entry: dict[str, Any]) -> bool:
    """Whether it belongs to the link-local address of the lab's link, which is tentative at
    first."""
    return link == UNDERLAY and str(entry.get("local") or entry.get("dst")).startswith("fe80:")


def difference(before: Any, after: Any, path: str = "") -> list[str]:
    """The differences, one line each, to be read by people."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for key in sorted(before.keys() | after.keys()):
            one, other = before.get(key), after.get(key)
            lines += [] if one == other else difference(one, other, f"{path}/{key}")
        return lines
    if isinstance(before, list) and isinstance(after, list):
        gone = [f"{path}: gone: {item}" for item in before if item not in after]
        new = [f"{path}: new: {item}" for item in after if item not in before]
        return gone + new or [f"{path}: other order"]
    return [f"{path}: {before!r} became {after!r}"]


def sysctls(space: Namespace, pattern: str = ".") -> dict[str, str]:
    """The settings of the namespace's network stack whose name holds the pattern."""
    wanted = re.compile(pattern)
    found = {}
    with space.inside():
        for part in ("ipv6", "ipv4", "core"):
            for folder, _, names in os.walk(f"/proc/sys/net/{part}"):
                for path in (f"{folder}/{name}" for name in names):
                    name = path.removeprefix("/proc/sys/net/")
                    value = _read(path) if wanted.search(name) else None
                    if value is not None:
                        found[name] = value
    return found


def sysctl(space: Namespace, name: str) -> str:
    """One setting, such as `ipv6/conf/all/forwarding`."""
    with space.inside():
        return Path("/proc/sys/net", name).read_text().strip()


def set_sysctl(space: Namespace, name: str, value: str) -> None:
    """Write one setting of a throw-away namespace."""
    with space.inside():
        Path("/proc/sys/net", name).write_text(value)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:  # write-only, or without a value: stable_secret
        return None


def _documents(text: str) -> list[Any]:
    """The JSON documents in a text, one behind the other."""
    found = []
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def _still(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _still(item) for key, item in value.items() if key not in _MOVING}
    return [_still(item) for item in value] if isinstance(value, list) else value


def _lines(entries: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(_still(entry), sort_keys=True) for entry in entries]
