# SPDX-License-Identifier: Apache-2.0
"""containerd on a machine of a lab, driven over CRI as a kubelet drives it.

containerd = Containerd(machine, images)
containerd.configure({"cniVersion": "1.0.0", "name": "net", "plugins": [...]})
web = containerd.pod("web")
assert web.start("httpd", "-f", "-p", "[::]:80").exec("ip", "-6", "addr") ...
web.end()
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
from cri_api.v1 import api_pb2 as pb
from cri_api.v1 import api_pb2_grpc as rpc

from mycelium_lab.lab import Process, await_fact

from .images import BUSYBOX, PAUSE, Images, need
from .machine import Inside, Machine

_numbers = itertools.count()
NAMESPACE: Final = "default"  # of the pods, in Kubernetes' sense

# restrict_oom_score_adj: a root without CAP_SYS_RESOURCE, as in many containers, starts no pod
# without it.
CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        Root = "{directory}/runc"
"""


class Containerd:
    """One containerd; it and its pods live on a machine and end with it."""

    def __init__(self, machine: Machine, images: Images) -> None:
        self.machine: Final = machine
        self.socket: Final = machine.directory / "c.sock"
        self._config: Final = machine.directory / "config.toml"
        self._process: Process | None = None
        directory, runc = machine.directory, need("runc", "runc")
        text = CONFIG.format(directory=directory, socket=self.socket, pause=PAUSE, runc=runc)
        self._config.write_text(text)
        first = not (directory / "root").exists()
        self.start()
        if first:
            for archive in (images.pause, images.busybox):
                ctr = ["ctr", "-a", self.socket, "-n", "k8s.io", "images", "import", archive]
                machine.run(*ctr)

    def start(self) -> None:
        """Start it, and return when it answers."""
        containerd = need("containerd", "containerd")
        self._process = self.machine.start(containerd, "-c", self._config)
        ctr = [need("ctr", "containerd"), "-a", self.socket, "version"]

        def answers() -> bool:  # gRPC itself would wait for a second after a refusal
            return self.socket.exists() and not subprocess.run(ctr, capture_output=True).returncode  # noqa: PLW1510

        await_fact(answers, "an answer of containerd", within_s=20)
        self._channel = grpc.insecure_channel(f"unix://{self.socket}")
        self.runtime = rpc.RuntimeServiceStub(self._channel)
        await_fact(self._initialized, "containerd having read what it runs", within_s=20)

    def _initialized(self) -> bool:
        try:
            self.sandboxes()
        except grpc.RpcError as error:
            if "not initialized yet" in error.details():
                return False
            raise
        return True

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End containerd, not the pods."""
        assert self._process is not None
        self._channel.close()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        os.kill(int(children.read_text().split()[0]), number)  # nsenter has forked
        process = self._process
        await_fact(lambda: not process.running, "the end of containerd", within_s=15)
        self._process = None
        self.socket.unlink(missing_ok=True)

    def close(self) -> None:
        """End everything. The machine goes too: shims and pods are its processes."""
        with suppress(AttributeError):
            self._channel.close()
        self.machine.power_off()

    def configure(self, document: Mapping[str, Any], name: str = "10-test.conflist") -> None:
        """Make `document` the only network configuration, and return when containerd has it."""
        self.machine.configure(document, name)
        await_fact(lambda: self._has(document), f"containerd reading {name}")

    def _has(self, document: Mapping[str, Any]) -> bool:
        status = self.runtime.Status(pb.StatusRequest(verbose=True), timeout=5)
        loaded = json.loads(status.info["cniconfig"]).get("Networks") or []
        sources = [json.loads(n["Config"]["Source"]) for n in loaded if n["IFName"] != "lo"]
        # A configuration that is no list arrives wrapped into one.
        return len(sources) == 1 and document in (sources[0], *sources[0]["plugins"])

    # Pods

    def pod(
        self,
        name: str,
        *,
        annotations: Mapping[str, str] | None = None,
        ports: Iterable[tuple[int, int]] = (),
        attempt: int = 0,
        host_network: bool = False,
        timeout_s: float = 60,
    ) -> Sandbox:
        """Run a pod sandbox. `ports` are pairs of a host's and a container's TCP port."""
        modes = pb.NamespaceOption(network=pb.NODE) if host_network else pb.NamespaceOption()
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(
                name=name, uid=f"{name}-uid", namespace=NAMESPACE, attempt=attempt
            ),
            hostname="" if host_network else name,
            log_directory=str(self.machine.directory / "logs" / f"{name}.{next(_numbers)}"),
            annotations=annotations or {},
            port_mappings=[pb.PortMapping(host_port=h, container_port=c) for h, c in ports],
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=f"/{self.machine.node.netns}",
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=modes),
            ),
        )
        request = pb.RunPodSandboxRequest(config=config)
        answer = self.runtime.RunPodSandbox(request, timeout=timeout_s)
        return Sandbox(self, answer.pod_sandbox_id, config)

    def sandboxes(self) -> dict[str, bool]:
        """The IDs of all listed sandboxes, and whether each is ready."""
        listed = self.runtime.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=10).items
        return {pod.id: pod.state == pb.SANDBOX_READY for pod in listed}

    def end(self, sandbox: str) -> None:
        """Stop a sandbox and remove it: DEL twice, as after the life of every pod."""
        self.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox), timeout=60)
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox)
        self.runtime.RemovePodSandbox(request, timeout=60)

    def end_all(self) -> None:
        """End whatever is listed."""
        for sandbox in self.sandboxes():
            self.end(sandbox)


class Sandbox(Inside):
    """A pod, and its network namespace."""

    def __init__(self, containerd: Containerd, sandbox: str, config: pb.PodSandboxConfig) -> None:
        self.containerd: Final = containerd
        self.id: Final = sandbox
        self.config: Final = config
        machine = containerd.machine
        self.pid: Final = self.info()["pid"]  # as the machine counts
        path = f"/proc/{machine.pid}/root/proc/{self.pid}/ns/net"
        super().__init__(machine.node.lab, config.metadata.name, path)

    def status(self) -> pb.PodSandboxStatus:
        """The status that a kubelet gets."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=self.id)
        return self.containerd.runtime.PodSandboxStatus(request, timeout=10).status

    def info(self) -> dict[str, Any]:
        """What containerd knows besides."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=self.id, verbose=True)
        answer = self.containerd.runtime.PodSandboxStatus(request, timeout=10)
        return json.loads(answer.info["info"])

    @property
    def address(self) -> str:
        """The pod's IP as CRI reports it."""
        return self.status().network.ip

    def start_container(self, name: str, *command: str) -> Container:
        """Start a container of the busybox image in the pod."""
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=BUSYBOX),
            command=command,
            log_path=f"{name}.log",
            linux=pb.LinuxContainerConfig(),
        )
        runtime = self.containerd.runtime
        create = pb.CreateContainerRequest(
            pod_sandbox_id=self.id, config=config, sandbox_config=self.config
        )
        container = runtime.CreateContainer(create, timeout=30).container_id
        runtime.StartContainer(pb.StartContainerRequest(container_id=container), timeout=30)
        return Container(self, container, Path(self.config.log_directory) / config.log_path)

    def serve(self, text: str, port: int = 80) -> Container:
        """Serve a page that says `text`, and return when the pod itself can read it."""
        script = f"mkdir -p /www; echo '{text}' >/www/index.html; exec httpd -f -p {port} -h /www"
        container = self.start_container(f"httpd-{port}", "/bin/sh", "-c", script)
        listening = partial(self.run, ["ss", "-Hltn", f"sport = :{port}"])
        await_fact(lambda: listening().stdout, f"a listener on port {port} of {self.name}")
        return container

    def stop(self) -> None:
        """StopPodSandbox."""
        request = pb.StopPodSandboxRequest(pod_sandbox_id=self.id)
        self.containerd.runtime.StopPodSandbox(request, timeout=60)

    def end(self) -> None:
        """StopPodSandbox and RemovePodSandbox."""
        self.containerd.end(self.id)

    def kill(self) -> None:
        """Kill the pod's first process behind the runtime's back."""
        self.containerd.machine.run("kill", "-KILL", str(self.pid))


class Container:
    """A container of a pod."""

    def __init__(self, pod: Sandbox, container: str, log: Path) -> None:
        self.pod: Final = pod
        self.id: Final = container
        self._log: Final = log

    def execute(self, *command: str, timeout_s: int = 20) -> tuple[int, str, str]:
        """Exit code, output and errors of a program run in the container."""
        answer = self.pod.containerd.runtime.ExecSync(
            pb.ExecSyncRequest(container_id=self.id, cmd=command, timeout=timeout_s),
            timeout=timeout_s + 5,
        )
        return answer.exit_code, answer.stdout.decode(), answer.stderr.decode()

    def logs(self) -> list[str]:
        """The lines that the container has written, without CRI's time stamps."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line.split(" ", 3)[3] for line in lines]
