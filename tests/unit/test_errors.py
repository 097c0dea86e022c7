# SPDX-License-Identifier: Apache-2.0
"""What an error prints for a runtime, and for a program that reads its parts."""

from __future__ import annotations

import subprocess

import pytest

from mycelium_cni.cni.errors import CniError
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.shell import quoted


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CniError(11, "lo is down"), "lo is down"),
        (CniError(7, "invalid mtu 9", "at least 1280"), "invalid mtu 9: at least 1280"),
        (
            CniError(100, "lo is down", run="ip link set lo up"),
            "lo is down: run `ip link set lo up`",
        ),
        (
            CniError(100, "lo is down", "or boot", run="ip link set lo up"),
            "lo is down: run `ip link set lo up`; or boot",
        ),
    ],
)
def test_a_runtime_gets_the_problem_and_the_way_out_in_one_line(error: CniError, line: str) -> None:
    assert error.msg == line


@pytest.mark.parametrize("word", ["mycelium", "a b", "$(id)", "it's", "a;b", "*", "é", "", "-n"])
def test_a_quoted_word_is_one_word_to_a_shell(word: str) -> None:
    said = subprocess.run(
        ["sh", "-c", f"printf %s:%s {quoted(word)} end"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{word}:end"


@pytest.mark.parametrize(
    ("link", "line"),
    [
        ("lo", "sysctl -w net.ipv6.conf.lo.proxy_ndp=1"),
        ("my.0", "sysctl -w net/ipv6/conf/my.0/proxy_ndp=1"),
        ("a;b", "sysctl -w 'net.ipv6.conf.a;b.proxy_ndp'=1"),
    ],
)
def test_the_sysctl_line_of_a_switch_can_be_pasted(link: str, line: str) -> None:
    assert sysctl.command(sysctl.conf(link, "proxy_ndp"), "1") == line
