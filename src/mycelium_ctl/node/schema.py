# SPDX-License-Identifier: Apache-2.0
"""What each key of a network configuration means, and the JSON schema that editors check it with.

Types, defaults and limits are the parser's own tables (mycelium_cni/cni/config.py).
"""

from __future__ import annotations

from typing import Any, Final

from mycelium_cni.cni import config
from mycelium_cni.cni.request import VERSIONS
from mycelium_cni.kernel.address import format_prefix
from mycelium_cni.overlay import MYCELIUM
from mycelium_ctl.node.conflist import TYPE

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
NAME: Final = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # libcni's rule (pkg/utils/utils.go)
LINK_NAME: Final = "^[^/:\\s]{1,15}$"  # what the kernel allows (net/core/dev.c, dev_valid_name)

# In the order in which a reader needs them.
MEANINGS: Final = {
    "mode": "How pods are attached. `auto`: `bridge` if the configuration names a `bridge`, "
    "`routed` if it names a `myceliumInterface`, otherwise `bridge` if the node has that bridge.",
    "ingress": "Who may open connections to the pods. `open`: everyone on the overlay. `cluster`: "
    "the node, its own pods, `allowFrom` and the nodes that `clusterFile` lists. `closed`: "
    "the node only.",
    "allowFrom": "The prefixes that may open connections with `ingress` `cluster`.",
    "clusterFile": "The file in which `mycelium-cni agent` keeps the subnets of the cluster's "
    "nodes, one per line, for `ingress` `cluster`. It need not exist.",
    "addressing": "`random`: a new address for every pod. `stable`: a pod of the same namespace "
    "and name gets the same address again on its node.",
    "routes": "The pod's routes, all through its gateway. Each has `dst`, an IPv6 prefix, and may "
    "have `mtu`, `advmss`, `priority`, `table` and `scope`.",
    "defaultRoute": "Give the pod a default route (`::/0`) too.",
    "ipMasq": "Masquerade pod traffic that leaves the overlay to the node's address.",
    "transit": "Let what comes from the overlay go on: to node ports and host ports whose backend "
    "is not a pod of this node, and into tunnels that end on the node (VXLAN, GRE, ...). Pods may "
    "then send into these, too. If one network sets it, it holds for the whole node.",
    "peering": "Let pods become peers of the node's daemon (TCP and UDP 9650 and 9651). If one "
    "network sets it, it holds for all pods of the node.",
    "serviceNetworks": "Kubernetes' Service networks. The node, and pods without a default route, "
    "get routes to them.",
    "mtu": "The MTU of host link and pod link, in bytes. By default that of the Mycelium "
    "interface.",
    "guard": "`required`: ADD fails where the packet filter rules cannot be loaded. `optional`: "
    "ADD works without them, unless `ingress` or `ipMasq` needs them.",
    "myceliumInterface": "The daemon's TUN interface (its `--tun-name`).",
    "bridge": "The bridge of bridge mode. ADD makes it where it is missing.",
    "netseed": "Bridge mode: the daemon's key file. If it exists, its subnet must be the "
    "interface's.",
    "interfaceName": "The name of the pod link when an earlier plugin of the chain has made "
    "`CNI_IFNAME`.",
    "dns": "Passed into the result: `nameservers`, `search`, `options`, `domain`.",
    "logLevel": "The least severe event that is logged. `info` is a line per call.",
    "logFile": "An absolute path. By default, and where the file cannot be written, events go to "
    "standard error.",
}


def default(key: str) -> Any:
    """The value of a key that is not given; None if it is computed or there is none."""
    if key in config.CHOICES:
        return config.CHOICES[key][0]
    if key in config.SWITCHES:
        return False
    if key in config.PREFIX_LISTS:
        return []
    if key == "routes":
        return [{"dst": format_prefix(MYCELIUM)}]
    return config.LINKS.get(key) or config.PATHS.get(key) or None


def values(key: str) -> dict[str, Any]:
    """The JSON schema of a key's values, without its meaning."""
    if key in config.CHOICES:
        return {"enum": [*config.CHOICES[key]]}
    if key in config.LINKS:
        return {"type": "string", "pattern": LINK_NAME}
    if key in config.PATHS:
        return {"type": "string", "pattern": "^/"}
    if key in config.NUMBERS:
        return _number(config.NUMBERS[key])
    if key in config.SWITCHES:
        return {"type": "boolean"}
    if key in config.PREFIX_LISTS:
        return _strings() | {"maxItems": config.MOST_PREFIXES}
    if key == "routes":
        numbers = {name: _number(limits) for name, limits in config.ROUTE_NUMBERS.items()}
        properties = {"dst": {"type": "string"}, **numbers}
        route = {"type": "object", "required": ["dst"], "properties": properties}
        return {"type": "array", "items": route, "maxItems": config.MOST_PREFIXES}
    lists = {name: _strings() for name in config.DNS_LISTS}
    return {"type": "object", "properties": {**lists, "domain": {"type": "string"}}}


def _number(limits: tuple[int, int]) -> dict[str, Any]:
    return {"type": "integer", "minimum": limits[0], "maximum": limits[1]}


def _strings() -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}}


def schema() -> dict[str, Any]:
    """The JSON schema of a .conflist. Of other plugins' entries it knows only that they have a
    type; of ours it refuses what ADD would refuse, except for the text of prefixes."""
    properties: dict[str, Any] = {"type": {"const": TYPE}}
    for key, meaning in MEANINGS.items():
        properties[key] = {"description": meaning, **values(key)}
        if default(key) is not None:
            properties[key]["default"] = default(key)
    properties["capabilities"] = {
        "description": "What the runtime may ask for. This plugin has ips, mac and dns.",
        "type": "object",
        "additionalProperties": {"type": "boolean"},
    }
    flag = {"type": "boolean"}
    return {
        "$schema": DRAFT,
        "title": "CNI network configuration list with mycelium-cni",
        "type": "object",
        "required": ["cniVersion", "name", "plugins"],
        "properties": {
            "cniVersion": {"enum": [*VERSIONS]},
            "cniVersions": {"type": "array", "items": {"type": "string"}},
            "name": {"type": "string", "pattern": NAME},
            "disableCheck": flag,
            "disableGC": flag,
            "loadOnlyInlinedPlugins": flag,
            "plugins": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {"type": {"type": "string", "pattern": "^[^/]+$"}},
                    "if": {"properties": {"type": {"const": TYPE}}},
                    "then": {"$ref": f"#/definitions/{TYPE}"},
                },
            },
        },
        "definitions": {TYPE: {"type": "object", "properties": properties}},
    }
