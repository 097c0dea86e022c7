# SPDX-License-Identifier: Apache-2.0
"""Keep this node and its pods as `setup` and ADD made them, until it is told to stop.

The kernel reports every change to links, addresses, routes and the packet filter, on the node and
in the pods. The agent makes what is missing, as `doctor --fix` would, and logs a line: rules that a
firewall's restart has flushed, routes of a link that was down, a bridge that has lost its address.
It checks everything when it starts, once a minute and on SIGHUP, because the kernel does not report
most settings below /proc/sys. A repair that is undone again and again is repeated after 1, 2, 4 …
seconds, in the end once a minute. It removes attachments whose pod is gone, as `gc` does.

In a Kubernetes cluster, as a pod or with --kubeconfig, it publishes the node's subnet as
annotations of the Node, and keeps the subnets of all nodes for `"ingress": "cluster"`. What it knew
last stays while the API does not answer. What `doctor` finds, every five minutes, becomes Events of
the Node. The environment variable NODE_NAME names the Node; without it, it is the host's name.

Over HTTP it answers /healthz (it works), /readyz (what STATUS would say) and /metrics (Prometheus).

Pods do not depend on it: ADD and DEL work without it, and when it ends (SIGTERM, exit code 0) pods
keep running. `teardown` and `uninstall` refuse while it runs.

    mycelium-cni agent
    mycelium-cni agent --kubeconfig /etc/kubernetes/kubelet.conf --log-format json
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mycelium_agent import serve
from mycelium_agent.calls import Calls
from mycelium_agent.log import Log
from mycelium_agent.reconcile import Reconciler
from mycelium_agent.watch import Changes, Watch
from mycelium_cni.cni.errors import __version__
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import options
from mycelium_ctl.node.options import Options
from mycelium_ctl.node.rights import blindness, require_rights
from mycelium_ctl.view import count

if TYPE_CHECKING:
    from mycelium_agent.cluster import Cluster

STOP, LOOK = (signal.SIGTERM, signal.SIGINT), signal.SIGHUP


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="(%(default)s)"
    )
    parser.add_argument(
        "--listen",
        type=serve.address,
        default=serve.DEFAULT,
        metavar="ADDRESS:PORT",
        help="for HTTP (%(default)s)",
    )
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="how to reach the Kubernetes API, as whom (in a pod: as its service account)",
    )
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Watch and repair until a signal says stop; then 0."""
    where = options.read(arguments)
    require_rights()
    log = Log(as_json=arguments.log_format == "json")
    if unseen := blindness():
        log.write("warning", f"cannot detect pods that ended without DEL: {unseen}")
    try:
        watch = Watch()
    except OSError as error:
        raise ToolError(f"cannot listen to the kernel: {refused(error)}") from error
    with _signals() as (told, teller):
        watch.also(told.fileno())
        reconciler = Reconciler(where, log, _cluster(where, arguments.kubeconfig, log, teller))
        calls = Calls()
        try:
            calls.start()
        except OSError as error:
            log.write("warning", f"calls of the plugin are not counted: {refused(error)}")
        serve.start(arguments.listen, reconciler, calls)
        changes: Changes | None = Changes(everything=True)
        while changes is not None:
            first = not reconciler.due
            reconciler.look(changes)
            watch.known, watch.names = reconciler.known, reconciler.names
            if first:
                watched = count(reconciler.attachments, "attachment")
                log.write("info", f"mycelium-cni {__version__} watches {watched}")
            changes = _next(watch, told, reconciler.due)
    log.write("info", "stopped; pods keep running")
    return 0


def _cluster(
    where: Options, kubeconfig: Path | None, log: Log, teller: socket.socket
) -> Cluster | None:
    """The Kubernetes cluster: that of the kubeconfig, else the one whose pod this process is."""
    name = os.environ.get("NODE_NAME")
    service = [os.environ.get(f"KUBERNETES_SERVICE_{word}", "") for word in ("HOST", "PORT")]
    if not (kubeconfig or (name and all(service))):
        return None
    from mycelium_agent import access, kubernetes  # with OpenSSL
    from mycelium_agent.cluster import Cluster
    from mycelium_agent.events import Events, run_doctor
    from mycelium_lab.own import own_executable

    if kubeconfig:
        api = kubernetes.Api(partial(access.kubeconfig, kubeconfig))
    else:
        api = kubernetes.Api(partial(access.service_account, service[0], int(service[1])))
    name = name or socket.gethostname().lower()  # as a kubelet does
    cluster = Cluster(api, name, log, lambda: teller.send(bytes([LOOK])))
    cluster.start()
    doctor = (own_executable(), "doctor", "--json", *options.as_arguments(where))
    Events(api, name, log, partial(run_doctor, doctor)).start()
    return cluster


def _next(watch: Watch, told: socket.socket, due: float) -> Changes | None:
    """Wait for changes, and then until the kernel is silent; returns None to stop."""
    changes = Changes()
    end = due
    while (left := end - time.monotonic()) > 0:
        if not watch.wait(min(left, watch.QUIET_S) if changes else left) and changes:
            break
        for number in _read(told):
            if number in STOP:
                return None
            changes.everything = True
        news = watch.read()
        if news and not changes:
            end = min(due, time.monotonic() + watch.LONGEST_S)
        changes.add(news)
    return changes


@contextmanager
def _signals() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket that delivers the numbers of signals, and one to send such a number to it."""
    told, teller = socket.socketpair()
    with told, teller:
        told.setblocking(False)
        teller.setblocking(False)
        signal.set_wakeup_fd(teller.fileno())
        for number in (*STOP, LOOK):
            signal.signal(number, lambda *_: None)
        try:
            yield told, teller
        finally:
            signal.set_wakeup_fd(-1)


def _read(told: socket.socket) -> bytes:
    try:
        return told.recv(64)
    except BlockingIOError:
        return b""
