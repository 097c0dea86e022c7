# SPDX-License-Identifier: Apache-2.0
"""Run protocol tests against the arm64 executable on a real arm64 kernel, in a virtual machine.

    launcher/arm64vm.py [--executable FILE] [--minutes N] [PYTEST ARGUMENT...]

Without arguments pytest runs exactly what `make test-arm64` leaves out: qemu-user has no namespaces
and no netfilter of its own, and passes on only part of what the plugin asks the kernel. Here qemu
emulates a whole machine, and the kernel is Debian's own for arm64.

The machine has no disk: its kernel, from Debian's package, unpacks one archive into memory, which
holds Debian's Python and tools, pytest, this checkout's src and tests, and the executable. Nothing
is installed on this machine but what apt-arm64vm.txt lists; all that is made is in build/arm64vm.
The exit code is pytest's.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from archive import Archive, BuildError, run

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/arm64vm"
EXECUTABLE = ROOT / "dist/mycelium-cni-linux-arm64"
LEFT_OUT = ROOT / "tests/dist/emulator-cannot.txt"

# With what these depend on. The tests look at the kernel with iproute2's and util-linux's tools.
PACKAGES = [
    "coreutils",
    "dash",
    "grep",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-arm64",
    "mount",
    "nftables",
    "python3",
    "sed",
    "util-linux",
]
# Files of the packages that the machine does not need.
UNREAD = ["boot", "usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man"]
# The kernel loads what it needs of these by itself, as it does on a node.
MODULES = [
    "arch",
    "crypto",
    "drivers/net/dummy.ko",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "lib",
    "net",
]
# In the versions of the project's virtual environment: others might give other results.
TEST_TOOLS = ["hypothesis", "pytest", "pytest-timeout"]

# An emulated machine takes a good three times as long for a test, and a busy one more.
SECONDS_PER_TEST = 600
# The beginning of the machine's last line; pytest's exit code follows.
VERDICT = "arm64vm: pytest's exit code is "

QEMU = ["qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a72", "-m", "2048"]
QEMU += ["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]
# After a panic the machine reboots; with -no-reboot qemu ends instead.
KERNEL_ARGUMENTS = "console=ttyAMA0 quiet panic=-1"
# Of apt-arm64vm.txt, to name what is missing before everything is fetched.
PROGRAMS = ["cpio", "depmod", QEMU[0]]

INIT = f"""\
#!/bin/sh
# The machine's first and only program. If it fails, the kernel panics, and qemu ends.
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export PYTHONPATH=/checkout/src:/site PYTHONDONTWRITEBYTECODE=1
export MYCELIUM_CNI_COMMAND=/checkout/dist/{EXECUTABLE.name}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
ip link set lo up
modprobe tun
echo "arm64vm: $(uname -srm), up for $(cut -d. -f1 /proc/uptime) s"
cd /checkout
code=0
python3 -m pytest @/arguments || code=$?
echo "{VERDICT}$code"
echo o >/proc/sysrq-trigger
sleep 60
"""


class Debian(Archive):
    """The archive, and whole systems unpacked from it."""

    def closure(self, names: list[str]) -> dict[str, str]:
        """The newest versions of packages and of all that they depend on."""
        nothing = self._work / "nothing-installed"
        nothing.touch()
        listing = self._apt(
            "apt-get",
            "install",
            "--simulate",
            "--no-install-recommends",
            f"--option=Dir::State::status={nothing}",
            *names,
        )
        return dict(re.findall(r"^Inst (\S+) \((\S+) ", listing, re.MULTILINE))

    def unpack_system(self, versions: dict[str, str], root: Path) -> None:
        """These packages' files; none of their scripts is run."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for name, wanted in versions.items():
            run("dpkg-deb", "-x", self._download(name, wanted), root)


def require(executable: Path) -> None:
    """Raises BuildError where something is missing that cannot be fetched."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise BuildError(
            f"no {', '.join(missing)} here: run `scripts/apt-ensure launcher/apt-arm64vm.txt`"
        )
    if not executable.is_file():
        raise BuildError(f"{executable}: no such file; `make dist ARCH=arm64` builds the default")


def system(root: Path) -> Path:
    """Debian's kernel and programs for arm64 in `root`, once for each version; the kernel."""
    say("asking the archive")
    archive = Debian(WORK, "arm64")
    archive.refresh()
    versions = archive.closure(PACKAGES)
    stamp = root.with_name(f"{root.name}.txt")
    contents = [f"{name} {versions[name]}" for name in sorted(versions)]
    wanted = "\n".join([*contents, *MODULES, "without", *UNREAD])
    kernel = WORK / "vmlinuz"
    if not stamp.is_file() or stamp.read_text() != wanted:
        stamp.unlink(missing_ok=True)
        say(f"unpacking {len(versions)} packages")
        archive.unpack_system(versions, root)
        [image] = (root / "boot").glob("vmlinuz-*")
        shutil.copyfile(image, kernel)
        for path in UNREAD:
            shutil.rmtree(root / path, ignore_errors=True)
        thin_out(root, image.name.removeprefix("vmlinuz-"))
        stamp.write_text(wanted)
    return kernel


def thin_out(root: Path, release: str) -> None:
    """Keep only the modules that a node without hardware needs, and an index of them."""
    folder = root / "lib/modules" / release
    modules = folder / "kernel"
    for module in modules.rglob("*.ko"):
        path = module.relative_to(modules)
        if not any(path.is_relative_to(wanted) for wanted in MODULES):
            module.unlink()
    run("depmod", "--basedir", root, release)


def test_tools(folder: Path) -> None:
    """pytest and what the tests need beside it, built for arm64, in the versions used here."""
    pins = [f"{name}=={version(name)}" for name in TEST_TOOLS]
    stamp = folder.with_name(f"{folder.name}.txt")
    if stamp.is_file() and stamp.read_text().split() == pins:
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    options = ["--quiet", "--python-version", "3.11", "--only-binary", ":all:"]
    for glibc in ("2_17", "2_28", "2_34"):  # Debian 12 has 2.36
        options += ["--platform", f"manylinux_{glibc}_aarch64"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    run(*pip, *options, "--root-user-action", "ignore", "--target", folder, *pins)
    stamp.write_text("\n".join(pins))


def pack(image: Path, root: Path, site: Path, executable: Path, arguments: list[str]) -> None:
    """Everything the machine has, as the one archive that its kernel unpacks."""
    overlay = WORK / "overlay"
    shutil.rmtree(overlay, ignore_errors=True)
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "checkout/dist"):
        (overlay / name).mkdir(parents=True)
    for name in ("src", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, overlay / "checkout" / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", overlay / "checkout")
    shutil.copy(executable, overlay / "checkout/dist" / EXECUTABLE.name)
    shutil.copytree(site, overlay / "site")
    (overlay / "arguments").write_text("".join(f"{line}\n" for line in arguments))
    (overlay / "init").write_text(INIT)
    (overlay / "init").chmod(0o755)
    with image.open("wb") as out:
        # The kernel unpacks archives that follow each other as one.
        for folder in (root, overlay):
            names = subprocess.run(["find", "."], cwd=folder, check=True, capture_output=True)
            cpio = ["cpio", "--quiet", "--create", "--format=newc", "--owner=+0:+0"]
            subprocess.run(cpio, cwd=folder, check=True, input=names.stdout, stdout=out)


def boot(kernel: Path, image: Path, minutes: int) -> int:
    """Run the machine, show its console, and return the exit code that it prints."""
    reader, writer = os.pipe()
    machine = subprocess.Popen(
        [*QEMU, "-kernel", kernel, "-initrd", image, "-append", KERNEL_ARGUMENTS],
        stdin=subprocess.DEVNULL,
        stdout=writer,
    )
    os.close(writer)
    deadline = time.monotonic() + 60 * minutes
    told = b""
    try:
        while select.select([reader], [], [], max(0, deadline - time.monotonic()))[0]:
            chunk = os.read(reader, 4096)
            if not chunk:
                break
            told = (told + chunk)[-4096:]
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        else:
            raise BuildError(f"not done after {minutes} minutes; --minutes gives it more")
    finally:
        machine.kill()
        machine.wait()
        os.close(reader)
    verdict = re.search(rf"{VERDICT}(\d+)".encode(), told)
    if verdict is None:
        raise BuildError("the machine ended without a verdict; its console, above, should say why")
    return int(verdict[1])


def left_out() -> list[str]:
    """The tests that `make test-arm64` leaves out, as arguments for pytest."""
    lines = LEFT_OUT.read_text().splitlines()
    return [line.removeprefix("--deselect=") for line in lines]


def say(line: str) -> None:
    """Progress, on standard error."""
    print(f"arm64vm: {line}", file=sys.stderr)


def main() -> None:
    """Parse the arguments, build the machine, run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--executable", type=Path, default=EXECUTABLE, help="default: %(default)s")
    parser.add_argument("--minutes", type=int, default=30, help="default: %(default)s")
    parser.add_argument("tests", nargs="*", help="default: what tests/dist/emulator-cannot.txt has")
    given = parser.parse_args()
    color = "yes" if sys.stdout.isatty() else "no"
    options = ["-v", "-p", "no:cacheprovider", f"--timeout={SECONDS_PER_TEST}", f"--color={color}"]
    image, root, site = WORK / "initramfs", WORK / "root", WORK / "site"
    try:
        require(given.executable)
        WORK.mkdir(parents=True, exist_ok=True)
        kernel = system(root)
        test_tools(site)
        pack(image, root, site, given.executable, [*options, *(given.tests or left_out())])
        code = boot(kernel, image, given.minutes)
    except BuildError as error:
        sys.exit(f"arm64vm: error: {error}")
    say(f"pytest ended with {code}")
    sys.exit(code)


if __name__ == "__main__":
    main()
