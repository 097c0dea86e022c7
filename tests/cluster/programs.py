# SPDX-License-Identifier: Apache-2.0
"""The programs of a Kubernetes cluster, built once from the Go module proxy: no container registry.

They stay in `.tools/cluster`, which git ignores. On a cold machine with two cores the build takes
about 45 minutes. What is the distribution's, such as etcd, is unpacked and not installed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".tools" / "cluster"
KUBERNETES = "v1.34.4"  # the last minor release whose kubelet starts with cgroup v1 by default
CONTAINERD = "v2.2.9"
COREDNS = "v1.14.3"
HELM = "v3.19.5"
MULTUS = "v4.2.1"
CERTIFICATE = ("localhost.crt", "localhost.key")  # agnhost's, which it serves TLS with
COREDNS_PLUGINS = "health ready errors cache loadbalance kubernetes"

_MINOR = KUBERNETES.split(".")[1]
_KUBERNETES_PROGRAMS = (
    *("kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    *("kubelet", "kube-proxy", "kubectl", "kubeadm"),
)
_CONTAINERD_PROGRAMS = ("containerd", "containerd-shim-runc-v2")
# What the end-to-end tests' images have beside agnhost and busybox, with its libraries.
_IMAGE_PACKAGES = (
    *("bind9-dnsutils", "bind9-libs", "libuv1", "libmaxminddb0", "libjson-c5", "liblmdb0"),
    *("libfstrm0", "libprotobuf-c1", "libjemalloc2", "libicu72", "libxml2"),
    *("netcat-openbsd", "libbsd0", "libmd0"),
)


def ensure() -> Path:
    """The folder with the programs; builds what is missing, one process at a time.

    Raises RuntimeError where that cannot be done, with what is missing.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _has(*_KUBERNETES_PROGRAMS):
            _build_kubernetes()
        if not _has("probe"):
            _go("build", *_flags(), "-o", FOLDER / "probe", ".", cwd=HERE / "probe")
        if not _has("coredns"):
            _build_coredns()
        if not _has(*(f"containerd2/{name}" for name in _CONTAINERD_PROGRAMS)):
            _build_containerd()
        if not _has("etcd"):
            _unpack_etcd()
        if not _has("multus"):
            _build_multus()
        if not _has("helm"):
            _build_helm()
        if not _has("e2e.test", "agnhost", *CERTIFICATE):
            _build_end_to_end_tests()
        if not _has("debian"):
            _unpack(FOLDER / "debian", *_IMAGE_PACKAGES)
    return FOLDER


def _has(*names: str) -> bool:
    return all((FOLDER / name).exists() for name in names)


def _go(*arguments: str | Path, cwd: Path, **more: str) -> str:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        raise RuntimeError(
            f"the Go toolchain is missing: install Go 1.25 or newer, or fill {FOLDER}"
        )
    environ = (
        os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"} | more
    )
    done = subprocess.run(
        [go, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-20:])
        raise RuntimeError(f"go {arguments[0]} in {cwd} failed: {last}")
    return done.stdout


def _flags(defined: Mapping[str, str] | None = None) -> list[str]:
    set_ = [f"-X {name}={value}" for name, value in (defined or {}).items()]
    return ["-p", "2", "-trimpath", "-ldflags", " ".join(["-s", "-w", *set_])]


def _module(name: str, text: str) -> Path:
    """A folder with a Go module of this name."""
    folder = FOLDER / "src" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go.mod").write_text(f"module build.test/{name}\n\n{text}")
    return folder


def _kubernetes_module() -> Path:
    """Kubernetes cannot be a dependency as it stands: its go.mod replaces the k8s.io modules by
    folders beside it. Here they are replaced by their releases, v0.34.4 for v1.34.4."""
    folder = _module("kubernetes", "go 1.24\n")
    told = json.loads(
        _go("mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES}", cwd=folder)
    )
    lines = "\n".join(_pinned(Path(told["GoMod"]).read_text(), KUBERNETES.replace("v1.", "v0.")))
    return _module("kubernetes", lines)


def _kubernetes_flags() -> list[str]:
    version = {
        f"{package}.{field}": value
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for field, value in (("gitVersion", KUBERNETES), ("gitMajor", "1"), ("gitMinor", _MINOR))
    }
    return _flags(version)


def _build_kubernetes() -> None:
    packages = [f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES_PROGRAMS]
    _go("build", *_kubernetes_flags(), "-o", f"{FOLDER}/", *packages, cwd=_kubernetes_module())


def _build_end_to_end_tests() -> None:
    folder, tests = _kubernetes_module(), "k8s.io/kubernetes/test"
    flags = _kubernetes_flags()
    _go("build", *flags, "-o", FOLDER / "agnhost", f"{tests}/images/agnhost", cwd=folder)
    _go("test", "-c", *flags, "-o", FOLDER / "e2e.test", f"{tests}/e2e", cwd=folder)
    listed = _go("list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes", cwd=folder)
    for name in CERTIFICATE:
        shutil.copy(Path(listed.strip(), "test/images/agnhost/porter", name), FOLDER / name)


def _build_multus() -> None:
    module = "gopkg.in/k8snetworkplumbingwg/multus-cni.v4"
    folder = _module("multus", f"go 1.25.0\n\nrequire {module} {MULTUS}\n")
    # The checksum database does not have this one.
    _go(
        "build",
        *_flags(),
        "-o",
        FOLDER / "multus",
        f"{module}/cmd/multus",
        cwd=folder,
        GONOSUMDB=module,
    )


def _build_helm() -> None:
    module = "helm.sh/helm/v3"
    folder = _module("helm", f"go 1.24.0\n\nrequire {module} {HELM}\n")
    known = f"{module}/pkg/chartutil.k8sVersion"  # what templates are told, without a cluster
    flags = _flags({f"{known}Major": "1", f"{known}Minor": _MINOR})
    _go("build", *flags, "-o", FOLDER / "helm", f"{module}/cmd/helm", cwd=folder)


def _pinned(upstream: str, staging: str) -> Iterator[str]:
    """Everything that upstream pins, indirect or not, and the release itself."""
    yield from re.findall(r"^(?:go|godebug) .*", upstream, re.M)
    for block in re.findall(r"^require \(.*?^\)", upstream, re.M | re.S):
        yield re.sub(r"^(\tk8s\.io/[a-z-]+) v0\.0\.0(?= |$)", rf"\1 {staging}", block, flags=re.M)
    yield f"require k8s.io/kubernetes {KUBERNETES}"
    for module in re.findall(r"^\t(k8s\.io/[a-z-]+) => \./staging", upstream, re.M):
        yield f"replace {module} => {module} {staging}"


def _build_coredns() -> None:
    """CoreDNS with the few parts that a cluster's DNS has."""
    core = "github.com/coredns/coredns"
    folder = _module("coredns", f"go 1.25.0\n\nrequire {core} {COREDNS}\n")
    plugins = COREDNS_PLUGINS.split()
    imports = "".join(f'\t_ "{core}/plugin/{name}"\n' for name in plugins)
    directives = ", ".join(f'"{name}"' for name in plugins)
    (folder / "main.go").write_text(
        f'package main\n\nimport (\n\t"{core}/core/dnsserver"\n\t"{core}/coremain"\n{imports})\n\n'
        f"func main() {{\n\tdnsserver.Directives = []string{{{directives}}}\n\tcoremain.Run()\n}}\n"
    )
    _go("build", *_flags(), "-o", FOLDER / "coredns", ".", cwd=folder)


def _build_containerd() -> None:
    module = "github.com/containerd/containerd/v2"
    folder = _module("containerd", f"go 1.25.0\n\nrequire {module} {CONTAINERD}\n")
    flags = _flags({f"{module}/version.Version": CONTAINERD})
    packages = [f"{module}/cmd/{name}" for name in _CONTAINERD_PROGRAMS]
    place = FOLDER / "containerd2"
    place.mkdir(exist_ok=True)
    tags = "no_btrfs,no_zfs,no_devmapper"
    _go("build", "-tags", tags, *flags, "-o", f"{place}/", *packages, cwd=folder)


def _unpack_etcd() -> None:
    folder = FOLDER / "src" / "etcd"
    _unpack(folder, "etcd-server")
    shutil.copy2(folder / "usr/bin/etcd", FOLDER / "etcd")


def _unpack(folder: Path, *packages: str) -> None:
    """Packages of the distribution, unpacked below a folder."""
    made = folder.with_name(f".{folder.name}.new")
    made.mkdir(parents=True, exist_ok=True)
    for argv in (
        ["apt-get", "download", *packages],
        ["sh", "-ec", "for package in *.deb; do dpkg -x $package .; rm $package; done"],
    ):
        done = subprocess.run(argv, cwd=made, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)} failed: {done.stderr.strip()}")
    made.rename(folder)
