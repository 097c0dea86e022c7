# SPDX-License-Identifier: Apache-2.0
"""The container image: one file, which is what the image runs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from .conftest import ROOT


def test_it_holds_the_static_executable_and_nothing_else(executable: Path, tmp_path: Path) -> None:
    containerfile = ROOT / "deploy/Containerfile"
    build = ["build", "--quiet", "--build-arg=TARGETARCH=amd64", "--file", containerfile]
    with TemporaryDirectory() as short:  # podman allows runroot 50 bytes
        storage = ["--root", f"{short}/root", "--runroot", f"{short}/run", "--storage-driver=vfs"]
        for argv in (
            [*build, "--tag=image", executable.parent],
            ["save", "--quiet", "--output", tmp_path / "image.tar", "image"],
        ):
            subprocess.run(["podman", *storage, *argv], check=True, capture_output=True)
    with tarfile.open(tmp_path / "image.tar") as archive:

        def member(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

        (image,) = json.loads(member("manifest.json"))
        config = json.loads(member(image["Config"]))["config"]
        (layer,) = image["Layers"]
        (tmp_path / "layer.tar").write_bytes(member(layer))
    assert config["Entrypoint"] == ["/mycelium-cni"]
    with tarfile.open(tmp_path / "layer.tar") as files:
        (only,) = files.getmembers()
        assert (only.name, only.mode & 0o777, only.uid) == ("mycelium-cni", 0o755, 0)
        inside = files.extractfile(only)
        assert inside is not None
        digest = hashlib.sha256(inside.read()).digest()
    assert digest == hashlib.sha256(executable.read_bytes()).digest()
