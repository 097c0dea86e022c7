# SPDX-License-Identifier: Apache-2.0
"""test: its verdict on a node is right, and it leaves nothing."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from observe import difference, kernel_state
from tool import Tool, state

from mycelium_cni.guard.wanted import PODS_CHAIN
from mycelium_lab.lab import Node, await_fact

MODES = pytest.mark.parametrize("mode", ["routed", "bridge"])


def failed(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [trial for trial in trials if trial["state"] == "fail"]


@MODES
def test_all_answer_and_nothing_is_left(pair: tuple[Node, Node], root: Path, mode: str) -> None:
    node, other = pair
    tool = Tool(node, root)
    tool("setup", "--mode", mode)
    before = state(node)
    for argv in ((), ("--peer", str(other.overlay_address))):
        trials = tool.json("test", *argv)
        assert failed(trials) == []
        ways = {(trial["what"], trial["source"], trial["target"]) for trial in trials}
        for size in ("packet", "1400 bytes"):
            for way in (
                ("pod a", "pod b"),
                ("pod b", "pod a"),
                ("pod a", "node"),
                ("node", "pod a"),
            ):
                assert (size, *way) in ways
        across = [trial for trial in trials if trial["target"].startswith(("peer", "node of"))]
        assert across[0]["state"] == "ok"
        assert across[0]["milliseconds"] > 0
        large = [trial for trial in across if trial["what"] == "1400 bytes"]
        assert large[0]["state"] == ("ok" if argv else "skip")
        attacks = {trial["what"]: trial["note"] for trial in trials}
        for what in ("own source", "from a peer"):
            assert attacks[what] == "arrives"
        for what in ("false source", "from off the overlay", "to off the overlay"):
            assert attacks[what] == "stopped"
        assert state(node) == before
    assert tool("test").returncode == 0


def test_the_policy_of_the_network_stays(tool: Tool) -> None:
    """The pods of the network that run keep what they were given, such as their way out."""
    policy: dict[str, Any] = {
        **dict.fromkeys(("defaultRoute", "ipMasq", "transit", "peering"), True),
        "serviceNetworks": ["fd00:10:96::/112"],
        "ingress": "cluster",
        "allowFrom": ["5aa::/16"],
    }
    network = {"cniVersion": "1.0.0", "name": "mycelium"}
    tool.conf({**network, "plugins": [{"type": "mycelium-cni", **policy}]})
    tool("setup")
    tool.attach("web", **policy)
    before = kernel_state(tool.node)
    assert failed(tool.json("test")) == []
    assert difference(before, kernel_state(tool.node)) == []


def test_without_a_peer_it_says_so(tool: Tool) -> None:
    tool("setup")
    done = tool("test", "--json")
    trials = json.loads(done.stdout)
    assert failed(trials) == []
    untried = [trial for trial in trials if trial["state"] == "warn"]
    assert [trial["target"] for trial in untried] == ["overlay"]
    assert "--peer" in untried[0]["note"]
    assert done.returncode == 1  # what was not tried is no pass
    assert "the overlay was not tried" in tool("test").stdout


def test_what_does_not_pass_is_found(tool: Tool) -> None:
    tool("setup")
    chain = "type filter hook forward priority 0;\nmeta length > 1300 drop\n"
    rules = f"table inet t {{\nchain c {{\n{chain}}}\n}}"
    tool.node.run(["nft", "-f", "-"], input=rules)
    done = tool("test", "--json")
    assert done.returncode == 1
    wrong = failed(json.loads(done.stdout))
    assert [(trial["what"], trial["source"], trial["target"]) for trial in wrong] == [
        ("1400 bytes", "pod a", "pod b"),
        ("1400 bytes", "pod b", "pod a"),
    ]
    assert "no answer within 1 s" in wrong[0]["note"]


def test_when_it_fails_it_has_asked_doctor_about_its_pods(tool: Tool) -> None:
    tool("setup")
    chain = "{ type filter hook forward priority 0; policy drop; }"
    tool.node.run(["nft", "add", "table", "inet", "theirs"])
    tool.node.run(["nft", "add", "chain", "inet", "theirs", "theirs", chain])
    done = tool("test")
    assert done.returncode == 1
    assert "chain inet theirs theirs drops" in done.stdout
    assert "nft insert rule inet theirs theirs" in done.stdout


def test_a_guard_with_a_hole_is_found(tool: Tool) -> None:
    tool("setup")
    tool.attach("web")  # the pods' rules are loaded with the first
    tool.node.run(["nft", f"flush chain inet mycelium-cni {PODS_CHAIN}"])
    done = tool("test")
    assert done.returncode != 0
    assert "run `mycelium-cni setup` first" in done.stderr
    tool("setup")
    assert failed(tool.json("test")) == []


def test_pods_of_a_closed_network_do_not_reach_each_other(tool: Tool) -> None:
    conf = {"type": "mycelium-cni", "ingress": "closed", "netseed": str(tool.root / "netseed")}
    tool.conf({"cniVersion": "1.0.0", "name": "mycelium", "plugins": [conf]})
    tool("setup")
    trials = tool.json("test")
    assert failed(trials) == []
    between = [t for t in trials if (t["source"], t["target"]) == ("pod a", "pod b")]
    assert {trial["note"] for trial in between} == {"stopped: ingress is closed"}


def test_an_unprepared_node_is_left_alone(tool: Tool) -> None:
    before = state(tool.node)
    done = tool("test")
    assert done.returncode == 1
    assert "mycelium-cni setup" in done.stderr
    assert state(tool.node) == before


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_is_stopped(tool: Tool, number: signal.Signals) -> None:
    tool("setup")
    before = state(tool.node)
    # A peer that never answers keeps it busy.
    argv = [*tool.node.lab.command, "test", "--peer", "4ee::1", "--root", str(tool.root)]
    testing = tool.node.start(argv)
    await_fact(lambda: len(tool.json("list")) == 2, "two pods")
    testing.stop(number)
    deadline = time.monotonic() + 20
    while state(tool.node) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert state(tool.node) == before
