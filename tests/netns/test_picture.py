# SPDX-License-Identifier: Apache-2.0
"""The picture: well-formed, with every pod in it, and nothing outside its edges."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from tool import NODE, SUBNET, Tool

from mycelium_ctl.picture import NodeShape, PodShape, draw

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own words
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def inside(svg: str) -> bool:
    """Whether every box lies within the picture, and no two pods overlap."""
    root = ElementTree.fromstring(svg)  # noqa: S314
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    pods, nodes = [], []
    for box in root.iter(f"{SVG}rect"):
        x, y, wide, high = (float(box.get(a, 0)) for a in ("x", "y", "width", "height"))
        if x < 0 or y < 0 or x + wide > width or y + high > height:
            return False
        if box.get("class") == "node":
            nodes.append((x, y, x + wide, y + high))
        if box.get("class") == "pod":
            pods.append((x, y, wide, high))
    for dot in root.iter(f"{SVG}circle"):
        x, y = float(dot.attrib["cx"]), float(dot.attrib["cy"])
        if not any(a + 5 < x < c - 5 and b + 5 < y < d - 5 for a, b, c, d in nodes):
            return False
    return not any(
        a != b and abs(a[0] - b[0]) < a[2] and abs(a[1] - b[1]) < a[3] for a in pods for b in pods
    )


def test_this_node(tool: Tool, tmp_path: Path) -> None:
    tool("setup", "--mode", "bridge")
    tool.attach("web", mode="bridge")
    path = tmp_path / "node.svg"
    assert tool("status", "--picture", str(path)).returncode == 0
    found = texts(path.read_text())
    address = tool.json("list")[0]["address"]
    for words in (NODE, "mycelium-br", f"{SUBNET}::1/64", "default/web", address):
        assert words in found
    assert inside(path.read_text())


def test_what_is_broken_is_drawn_as_broken(tool: Tool, tmp_path: Path) -> None:
    tool.attach("web")
    pod = tool.attach("db")
    path = tmp_path / "node.svg"

    def classes(kind: str) -> list[str | None]:
        tool("status", "--picture", str(path))
        root = ElementTree.fromstring(path.read_text())  # noqa: S314
        return [element.get("class") for element in root.iter(f"{SVG}{kind}")]

    assert sorted(map(str, classes("circle"))) == ["ok", "ok"]
    pod.configure("route del 400::/7")
    assert sorted(map(str, classes("circle"))) == ["fail", "ok"]
    assert "interface" in classes("rect")
    tool.node.configure("link set mycelium down")
    assert "broken" in classes("rect")


def test_routed_mode_has_no_bridge() -> None:
    found = texts(draw([NodeShape("n", "mycelium", NODE, 1400)]))
    assert "n, routed mode" in found
    assert "a route for each pod" in found
    assert "no pods" in found


def test_every_number_of_pods_fits() -> None:
    pods = [
        PodShape(f"default/pod-{n}", "5a1:" * 7 + "ffff", "myc0123456789ab", "eth0")
        for n in range(300)
    ]
    for nodes in (1, 2, 3):
        for count in (0, 1, 2, 3, 4, 7, 24, 25, 40, 300):
            shapes = [NodeShape(f"n{i}", "mycelium", NODE, pods=pods[:count]) for i in range(nodes)]
            svg = draw(shapes)
            assert inside(svg)
            assert texts(svg).count("default/pod-0") == (nodes if count else 0)
            assert (f"and {count - 24} more pods" in texts(svg)) == (count > 24)


def test_the_pods_of_a_full_node_are_all_there_and_the_broken_one_in_full() -> None:
    pods = [PodShape(f"default/pod-{n}", "5a1::1", "myc0", "eth0") for n in range(300)]
    pods[250] = PodShape("default/sick", "5a1::2", "myc1", "eth0", "fail")
    svg = draw([NodeShape("n", "mycelium", NODE, pods=pods)])
    root = ElementTree.fromstring(svg)  # noqa: S314
    assert len(list(root.iter(f"{SVG}circle"))) == 300
    assert "and 276 more pods" in texts(svg)
    assert "default/sick" in texts(svg)
    assert inside(svg)


def test_hostile_names_are_text() -> None:
    name = '</text><script>alert("1")</script>\x1b[31m&'
    svg = draw([NodeShape(name, name, name, pods=[PodShape(name, name, name, name)])])
    root = ElementTree.fromstring(svg)  # noqa: S314
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "title", "style", "rect", "text", "path", "circle")
    }
    assert "\x1b" not in svg


def test_a_file_that_cannot_be_written(tool: Tool) -> None:
    done = tool("status", "--picture", "/nonexistent/x.svg")
    assert done.returncode == 1
    assert "cannot write /nonexistent/x.svg" in done.stderr
