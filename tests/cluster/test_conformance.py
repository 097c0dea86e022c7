# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own conformance tests of the network (sig-network), as its release has them.

Their images are made here, from the same release's agnhost and the distribution's programs.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from runtime.images import APPLETS, archive, need

from .cluster import Cluster
from .programs import CERTIFICATE

pytestmark = [pytest.mark.timeout(3000), pytest.mark.only("containerd-1.6")]

FOCUS = r"\[sig-network\].*\[Conformance\]"
MORE_APPLETS = (
    "cat date dd echo env false grep head hostname kill mkdir rm sed seq sleep timeout true"
)
DEBIAN = ("/usr/bin/dig", "/usr/bin/nslookup", "/bin/nc.openbsd")  # unpacked, not installed


def closure(program: Path, below: Path) -> list[Path]:
    """The libraries that a program needs, those below a folder first."""
    libraries = {"LD_LIBRARY_PATH": str(below / "usr/lib/x86_64-linux-gnu")}
    listed = subprocess.run(
        ["ldd", program], env=os.environ | libraries, capture_output=True, text=True, check=True
    )
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listed.stdout)]


def files(programs: Path) -> dict[str, bytes | str]:
    """What the tests call in their pods. `sh` is bash: busybox's takes its own `nc` for `nc`."""
    debian = programs / "debian"
    found: dict[str, bytes | str] = {
        "agnhost": (programs / "agnhost").read_bytes(),
        "bin/busybox": Path(need("busybox", "busybox-static")).read_bytes(),
        **{f"bin/{name}": "busybox" for name in {*APPLETS.split(), *MORE_APPLETS.split()}},
        "bin/nc": "nc.openbsd",
        "bin/sh": "bash",
        "etc/nsswitch.conf": b"hosts: files dns\n",
        **{name: (programs / name).read_bytes() for name in CERTIFICATE},
        "etc/passwd": b"root:x:0:0:root:/:/bin/sh\n",
        "tmp/.keep": b"",
    }
    own = [Path(need(name, package)) for name, package in (("bash", "bash"), ("curl", "curl"))]
    own.append(Path(need("getent", "libc-bin")))
    for program in (*own, *(debian / path[1:] for path in DEBIAN)):
        found[f"bin/{program.name}"] = program.read_bytes()
        for library in closure(program, debian):
            place = library.relative_to(debian if library.is_relative_to(debian) else "/")
            found[str(place)] = library.read_bytes()
    return found


def test_the_networks_conformance_tests_pass(
    cluster: Cluster, kubernetes: Path, tmp_path: Path
) -> None:
    inside = files(kubernetes)
    pause = {"pause": cluster.images.init.read_bytes()}
    for name, content, entrypoint in (
        ("e2e-test-images/agnhost:2.56", inside, ["/agnhost"]),
        ("e2e-test-images/jessie-dnsutils:1.7", inside, []),
        ("pause:3.10.1", pause, ["/pause"]),
    ):
        image = tmp_path / "image.tar"
        archive(image, f"registry.k8s.io/{name}", content, entrypoint, ["pause"])
        for node in cluster.nodes:
            node.load(image)
    done = cluster.nodes[0].run(
        kubernetes / "e2e.test",
        *("--kubeconfig", cluster.admin, "--kubectl-path", kubernetes / "kubectl"),
        *("--provider", "skeleton", "--disable-log-dump", "--ginkgo.timeout=48m"),
        *(f"--ginkgo.focus={FOCUS}", "--ginkgo.no-color"),
        check=False,
        timeout_s=2900,
    )
    (tmp_path / "e2e.log").write_text(done.stdout + done.stderr)
    ran = re.search(r"(\d+) Passed \| (\d+) Failed \| \d+ Pending", done.stdout)
    assert ran, done.stdout[-2000:]
    failed = re.findall(r"^  \[FAIL\] (.*)$", done.stdout, re.M)
    assert failed == []
    assert (int(ran[2]), int(ran[1]) > 40) == (0, True)
