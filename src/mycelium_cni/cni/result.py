# SPDX-License-Identifier: Apache-2.0
"""The result of ADD, in seven spec versions.

`Result` holds it in the form of 1.1.0: it reads a prevResult of any version, and `in_version`
returns it in any version. Fields that an older version does not have are left out.
"""

from __future__ import annotations

from mycelium_cni.cni.errors import INVALID_CONFIG, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from mycelium_cni.cni.config import Document
    from mycelium_cni.cni.jsontext import Json

# Fields of interfaces and routes that only 1.1.0 has (SPEC.md, "Add Success").
_NEW_INTERFACE_KEYS = ("mtu", "socketPath", "pciID")
_NEW_ROUTE_KEYS = ("mtu", "advmss", "priority", "table", "scope")


class Result:
    """What a chain of plugins has made so far; `prev_result` is what it was before us.

    Raises CniError (INVALID_CONFIG) if `prev_result` is of another version than the configuration,
    or is not a result.
    """

    __slots__ = ("dns", "interfaces", "ips", "routes")

    def __init__(self, prev_result: Document, version: str) -> None:
        said = prev_result.get("cniVersion")
        if said and said != version:
            raise CniError(
                INVALID_CONFIG,
                f"prevResult is of cniVersion {said!a}, the configuration of {version!a}",
                "the runtime must convert it",
                about="prevResult",
            )
        self.interfaces: Final = _entries(prev_result, "interfaces")
        self.ips: Final = _entries(prev_result, "ips")
        self.routes: Final = _entries(prev_result, "routes")
        dns = prev_result.get("dns") or {}
        if not isinstance(dns, dict):
            raise _not_a_result("dns must be an object")
        self.dns: Document = dns
        for family in ("ip4", "ip6"):  # the shape of 0.1.0 and 0.2.0
            old = prev_result.get(family)
            if isinstance(old, dict) and isinstance(old.get("ip"), str):
                self.ips.append({"address": old["ip"], "gateway": old.get("gateway")})
                self.routes.extend(_entries(old, "routes"))

    def add(self, interfaces: list[Document], ip: Document, routes: list[Document]) -> None:
        """Add an attachment after what earlier plugins made. `ip` belongs to the last of
        `interfaces`."""
        self.interfaces.extend(interfaces)
        self.ips.append({"interface": len(self.interfaces) - 1, **ip})
        self.routes.extend(routes)

    def in_version(self, version: str) -> Document:
        """The result as `version` of the specification has it."""
        newest = version == "1.1.0"
        routes = [_without(route, () if newest else _NEW_ROUTE_KEYS) for route in self.routes]
        if version in ("0.1.0", "0.2.0"):
            families = {"ip4": False, "ip6": True}
            blocks = {f: self._old_block(routes, v6) for f, v6 in families.items()}
            return {
                "cniVersion": version,
                **{family: block for family, block in blocks.items() if block},
                "dns": self.dns,
            }
        ips = [_without(ip, ("version",)) for ip in self.ips]
        if version in ("0.3.0", "0.3.1", "0.4.0"):
            ips = [{"version": "6" if _is_v6(ip, "address") else "4", **ip} for ip in ips]
        return {
            "cniVersion": version,
            "interfaces": [
                _without(interface, () if newest else _NEW_INTERFACE_KEYS)
                for interface in self.interfaces
            ],
            "ips": [*ips],
            "routes": list(routes),
            "dns": self.dns,
        }

    def _old_block(self, routes: list[Document], v6: bool) -> Document:
        """The first address of a family, with its routes: 0.2.0 has no room for others."""
        for ip in self.ips:
            if ip.get("address") and _is_v6(ip, "address") is v6:
                family = [route for route in routes if _is_v6(route, "dst") is v6]
                gateway = ip.get("gateway")
                return _without({"ip": ip["address"], "gateway": gateway, "routes": [*family]}, ())
        return {}


def _is_v6(entry: Document, key: str) -> bool:
    return ":" in str(entry.get(key))


# The keys that we, or the plugins after us, use.
_TYPES: dict[str, dict[str, type]] = {
    "interfaces": {"name": str, "mac": str, "sandbox": str},
    "ips": {"address": str, "gateway": str, "interface": int},
    "routes": {"dst": str, "gw": str},
}


def _entries(document: Document, key: str) -> list[Document]:
    listed: Json = document.get(key)
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise _not_a_result(f"{key} must be a list of objects")
    entries = []
    for entry in listed:
        if not isinstance(entry, dict):
            raise _not_a_result(f"{key} must be a list of objects")
        for field, kind in _TYPES[key].items():
            if not isinstance(entry.get(field), kind | None):
                raise _not_a_result(
                    f"{key} has an entry with a {field} that is not a {kind.__name__}"
                )
        entries.append(entry)
    return entries


def _not_a_result(what: str) -> CniError:
    return CniError(INVALID_CONFIG, f"invalid prevResult: {what}", about="prevResult")


def _without(entry: Document, keys: tuple[str, ...]) -> Document:
    """A copy without these keys, and without empty values: an optional field is left out, never
    null or "" (Go's omitempty)."""
    return {k: v for k, v in entry.items() if k not in keys and v not in (None, "", [])}
