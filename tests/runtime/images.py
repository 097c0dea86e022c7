# SPDX-License-Identifier: Apache-2.0
"""Container images made locally, without a registry."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

PAUSE = "runtime.test/pause:1"
BUSYBOX = "runtime.test/busybox:1"
APPLETS = "cat httpd ip ls mkdir nc ping ps sh sleep test wget"

# What holds a pod's namespaces open, and is the first process of the machines in these tests.
PAUSE_C = r"""
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void)
{
    struct sigaction action = {0};
    action.sa_handler = leave;
    sigaction(SIGINT, &action, 0);
    sigaction(SIGTERM, &action, 0);
    action.sa_handler = reap;
    action.sa_flags = SA_NOCLDSTOP;
    sigaction(SIGCHLD, &action, 0);
    for (;;)
        pause();
}
"""


def need(program: str, package: str) -> str:
    """The full path of a program; the test fails with the package's name if there is none."""
    path = shutil.which(program)
    if path is None:
        pytest.fail(f"`{program}` is missing: apt-get install {package}", pytrace=False)
    return path


class Images:
    """The pause program and the archives of the two images, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.init = directory / "pause"
        self.pause = directory / "pause.tar"
        self.busybox = directory / "busybox.tar"
        source = directory / "pause.c"
        source.write_text(PAUSE_C)
        compiler = need("gcc", "gcc libc6-dev")
        subprocess.run([compiler, "-Os", "-static", "-s", "-o", self.init, source], check=True)
        busybox = Path(need("busybox", "busybox-static"))
        archive(self.pause, PAUSE, {"pause": self.init.read_bytes()}, ["/pause"])
        files: dict[str, bytes | str] = {f"bin/{name}": "busybox" for name in APPLETS.split()}
        files["bin/busybox"] = busybox.read_bytes()
        files["etc/passwd"] = b"root:x:0:0:root:/:/bin/sh\n"
        archive(self.busybox, BUSYBOX, files, ["/bin/sh"])


def archive(
    path: Path,
    reference: str,
    files: Mapping[str, bytes | str],
    entrypoint: list[str],
    command: Sequence[str] = (),
) -> None:
    """An image in the layout of `docker save`. A file given as text is a link to that text."""
    layer = _tar(files)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = json.dumps(
        {
            "architecture": machine,
            "os": "linux",
            "config": {
                "Entrypoint": entrypoint,
                "Cmd": list(command),
                "Env": ["PATH=/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"],
            },
            "history": [{"created": "1970-01-01T00:00:00Z"}],
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]
    parts = {name: config, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    path.write_bytes(_tar(parts))


def _tar(files: Mapping[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folders = {str(parent) for name in files for parent in Path(name).parents}
        for folder in sorted(folders - {"."}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if isinstance(data, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, data
                tar.addfile(entry)
            else:
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
