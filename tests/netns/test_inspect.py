# SPDX-License-Identifier: Apache-2.0
"""inspect: the daemon's own vectors, its JSON, and never a private key."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tool import NODE, Tool

from mycelium_lab.lab import Node, find_daemon

# What `mycelium inspect` 0.7.10 says of these key files.
VECTORS = [
    (
        b"\x01" * 32,
        "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209",
        "414:efbc:51e5:8f3f:549:e713:e46b:c2eb",
    ),
    (
        b"01" * 32 + b"\n",
        "3576bc6c418c620bd453ef338e9c59a260347ef94faba417243207d04323e565",
        "4bf:6e00:3bbd:b908:44be:944b:94d8:e277",
    ),
]


@pytest.mark.parametrize(("private", "public", "address"), VECTORS)
def test_key_file_and_public_key(
    command: list[str], tmp_path: Path, private: bytes, public: str, address: str
) -> None:
    path = tmp_path / "key"
    path.write_bytes(private)
    expected = json.dumps({"publicKey": public, "address": address}, indent=2) + "\n"
    for source in (["--key-file", str(path)], ["-k", str(path)], [public], [public.upper()]):
        printed = subprocess.run(
            [*command, "inspect", "--json", *source], capture_output=True, text=True, check=True
        )
        assert printed.stdout == expected
    words = subprocess.check_output([*command, "inspect", "-k", str(path)], text=True)
    subnet = ":".join(address.split(":")[:4])
    assert words.splitlines() == [
        f"Public key: {public}",
        f"Address: {address}",
        f"Subnet: {subnet}::/64",
        f"Gateway: {subnet}::1",
    ]
    assert private[:32].hex() not in words


def test_the_daemon_prints_the_same(command: list[str], tmp_path: Path) -> None:
    daemon = find_daemon()
    if daemon is None:
        pytest.skip("no Mycelium daemon (PATH, MYCELIUM_BIN)")
    path = tmp_path / "key"
    path.write_bytes(bytes(range(100, 132)))
    ours, theirs = (
        subprocess.check_output([*program, "inspect", "--json", "--key-file", str(path)])
        for program in (command, [daemon])
    )
    assert ours == theirs


def test_the_running_interface(node: Node, root: Path) -> None:
    tool = Tool(node, root)
    found = tool.json("inspect")
    assert found["address"] == node.overlay_address
    from_file = tool.json("inspect", "-k", str(node.key_file), looks=False)
    assert found == from_file


def test_without_the_daemons_api_the_key_is_unknown(tool: Tool) -> None:
    assert tool.json("inspect") == {"publicKey": None, "address": NODE}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["12ab"], "64 hexadecimal digits"),
        (["zz" * 32], "64 hexadecimal digits"),
        (["00" * 33], "64 hexadecimal digits"),
        (["-k", "/nonexistent/key"], "no such file"),
        (["-k", "/dev/null"], "not a regular file"),
        (["-k", "/"], "not a regular file"),
    ],
)
def test_what_is_no_key(command: list[str], argv: list[str], words: str) -> None:
    done = subprocess.run([*command, "inspect", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
