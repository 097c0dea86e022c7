# SPDX-License-Identifier: Apache-2.0
"""ADD, DEL, CHECK, GC and STATUS as five functions that read like the specification.

https://github.com/containernetworking/cni/blob/main/SPEC.md, section "CNI Operations". Each returns
what it did, in words for the log, and raises CniError or OSError.
"""

from __future__ import annotations

from mycelium_cni import guard
from mycelium_cni.cni.config import Config, Network, PodOptions
from mycelium_cni.cni.errors import (
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    INVALID_NETNS,
    LIMITED_CONNECTIVITY,
    PLUGIN_NOT_AVAILABLE,
    TRY_AGAIN_LATER,
    CniError,
    refusal,
)
from mycelium_cni.cni.result import Result
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import netns, sysctl
from mycelium_cni.kernel.address import format_address, format_mac, format_prefix
from mycelium_cni.kernel.link import Link, find_link
from mycelium_cni.kernel.snapshot import Snapshot
from mycelium_cni.node import prepare, subnet
from mycelium_cni.pod import check as comparison
from mycelium_cni.pod import claims, datapath, removal, sourcerule
from mycelium_cni.pod.addresses import random_address, stable_address
from mycelium_cni.pod.attachment import Attachment
from mycelium_cni.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelium_cni.cni.config import Document
    from mycelium_cni.cni.request import Request

    Reply = Callable[[Document], None]


def add(request: Request, network: Network, reply: Reply) -> str:
    """Attach the pod to Mycelium and reply with what was made, or leave everything as it was."""
    config = Config(network)
    options = PodOptions(network, request.args)
    result = Result(config.prev_result, network.cni_version)
    attachment = Attachment(network.name, request.container, request.ifname)

    host = nl.Socket()
    pod_netns, home = _open_netns(request, host)
    pod_link = request.ifname
    if config.prev_result and _is_taken(pod_link, result, pod_netns, home):
        pod_link = config.interface_name
    node = subnet.find(host, config)
    address = _address(host, request, network, options, config, node)

    try:
        with Undo() as undo:
            bridge = None
            if node.bridged:
                bridge = prepare.ensure_bridge(host, config.bridge_name, node, undo)
            plan = datapath.Plan(attachment, node, bridge, config, pod_link, address, options.mac)
            made, shape = datapath.create_pair(host, pod_netns, home, plan, undo)
            if node.bridge:
                prepare.keep_bridge_mac(host, node.bridge)
            datapath.reserve(host, shape, plan.alias(_pod_name(request)))
            # Before the guard: nothing passes while the host link is down, and the kernel gets time
            # to finish the address (await_address).
            pod = datapath.enter_pod(host, pod_netns, home, pod_link, undo)
            if not datapath.configure_pod(pod, shape, undo):
                table = sourcerule.table(shape)
                datapath.set_alias(host, shape, plan.alias(_pod_name(request), table))
                sourcerule.add(pod, shape, undo)
            wanted = guard.Wanted(network.name, config, node)
            guard.protect(host, wanted, undo, datapath.port(shape, network.name))
            used = bool(options.address) or config.addressing == "stable"
            if used:
                guard.end_former(wanted, address)
            datapath.raise_host_link(host, made, shape, undo)
            # Before the link is awaited, which another processor may be bringing up.
            gateway = format_address(shape.gateway)
            result.add(
                interfaces=[
                    {
                        "name": attachment.host_link,
                        "mac": format_mac(plan.host_mac),
                        "mtu": plan.mtu,
                    },
                    {
                        "name": pod_link,
                        "mac": format_mac(plan.pod_mac),
                        "mtu": plan.mtu,
                        "sandbox": request.netns,
                    },
                ],
                ip={
                    "address": f"{format_address(address)}/{shape.prefixlen}",
                    "gateway": gateway,
                },
                routes=[
                    {"dst": format_prefix(route.destination), "gw": gateway, **route.metrics}
                    for route in shape.routes
                ],
            )
            result.dns = options.dns or config.dns or result.dns
            datapath.await_carrier(host, pod, shape)
            if bridge:
                datapath.require_way(host, shape)
                if used or options.mac:
                    datapath.announce(pod, shape)
            datapath.await_address(pod, shape)
            prepare.prepare(host, node, config.service_networks, undo)
            reply(result.in_version(network.cni_version))
            # For a socket that is left open CPython writes a warning, in a fiftieth of the
            # instructions of an ADD.
            pod.close()
            host.close()
    except OSError as error:
        raise refusal(error, f"cannot attach {attachment}") from None
    return f"address {format_address(address)} on {attachment.host_link}"


def delete(request: Request, network: Network, _: Reply) -> str:
    """Remove an attachment, if it is there. It is found by its name: the pod's namespace, a
    previous result, the daemon and the rest of the configuration are not needed."""
    host = nl.Socket()
    attachment = Attachment(network.name, request.container, request.ifname)
    link = removal.find(host, attachment)
    if link is None:
        try:
            _sweep(host)
        except OSError as error:  # leftover entries allow nothing, and must not fail DEL
            return f"nothing was there; {refusal(error, 'stale entries stay').problem}"
        return "nothing was there"
    _remove(host, [link], request.netns)
    return f"{link.name} is gone"


def check(request: Request, network: Network, _: Reply) -> str:
    """Confirm that the attachment is what ADD made, as the chain's final result describes it."""
    config = Config(network)
    if not config.prev_result:
        raise CniError(INVALID_CONFIG, "required prevResult missing", "CHECK follows ADD")
    result = Result(config.prev_result, network.cni_version)
    host = nl.Socket()
    pod_netns, home = _open_netns(request, host)
    with netns.inside(pod_netns, home=home):
        pod = Snapshot(nl.Socket())
    attachment = Attachment(network.name, request.container, request.ifname)
    comparison.check(host, pod, config, attachment, result, request.netns)
    return "as ADD made it"


def gc(_request: Request, network: Network, _: Reply) -> str:
    """Remove every attachment of this network that the runtime does not list as valid."""
    valid = {
        Attachment(network.name, container, ifname).host_link
        for container, ifname in network.valid_attachments()
    }
    host = nl.Socket()
    links = removal.attachments(host, network.name)
    stale = [link for link in links if not removal.is_valid(link, network.name, valid)]
    try:
        if stale:
            _remove(host, stale)
    finally:
        _sweep(host)
    return f"{len(stale)} stale: {' '.join([link.name for link in stale])}"


def status(_request: Request, network: Network, _: Reply) -> str:
    """Confirm that ADD can be served. Asks the kernel alone: a kubelet asks every five seconds."""
    config = Config(network)
    try:
        host = nl.Socket()
        node = subnet.find(host, config)
        datapath.require_alternative_names(host)
        netns.require_right(host.fileno())
        subnet.require_way(host, config, node)
        lo = prepare.loopback(host)
        sysctl.require_right()
        if config.policy.required:
            # Until the first pod, or `setup`, has prepared the node, there is nothing to guard.
            if subnet.carries(host, lo, node.address):
                guard.inspect(host, guard.Wanted(network.name, config, node))
            else:
                guard.require_kernel()
    except CniError as error:
        # Without the overlay running pods are cut off too; if sources disagree, only new ones are.
        later = error.code == TRY_AGAIN_LATER
        error.code = LIMITED_CONNECTIVITY if later else PLUGIN_NOT_AVAILABLE
        raise
    except OSError as error:
        unavailable = refusal(error)
        unavailable.code = PLUGIN_NOT_AVAILABLE
        raise unavailable from None
    return "ready"


VERBS = {"ADD": add, "DEL": delete, "CHECK": check, "GC": gc, "STATUS": status}


def _remove(host: nl.Socket, links: list[Link], path: str = "") -> None:
    """Delete host links and what belongs to them. A refused step does not stop the others, so that
    a retry finds nothing; then the first refusal is raised."""
    refused: list[OSError] = []
    waiting: list[nl.Socket | None] = []
    addresses = [address for link in links if (address := guard.address_of(link))]
    # Keeps the guard's socket open until then: closing it takes the kernel 15 ms, which the child
    # that deletes the links spends waiting anyway.
    steps: tuple[Callable[[], None], ...] = (
        lambda: sourcerule.forget(host, links, path),
        lambda: waiting.append(guard.forget(host, links)),
        lambda: removal.forget_neighbours(host, links),
        lambda: removal.delete_links(host, [link.index for link in links], addresses),
    )
    for step in steps:
        try:
            step()
        except OSError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _sweep(host: nl.Socket) -> None:
    """Remove the guard's and the node's entries of bridged pods whose links are gone. When a pod
    ends before its DEL, the kernel removes everything else."""
    try:
        guard.sweep(host)
    finally:
        removal.sweep_neighbours(host)


def _is_taken(ifname: str, result: Result, pod_netns: int, home: int) -> bool:
    """Whether an earlier plugin of the chain has made an interface of that name. Not every result
    says so: before 0.3.0 none has interfaces, and some plugins leave out theirs, or the sandbox."""
    if any(i.get("name") == ifname and i.get("sandbox") for i in result.interfaces):
        return True
    with netns.inside(pod_netns, home=home), nl.Socket() as pod:
        return find_link(pod, ifname) is not None


def _open_netns(request: Request, host: nl.Socket) -> tuple[int, int]:
    """Descriptors of the pod's network namespace and of our own.

    Raises CniError (INVALID_NETNS): no such namespace, or the host's own.
    """
    path = request.netns
    try:
        pod = netns.open_netns(path)
    except (OSError, ValueError) as error:
        number, reason = getattr(error, "errno", 0), getattr(error, "strerror", str(error))
        refused = refusal(OSError(number, reason), f"cannot open network namespace {path!a}")
        if refused.code == TRY_AGAIN_LATER:  # of the process, or the node
            raise refused from None
        raise CniError(
            INVALID_NETNS,
            refused.problem,
            refused.advice,
            about="CNI_NETNS",
            details=f"CNI_NETNS={path}",
        ) from None
    home = netns.netns_of(host.fileno())
    if netns.same_netns(pod, home) and not request.netns_override:
        raise CniError(
            INVALID_NETNS,
            "plugin's netns and netns from CNI_NETNS should not be the same",
            about="CNI_NETNS",
            details=f"CNI_NETNS={path}",
        )
    return pod, home


def _address(
    host: nl.Socket,
    request: Request,
    network: Network,
    options: PodOptions,
    config: Config,
    node: subnet.Node,
) -> bytes:
    """The pod's address: the requested one, its stable one, or a random one of 2^48 (if another pod
    has it, the runtime tries again)."""
    stable = None
    if config.addressing == "stable":
        namespace = request.args.get("K8S_POD_NAMESPACE", "")
        name = request.args.get("K8S_POD_NAME", "")
        owner = (network.name, namespace, name, request.ifname)
        stable = stable_address(node.subnet, *owner) if namespace and name else b""
        if not stable and not options.address:
            raise CniError(
                INVALID_ENVIRONMENT,
                '"addressing": "stable" needs K8S_POD_NAMESPACE and K8S_POD_NAME in CNI_ARGS',
            )
    address = options.address or stable or random_address(node.subnet)
    if options.address or options.mac:
        if options.address:
            claims.check_address(host, node, address, stable)
        if options.mac and node.bridged:
            claims.check_mac(host, address, options.mac)
    return address


def _pod_name(request: Request) -> str:
    """Namespace and name of the Kubernetes pod, '' if the runtime gives none."""
    name = request.args.get("K8S_POD_NAME", "")
    return f"{request.args.get('K8S_POD_NAMESPACE', '')}/{name}" if name else ""
