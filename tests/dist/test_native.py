# SPDX-License-Identifier: Apache-2.0
"""What of the plugin is compiled by mypyc, and from which source."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("launcher_path")

MODULE = '''\
"""A module."""

from __future__ import annotations

from errno import EEXIST

LISTED, _ALSO = (1, 2), 0x10  # a comment
OFTEN = 1
OFTEN = 2
usual = 3


class Refused(OSError):
    pass


class Base:
    NAME = "kept"


class Kept(Base):
    pass
'''


def test_constants_are_declared_and_lines_keep_their_numbers() -> None:
    import native

    before, after = MODULE.splitlines(), native.declared(MODULE, {"Base"}).splitlines()
    assert len(after) == len(before)
    changed = {old: new for old, new in zip(before, after, strict=True) if old and old != new}
    assert changed == {
        "from __future__ import annotations": (
            "from __future__ import annotations; TYPE_CHECKING = False"
        ),
        "LISTED, _ALSO = (1, 2), 0x10  # a comment": (
            "LISTED: Final = (1, 2); _ALSO: Final = 16  # a comment"
        ),
    }
    decorated = {new: over for over, new in pairwise(after) if over.startswith("@")}
    assert decorated == {
        "class Refused(OSError):": "@(lambda made: made)",
        "class Base:": "@mypyc_attr(allow_interpreted_subclasses=True)",
    }


def test_what_is_declared_runs_as_before() -> None:
    import native

    ran: dict[str, object] = {}
    exec(native.declared(MODULE, set()), ran)
    assert (ran["LISTED"], ran["_ALSO"], ran["OFTEN"]) == ((1, 2), 16, 2)


def test_every_module_that_is_listed_is_in_the_executable_as_c(symbols: str) -> None:
    import native

    for name in native.MODULES.split():
        assert f" CPyInit_{name.replace('.', '___')}\n" in symbols
    assert " CPyDef_verbs___add\n" in symbols


def test_another_version_of_mypy_is_refused(tmp_path: Path) -> None:
    import native
    from archive import BuildError

    with pytest.raises(BuildError, match=r"native.py: mypy .+, and requirements.txt has 0.1"):
        native.compile_to_c(ROOT / "src", tmp_path, "0.1")


def test_what_mypyc_refuses_stops_the_build_with_the_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import native
    from archive import BuildError
    from mypy.version import __version__

    for name in native.MODULES.split():
        path = tmp_path / "src" / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        for package in (path.parent, tmp_path / "src/mycelium_cni"):
            (package / "__init__.py").touch()
        path.write_text(MODULE if name != "mycelium_cni.undo" else 'number: int = "one"\n')
    with pytest.raises(BuildError, match=r"native.py: mypyc refuses what is above"):
        native.compile_to_c(tmp_path / "src", tmp_path / "made", __version__)
    assert "mycelium_cni/undo.py:1: error" in "".join(capfd.readouterr())
