# SPDX-License-Identifier: Apache-2.0
"""Two nodes, an overlay between them, and pods that talk: all on this machine, for a few seconds.

Nodes and pods are network namespaces. This executable attaches the pods, called as a container
runtime calls it: on the left node in routed mode, on the right one in bridge mode. The overlay is
the real Mycelium daemon where one is found (MYCELIUM_BIN, PATH), else a built-in stand-in. The
machine's own network is not touched. The exit code is 0 only if everybody answered.

    mycelium-cni demo
    mycelium-cni demo --keep                # leave it, and say how to enter and how to remove it
    mycelium-cni demo --remove myclab-abcd
    mycelium-cni demo --picture nodes.svg
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from mycelium_ctl import files
from mycelium_lab.errors import LabError
from mycelium_lab.lab import Lab, Namespace, Node, Pod, await_fact

# node, mode, pods
PLAN: Final = (("left", "routed", ("web", "db")), ("right", "bridge", ("api", "cache")))
SERVERS: Final = ("web", "api")
# who, whom
PINGS: Final = (
    *(("web", "db"), ("api", "cache")),  # within a node
    *(("web", "api"), ("cache", "db")),  # from node to node
    *(("left", "web"), ("right", "cache"), ("left", "api"), ("right", "db")),
)
FETCHES: Final = (("cache", "web"), ("db", "api"), ("right", "web"))
HTTP_PORT: Final = 80


@dataclass(frozen=True)
class PodFacts:
    """A pod as the kernel shows it."""

    name: str
    address: str  # with prefix length
    link: str
    host_link: str
    netns: str


@dataclass(frozen=True)
class NodeFacts:
    """A node as the kernel shows it."""

    name: str
    underlay: str
    interface: str
    address: str  # with prefix length
    bridge: str | None
    gateway: str | None  # the bridge's address, with prefix length
    netns: str
    pods: list[PodFacts]

    @property
    def mode(self) -> str:
        return "routed" if self.bridge is None else "bridge"


@dataclass(frozen=True)
class Answer:
    """One question of the demo, and whether it was answered."""

    what: str  # "ping" or "http"
    source: str
    target: str
    milliseconds: float | None  # None: no answer

    @property
    def ok(self) -> bool:
        return self.milliseconds is not None


class Screen:
    """Where the demo shows its progress. This one shows nothing, for --json."""

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show that the body is under way, and then how long it took."""
        self.begin(text)
        start = time.perf_counter()
        yield
        self.done(text, time.perf_counter() - start)

    def begin(self, text: str) -> None:
        """A step begins."""

    def done(self, text: str, seconds: float) -> None:
        """The step that began last is done."""

    def where(self, nodes: Sequence[NodeFacts]) -> None:
        """Who is where."""

    def answer(self, answer: Answer) -> None:
        """A question and its answer."""

    def finish(self, lines: Sequence[str]) -> None:
        """The last lines."""


class Lines(Screen):
    """Plain lines, for a pipe."""

    def done(self, text: str, seconds: float) -> None:
        print(f"{text}  {seconds * 1000:.0f} ms", flush=True)

    def where(self, nodes: Sequence[NodeFacts]) -> None:
        for node in nodes:
            print(f"{node.name}  {node.mode}  {node.interface}  {node.address}")
            for pod in node.pods:
                print(f"{node.name}/{pod.name}  {pod.link}  {pod.address}  {pod.host_link}")

    def answer(self, answer: Answer) -> None:
        print(f"{answer.what}  {answer.source} -> {answer.target}  {_time(answer)}", flush=True)

    def finish(self, lines: Sequence[str]) -> None:
        print(*lines, sep="\n")


class Terminal(Screen):
    """Live tables of steps, places and answers, and a picture."""

    def __init__(self) -> None:
        # Imported here: it takes 100 ms, which a pipe and the pods' servers are spared.
        from rich.console import Console
        from rich.live import Live

        self._console: Final = Console(highlight=False)
        self._steps: Final[list[tuple[str, float | None]]] = []
        self._nodes: Sequence[NodeFacts] = ()
        self._answers: Final[list[Answer]] = []
        self._live: Final = Live(console=self._console, refresh_per_second=20)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def begin(self, text: str) -> None:
        self._steps.append((text, None))
        self._show()

    def done(self, text: str, seconds: float) -> None:
        self._steps[-1] = (text, seconds)
        self._show()

    def where(self, nodes: Sequence[NodeFacts]) -> None:
        self._nodes = nodes
        self._show()

    def answer(self, answer: Answer) -> None:
        self._answers.append(answer)
        self._show()

    def finish(self, lines: Sequence[str]) -> None:
        self._live.stop()
        self._console.print(*lines, sep="\n", soft_wrap=True)

    def _show(self) -> None:
        from rich.console import Group

        parts = [self._step_table()]
        if self._nodes:
            parts.append(self._picture())
        if self._answers:
            parts.append(self._answer_table())
        self._live.update(Group(*parts), refresh=True)

    def _step_table(self) -> Any:
        from rich.spinner import Spinner
        from rich.table import Table

        table = Table(box=None, show_header=False, padding=(0, 1))
        table.add_column(width=1)
        table.add_column()
        table.add_column(justify="right", style="dim")
        for text, seconds in self._steps:
            if seconds is None:
                table.add_row(Spinner("dots", style="yellow"), text, "")
            else:
                table.add_row("[green]✓", text, f"{seconds * 1000:.0f} ms")
        return table

    def _picture(self) -> Any:
        """The nodes side by side where there is room, else one below the other."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        panels = [
            Panel(
                _tree(node),
                title=f"[bold]{node.name}[/] · {node.mode} mode",
                subtitle=f"[dim]{node.underlay}",
                expand=False,
            )
            for node in self._nodes
        ]
        widths = [self._console.measure(panel).maximum for panel in panels]
        if sum(widths) + 13 <= self._console.width:
            beside = Table.grid()
            beside.add_row(panels[0], Text("\n◀─ overlay ─▶", style="cyan"), panels[1])
            return beside
        below = Text("     ▲\n     │ overlay\n     ▼", style="cyan")
        return Group(panels[0], below, panels[1])

    def _answer_table(self) -> Any:
        from rich.table import Table

        table = Table(box=None, header_style="dim", padding=(0, 1))
        table.add_column("who")
        table.add_column("asks")
        table.add_column("whom")
        table.add_column("answer after", justify="right")
        for answer in self._answers:
            colour = "green" if answer.ok else "bold red"
            row = (answer.source, answer.what, answer.target)
            table.add_row(*row, f"[{colour}]{_time(answer)}")
        return table


def _tree(node: NodeFacts) -> Any:
    """A node: the overlay's interface, the bridge or routes, and the pods."""
    from rich.tree import Tree

    tree = Tree(f"[cyan]{node.interface}[/] {node.address}", guide_style="dim")
    trunk = tree
    if node.bridge is not None:
        trunk = tree.add(f"[magenta]{node.bridge}[/] {node.gateway}")
    for pod in node.pods:
        trunk.add(f"{pod.host_link} ── {pod.link} [bold]{pod.name}[/]\n[green]{pod.address}[/]")
    return tree


def _time(answer: Answer) -> str:
    return "no answer" if answer.milliseconds is None else f"{answer.milliseconds:.2f} ms"


def read_node(node: Node, pods: Sequence[Pod]) -> NodeFacts:
    """Read from the kernel who is where. Raises LabError if it does not show a pod on its node."""
    links: list[dict[str, Any]] = node.ip("-d", "addr", "show")
    by_index = {link["ifindex"]: link for link in links}
    overlay = next(link for link in links if link["ifname"] == node.tun)
    bridge = next(
        (link for link in links if link.get("linkinfo", {}).get("info_kind") == "bridge"), None
    )
    facts = []
    for pod in pods:
        inner = pod.link("eth0")
        outer = by_index.get(inner["link_index"]) if inner else None
        if inner is None or outer is None:
            raise LabError(f"the kernel shows no link between {node.name} and {pod.name}")
        facts.append(
            PodFacts(pod.pod_name, _address(inner), inner["ifname"], outer["ifname"], pod.path)
        )
    return NodeFacts(
        name=node.name,
        underlay=node.underlay_address,
        interface=overlay["ifname"],
        address=_address(overlay),
        bridge=None if bridge is None else bridge["ifname"],
        gateway=None if bridge is None else _address(bridge),
        netns=node.path,
        pods=facts,
    )


def _address(link: dict[str, Any]) -> str:
    """The global address of a link as `ip -j addr` shows it; "" if it has none."""
    for entry in link["addr_info"]:
        if entry["family"] == "inet6" and entry["scope"] == "global":
            return f"{entry['local']}/{entry['prefixlen']}"
    return ""


def _conf(mode: str) -> dict[str, str]:
    return {"cniVersion": "1.1.0", "name": "demo", "type": "mycelium-cni", "mode": mode}


def _play(lab: Lab, screen: Screen, *, detach: bool) -> tuple[list[NodeFacts], list[Answer]]:
    """Build everything and let the pods talk; returns the nodes and the answers."""
    # The name is shown at once: --remove needs it, should the demo be killed.
    with screen.step(f"two nodes and an underlay, named {lab.name}"):
        nodes = [lab.node(name) for name, _, _ in PLAN]
    kind = "the Mycelium daemon" if lab.overlay_kind == "daemon" else "the built-in stand-in"
    with screen.step(f"an overlay on it: {kind}"):
        lab.connect(*nodes)

    attached: list[tuple[Node, str, list[Pod]]] = []
    for node, (_, mode, names) in zip(nodes, PLAN, strict=True):
        with screen.step(f"pods {' and '.join(names)} on {node.name}, attached in {mode} mode"):
            pods = [node.pod(name) for name in names]
            for pod in pods:
                args = f"K8S_POD_NAMESPACE=demo;K8S_POD_NAME={pod.pod_name}"
                node.plugin("ADD", _conf(mode), pod, args=args).succeeded()
        attached.append((node, mode, pods))
    facts = [read_node(node, pods) for node, _, pods in attached]
    screen.where(facts)

    places: dict[str, Namespace] = {node.name: node for node in nodes}
    places |= {pod.pod_name: pod for _, _, pods in attached for pod in pods}
    addresses = {pod.name: pod.address.partition("/")[0] for node in facts for pod in node.pods}
    answers = []
    for source, target in PINGS:
        milliseconds = places[source].ping(addresses[target])
        answers.append(Answer("ping", source, target, milliseconds))
        screen.answer(answers[-1])
    with screen.step(f"HTTP servers in {' and '.join(SERVERS)}"):
        for name in SERVERS:
            places[name].start([*lab.command, "demo", "--serve", name])
            what = f"the HTTP server in {name}"
            await_fact(partial(_fetch, places[name], addresses[name], name), what)
    for source, target in FETCHES:
        answers.append(
            Answer("http", source, target, _fetch(places[source], addresses[target], target))
        )
        screen.answer(answers[-1])
    if detach:
        with screen.step("pods detached, and nothing left of them"):
            for node, mode, pods in attached:
                _detach(node, mode, pods)
    return facts, answers


def _detach(node: Node, mode: str, pods: Sequence[Pod]) -> None:
    before = {link["ifname"] for link in node.ip("link")}
    hosts = {facts.host_link for facts in read_node(node, pods).pods}
    for pod in pods:
        node.plugin("DEL", _conf(mode), pod).succeeded()
    after = {link["ifname"] for link in node.ip("link")}
    if before - after != hosts:
        raise LabError(f"DEL left {', '.join(hosts & after) or 'too little'} on {node.name}")


def _fetch(client: Namespace, address: str, name: str) -> float | None:
    """Get the page of the pod `name`; milliseconds, None without an answer or with another page."""
    start = time.perf_counter()
    try:
        body = client.get(address, HTTP_PORT)
    except (OSError, http.client.HTTPException):
        return None
    return (time.perf_counter() - start) * 1000 if body.decode() == _page(name) else None


def _page(name: str) -> str:
    return f"This is {name}, a pod on the Mycelium overlay.\n"


def _serve(name: str) -> int:
    """Run the HTTP server of a pod, until SIGTERM."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = _page(name).encode()
            self.send_response(http.HTTPStatus.OK)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6

    Server(("::", HTTP_PORT), Handler).serve_forever()
    return 0


def _ways_in(lab: Lab, facts: Sequence[NodeFacts]) -> list[str]:
    """How to use and how to remove a lab that was kept."""
    pod, other = facts[0].pods[0], facts[1].pods[0]
    address = other.address.partition("/")[0]
    places = [(place.netns, place.name) for place in (facts[0], facts[1])]
    places += [(place.netns, place.name) for place in (pod, other)]
    return [
        "",
        f"It stays, under the name {lab.name}. To look around:",
        *(f"  nsenter --net={path} bash  # {name}" for path, name in places),
        f"and in {pod.name}, for one:",
        f"  ping {address}",
        f"  curl http://[{address}]/",
        "To remove it:",
        f"  mycelium-cni demo --remove {lab.name}",
    ]


def _draw(path: Path, facts: Sequence[NodeFacts]) -> None:
    """Write the picture of the nodes. Raises LabError if the file cannot be written."""
    from mycelium_ctl.picture import NodeShape, PodShape, draw

    shapes = [
        NodeShape(
            name=node.name,
            interface=node.interface,
            address=node.address.partition("/")[0],
            bridge=node.bridge or "",
            gateway=node.gateway or "",
            pods=[
                PodShape(pod.name, pod.address.partition("/")[0], pod.host_link, pod.link)
                for pod in node.pods
            ],
        )
        for node in facts
    ]
    files.write(path, draw(shapes))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--keep", action="store_true", help="leave everything for exploring")
    parser.add_argument("--remove", metavar="NAME", help="remove what --keep left")
    parser.add_argument("--json", action="store_true", help="print one JSON document, at the end")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="also draw both nodes")
    parser.add_argument("--serve", metavar="POD", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Show the demo; 0 only if everybody answered."""
    if arguments.serve:
        return _serve(arguments.serve)
    if arguments.remove:
        Lab.remove(arguments.remove)
        return 0

    start = time.perf_counter()
    screen = Screen() if arguments.json else Terminal() if sys.stdout.isatty() else Lines()
    with Lab() as lab:
        with screen:
            facts, answers = _play(lab, screen, detach=not arguments.keep)
            if arguments.picture:
                _draw(arguments.picture, facts)
            missing = sum(not answer.ok for answer in answers)
            seconds = time.perf_counter() - start
            verdict = f"{missing} of {len(answers)} did not answer" if missing else "All answered"
            lines = [f"{verdict}, {seconds:.1f} s after the start."]
            screen.finish(lines + (_ways_in(lab, facts) if arguments.keep else []))
        if arguments.json:
            document = {
                "name": lab.name,
                "overlay": lab.overlay_kind,
                "nodes": [asdict(node) | {"mode": node.mode} for node in facts],
                "answers": [asdict(answer) | {"ok": answer.ok} for answer in answers],
                "ok": not missing,
                "seconds": round(seconds, 3),
            }
            print(json.dumps(document, indent=2))
        if arguments.keep:
            lab.keep()
    return 1 if missing else 0
