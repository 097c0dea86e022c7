# SPDX-License-Identifier: Apache-2.0
"""Nodes as a picture: the overlay, each node's interface, its bridge or routes, and its pods.

An SVG that stands alone: no scripts, no fonts, no links. Widths are computed from the number of
characters, so names and addresses are set in a monospaced font, whose width is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final, NamedTuple

from mycelium_cni.kernel.address import format_address
from mycelium_ctl.checks.pods import ExpectedPod
from mycelium_ctl.node.stale import verdicts
from mycelium_ctl.node.state import Attached, State
from mycelium_ctl.view import Mark, visible

# All lengths in pixels.
POD_WIDTH, POD_HEIGHT, GAP, GUTTER, PAD = 292, 66, 14, 26, 22
OVERLAY_HEIGHT, WIRE, HEAD, BOX_HEIGHT, BAR = 56, 44, 40, 46, 40
MOST_PODS: Final = 24  # in full; the others are dots
DOT: Final = 14
STYLE: Final = """
  .page { fill: #ffffff }
  text { font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1d2733 }
  .title { font-size: 15px; font-weight: bold }
  .name { font-size: 13px; font-weight: bold }
  .address { font-size: 11.5px }
  .small { font-size: 10.5px; fill: #5b6b7c }
  .overlay { fill: #e3f4ec; stroke: #2a9d6f }
  .node { fill: #f7f9fb; stroke: #8fa1b3 }
  .interface { fill: #d9f0e6; stroke: #2a9d6f }
  .broken { fill: #f9dede; stroke: #c0392b; stroke-dasharray: 6 4 }
  .bar { fill: #e6e4f7; stroke: #6a5fc1 }
  .pod { fill: #ffffff; stroke: #8fa1b3 }
  .wire { stroke: #2a9d6f; stroke-width: 2; fill: none }
  .link { stroke: #6a5fc1; stroke-width: 1.5; fill: none }
  .ok { fill: #2a9d6f } .warn { fill: #e0a100 } .fail { fill: #d13b3b }
  .skip { fill: #9aa7b4 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 }
    text { fill: #e6edf3 }
    .small { fill: #9aa7b4 }
    .overlay, .interface { fill: #12352a }
    .node { fill: #161b22 }
    .broken { fill: #4a1f1c }
    .bar { fill: #2a2750 }
    .pod { fill: #0d1117 }
  }
"""


@dataclass(frozen=True, slots=True)
class PodShape:
    """A pod as it is drawn. `mark` is "ok", "warn" or "fail"."""

    name: str
    address: str
    host_link: str
    pod_link: str
    mark: str = "ok"


@dataclass(frozen=True, slots=True)
class NodeShape:
    """A node as it is drawn; without a bridge it is in routed mode."""

    name: str
    interface: str
    address: str
    mtu: int = 0  # bytes; 0: not said
    broken: bool = False  # the interface is missing, down or without an address
    bridge: str = ""
    gateway: str = ""  # the bridge's address, with prefix length
    pods: list[PodShape] = field(default_factory=list)


def read_node(state: State) -> NodeShape:
    """This node."""
    import socket

    seen = verdicts(state)

    def mark(one: Attached) -> Mark:
        """The mark of a pod: that of `list`, and of its facts."""
        found = seen[one.link.index][0]
        return "fail" if found == "ok" and ExpectedPod(state, one).missing() else found

    address = state.address
    gateway = f"{format_address(address[:8] + bytes(7) + bytes((1,)))}/64" if address else ""
    return NodeShape(
        name=socket.gethostname(),
        interface=state.config.interface,
        broken=state.interface is None or not state.interface.up or state.address is None,
        address=format_address(address) if address else "no address",
        mtu=state.interface.mtu if state.interface else 0,
        bridge=state.config.bridge_name if state.bridged else "",
        gateway=gateway if state.bridged else "",
        pods=[
            PodShape(one.who, one.address, one.link.name, one.pod_link or one.ifname, mark(one))
            for one in state.attachments
        ],
    )


class Box(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float


def draw(nodes: Sequence[NodeShape]) -> str:
    """The picture of these nodes, side by side under one overlay."""
    columns = [_columns(node, len(nodes)) for node in nodes]
    widths = [2 * PAD + _inner(count) for count in columns]
    heights = [_height(node, count) for node, count in zip(nodes, columns, strict=True)]
    width = sum(widths) + PAD * (len(nodes) + 1)
    height = PAD + OVERLAY_HEIGHT + WIRE + max(heights, default=0) + PAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">',
        f"<title>{_text('Pods on the Mycelium overlay')}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
        _rect("overlay", Box(PAD, PAD, width - 2 * PAD, OVERLAY_HEIGHT), OVERLAY_HEIGHT // 2),
        _label("title", width / 2, PAD + 25, "Mycelium overlay", anchor="middle"),
        _label("small", width / 2, PAD + 43, "400::/7, end-to-end encrypted", anchor="middle"),
    ]
    x = PAD
    for node, count, wide, high in zip(nodes, columns, widths, heights, strict=True):
        parts.extend(_node(node, count, Box(x, PAD + OVERLAY_HEIGHT + WIRE, wide, high)))
        x += wide + PAD
    return "\n".join([*parts, "</svg>", ""])


def _columns(node: NodeShape, nodes: int) -> int:
    """Few pods of several nodes make one column: such a picture fits on a page unscaled."""
    if nodes == 1:
        return max(1, min(3, len(node.pods)))
    return 1 if len(node.pods) <= 4 else 2


def _rows(node: NodeShape, columns: int) -> int:
    shown = min(len(node.pods), MOST_PODS)
    return -(-shown // columns)


def _inner(columns: int) -> int:
    """The width of what a node holds."""
    return columns * (GUTTER + POD_WIDTH) + (columns - 1) * GAP


def _in_order(pods: Sequence[PodShape]) -> list[PodShape]:
    """Broken pods first, so that they are drawn in full."""
    return sorted(pods, key=lambda pod: {"fail": 0, "warn": 1}.get(pod.mark, 2))


def _height(node: NodeShape, columns: int) -> int:
    rows = max(_rows(node, columns), 1)
    dots = max(len(node.pods) - MOST_PODS, 0)
    more = (24 + -(-dots // (_inner(columns) // DOT)) * DOT) if dots else 0
    return HEAD + BOX_HEIGHT + GUTTER + BAR + GUTTER + rows * (POD_HEIGHT + GAP) + more + PAD - GAP


def _node(node: NodeShape, columns: int, box: Box) -> Iterator[str]:
    x, y, width, _ = box
    middle = x + width / 2
    inner = width - 2 * PAD
    top = y + HEAD
    bar = top + BOX_HEIGHT + GUTTER
    mode = "bridge" if node.bridge else "routed"
    yield _rect("node", box, 12)
    yield _label("title", x + PAD, y + 26, _cut(f"{node.name}, {mode} mode", inner - 60, 9.1))
    beside = x + width - 2 * PAD  # the title
    yield f'<path class="wire" d="M{beside} {y - WIRE} V{top}"/>'
    yield _rect("broken" if node.broken else "interface", Box(x + PAD, top, inner, BOX_HEIGHT), 8)
    size = f", MTU {node.mtu}" if node.mtu else ""
    yield _label("name", middle, top + 19, f"{node.interface}{size}", anchor="middle")
    yield _label("address", middle, top + 36, node.address, anchor="middle")
    yield f'<path class="wire" d="M{middle} {top + BOX_HEIGHT} V{bar}"/>'
    yield _rect("bar", Box(x + PAD, bar, inner, BAR), 4)
    if node.bridge:
        title, below = node.bridge, node.gateway
    else:
        title, below = "a route for each pod", "gateway fe80::1 on every link"
    yield _label("name", middle, bar + 17, title, anchor="middle")
    yield _label("small", middle, bar + 32, below, anchor="middle")

    pods = _in_order(node.pods)
    shown, others = pods[:MOST_PODS], pods[MOST_PODS:]
    first = bar + BAR + GUTTER
    for column in range(columns):
        mine = shown[column::columns]
        if not mine:
            continue
        trunk = x + PAD + column * (GUTTER + POD_WIDTH + GAP) + GUTTER // 2
        last = first + (len(mine) - 1) * (POD_HEIGHT + GAP) + POD_HEIGHT // 2
        yield f'<path class="link" d="M{trunk} {bar + BAR} V{last}"/>'
        for row, pod in enumerate(mine):
            yield from _pod(pod, trunk, first + row * (POD_HEIGHT + GAP))
    if not shown:
        yield _label("small", middle, first + POD_HEIGHT // 2, "no pods", anchor="middle")
    if others:
        under = first + _rows(node, columns) * (POD_HEIGHT + GAP)
        yield _label("small", middle, under + 10, f"and {len(others)} more pods", anchor="middle")
        for number, pod in enumerate(others):
            row, column = divmod(number, int(inner) // DOT)
            at = f'cx="{x + PAD + (column + 0.5) * DOT}" cy="{under + 24 + row * DOT}"'
            name = f"<title>{_text(f'{pod.name} {pod.address}')}</title>"
            yield f'<circle class="{pod.mark}" {at} r="5">{name}</circle>'


def _pod(pod: PodShape, trunk: float, y: float) -> Iterator[str]:
    x = trunk + GUTTER // 2
    yield f'<path class="link" d="M{trunk} {y + POD_HEIGHT // 2} H{x}"/>'
    yield _rect("pod", Box(x, y, POD_WIDTH, POD_HEIGHT), 8)
    yield f'<circle class="{pod.mark}" cx="{x + 15}" cy="{y + 17}" r="5"/>'
    yield _label("name", x + 28, y + 22, _cut(pod.name, POD_WIDTH - 38, 7.9))
    yield _label("address", x + 10, y + 40, _cut(pod.address, POD_WIDTH - 16, 6.95))
    yield _label("small", x + 10, y + 56, f"{pod.host_link} to {pod.pod_link}")


def _rect(kind: str, box: Box, radius: int) -> str:
    place = f'x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}"'
    return f'<rect class="{kind}" {place} rx="{radius}"/>'


def _label(kind: str, x: float, y: float, text: str, *, anchor: str = "start") -> str:
    where = f'x="{x}" y="{y}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {where}>{_text(text)}</text>'


def _cut(text: str, width: float, character: float) -> str:
    """The text as far as it fits."""
    text, room = visible(text), int(width / character)
    return text if len(text) <= room else text[: room - 1] + "…"


def _text(text: str) -> str:
    return escape(visible(text))
