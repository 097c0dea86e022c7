# SPDX-License-Identifier: Apache-2.0
"""The manifests of deploy/, rendered from the chart: `python -m tests.cluster.rendering` writes
them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import programs
from .cluster import CHART, MANIFEST, REMOVAL


def render(kubernetes: Path, *settings: str) -> str:
    """What the chart makes with these values. Raises CalledProcessError."""
    values = [word for setting in settings for word in ("--set", setting)]
    policies = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"
    argv = ["template", "mycelium-cni", CHART, "--namespace", "kube-system", *values]
    argv += ["--api-versions", policies]
    done = subprocess.run([kubernetes / "helm", *argv], capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    folder = programs.ensure()
    MANIFEST.write_text(render(folder))
    REMOVAL.write_text(render(folder, "uninstall=true"))
