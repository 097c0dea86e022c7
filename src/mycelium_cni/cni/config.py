# SPDX-License-Identifier: Apache-2.0
"""Bytes to a checked network configuration: every default and every refusal."""

from __future__ import annotations

from _blake2 import blake2b
from errno import ENOENT
from posix import O_RDONLY, close, read

from mycelium_cni.cni.errors import (
    DECODING_FAILURE,
    INCOMPATIBLE_VERSION,
    INVALID_CONFIG,
    UNSUPPORTED_FIELD,
    CniError,
)
from mycelium_cni.cni.jsontext import dump, parse
from mycelium_cni.cni.request import VERSIONS, check_ifname, is_identifier
from mycelium_cni.cni.spelling import meant
from mycelium_cni.kernel.address import format_prefix, parse_address, parse_mac, parse_prefix
from mycelium_cni.kernel.files import open_regular
from mycelium_cni.overlay import MYCELIUM, on_mycelium

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeVar

    from mycelium_cni.cni.jsontext import Json

    Document = dict[str, Json]
    Read = dict[str, "Read | None"]
    T = TypeVar("T")

IPV6_MIN_MTU = 1280  # below it the kernel turns IPv6 off (RFC 8200, section 5)

# The keys of a configuration by what they hold. The parser uses these tables, and so do the
# JSON schema and the reference of the documentation (mycelium_ctl/node/schema.py).
CHOICES = {  # the first value is the default
    "mode": ("auto", "routed", "bridge"),
    "addressing": ("random", "stable"),
    "ingress": ("open", "cluster", "closed"),
    "guard": ("required", "optional"),
    "logLevel": ("warning", "error", "info", "debug"),
}
LINKS = {"myceliumInterface": "mycelium", "bridge": "mycelium-br", "interfaceName": "mycelium0"}
PATHS = {
    "netseed": "/etc/netseed",
    "clusterFile": "/var/lib/mycelium-cni/cluster",
    "logFile": "",
}
NUMBERS = {"mtu": (IPV6_MIN_MTU, 65535)}
NODE_SWITCHES = ("transit", "peering")  # one network turns them on for the whole node
SWITCHES = ("defaultRoute", "ipMasq", *NODE_SWITCHES)  # off by default
PREFIX_LISTS = ("allowFrom", "serviceNetworks")
ROUTE_NUMBERS = {  # SPEC.md 1.1.0, section "Add Success"
    "mtu": (IPV6_MIN_MTU, 65535),
    "advmss": (1, 65535),
    "priority": (1, 2**32 - 1),
    "table": (1, 2**32 - 1),
    "scope": (0, 255),
}
DNS_LISTS = ("nameservers", "search", "options")
KEYS = (*CHOICES, *LINKS, *PATHS, *NUMBERS, *SWITCHES, *PREFIX_LISTS, "routes", "dns")

# What runtimes and other CNI plugins add.
_COMMON_KEYS = (
    *("cniVersion", "cniVersions", "name", "type", "args", "capabilities", "ipam"),
    *("runtimeConfig", "prevResult", "cni.dev/valid-attachments", "cni.dev/attachments"),
    *("ingressRate", "ingressBurst"),  # of `bandwidth`, and no policy
)
_KNOWN = frozenset((*KEYS, *_COMMON_KEYS))
_POLICY_KEYS = ("ingress", "allowFrom", "clusterFile", "ipMasq", "guard")
_MOST_UNKNOWN = 256

_DEFAULT_ROUTE = (bytes(16), 0)
MOST_PREFIXES = 1024  # of a list, and of a cluster's nodes
# Capabilities (CONVENTIONS.md) that we lack, and the plugins that have them.
OTHERS_CAPABILITIES = {
    "portMappings": "portmap",
    "bandwidth": "bandwidth",
    "ipRanges": "host-local, of another network",
    "infinibandGUID": "ib-sriov",
    "deviceID": "sriov",
    "aliases": "dnsname",
}

# What is read below the top.
_INNER: Read = {
    "args": {"cni": {"ips": None, "mac": None}},
    "capabilities": dict.fromkeys(("ips", "mac", "dns", *OTHERS_CAPABILITIES)),
    "dns": dict.fromkeys((*DNS_LISTS, "domain")),
    "routes": dict.fromkeys(("dst", "gw", *ROUTE_NUMBERS)),
}
_MOST_UNKNOWN_INSIDE = 16  # `args` is untrusted, and each unknown key may be a line of the log


class Route:
    """A route of the pod, via its gateway. `metrics` holds those of `mtu`, `advmss`, `priority`,
    `table` and `scope` (SPEC.md 1.1.0) that the configuration sets."""

    __slots__ = ("destination", "metrics")

    def __init__(self, destination: tuple[bytes, int], metrics: dict[str, int]) -> None:
        self.destination: Final = destination
        self.metrics: Final = metrics


class Policy:
    """Who may open connections to a network's pods, and what happens to what they send.
    `allow_from` includes the subnets of the cluster's nodes, which the agent writes to
    `cluster_file`. `asks`: the NODE_SWITCHES that the network turns on. `required`: an ADD without
    the guard fails, because the configuration says so or asks for what only the guard can do."""

    __slots__ = ("allow_from", "asks", "cluster_file", "ingress", "masquerade", "required")

    def __init__(self, doc: Document) -> None:
        self.ingress: Final = _choice(doc, "ingress")
        allowed = _prefixes(doc, "allowFrom")
        self.cluster_file: Final = _path(doc, "clusterFile")
        self.masquerade: Final = _boolean(doc, "ipMasq")
        self.asks: Final = [key for key in NODE_SWITCHES if _boolean(doc, key)]
        optional = _choice(doc, "guard") == "optional"
        self.required: Final = not optional or self.ingress != "open" or self.masquerade
        if self.ingress == "cluster":
            allowed += _read_subnets(self.cluster_file)
        elif allowed:
            wanted = f'needs "ingress": "cluster", and ingress is "{self.ingress}"'
            raise _invalid("allowFrom", doc.get("allowFrom"), wanted)
        self.allow_from: Final = _outermost(allowed)

    def words(self, subnet: bytes) -> str:
        """The policy as text, which differs for different policies."""
        text = f"ingress {self.ingress}"
        if self.ingress == "cluster":
            members = b"".join([base + bytes((length,)) for base, length in self.allow_from])
            digest = blake2b(subnet + members, digest_size=6).hexdigest()
            text += f", {len(self.allow_from)} prefixes allowed ({digest})"
        return ", ".join([text, *(("ipMasq",) if self.masquerade else ()), *self.asks])


class Network:
    """What every verb needs of a configuration: its version and the network's name.

    Raises CniError: DECODING_FAILURE, INVALID_CONFIG for the name, INCOMPATIBLE_VERSION.
    """

    __slots__ = ("cni_version", "document", "name")

    def __init__(self, stdin: bytes) -> None:
        try:
            document = parse(stdin)
        except ValueError as error:
            raise _undecodable(str(error)) from None
        if document is None:
            document = {}
        if not isinstance(document, dict):
            raise _undecodable(f"{_kind(document)} where an object is needed")
        self.document: Final = document
        name = document.get("name")
        if not isinstance(name, str | None):
            raise _undecodable(f"name is {_kind(name)}, not a string", "name")
        if not name:
            raise CniError(INVALID_CONFIG, "missing network name", 'add "name"', about="name")
        if not is_identifier(name):
            raise CniError(
                INVALID_CONFIG,
                "invalid characters found in network name",
                "letters, digits and, after the first character, _ . -",
                about="name",
                details=f"name is {name!a}",
            )
        self.name: Final = name
        version = document.get("cniVersion")
        if not isinstance(version, str | None):
            raise _undecodable(f"cniVersion is {_kind(version)}, not a string", "cniVersion")
        self.cni_version: Final = version or "0.1.0"

    def log(self) -> tuple[str, str]:
        """Level and file of the log. A wrong value means the default here; ADD refuses it."""
        level, file = self.document.get("logLevel"), self.document.get("logFile")
        levels = CHOICES["logLevel"]
        return (
            level if isinstance(level, str) and level in levels else levels[0],
            file if isinstance(file, str) and _is_path(file) else "",
        )

    def warnings(self) -> list[CniError]:
        """Keys that have no effect and do not decide who may reach the pods."""
        doc = self.document
        misspelt = _misspelt(doc)
        for key in _INNER:
            misspelt += _misspelt_inside(doc.get(key), _INNER[key], key)
        found = [
            CniError(
                INVALID_CONFIG,
                f"key {dump(key)} is ignored",
                f'did you mean "{wanted}"?',
                about=key,
            )
            for key, wanted in misspelt
            if wanted != "ipam" and wanted not in _POLICY_KEYS
        ]
        for key in ("ipam", *[key for key, wanted in misspelt if wanted == "ipam"]):
            if doc.get(key):
                problem = f"{key} is ignored: addresses come from the node's subnet"
                found.append(CniError(INVALID_CONFIG, problem, "remove it", about=key))
        return found

    def require_version(self, command: str) -> None:
        """Refuse a version that we do not support, or whose specification lacks this verb."""
        oldest = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}.get(command, VERSIONS[0])
        version = self.cni_version
        if version in VERSIONS and VERSIONS.index(version) >= VERSIONS.index(oldest):
            return
        details = f"config is {version!a}, plugin supports {dump(list(VERSIONS))}"
        if oldest == VERSIONS[0]:
            problem = "incompatible CNI versions"
            raise CniError(INCOMPATIBLE_VERSION, problem, about="cniVersion", details=details)
        numbers = version.split(".")
        if len(numbers) > 3 or not all(n.isascii() and n.isdigit() for n in numbers):
            raise _undecodable(f"cniVersion {version!a} is not of the form 1.0.0", "cniVersion")
        too_old = version in VERSIONS or [int(n[:9]) for n in numbers] < [0, 4, 0]
        subject = "config" if too_old else "plugin"
        problem = f"{subject} version does not allow {command}"
        raise CniError(INCOMPATIBLE_VERSION, problem, about="cniVersion", details=details)

    def valid_attachments(self) -> list[tuple[str, str]]:
        """Container ID and interface name of the attachments that GC must keep.

        Raises CniError (INVALID_CONFIG) if the runtime did not say which: deleting all would be a
        guess. It may say "none" with `[]`, or, being written in Go, with `null`.
        """
        # The second key is what libcni sent before cni#1101, and still sends too.
        for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
            if key in self.document:
                listed = self.document[key]
                if listed is None:
                    return []
                if not isinstance(listed, list):
                    raise _invalid(key, listed, "must be a list")
                return [_valid_attachment(key, entry) for entry in listed]
        raise CniError(
            INVALID_CONFIG,
            "cni.dev/valid-attachments is missing: nothing was deleted",
            "the runtime must list the attachments that are in use",
            about="cni.dev/valid-attachments",
        )


def _valid_attachment(key: str, entry: Json) -> tuple[str, str]:
    if isinstance(entry, dict):
        container, ifname = entry.get("containerID"), entry.get("ifname")
        if isinstance(container, str) and isinstance(ifname, str) and container and ifname:
            return container, ifname
    raise _invalid(key, entry, 'entries must be {"containerID": "...", "ifname": "..."}')


def _misspelt(doc: Document) -> list[tuple[str, str]]:
    """Unknown keys that resemble a known one, each with that one."""
    unknown = doc.keys() - _KNOWN
    if not unknown:
        return []
    if len(unknown) > _MOST_UNKNOWN:
        problem = f"{len(unknown)} keys of the configuration are unknown"
        raise CniError(INVALID_CONFIG, problem, f"at most {_MOST_UNKNOWN} may be")
    found = [(key, meant(key, (*KEYS, *_COMMON_KEYS))) for key in sorted(unknown)]
    return [(key, wanted) for key, wanted in found if wanted]


def _misspelt_inside(value: Json, read: Read | None, place: str) -> list[tuple[str, str]]:
    """The same for nested objects, whose known keys `read` lists. Each key comes with its place."""
    if read is None or not isinstance(value, dict | list):
        return []
    found = []
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += _misspelt_inside(item, read, f"{place}[{number}]")
        return found
    unknown = value.keys() - read.keys()
    if len(unknown) <= _MOST_UNKNOWN_INSIDE:
        named = [(f"{place}.{key}", meant(key, read)) for key in sorted(unknown)]
        found = [(key, wanted) for key, wanted in named if wanted]
    for key in read:
        found += _misspelt_inside(value.get(key), read[key], f"{place}.{key}")
    return found


class Config:
    """A whole network configuration, every value checked.

    Raises CniError (INVALID_CONFIG) that names the key, its value and what to do. An unknown
    key belongs to others and is fine, unless it resembles one that says who may reach the pods.
    """

    __slots__ = (
        *("addressing", "bridge_name", "dns", "interface", "interface_name", "mode", "mtu"),
        *("netseed", "policy", "prev_result", "routes", "service_networks"),
    )

    def __init__(self, network: Network) -> None:
        doc = network.document
        for key, wanted in _misspelt(doc):
            if wanted in _POLICY_KEYS:
                raise CniError(
                    INVALID_CONFIG,
                    f"unknown key {dump(key)}",
                    f'did you mean "{wanted}"? It decides who may reach the pods: correct or '
                    "remove it",
                    about=key,
                )
        for capability, declared in _object(doc, "capabilities").items():
            if not isinstance(declared, bool | None):
                raise _invalid(f"capabilities.{capability}", declared, "must be true or false")
        mode = _choice(doc, "mode")
        if mode == "auto" and doc.get("bridge"):
            mode = "bridge"
        elif mode == "auto" and doc.get("myceliumInterface"):
            mode = "routed"
        self.mode: Final = mode
        self.interface: Final = _link_name(doc, "myceliumInterface")
        self.bridge_name: Final = _link_name(doc, "bridge")
        self.interface_name: Final = _link_name(doc, "interfaceName")
        self.netseed: Final = _path(doc, "netseed")
        self.addressing: Final = _choice(doc, "addressing")
        self.mtu: Final = _integer(doc, "mtu", NUMBERS["mtu"])
        self.policy: Final = Policy(doc)
        self.service_networks: Final = _outermost(_prefixes(doc, "serviceNetworks"))
        self.routes: Final = _routes(doc, self.service_networks)
        self.dns: Final = _dns(doc)
        self.prev_result: Final = _object(doc, "prevResult")
        _choice(doc, "logLevel")
        _path(doc, "logFile")


class PodOptions:
    """What the runtime asks of one ADD: `address` and `mac` in bytes or None, `dns` as in a result.

    Of several requests, the one in runtimeConfig (capabilities) counts, then `args.cni`, then
    CNI_ARGS (CONVENTIONS.md). Raises CniError: INVALID_CONFIG that names where the value is from,
    UNSUPPORTED_FIELD if the configuration declares a capability for us that we lack, and the
    runtime uses it. Informational values, such as cgroupPath, are ignored.
    """

    __slots__ = ("address", "dns", "mac")

    def __init__(self, network: Network, args: dict[str, str]) -> None:
        doc = network.document
        runtime = _folded(_object(doc, "runtimeConfig"), "runtimeConfig")
        for capability, declared in _object(doc, "capabilities").items():
            plugin = OTHERS_CAPABILITIES.get(capability)
            if declared and plugin and _asks(runtime.get(capability.lower())):
                raise CniError(
                    UNSUPPORTED_FIELD,
                    f"unsupported capability {capability}",
                    f"declare it for the plugin that has it ({plugin}), chained with mycelium-cni",
                    about=f"runtimeConfig.{capability}",
                )
        conventional = _object(_object(doc, "args"), "cni", "args.cni")
        self.address: Final = _requested_address(runtime, conventional, args)
        self.mac: Final = _requested_mac(runtime, conventional, args)
        self.dns: Final = _requested_dns(runtime)


def _undecodable(details: str, about: str = "") -> CniError:
    return CniError(DECODING_FAILURE, f"error unmarshall network config: {details}", about=about)


def _invalid(key: str, value: Json, wanted: str) -> CniError:
    shown = dump(value)
    shown = shown if len(shown) < 100 else shown[:96] + "..."
    return CniError(INVALID_CONFIG, f"invalid {key} {shown}", wanted, about=key)


def _kind(value: Json) -> str:
    kinds = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return kinds.get(type(value), "null" if value is None else "a number")


def _choice(doc: Document, key: str) -> str:
    choices = CHOICES[key]
    value = doc.get(key)
    if value is None:
        return choices[0]
    if not isinstance(value, str) or value not in choices:
        raise _invalid(key, value, "must be " + " or ".join(choices))
    return value


def _string(doc: Document, key: str, wanted: str) -> str | None:
    value = doc.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise _invalid(key, value, wanted)
    return value


def _link_name(doc: Document, key: str) -> str:
    value = _string(doc, key, "must be the name of a link")
    if value is None:
        return LINKS[key]
    try:
        check_ifname(value)
    except CniError as error:
        raise _invalid(key, value, error.problem) from None
    return value


def _is_path(value: str) -> bool:
    return value.startswith("/") and value.isprintable()


def _path(doc: Document, key: str) -> str:
    wanted = "must be an absolute path"
    value = _string(doc, key, wanted)
    if value is None:
        return PATHS[key]
    if not _is_path(value):
        raise _invalid(key, value, wanted)
    return value


def _boolean(doc: Document, key: str) -> bool:
    value = doc.get(key)
    if not isinstance(value, bool | None):
        raise _invalid(key, value, "must be true or false")
    return bool(value)


def _object(doc: Document, key: str, shown: str = "") -> Document:
    value = doc.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid(shown or key, value, "must be an object")
    return value


def _strings(value: Json, key: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _invalid(key, value, "must be a list of strings")
    strings = [item for item in value if isinstance(item, str)]
    if len(strings) != len(value):
        raise _invalid(key, value, "must be a list of strings")
    return strings


def _integer(doc: Document, key: str, limits: tuple[int, int], shown: str = "") -> int:
    """An integer of the configuration, or 0 where there is none. libcni may write 1400 as 1400.0.
    A bool is rejected, though Python counts it as an integer."""
    value = doc.get(key)
    if value is None or (value == 0 and value is not False):
        return 0
    number = int(value) if isinstance(value, float) and abs(value) < 2**53 else value
    if not isinstance(number, int) or isinstance(value, bool) or number != value:
        raise _invalid(shown or key, value, "must be a whole number")
    low, high = limits
    if not low <= number <= high:
        raise _invalid(shown or key, value, f"must lie between {low} and {high}")
    return number


def _asks(value: Json) -> bool:
    """Whether the runtime asks for anything: containerd also sends empty lists and zeros."""
    if isinstance(value, dict):
        value = [*value.values()]
    return any(map(_asks, value)) if isinstance(value, list) else bool(value)


def _prefixes(doc: Document, key: str) -> list[tuple[bytes, int]]:
    listed = _strings(doc.get(key), key)
    if len(listed) > MOST_PREFIXES:
        raise _invalid(key, len(listed), f"at most {MOST_PREFIXES} prefixes")
    return [_parsed(parse_prefix, f"{key}[{n}]", text) for n, text in enumerate(listed)]


def _outermost(prefixes: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
    """The prefixes, sorted, without those inside another: a set of nf_tables takes no overlaps."""
    kept: list[tuple[bytes, int]] = []
    for base, length in sorted(prefixes):
        # Sorted, a prefix comes right before all that it contains.
        if not kept or _cut(base, kept[-1][1]) != kept[-1][0]:
            kept.append((base, length))
    return kept


def parse_subnet(text: str) -> tuple[bytes, int]:
    """A node's subnet; raises ValueError."""
    prefix = parse_prefix(text)
    if prefix[1] != 64 or not on_mycelium(prefix[0]):
        raise ValueError(f"{text!a} is not the subnet of a Mycelium node, a /64 of 400::/7")
    return prefix


def _read_subnets(path: str) -> list[tuple[bytes, int]]:
    """The subnets in the file, one per line. A missing file is an empty list: the agent may not
    have written it yet. Lines that are not subnets are skipped."""
    try:
        fd = open_regular(path, O_RDONLY)
        try:
            octets = read(fd, 64 * MOST_PREFIXES)
        finally:
            close(fd)
    except OSError as error:
        if error.errno == ENOENT:
            return []
        wanted = f"must be the file that `mycelium-cni agent` writes: {error.strerror}"
        raise _invalid("clusterFile", path, wanted) from None
    found = []
    for line in octets.splitlines()[:MOST_PREFIXES]:
        try:
            found.append(parse_subnet(line.decode()))
        except ValueError:
            continue
    return found


def _cut(address: bytes, length: int) -> bytes:
    return (int.from_bytes(address, "big") >> 128 - length << 128 - length).to_bytes(16, "big")


def _routes(doc: Document, services: list[tuple[bytes, int]]) -> list[Route]:
    listed = doc.get("routes")
    if listed is None:
        listed = [{"dst": format_prefix(MYCELIUM)}]
    if not isinstance(listed, list):
        raise _invalid("routes", listed, "must be a list of routes")
    if len(listed) > MOST_PREFIXES:
        raise _invalid("routes", len(listed), f"at most {MOST_PREFIXES} routes")
    routes: list[Route] = []
    for number, entry in enumerate(listed):
        routes.append(_route(entry, f"routes[{number}]"))
    wanted = [_DEFAULT_ROUTE] if _boolean(doc, "defaultRoute") else services
    there = [route.destination for route in routes]
    routes += [Route(prefix, {}) for prefix in wanted if prefix not in there]
    seen = set()
    for route in routes:
        key = (route.destination, route.metrics.get("table"), route.metrics.get("priority"))
        if key in seen:
            raise _invalid("routes", format_prefix(route.destination), "is listed twice")
        seen.add(key)
    return routes


def _route(entry: Json, shown: str) -> Route:
    if not isinstance(entry, dict):
        raise _invalid(shown, entry, 'must be an object such as {"dst": "400::/7"}')
    dst = entry.get("dst")
    if not isinstance(dst, str):
        raise _invalid(f"{shown}.dst", dst, 'must be an IPv6 prefix such as "400::/7"')
    try:
        destination = parse_prefix(dst)
    except ValueError as error:
        raise _invalid(f"{shown}.dst", dst, str(error)) from None
    if entry.get("gw"):
        raise _invalid(f"{shown}.gw", entry["gw"], "remove it: all routes go via the pod's gateway")
    metrics = {}
    for metric, limits in ROUTE_NUMBERS.items():
        value = _integer(entry, metric, limits, f"{shown}.{metric}")
        if value:
            metrics[metric] = value
    return Route(destination, metrics)


def _dns(doc: Document) -> Document:
    dns = _object(doc, "dns")
    checked: Document = {}
    for key in DNS_LISTS:
        if dns.get(key) is not None:
            checked[key] = [*_strings(dns[key], f"dns.{key}")]
    domain = dns.get("domain")
    if domain is not None and not isinstance(domain, str):
        raise _invalid("dns.domain", domain, "must be a string")
    if domain:
        checked["domain"] = domain
    return checked


def _requested_dns(runtime: Document) -> Document:
    """The capability `dns`, whose names for nameservers and search differ from a result's."""
    shown = "runtimeConfig.dns"
    asked = _folded(_object(runtime, "dns", shown), shown)
    renamed = {"nameservers": "servers", "search": "searches", "options": "options"}
    lists = {word: _strings(asked.get(key), f"{shown}.{key}") for word, key in renamed.items()}
    return {word: [*strings] for word, strings in lists.items() if strings}


def _folded(doc: Document, shown: str) -> Document:
    """Keys in lower case: containerd sends Go's field names (`HostPort`), podman JSON's."""
    folded: Document = {}
    for key, value in doc.items():
        folded[key.lower()] = value
    if len(folded) != len(doc):
        raise _invalid(shown, list(doc), "has a key twice, differing only in case")
    return folded


def _requested_address(
    runtime: Document, conventional: Document, args: dict[str, str]
) -> bytes | None:
    if runtime.get("ips"):
        key, asked = "runtimeConfig.ips", _strings(runtime["ips"], "runtimeConfig.ips")
    elif conventional.get("ips"):
        key, asked = "args.cni.ips", _strings(conventional["ips"], "args.cni.ips")
    elif args.get("IP"):
        key, asked = "CNI_ARGS IP", args["IP"].split(",")
    else:
        return None
    if len(asked) > 1:
        raise _invalid(key, list(asked), "an attachment has one address")
    bare, slash, length = asked[0].partition("/")
    address = _parsed(parse_address, key, bare)
    if slash and length not in ("64", "128"):
        raise _invalid(key, asked[0], "the prefix length must be 64 or 128, or left out")
    return address


def _requested_mac(runtime: Document, conventional: Document, args: dict[str, str]) -> bytes | None:
    sources = (
        ("runtimeConfig.mac", runtime.get("mac")),
        ("args.cni.mac", conventional.get("mac")),
        ("CNI_ARGS MAC", args.get("MAC")),
    )
    for key, value in sources:
        if value:
            if not isinstance(value, str):
                raise _invalid(key, value, "must be a string")
            return _parsed(parse_mac, key, value)
    return None


def _parsed(parser: Callable[[str], T], key: str, value: str) -> T:
    try:
        return parser(value)
    except ValueError as error:
        raise _invalid(key, value, str(error)) from None
