# SPDX-License-Identifier: Apache-2.0
"""What holds for any input, tried on generated ones.

Most of these calls name a namespace that does not exist: accepted input then ends in code 8, which
tells acceptance from refusal without making an attachment.
"""

from __future__ import annotations

import ipaddress
import json
import re
import string
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .calls import Plugin, network
from .conftest import WatchedNode
from .hosts import SUBNET, Host
from .schema import VERSIONS

ABSENT = "/run/netns/absent"
few = settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 70000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["400::/7", "::/0", "5a1:2b3c:4d5e:6f70::9", "lo", "eth0", "auto", "x/y"])
)
keys = st.text(max_size=8) | st.sampled_from(["dst", "gw", "mtu", "table", "ips", "mac", "cni"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)
KNOWN_KEYS = (
    "mode",
    "myceliumInterface",
    "bridge",
    "netseed",
    "addressing",
    "mtu",
    "routes",
    "defaultRoute",
    "ipMasq",
    "transit",
    "peering",
    "interfaceName",
    "ingress",
    "allowFrom",
    "clusterFile",
    "dns",
    "logLevel",
    "capabilities",
    "runtimeConfig",
    "args",
    "prevResult",
    "ipam",
    "cni.dev/valid-attachments",
)
configurations = st.dictionaries(st.sampled_from(KNOWN_KEYS), values, max_size=3)


@few
@given(stdin=st.binary(max_size=200))
def test_no_bytes_on_standard_input_break_the_contract(watched: WatchedNode, stdin: bytes) -> None:
    watched.plugin.add(watched.pod, stdin, CNI_NETNS=ABSENT).error(1, 6, 7)


@few
@given(document=values)
def test_no_json_on_standard_input_breaks_the_contract(watched: WatchedNode, document: Any) -> None:
    stdin = json.dumps(document).encode()
    watched.plugin.delete(watched.pod, stdin).error(1, 6, 7)


@few
@given(conf=configurations, version=st.sampled_from(VERSIONS))
def test_no_values_of_known_keys_break_the_contract(
    watched: WatchedNode, conf: dict[str, Any], version: str
) -> None:
    whole = network(version, **conf)
    watched.plugin.add(watched.pod, whole, CNI_NETNS=ABSENT).error(2, 6, 7, 8)
    watched.plugin.delete(watched.pod, whole).is_silent_success()


@few
@given(cut=st.integers(0, 400), junk=st.binary(max_size=3))
def test_no_damage_to_a_valid_configuration_breaks_the_contract(
    watched: WatchedNode, cut: int, junk: bytes
) -> None:
    whole = json.dumps(network(routes=[{"dst": "400::/7", "mtu": 1300}], mtu=1400)).encode()
    at = cut % len(whole)
    stdin = whole[:at] + junk + whole[at + 1 :]
    watched.plugin.add(watched.pod, stdin, CNI_NETNS=ABSENT).error(1, 6, 7, 8)


@settings(few, max_examples=20)
@given(conf=configurations)
def test_a_configuration_is_served_whole_or_refused_and_del_ends_it(
    plugin: Plugin, host: Host, conf: dict[str, Any]
) -> None:
    """On a real namespace: a refusal leaves the pod as it was, a success can be taken back."""
    pod = host.pod()
    whole = network(**conf)
    outcome = plugin.add(pod, whole)
    if outcome.code:
        outcome.error(2, 6, 7, 11, 100)
    else:
        names = [entry["name"] for entry in outcome.result()["interfaces"]]
        assert names[-1] in pod.links()
        plugin.delete(pod, whole).is_silent_success()
    assert pod.links().keys() == {"lo"}
    pod.remove()


# No NUL: no environment can hold one. Linux limits one variable to 128 KiB.
env_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
id_like = st.text(string.ascii_letters + string.digits + "_.-/ é\n", min_size=1, max_size=8)


@few
@given(container=env_text | id_like)
def test_a_container_id_is_accepted_exactly_if_it_matches_the_specified_pattern(
    watched: WatchedNode, container: str
) -> None:
    valid = re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", container)
    env = {"CNI_CONTAINERID": container, "CNI_NETNS": ABSENT}
    watched.plugin.call("ADD", network(), watched.pod, env).error(8 if valid else 4)


name_like = st.text(string.ascii_lowercase + string.digits + "_.-/:% é", min_size=1, max_size=17)


@few
@given(name=env_text | name_like)
def test_an_interface_name_is_accepted_exactly_if_linux_can_hold_it(
    watched: WatchedNode, name: str
) -> None:
    special = name in (".", "..", "lo", "all", "default") or any(sign in name for sign in "/:%")
    blank = any(letter.isspace() for letter in name)
    error = watched.plugin.add(watched.pod, network(), CNI_IFNAME=name, CNI_NETNS=ABSENT).error(
        4, 8
    )
    # Refusing what a terminal cannot show is optional; and the byte A0, part of many letters, is a
    # space to the kernel.
    if name.isprintable() and b"\xa0" not in name.encode():
        valid = len(name.encode()) <= 15 and not blank and not special
        assert error["code"] == (8 if valid else 4)


arg_pairs = st.lists(
    st.tuples(
        st.sampled_from(["IP", "MAC", "IgnoreUnknown", "K8S_POD_NAME", "ip", "GATEWAY", ""])
        | st.text(st.characters(codec="utf-8", exclude_characters="\0;="), max_size=6),
        st.text(st.characters(codec="utf-8", exclude_characters="\0;"), max_size=12)
        | st.sampled_from(["5a1:2b3c:4d5e:6f70:2::1", "c2:11:22:33:44:55", "4aa::1", "a=b"]),
    ),
    max_size=6,
)


def is_refused(pairs: list[tuple[str, str]]) -> bool:
    """Whether the last IP or the last MAC asks for something that no pod can have."""
    last = dict(pairs)
    ip, mac = last.get("IP", ""), last.get("MAC", "")
    try:
        address = ipaddress.ip_interface(ip).ip if ip else None
    except ValueError:
        return True
    if address is not None and address not in ipaddress.ip_network(SUBNET):
        return True
    return bool(mac) and re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", mac) is None


@few
@given(pairs=arg_pairs)
def test_cni_args_are_refused_only_for_an_address_or_a_mac_that_cannot_be_given(
    watched: WatchedNode, pairs: list[tuple[str, str]]
) -> None:
    args = ";".join(f"{name}={value}" for name, value in pairs)
    env = {"CNI_ARGS": args, "CNI_NETNS": ABSENT}
    error = watched.plugin.call("ADD", network(), watched.pod, env).error(4, 7, 8)
    if not is_refused(pairs):
        assert error["code"] == 8, error
    watched.plugin.delete(watched.pod, network(), CNI_ARGS=args).is_silent_success()


@few
@given(args=env_text)
def test_no_text_in_cni_args_breaks_the_contract(watched: WatchedNode, args: str) -> None:
    env = {"CNI_ARGS": args, "CNI_NETNS": ABSENT}
    watched.plugin.call("ADD", network(), watched.pod, env).error(4, 7, 8)
    watched.plugin.delete(watched.pod, network(), CNI_ARGS=args).is_silent_success()


@few
@given(listed=values)
def test_no_list_of_attachments_breaks_gc(watched: WatchedNode, listed: Any) -> None:
    conf = network(**{"cni.dev/valid-attachments": listed})
    outcome = watched.plugin.gc(conf)
    if listed is None or listed == []:
        outcome.is_silent_success()
    else:
        outcome.error(6, 7, says="attachments")
