# SPDX-License-Identifier: Apache-2.0
"""The executable needs nothing of its host: here it is the only file."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from mycelium_ctl import parsers

CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
CONF = json.dumps({"cniVersion": "1.1.0", "name": "overlay", "type": "mycelium-cni"})


def alone(
    executable: Path,
    *arguments: str,
    env: dict[str, str] | None = None,
    redirect: str = "",
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a copy in a read-only root that holds nothing else: no /proc, no /dev, no libc.

    `redirect` is the shell's, to close descriptors.
    """
    script = f"""
        mount -t tmpfs tmpfs /mnt && cp {shlex.quote(str(executable))} /mnt/mycelium-cni
        mount -o remount,ro /mnt && cd /mnt || exit 99
        exec env -i "$@" {redirect}
    """
    settings = [f"{name}={value}" for name, value in (env or {}).items()]
    words = [*settings, CHROOT, "/mnt", "/mycelium-cni", *arguments]
    return subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh", *words],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_it_is_static_and_stripped(executable: Path) -> None:
    done = subprocess.run(
        ["readelf", "--wide", "--segments", "--symbols", "--dynamic", executable],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "INTERP" not in done.stdout
    assert "There is no dynamic section" in done.stdout
    assert "Symbol table" not in done.stdout


def test_it_keeps_no_path_of_the_machine_that_built_it(executable: Path) -> None:
    assert str(Path(__file__).parents[2]).encode() not in executable.read_bytes()


def test_the_plugin_answers_with_nothing_around_it(executable: Path) -> None:
    done = alone(executable, env={"CNI_COMMAND": "VERSION"}, stdin='{"cniVersion": "0.4.0"}')
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["cniVersion"] == "0.4.0"


def test_the_bare_command_prints_what_it_is(executable: Path) -> None:
    done = alone(executable)
    assert (done.returncode, done.stdout) == (0, "")
    assert "1.1.0" in done.stderr


ADD = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/nowhere",
    "CNI_IFNAME": "eth0",
}


def test_closed_standard_input_is_an_io_error(executable: Path) -> None:
    done = alone(executable, env=ADD, redirect="<&-")
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 5


def test_closed_standard_output_is_an_exit_status(executable: Path) -> None:
    done = alone(executable, env=ADD, redirect=">&-", stdin=CONF)
    assert (done.returncode, done.stdout) == (1, "")
    done = alone(executable, env={"CNI_COMMAND": "VERSION"}, redirect=">&-")
    assert (done.returncode, done.stdout) == (1, "")


def test_no_standard_descriptor_at_all_is_an_exit_status(executable: Path) -> None:
    assert alone(executable, env=ADD, redirect="<&- >&- 2>&-").returncode == 1


def test_a_node_without_anything_is_an_error_and_no_crash(executable: Path) -> None:
    done = alone(executable, env=ADD, stdin=CONF)
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] != 999


def test_a_deleted_working_directory_does_not_matter(executable: Path, tmp_path: Path) -> None:
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    for arguments, env in (([], {"CNI_COMMAND": "VERSION"}), (["version"], {})):
        folder = tmp_path / "gone"
        folder.mkdir()
        done = subprocess.run(
            ["sh", "-c", script, "sh", folder, executable, *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", parsers.COMMANDS)
def test_every_command_loads_with_nothing_around_it(executable: Path, name: str) -> None:
    done = alone(executable, name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"mycelium-cni {name}" in done.stdout


def test_the_tool_reads_its_data_with_nothing_around_it(executable: Path) -> None:
    done = alone(executable, "setup", "--print-units")
    assert done.returncode == 0, done.stderr
    assert "ExecStart" in done.stdout
    done = alone(executable, "config", "new")
    assert json.loads(done.stdout)["plugins"]


def test_python_on_the_host_is_not_used(executable: Path, tmp_path: Path) -> None:
    trap = tmp_path / "argparse.py"
    trap.write_text("raise SystemExit('the wrong argparse')")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "PYTHONINSPECT": "1"}
    done = subprocess.run(
        [executable, "version"],
        env=env,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "static executable" in done.stdout


def test_it_works_through_the_path_and_through_a_link(executable: Path, tmp_path: Path) -> None:
    (tmp_path / "other-name").symlink_to(executable)
    done = subprocess.run(
        ["other-name", "version"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_archive_behind_it_is_sound(executable: Path) -> None:
    with zipfile.ZipFile(executable) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert names == sorted(names)
    assert not [name for name in names if name.endswith(".py")]
