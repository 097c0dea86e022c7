# SPDX-License-Identifier: Apache-2.0
"""The agent follows the nodes of its cluster, whatever an API server, or what is in its place,
answers."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from apiserver import ApiServer
from mycelium_agent import cluster as clusters
from mycelium_agent.access import service_account
from mycelium_agent.cluster import ADDRESS, NODES, SUBNET, Cluster
from mycelium_agent.kubernetes import MOST_BYTES, Api, ApiError
from mycelium_agent.log import Log
from mycelium_cni.cni.config import MOST_PREFIXES
from mycelium_cni.kernel.address import parse_address
from mycelium_lab.lab import await_fact


def subnet(number: int) -> str:
    return f"5a1:{number + 1:x}::/64"


def shortened(parameter: object) -> str:
    """The name of a test whose parameter may have 100,000 characters."""
    return ascii(parameter)[:40]


class Followed:
    """A cluster with two nodes besides ours, and what our agent has made of it."""

    def __init__(self, server: ApiServer, path: Path) -> None:
        self.server = server
        self.path = path
        server.put("ours")
        server.put("one", {SUBNET: subnet(1)})
        server.put("two", {SUBNET: subnet(2)})
        api = Api(partial(service_account, server.address, server.port, str(server.secrets)))
        self.cluster = Cluster(api, "ours", Log(as_json=False), lambda: None)
        self.cluster.start()

    def allowed(self) -> list[str]:
        self.cluster.keep(self.path, self.path.parent.parent)
        return self.path.read_text().splitlines() if self.path.exists() else []

    def await_nodes(self, *numbers: int) -> None:
        wanted = sorted(subnet(number) for number in numbers)
        await_fact(lambda: self.allowed() == wanted, f"{wanted} are allowed", within_s=30)

    def await_watch(self) -> None:
        await_fact(lambda: self.server.watched == 1, "it watches", within_s=30)


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Followed]:
    monkeypatch.setattr(clusters, "FIRST_S", 0.05)
    monkeypatch.setattr(clusters, "LONGEST_S", 0.2)
    with ApiServer(tmp_path / "secrets").running() as server:
        yield Followed(server, tmp_path / "lib/cluster")
        # The threads end their work with the next pause.
        monkeypatch.setattr(clusters._Pauses, "wait", lambda _: threading.Event().wait())


def test_the_file_holds_the_subnets_of_the_nodes_that_there_are(followed: Followed) -> None:
    followed.await_nodes(1, 2)
    followed.await_watch()
    followed.server.put("three", {SUBNET: subnet(3)})
    followed.await_nodes(1, 2, 3)
    followed.server.put("one", {SUBNET: subnet(11), "other": "x"})
    followed.await_nodes(2, 3, 11)
    followed.server.delete("two")
    followed.await_nodes(3, 11)
    followed.server.put("three", {})
    followed.await_nodes(11)
    assert followed.server.asked["GET", NODES] == 2  # one list, one watch


@pytest.mark.parametrize(
    "claim",
    [
        *("400::/7", "5a1::/32", "5a1:9::1/128", "2001:db8::/64", "::/0", "600::/64", "5a1:9::"),
        *("5a1:9::/64\n400::/7", "5a1:9::/64,400::/7", "5a1:9::%eth0/64", " 5a1:9::/64"),
        *("", "x" * 100_000),
    ],
    ids=shortened,
)
def test_what_is_no_nodes_subnet_is_refused(
    claim: str, followed: Followed, capsys: pytest.CaptureFixture[str]
) -> None:
    followed.await_watch()
    followed.server.put("one", {SUBNET: claim})
    followed.await_nodes(2)
    said = capsys.readouterr().err
    assert f"node one: {SUBNET} is ignored: " in said
    assert said.count("is ignored") == 1
    assert max(map(len, said.splitlines())) < 300


def test_a_name_that_forges_a_line_of_the_log_does_not(
    followed: Followed, capsys: pytest.CaptureFixture[str]
) -> None:
    followed.await_watch()
    followed.server.put("evil\nwarning: all is lost", {SUBNET: "400::/7"})
    await_fact(lambda: "is ignored" in capsys.readouterr().err, "it is said")
    assert "\nwarning: all" not in capsys.readouterr().err


def test_no_more_nodes_count_than_the_policy_takes(
    tmp_path: Path, followed: Followed, capsys: pytest.CaptureFixture[str]
) -> None:
    followed.await_watch()
    for number in range(3, MOST_PREFIXES + 10):
        followed.server.nodes[f"n{number}"] = {
            "name": f"n{number}",
            "annotations": {SUBNET: subnet(number)},
        }
    followed.server.compact()
    followed.server.cut()
    await_fact(lambda: len(followed.allowed()) == MOST_PREFIXES, "as many as can be", within_s=30)
    assert f"only {MOST_PREFIXES} can be allowed" in capsys.readouterr().err


def test_the_last_known_set_stays_while_the_api_is_away(followed: Followed) -> None:
    followed.await_nodes(1, 2)
    followed.await_watch()
    followed.server.stop()
    followed.server.put("three", {SUBNET: subnet(3)})
    # A second agent, as after a restart, which the API has never answered.
    api = Api(
        partial(
            service_account,
            followed.server.address,
            followed.server.port,
            str(followed.server.secrets),
        )
    )
    later = Cluster(api, "ours", Log(as_json=False), lambda: None)
    later.start()
    later.keep(followed.path, followed.path.parent.parent)
    assert followed.path.read_text() == f"{subnet(1)}\n{subnet(2)}\n"
    followed.server.start()
    followed.await_nodes(1, 2, 3)


def test_a_watch_that_is_cut_or_too_old_loses_nothing(followed: Followed) -> None:
    for number, break_off in enumerate((followed.server.cut, followed.server.compact) * 2, 3):
        followed.await_watch()
        break_off()
        followed.server.put(f"n{number}", {SUBNET: subnet(number)})
        followed.server.cut()
        followed.await_nodes(*range(1, number + 1))


@pytest.mark.parametrize(
    "octets",
    [
        b"garbage\n",
        b"{}\n",
        b"[]\n",
        b'{"type": "ADDED"}\n',
        b'{"type": "ADDED", "object": {"metadata": []}}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b'{"type": "ADDED", "obj',
        b'{"type": "ERROR", "object": {"code": "410", "message": 5}}\n',
    ],
    ids=shortened,
)
def test_garbage_in_a_watch_changes_nothing_and_is_survived(
    octets: bytes, followed: Followed, capsys: pytest.CaptureFixture[str]
) -> None:
    followed.await_nodes(1, 2)
    followed.await_watch()
    followed.server.send(octets)
    followed.server.cut()
    await_fact(lambda: followed.server.asked["GET", NODES] >= 4, "it lists again")
    followed.server.put("three", {SUBNET: subnet(3)})
    followed.await_nodes(1, 2, 3)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "fault",
    [
        *(403, 404, 410, 429, 500, 503, 302),
        *(b"", b"garbage", b"[]", b"{}", b'{"metadata": {}, "items": [1]}', b"[" * 50_000),
        b'{"metadata": {}, "items": {"a": 1}}',
    ],
    ids=shortened,
)
def test_what_is_no_list_is_no_empty_list(fault: int | bytes, followed: Followed) -> None:
    """Above all, it must not end the connections of all nodes."""
    followed.await_nodes(1, 2)
    followed.await_watch()
    followed.server.faults = [fault] * 3
    followed.server.compact()
    followed.server.cut()
    await_fact(lambda: not followed.server.faults, "it asks again")
    assert followed.allowed() == [subnet(1), subnet(2)]
    followed.server.put("three", {SUBNET: subnet(3)})
    followed.await_nodes(1, 2, 3)


def test_an_answer_without_end_is_broken_off(
    followed: Followed, capsys: pytest.CaptureFixture[str]
) -> None:
    followed.await_watch()
    followed.server.faults = [b" " * (MOST_BYTES + 2)]
    followed.server.compact()
    followed.server.cut()
    followed.server.put("three", {SUBNET: subnet(3)})
    followed.await_nodes(1, 2, 3)
    assert "more than 8 MiB" in capsys.readouterr().err


def test_a_list_comes_in_pages(followed: Followed) -> None:
    followed.await_watch()
    for number in range(3, 251):
        name = f"n{number}"
        followed.server.nodes[name] = {"name": name, "annotations": {SUBNET: subnet(number)}}
    followed.server.compact()
    followed.server.cut()
    followed.await_nodes(*range(1, 251))


def test_the_token_is_read_again_when_it_rotates(followed: Followed) -> None:
    followed.await_watch()
    followed.server.write_token("second")
    followed.server.cut()
    followed.server.put("three", {SUBNET: subnet(3)})
    followed.await_nodes(1, 2, 3)


def test_a_server_of_another_authority_gets_no_token(
    tmp_path: Path, followed: Followed, capsys: pytest.CaptureFixture[str]
) -> None:
    with ApiServer(tmp_path / "other").running() as other:
        other.put("evil", {SUBNET: subnet(66)})
        api = Api(partial(service_account, other.address, other.port, str(followed.server.secrets)))
        Cluster(api, "ours", Log(as_json=False), lambda: None).start()
        await_fact(lambda: "is not trusted" in capsys.readouterr().err, "it is said", within_s=30)
        assert not other.asked


def test_a_server_that_resets_every_connection_leaves_nothing_open(followed: Followed) -> None:
    """What Python's collector finds open fails the test (filterwarnings). A connection may be reset
    before, while or after TLS begins."""
    reset = struct.pack("ii", 1, 0)  # struct linger: the end of the socket is a reset
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)  # accepted ones inherit it
        server.settimeout(10)
        port, secrets = server.getsockname()[1], str(followed.server.secrets)
        api = Api(partial(service_account, "::1", port, secrets))
        with ThreadPoolExecutor(1) as pool:
            for _ in range(100):
                refused = pool.submit(api.list, NODES)
                server.accept()[0].close()
                with pytest.raises(ApiError):
                    refused.result(10)


def test_the_nodes_own_annotations_are_kept(followed: Followed) -> None:
    address = "5a1:77::ff0f:1"
    ours = {SUBNET: "5a1:77::/64", ADDRESS: address}

    def shown() -> dict[str, str]:
        return followed.server.annotations("ours")

    followed.cluster.publish(parse_address(address))
    await_fact(lambda: shown() == ours, "they are published", within_s=30)
    followed.await_watch()
    followed.server.put("ours", {"theirs": "x"})
    await_fact(lambda: shown() == {"theirs": "x", **ours}, "they are back", within_s=30)
    followed.cluster.publish(None)
    followed.cluster.publish(parse_address("5a1:78::1"))
    await_fact(lambda: shown()[SUBNET] == "5a1:78::/64", "the new one", within_s=30)


def test_the_annotations_wait_for_a_node_that_is_not_there_yet(followed: Followed) -> None:
    followed.await_watch()
    followed.server.delete("ours")
    followed.cluster.publish(parse_address("5a1:77::1"))
    followed.server.put("ours")
    await_fact(lambda: SUBNET in followed.server.annotations("ours"), "published", within_s=30)
