# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes cluster on one machine, with mycelium-cni as its only pod network.

Its nodes are machines of a lab: network, mount and PID namespaces, and the overlay between them.
Each runs its own containerd, kubelet and kube-proxy; the first one also etcd and the control plane.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mycelium_lab.errors import LabError
from mycelium_lab.lab import Lab, Process, await_fact
from runtime.images import PAUSE, PAUSE_C, archive, need
from runtime.machine import Machine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MANIFEST = ROOT / "deploy/mycelium-cni.yaml"
REMOVAL = ROOT / "deploy/uninstall.yaml"
CHART = ROOT / "deploy/chart"
IMAGE = ROOT / "dist/mycelium-cni-image-amd64.tar"
SERVICE_NETWORK = "fd00:10:96::/112"
API_SERVICE = "fd00:10:96::1"
DNS_SERVICE = "fd00:10:96::a"
DOMAIN = "cluster.local"
SOCKET = "/run/containerd/containerd.sock"  # each machine's own
ROUTER = "2001:db8::ffff"  # the nodes' way to the rest of the world
INTERNET = "2001:db8:1::1"  # a host there, which has no route to the overlay
APPLETS = "cat hostname httpd ip ls mkdir nc ping ping6 ps sh sleep test wget"
IMAGES = ("docker.io/library/ubuntu:22.04", "docker.io/library/busybox:1")  # busybox, both of them

CONTAINERD_1 = """\
version = 2
root = "{d}/root"
state = "{d}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      Root = "{d}/runc"
"""
CONTAINERD_2 = """\
version = 3
root = "{d}/root"
state = "{d}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.blockfile"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      Root = "{d}/runc"
"""
# The kubelet sets these sysctls of the whole machine: it finds them set, in files of its own.
KERNEL_TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


# Settings of a kubelet and of kube-proxy that share a kernel and a disk with others.
KUBELET_ON_A_MACHINE = {
    "cgroupDriver": "cgroupfs",
    "enforceNodeAllocatable": ["none"],
    "failSwapOn": False,
    "failCgroupV1": False,
    "imageGCHighThresholdPercent": 100,
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
    "featureGates": {"KubeletInUserNamespace": True},  # there may be no CAP_SYS_RESOURCE
}
PROXY_ON_A_MACHINE = {
    "conntrack": {
        "maxPerCore": 0,
        "min": 0,
        "tcpEstablishedTimeout": "0s",
        "tcpCloseWaitTimeout": "0s",
    }
}


@dataclass(frozen=True)
class Options:
    """What differs from cluster to cluster.

    `known_by`: the addresses that Kubernetes knows the nodes by. `router`: whether the nodes have a
    default route. `plugins`: a directory of reference plugins. `by_manifest`: the network comes by
    deploy/mycelium-cni.yaml, as it is, with the agent; else by `install` on each node.
    """

    containerd: Literal[1, 2]
    proxy_mode: Literal["nftables", "iptables"]
    known_by: Literal["lan", "overlay"]
    router: bool
    plugins: Path
    by_manifest: bool


class Pki:
    """A certificate authority and what it signs, with openssl."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        elliptic = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        self._openssl(f"req -x509 {elliptic} -days 30 -keyout ca.key -out ca.crt -subj /CN=ca")
        self._openssl("genrsa -out sa.key 2048")
        self._openssl("rsa -in sa.key -pubout -out sa.pub")
        self._request = f"req {elliptic}"

    def _openssl(self, line: str) -> None:
        argv = ["openssl", *line.split()]
        done = subprocess.run(
            argv, cwd=self._directory, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LabError(f"{' '.join(argv)}: {done.stderr}")

    def path(self, name: str) -> str:
        return str(self._directory / name)

    def issue(self, name: str, subject: str, names: Sequence[str] = ()) -> None:
        """A key and a certificate, `name`.key and `name`.crt."""
        lines = ["extendedKeyUsage=serverAuth,clientAuth"]
        if names:
            lines.append(f"subjectAltName={','.join(names)}")
        Path(self.path(f"{name}.ext")).write_text("\n".join(lines))
        self._openssl(f"{self._request} -subj {subject} -keyout {name}.key -out {name}.csr")
        self._openssl(
            f"x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30"
            f" -extfile {name}.ext -out {name}.crt"
        )

    def kubeconfig(self, name: str, subject: str, server: str) -> str:
        self.issue(name, subject)
        cluster = {"server": server, "certificate-authority": self.path("ca.crt")}
        user = {
            "client-certificate": self.path(f"{name}.crt"),
            "client-key": self.path(f"{name}.key"),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": user}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }
        path = Path(self.path(f"{name}.kubeconfig"))
        path.write_text(json.dumps(document))
        return str(path)


class Images:
    """The machines' first process, and the archives of all images."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.directory = directory
        self.init = directory / "pause"
        source = directory / "pause.c"
        source.write_text(PAUSE_C)
        compiler = need("gcc", "gcc libc6-dev")
        subprocess.run([compiler, "-Os", "-static", "-s", "-o", self.init, source], check=True)
        self.archives = [directory / "pause.tar"]
        archive(self.archives[0], PAUSE, {"pause": self.init.read_bytes()}, ["/pause"])
        busybox = Path(need("busybox", "busybox-static"))
        files: dict[str, bytes | str] = {f"bin/{name}": "busybox" for name in APPLETS.split()}
        files |= {
            "bin/busybox": busybox.read_bytes(),
            "bin/probe": (programs / "probe").read_bytes(),
            "etc/passwd": b"root:x:0:0:root:/:/bin/sh\n",
            "tmp/.keep": b"",
        }
        for number, image in enumerate(IMAGES):
            self.archives.append(directory / f"{number}.tar")
            archive(self.archives[-1], image, files, [])
        self.archives.append(directory / "coredns.tar")
        coredns = {"bin/coredns": (programs / "coredns").read_bytes()}
        archive(self.archives[-1], "docker.io/test/coredns:1", coredns, ["/bin/coredns"])


class KubeNode:
    """A machine and the Kubernetes programs on it."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.name = f"node{number}"
        self.lab_node = cluster.lab.node(self.name)
        self._cluster = cluster
        self._processes: dict[str, Process] = {}
        self._argv: dict[str, list[str]] = {}

    def boot(self, directory: Path | None = None) -> None:
        """Switch the machine on, with the disk of one that was switched off if there is one."""
        cluster = self._cluster
        self.machine = Machine(
            self.lab_node, cluster.images.init, (cluster.options.plugins,), directory
        )
        if directory is None:
            self.machine.uninstall()
        d = self.directory
        lines = []
        places = {"log": "/var/log", "kubelet": "/var/lib/kubelet", "tools": "/usr/local/bin"}
        for name, place in {**places, "etcd": ""}.items():
            (d / name).mkdir(exist_ok=True)
            if place:
                lines.append(f"mkdir -p {place}; mount --bind {d}/{name} {place}")
        for name, value in KERNEL_TUNABLES.items():
            file = d / "sysctl" / name.replace("/", ".")
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{value}\n")
            lines.append(f"mount --bind {file} /proc/sys/{name}")
        # As with systemd: without it no container can have a mount that follows the node's.
        self.machine.shell("\n".join([*lines, "mount --make-rshared /"]))

    def reboot(self) -> None:
        """Cut the power; start again with the same disk and an empty kernel."""
        self.machine.power_off()
        for link in self.lab_node.ip("link"):
            if link["ifname"].startswith("myc") and link["ifname"] != self.lab_node.tun:
                self.lab_node.run(["ip", "link", "del", link["ifname"]], check=False)
        self.boot(self.directory)
        self.machine.shell("rm -rf /run/netns/*", check=False)
        self.start_containerd()
        for name in ("kubelet", "kube-proxy"):
            self.start(name, *self._argv[name])

    @property
    def directory(self) -> Path:
        return self.machine.directory

    @property
    def address(self) -> str:
        """The address that Kubernetes knows the node by."""
        return self.overlay if self._cluster.options.known_by == "overlay" else self.lan

    @property
    def lan(self) -> str:
        return self.lab_node.underlay_address

    @property
    def overlay(self) -> str:
        address = self.lab_node.overlay_address
        assert address is not None
        return address

    def run(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.machine.run(*argv, **options)

    def get(self, url: str) -> bool:
        """Whether a web server answers the node's own programs."""
        return self.run("curl", "-gsS", "-m", "3", url, check=False).returncode == 0

    def install(self) -> str:
        """Install the plugin as docs/install says. Returns what that printed."""
        network = (
            () if self._cluster.options.by_manifest else ("--service-network", SERVICE_NETWORK)
        )
        return self.run(*self._cluster.lab.command, "install", *network).stdout

    def configure(self, name: str, document: Mapping[str, Any] | None) -> None:
        """Write a file of /etc/cni/net.d by renaming, or remove it."""
        path = self.machine.net_d / name
        if document is None:
            path.unlink()
            return
        made = path.with_name(".new")
        made.write_text(json.dumps(document))
        made.rename(path)

    def load(self, *archives: Path) -> None:
        """Give the runtime images."""
        for path in archives:
            self.run("ctr", "-a", SOCKET, "-n", "k8s.io", "images", "import", path)

    def traces(self) -> list[str]:
        """What an installation may leave on the node: files, links, routes, rules."""
        folders = ("/opt/cni/bin", "/etc/cni/net.d", "/etc/systemd", "/usr/local/bin")
        found = self.run("find", *folders, "/var/lib/mycelium-cni", check=False).stdout.split()
        routes = self.lab_node.ip("-6", "route", "show", "proto", "77")
        found += [f"route {route['dst']}" for route in routes]
        found += [link["ifname"] for link in self.lab_node.ip("link")]
        tables = self.run("nft", "list", "tables").stdout.splitlines()
        found += [table for table in tables if "mycelium" in table]
        return sorted(found)

    # Programs

    def start(self, name: str, *argv: str | Path) -> None:
        """Start a program; what it prints is in log/<name>.out of the node's directory."""
        self._argv[name] = [str(word) for word in argv]
        log = self.directory / "log" / f"{name}.out"
        script = f'exec "$@" >>{log} 2>&1'
        self._processes[name] = self.machine.start("sh", "-c", script, "sh", *argv)

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self._processes[name]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), number)  # nsenter has forked
        await_fact(lambda: not process.running, f"the end of {name}", within_s=30)

    def restart(self, name: str) -> None:
        if name == "containerd":
            self.start_containerd()
        else:
            self.start(name, *self._argv[name])

    def renew_proxy(self) -> None:
        """Have kube-proxy load its rules again: with nftables it does not see that somebody has
        flushed them, for an hour (FullSyncPeriod)."""
        self.stop("kube-proxy")
        self.restart("kube-proxy")

    def start_containerd(self) -> None:
        cluster, d = self._cluster, self.directory
        self.run("rm", "-f", SOCKET)
        config = d / "config.toml"
        text = CONTAINERD_2 if cluster.options.containerd == 2 else CONTAINERD_1
        config.write_text(text.format(d=d, pause=PAUSE, runc=need("runc", "runc")))
        # Where it is looked for: the machine outside may have one that says something else.
        self.run("install", "-D", "-m", "644", config, "/etc/containerd/config.toml")
        programs = cluster.programs / "containerd2"
        if cluster.options.containerd == 2:
            path = f"PATH={programs}:{os.environ['PATH']}"
            self.start("containerd", "env", path, programs / "containerd", "-c", config)
        else:
            self.start("containerd", need("containerd", "containerd"), "-c", config)
        ctr = ("ctr", "-a", SOCKET, "-n", "k8s.io", "images")
        await_fact(
            lambda: self.run(*ctr, "ls", "-q", check=False).returncode == 0,
            "containerd",
            within_s=40,
        )
        if PAUSE not in self.run(*ctr, "ls", "-q").stdout:
            self.load(*cluster.images.archives)

    def start_kubelet(self) -> None:
        cluster, d = self._cluster, self.directory
        subject = f"/O=system:nodes/CN=system:node:{self.name}"
        kubeconfig = cluster.pki.kubeconfig(f"kubelet-{self.name}", subject, cluster.server)
        resolv = d / "resolv.conf"
        resolv.write_text("nameserver ::1\n")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "x509": {"clientCAFile": cluster.pki.path("ca.crt")},
                "webhook": {"enabled": True},
                "anonymous": {"enabled": False},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupRoot": self.make_cgroup(),
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": DOMAIN,
            "resolvConf": str(resolv),
            "address": "::",
            "healthzBindAddress": "::1",
            "maxPods": 250,
            "registryPullQPS": 0,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "eventRecordQPS": 0,
            **KUBELET_ON_A_MACHINE,
        }
        path = d / "kubelet.yaml"
        path.write_text(json.dumps(config))
        argv = (cluster.programs / "kubelet", "--config", path, "--kubeconfig", kubeconfig)
        self.start("kubelet", *argv, "--hostname-override", self.name, "--node-ip", self.address)

    def make_cgroup(self) -> str:
        """A control group for each node: kubelets clean up what they do not know."""
        root = f"{self._cluster.lab.name}-{self.name}"
        for controller in Path("/sys/fs/cgroup").iterdir():
            if controller.name == "unified":
                continue
            group = controller / root
            group.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (group / file).exists():
                    (group / file).write_text((controller / file).read_text())
        return f"/{root}"

    def start_etcd(self) -> str:
        """Returns its URL."""
        clients, peers = "http://[::1]:2379", "http://[::1]:2380"
        self.start(
            "etcd",
            *(self._cluster.programs / "etcd", "--data-dir", self.directory / "etcd"),
            *("--unsafe-no-fsync", "--initial-cluster", f"default={peers}"),
            *("--listen-client-urls", clients, "--advertise-client-urls", clients),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
        )
        return clients

    def start_proxy(self) -> None:
        cluster = self._cluster
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": cluster.options.proxy_mode,
            "hostnameOverride": self.name,
            "clientConnection": {"kubeconfig": cluster.pki.path("kube-proxy.kubeconfig")},
            **PROXY_ON_A_MACHINE,
            "metricsBindAddress": "[::1]:10249",
            "healthzBindAddress": "[::]:10256",
            **kube_proxy_configuration(),
        }
        path = self.directory / "proxy.yaml"
        path.write_text(json.dumps(config))
        self.start("kube-proxy", cluster.programs / "kube-proxy", "--config", path)


def kube_proxy_configuration() -> dict[str, Any]:
    """The settings of kube-proxy from docs/install."""
    return {
        "detectLocalMode": "InterfaceNamePrefix",
        "detectLocal": {"interfaceNamePrefix": "myc"},
        "nodePortAddresses": ["2000::/3", "fc00::/7"],
    }


class Cluster:
    """The nodes, and `kubectl` as an administrator of all of it."""

    def __init__(self, lab: Lab, images: Images, programs: Path, options: Options) -> None:
        self.lab = lab
        self.images = images
        self.programs = programs
        self.options = options
        self.nodes = [KubeNode(self, number) for number in (1, 2, 3)]
        self.bare: list[list[str]] = []  # what was on the nodes before the network came
        self.world = lab.node("world")
        lab.connect(*(node.lab_node for node in self.nodes), self.world)
        self._connect_to_the_world()
        self.server = f"https://[{self.nodes[0].address}]:6443"
        self.pki = Pki(lab.directory / "pki")

    def _connect_to_the_world(self) -> None:
        """A router on the nodes' LAN, and a host behind it; a node of the overlay, too."""
        self.world.configure(f"address add {ROUTER}/64 dev under0 nodad")
        self.world.configure(f"address add {INTERNET}/128 dev lo nodad")
        if self.options.router:
            for node in self.nodes:
                node.lab_node.configure(f"route add default via {ROUTER}")

    def __enter__(self) -> Cluster:
        try:
            for node in self.nodes:
                node.boot()
            self._start_control_plane(self.nodes[0])
            for node in self.nodes:
                node.start_containerd()
                node.start_kubelet()
                node.start_proxy()
        except BaseException:
            self.__exit__()
            raise
        return self

    def install(self) -> None:
        """Bring the network onto the nodes, and wait until they are Ready."""
        if self.options.by_manifest:
            for node in self.nodes:
                node.load(IMAGE)
            self.kubectl("apply", "-f", str(MANIFEST))
        else:
            for node in self.nodes:
                node.install()
        self.await_ready()

    def uninstall(self) -> None:
        """Take the network off the nodes, on which no pod is attached."""
        if self.options.by_manifest:
            self.kubectl("apply", "-f", str(REMOVAL))
            self.rollout("daemonset/mycelium-cni", "kube-system")
            self.kubectl("delete", "--wait", "-f", str(REMOVAL))
        else:
            for node in self.nodes:
                node.run("mycelium-cni", "uninstall")

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            if hasattr(node, "machine"):
                node.machine.power_off()

    def _start_control_plane(self, node: KubeNode) -> None:
        pki, programs = self.pki, self.programs
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        names = [f"DNS:{name}" for name in (*names, f"kubernetes.default.svc.{DOMAIN}")]
        names += [f"IP:{address}" for address in (API_SERVICE, node.lan, node.overlay, "::1")]
        pki.issue("apiserver", "/CN=kube-apiserver", names)
        pki.issue("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet")
        local = "https://[::1]:6443"
        self.admin = pki.kubeconfig("admin", "/O=system:masters/CN=admin", self.server)
        manager = pki.kubeconfig("manager", "/CN=system:kube-controller-manager", local)
        scheduler = pki.kubeconfig("scheduler", "/CN=system:kube-scheduler", local)
        pki.kubeconfig("kube-proxy", "/CN=system:kube-proxy", self.server)
        clients = node.start_etcd()
        node.start(
            "kube-apiserver",
            programs / "kube-apiserver",
            f"--etcd-servers={clients}",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--bind-address=::",
            f"--advertise-address={node.address}",
            f"--tls-cert-file={pki.path('apiserver.crt')}",
            f"--tls-private-key-file={pki.path('apiserver.key')}",
            f"--client-ca-file={pki.path('ca.crt')}",
            "--authorization-mode=Node,RBAC",
            f"--kubelet-client-certificate={pki.path('apiserver-kubelet.crt')}",
            f"--kubelet-client-key={pki.path('apiserver-kubelet.key')}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
            f"--service-account-key-file={pki.path('sa.pub')}",
            f"--service-account-signing-key-file={pki.path('sa.key')}",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--endpoint-reconciler-type=lease",
        )
        ready = ("get", "--raw", "/readyz")
        await_fact(lambda: self.try_kubectl(*ready) == "ok", "the API server", within_s=120)
        node.start(
            "kube-controller-manager",
            programs / "kube-controller-manager",
            *(f"--{use}kubeconfig={manager}" for use in ("", "authentication-", "authorization-")),
            # The daemon's key decides a node's pod addresses, not the controller manager.
            "--allocate-node-cidrs=false",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--leader-elect=false",
            f"--root-ca-file={pki.path('ca.crt')}",
            f"--service-account-private-key-file={pki.path('sa.key')}",
            "--use-service-account-credentials",
            "--bind-address=::1",
        )
        node.start(
            "kube-scheduler",
            programs / "kube-scheduler",
            *(
                f"--{use}kubeconfig={scheduler}"
                for use in ("", "authentication-", "authorization-")
            ),
            *("--leader-elect=false", "--bind-address=::1"),
        )

    def world_gets(self, url: str) -> bool:
        """Whether a web server answers a host outside the cluster."""
        argv = ["curl", "-gsS", "-m", "3", url]
        return self.world.run(argv, check=False).returncode == 0

    # Kubernetes

    def kubectl(self, *argv: str, stdin: str | None = None, timeout_s: float = 100) -> str:
        """What kubectl prints. LabError if it fails."""
        command = (self.programs / "kubectl", "--kubeconfig", self.admin, *argv)
        return self.nodes[0].run(*command, stdin=stdin, timeout_s=timeout_s).stdout

    def try_kubectl(self, *argv: str) -> str:
        """The same; "" if it fails."""
        try:
            return self.kubectl(*argv)
        except LabError:
            return ""

    def apply(self, name: str, **replaced: str) -> None:
        """Apply a file of manifests/, with placeholders replaced."""
        text = (HERE / "manifests" / f"{name}.yaml").read_text()
        for word, by in replaced.items():
            text = text.replace(word, by)
        self.kubectl("apply", "-f", "-", stdin=text)

    def pods(self, label: str) -> list[KubePod]:
        """The pods with this label that run, sorted by their nodes."""
        listed = json.loads(self.kubectl("get", "pods", "-l", label, "-o", "json"))["items"]
        found = [
            KubePod(self, item)
            for item in listed
            if item["status"]["phase"] == "Running" and "deletionTimestamp" not in item["metadata"]
        ]
        return sorted(found, key=lambda pod: pod.node)

    def agent(self, node: KubeNode) -> str:
        """The name of the agent's pod on a node."""
        return self.kubectl(
            *("-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=mycelium-cni"),
            *(
                f"--field-selector=spec.nodeName={node.name}",
                "-o",
                "jsonpath={.items[0].metadata.name}",
            ),
        )

    def agent_log(self, node: KubeNode) -> str:
        if not self.options.by_manifest:
            return (node.directory / "log/agent.out").read_text()
        return self.kubectl("-n", "kube-system", "logs", self.agent(node))

    def all_reach_all(self) -> bool:
        """Whether the three web servers run, and every pod gets every page."""
        pods = self.pods("app=web")
        urls = [f"http://[{pod.address}]:8080/" for pod in pods]
        try:
            return len(pods) == 3 and all(pod.get(*urls).count("\n") == 3 for pod in pods)
        except LabError:
            return False

    def await_ready(self) -> None:
        """Return when all nodes are Ready."""
        self.kubectl("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s")

    def rollout(self, name: str, namespace: str = "default") -> None:
        """Return when a Deployment or DaemonSet is rolled out."""
        self.kubectl("-n", namespace, "rollout", "status", name, "--timeout=90s")


class KubePod:
    """A pod that runs."""

    def __init__(self, cluster: Cluster, item: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self.name: str = item["metadata"]["name"]
        self.node: str = item["spec"]["nodeName"]
        self.address: str = item["status"]["podIP"]
        containers = item["status"]["containerStatuses"]
        self.restarts = sum(one["restartCount"] for one in containers)

    def __repr__(self) -> str:
        return f"{self.name} on {self.node}"

    def exec(self, *argv: str) -> str:
        """What a program in the pod prints. LabError if it fails."""
        return self._cluster.kubectl("exec", self.name, "--", *argv)

    def get(self, *urls: str) -> str:
        """The answers of web servers to the pod."""
        return self.exec("probe", "get", *urls)
