# SPDX-License-Identifier: Apache-2.0
"""The operator's tool as a shell sees it: what it prints where, and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mycelium_ctl import cli, parsers
from mycelium_ctl.errors import ToolError


def run(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("asked", ["--help", "-h", "help"])
def test_help_lists_every_command(command: list[str], asked: str) -> None:
    done = run(command, asked)
    assert (done.returncode, done.stderr) == (0, "")
    for name, (_, summary) in parsers.COMMANDS.items():
        assert any(
            line.split()[:1] == [name] and summary in line for line in done.stdout.split("\n")
        )


@pytest.mark.parametrize("name", parsers.COMMANDS)
def test_every_command_has_help_with_an_example(command: list[str], name: str) -> None:
    done = run(command, name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\n    mycelium-cni {name}" in done.stdout


def test_every_command_fits_a_terminal_of_80_columns_in_the_overview(command: list[str]) -> None:
    assert max(map(len, run(command, "--help").stdout.splitlines())) <= 80


def test_version_is_the_plugins(command: list[str]) -> None:
    about = subprocess.run(
        command, env={"CNI_COMMAND": ""}, capture_output=True, text=True, check=True
    ).stderr
    version = run(command, "--version").stdout.split()[-1]
    assert version in about


def test_help_of_a_command_is_the_commands_own(command: list[str]) -> None:
    assert run(command, "help", "doctor").stdout == run(command, "doctor", "--help").stdout
    actions = run(command, "help", "config", "check").stdout
    assert actions == run(command, "config", "check", "--help").stdout
    assert run(command, "help", "dmeo").returncode == 2


def test_a_terminal_that_lacks_a_character_gets_its_number(tmp_path: Path) -> None:
    """Of the pip-installed command: the static file prints UTF-8 everywhere."""
    (tmp_path / "x.conflist").write_text('{"cniVersion": "1.0.0", "name": "x"}')
    program = str(Path(sys.executable).with_name("mycelium-cni"))
    argv = [program, "config", "check", str(tmp_path / "x.conflist")]
    env = {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert '"plugins": [ {"type": \\u2026} ]' in done.stdout


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon", ""])
@pytest.mark.parametrize("option", [("list", "--watch"), ("setup", "--wait"), ("gc", "--grace")])
def test_a_time_that_is_none_is_refused(
    command: list[str], option: tuple[str, str], text: str
) -> None:
    done = run(command, option[0], f"{option[1]}={text}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"'{text}' is not a number of seconds" in done.stderr


@pytest.mark.parametrize(
    "words", ["--help", "help doctor", "config check --help", "config new", "version --json"]
)
def test_a_full_disk_is_one_line(command: list[str], words: str) -> None:
    argv = ["sh", "-c", f'"$@" {words} >/dev/full', "sh", *command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    said = "mycelium-cni: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize("words", ["--help", "list --help", "config new", "version --json"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_error(command: list[str], words: str, closed: str) -> None:
    argv = ["sh", "-c", f'"$@" {words} {closed}', "sh", *command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_command_is_refused_with_the_nearest_one(command: list[str]) -> None:
    done = run(command, "dmeo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mycelium-cni: there is no command 'dmeo'; did you mean demo?\n"
    assert "did you mean status?" in run(command, "STATUS").stderr
    assert "--help" in run(command, "quite-something-else").stderr
    assert "\33" not in run(command, "\33[2J").stderr


def test_a_host_root_without_a_command_is_refused(command: list[str]) -> None:
    done = run(command, "--host-root", "/")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a directory and a command" in done.stderr


def test_an_unknown_argument_is_refused(command: list[str]) -> None:
    done = run(command, "demo", "--nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--nothing" in done.stderr
    assert "Traceback" not in done.stderr


class Broken:
    """A command that ends with an exception."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def configure(self, parser: object) -> None:
        pass

    def run(self, arguments: object) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            ToolError("no bridge: run `mycelium-cni setup`"),
            1,
            "no bridge: run `mycelium-cni setup`",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_how_a_command_ends(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    monkeypatch.setitem(sys.modules, "broken", Broken(error))
    monkeypatch.setitem(parsers.COMMANDS, "broken", ("broken", "breaks"))
    assert cli.main(["broken"]) == code
    assert capsys.readouterr().err.strip().removeprefix("mycelium-cni broken: ") == said


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "broken", Broken(ZeroDivisionError()))
    monkeypatch.setitem(parsers.COMMANDS, "broken", ("broken", "breaks"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["broken"])


def test_a_closed_pipe_is_no_error(command: list[str]) -> None:
    script = '"$@" | head -n 0; exit ${PIPESTATUS[0]}'
    argv = ["bash", "-c", script, "bash", *command, "demo", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_only_the_chosen_commands_module_is_imported() -> None:
    program = (
        "import sys; from mycelium_ctl import cli; cli.main(['--help'])\n"
        "sys.exit(' '.join(m for m in sys.modules if m.startswith('mycelium_ctl.')))"
    )
    done = run([sys.executable, "-c"], program)
    imported = set(done.stderr.split())
    assert imported == {f"mycelium_ctl.{name}" for name in ("cli", "errors", "parsers", "programs")}
