# SPDX-License-Identifier: Apache-2.0
"""Where the node's subnet comes from: the Mycelium interface, the bridge, or the daemon's key.

They must agree. If a key or a bridge differs from the interface, the daemon has changed its
identity, and pods with addresses from the old subnet would be unreachable.
"""

from __future__ import annotations

from errno import ENOENT
from posix import O_RDONLY, close, read, stat
from resource import RLIMIT_CORE, setrlimit

from mycelium_cni.cni.config import IPV6_MIN_MTU
from mycelium_cni.cni.errors import NODE_MISCONFIGURED, TRY_AGAIN_LATER, CniError, describe, refusal
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import format_address, format_prefix
from mycelium_cni.kernel.files import open_regular
from mycelium_cni.kernel.link import Link, find_links, read_link
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.node import identity
from mycelium_cni.overlay import MYCELIUM, on_mycelium

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from mycelium_cni.cni.config import Config

_MYCELIUM_PREFIXLEN, _MYCELIUM_MTU = 7, 1400  # of the daemon's TUN
_ELSEWHERE = b"\x04\xff" + bytes(13) + b"\x01"  # an address of some other node
_FIRST_PERSON, _FIRST_DYNAMIC = 1000, 61184  # user IDs: people's, systemd's DynamicUser


class Node:
    """What pods need of their node: its address (16 bytes), its subnet (8), the MTU in bytes of its
    Mycelium interface, and whether pods are on a bridge; `bridge` is None until it is made."""

    __slots__ = ("address", "bridge", "bridged", "mtu", "subnet")

    def __init__(self, address: bytes, mtu: int, bridged: bool, bridge: Link | None) -> None:
        self.address: Final = address
        self.subnet: Final = address[:8]
        self.mtu: Final = mtu
        self.bridged: Final = bridged
        self.bridge: Final = bridge

    @property
    def gateway(self) -> bytes:
        """The first address of the subnet: the bridge carries it."""
        return self.subnet + bytes(7) + b"\x01"


def find(host: nl.Socket, config: Config) -> Node:
    """Read the node's address, and so its subnet.

    Raises CniError: TRY_AGAIN_LATER while the daemon is not there or not ready, NODE_MISCONFIGURED
    where two sources disagree. Raises OSError: the kernel has no IPv6.
    """
    names = (
        [config.interface] if config.mode == "routed" else [config.interface, config.bridge_name]
    )
    link, *bridges = find_links(host, *names)
    bridge = bridges[0] if bridges else None
    address, mtu = _interface(host, link, config.interface)
    # Where the configuration does not name a mode, an existing bridge decides.
    bridged = config.mode == "bridge" or bridge is not None
    if bridged:
        agree_with_key(config, address)
    if bridge:
        if bridge.kind != "bridge":
            raise CniError(
                NODE_MISCONFIGURED,
                f"{bridge.name} is {bridge.kind or 'hardware'}, not a bridge",
                'rename it, or set "bridge" in the network configuration to another name',
                about=bridge.name,
            )
        for carried, _ in _addresses(host, bridge.index):
            _agree(config, address, f"bridge {config.bridge_name}", carried)
    return Node(address, mtu, bridged, bridge)


def require_way(host: nl.Socket, config: Config, node: Node) -> None:
    """Require that packets for the overlay leave by the Mycelium interface. Rules and routes of
    other programs, such as a VPN, may come before the daemon's.

    Raises CniError (TRY_AGAIN_LATER): it leaves elsewhere, or not at all.
    """
    what = f"ip -6 route get {format_address(_ELSEWHERE)} from {format_address(node.address)}"
    try:
        route = host.read(nl.get_route(what, _ELSEWHERE, node.address))
    except nl.NetlinkError as error:
        where = f": {describe(error)}"
    else:
        name = read_link(host, nl.u32(nl.decode(route, nl.RTMSG.size)[nl.RTA_OIF])).name
        if name == config.interface:
            return
        where = f" but by {name}"
    raise CniError(
        TRY_AGAIN_LATER,
        f"packets for {format_prefix(MYCELIUM)} do not leave by {config.interface}{where}",
        "`mycelium-cni doctor overlay-routes` names the cause",
        about=config.interface,
    )


def _interface(host: nl.Socket, link: Link | None, name: str) -> tuple[bytes, int]:
    if link is None:
        raise CniError(
            TRY_AGAIN_LATER,
            f"failed to find interface {name}",
            'start the Mycelium daemon, or set "myceliumInterface" to the name it uses '
            "(--tun-name)",
            about=name,
        )
    if not link.up:
        raise CniError(
            TRY_AGAIN_LATER,
            f"interface {name} is down",
            run=f"ip link set {quoted(name)} up",
            about=name,
        )
    addresses = _addresses(host, link.index)
    if not addresses:
        raise _unaddressed(name, link.mtu)
    # Somebody may have added addresses. The daemon's own has the overlay's prefix length.
    own = [pair for pair in addresses if pair[1] == _MYCELIUM_PREFIXLEN] or addresses
    if len({address[:8] for address, _ in own}) > 1:
        both = " and ".join(format_address(address) for address, _ in own)
        raise CniError(
            NODE_MISCONFIGURED,
            f"interface {name} has addresses of two subnets, {both}",
            f"remove the one that is not the daemon's with `ip address del ADDRESS dev {name}`",
            about=name,
        )
    return own[0][0], link.mtu


def _unaddressed(name: str, mtu: int) -> CniError:
    """Why the Mycelium interface has no address. Raises OSError: the kernel has no IPv6."""
    run, advice = "", "then restart the Mycelium daemon"
    if mtu < IPV6_MIN_MTU:
        problem = f"interface {name} has MTU {mtu}, and IPv6 needs {IPV6_MIN_MTU}"
        run = f"ip link set dev {quoted(name)} mtu {_MYCELIUM_MTU}"
    elif sysctl.ipv6_is_off(name):
        problem = f"IPv6 is off on {name}"
        run = sysctl.command(sysctl.conf(name, "disable_ipv6"), "0")
    else:
        problem = f"no global IPv6 address found on {name} in 400::/7"
        advice = "wait for the Mycelium daemon, or restart it if this lasts"
    return CniError(TRY_AGAIN_LATER, problem, advice, run=run, about=name)


def _addresses(host: nl.Socket, index: int) -> list[tuple[bytes, int]]:
    """The 400::/7 addresses of a link, with their prefix lengths."""
    header = nl.IFADDRMSG.pack(nl.AF_INET6, 0, 0, 0, index)
    found = []
    for payload in host.dump(nl.Message(nl.RTM_GETADDR, 0, header, "read addresses")):
        _, prefixlen, _, _, owner = nl.IFADDRMSG.unpack_from(payload)
        attributes = nl.decode(payload, nl.IFADDRMSG.size)
        address = attributes.get(nl.IFA_LOCAL) or attributes[nl.IFA_ADDRESS]
        if owner == index and on_mycelium(address):
            found.append((address, prefixlen))
    return found


def agree_with_key(config: Config, address: bytes) -> None:
    """Raises CniError (NODE_MISCONFIGURED) if there is a key file whose key does not belong to this
    address, or that cannot be read."""
    private = read_key(config.netseed)
    if private:
        other = identity.address(identity.public_key(private))
        _agree(config, address, f"the key in {config.netseed}", other)


def carries(host: nl.Socket, link: Link, address: bytes) -> bool:
    """Whether a link has that 400::/7 address."""
    return any(carried == address for carried, _ in _addresses(host, link.index))


def _agree(config: Config, address: bytes, source: str, other: bytes) -> None:
    if other[:8] != address[:8]:
        raise CniError(
            NODE_MISCONFIGURED,
            f"{source} says subnet {_subnet(other)}, interface {config.interface} says "
            f"{_subnet(address)}",
            "make both use one daemon key, then run `mycelium-cni setup`",
            about=source,
        )


def _subnet(address: bytes) -> str:
    return format_address(address[:8] + bytes(8)) + "/64"


def key_exposure(path: str) -> str:
    """Who besides root and the daemon can access the key file, in words; '' if nobody. The daemon
    makes it with mode 0640. Raises OSError."""
    status = stat(path)
    if status.st_mode & 0o022:
        return f"users other than its owner can write it (mode {status.st_mode & 0o7777:04o})"
    if status.st_mode & 0o004:
        return f"every user can read it (mode {status.st_mode & 0o7777:04o})"
    if status.st_uid >= _FIRST_PERSON and status.st_uid < _FIRST_DYNAMIC:
        return f"it belongs to user {status.st_uid}"
    return ""


def read_key(path: str) -> bytes | None:
    """The private key in the daemon's key file, or None where there is no such file. It is a
    secret: callers derive what is public, and drop it.

    Raises CniError (NODE_MISCONFIGURED): it cannot be read, or is too short.
    """
    try:
        fd = open_regular(path, O_RDONLY)
    except OSError as error:
        if error.errno == ENOENT:
            return None
        raise _unreadable(path, error) from None
    # From here on the process dumps no core: 1 byte is too small for a file, and disables handlers
    # too, for which 0 means "no limit" (fs/coredump.c).
    try:
        setrlimit(RLIMIT_CORE, (1, 1))
    except ValueError:  # the limit is 0, and raising it takes CAP_SYS_RESOURCE
        pass
    try:
        # The daemon reads 32 bytes and ignores what follows (mycelium, load_key_file).
        private = read(fd, identity.KEY_SIZE)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        close(fd)
    if len(private) < identity.KEY_SIZE:
        raise CniError(
            NODE_MISCONFIGURED,
            f"netseed {path} has {len(private)} bytes, a key has {identity.KEY_SIZE}",
            'point "netseed" to the daemon\'s --key-file',
            about=path,
        )
    return private


def _unreadable(path: str, error: OSError) -> CniError | OSError:
    error = OSError(error.errno, error.strerror)
    refused = refusal(error, f"cannot read netseed {path}")
    if refused.code == TRY_AGAIN_LATER:  # of the process, or the node: nothing is wrong with it
        return OSError(error.errno, refused.problem)
    return CniError(NODE_MISCONFIGURED, refused.problem, refused.advice, about=path)
