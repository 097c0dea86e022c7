# SPDX-License-Identifier: Apache-2.0
"""The CNI environment, checked: the CNI_* variables of a runtime (SPEC.md, "Parameters")."""

from __future__ import annotations

from mycelium_cni.cni.errors import INVALID_ENVIRONMENT, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

# Of the specification, oldest first.
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

# In skel's order, which the error text keeps. CNI_PATH is not required: we call no plugin.
_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
}
_ALPHANUMERIC = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_ID_CHARACTERS = _ALPHANUMERIC | frozenset("_.-")


class Request:
    """One call of the plugin, without its network configuration.

    Raises CniError (INVALID_ENVIRONMENT) with the messages of libcni's skel.
    """

    __slots__ = ("args", "command", "container", "ifname", "netns", "netns_override")

    def __init__(self, environ: Mapping[bytes, bytes]) -> None:
        def variable(name: str) -> str:
            return environ.get(name.encode(), b"").decode("utf-8", "surrogateescape")

        self.command: Final = variable("CNI_COMMAND")
        required = _REQUIRED.get(self.command, ())
        missing = [name for name in required if not variable(name)]
        if missing:
            raise CniError(
                INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing"
            )
        self.container: Final = variable("CNI_CONTAINERID")
        self.netns: Final = variable("CNI_NETNS")
        self.ifname: Final = variable("CNI_IFNAME")
        self.args: Final = parse_args(variable("CNI_ARGS"))
        self.netns_override: Final = variable("CNI_NETNS_OVERRIDE").upper() in ("1", "TRUE")
        if "CNI_CONTAINERID" in required and not is_identifier(self.container):
            raise CniError(
                INVALID_ENVIRONMENT,
                "invalid characters in containerID",
                about="CNI_CONTAINERID",
                details=repr(self.container),
            )
        if "CNI_IFNAME" in required:
            check_ifname(self.ifname)


def is_identifier(name: str) -> bool:
    """The pattern that libcni sets for container IDs and network names (pkg/utils/utils.go)."""
    return name[:1] in _ALPHANUMERIC and _ID_CHARACTERS.issuperset(name)


def check_ifname(name: str) -> None:
    """Refuse what cannot be, or must not be, the name of a link that we make.

    Raises CniError (INVALID_ENVIRONMENT). Stricter than libcni: the kernel makes `eth0` of `eth%d`,
    and `all` and `default` are names of sysctl folders.
    """
    details = ""
    if not name:
        msg = "interface name is empty"
    elif len(name.encode("utf-8", "surrogatepass")) > 15:
        msg = "interface name is too long"
        details = "interface name should be less than 16 characters"
    elif name in (".", ".."):
        msg = "interface name is . or .."
    elif any(c in "/:" or c.isspace() for c in name):
        msg = "interface name contains / or : or whitespace characters"
    elif "%" in name or not name.isprintable():
        msg = "interface name contains % or characters that cannot be printed"
    elif b"\xa0" in name.encode():
        msg = "interface name contains a byte a0, which the kernel takes for a space"
    elif name in ("lo", "all", "default"):
        msg = f"interface name {name} is the kernel's own"
    else:
        return
    raise CniError(INVALID_ENVIRONMENT, msg, about="CNI_IFNAME", details=details or repr(name))


def parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS: `KEY=VALUE;KEY=VALUE`. The last of repeated keys wins. What is not a pair is
    skipped, because runtimes add keys (and typos) of their own at any time."""
    args = {}
    for pair in text.split(";"):
        key, equals, value = pair.partition("=")
        if equals:
            args[key] = value
    return args
