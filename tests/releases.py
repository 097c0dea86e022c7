# SPDX-License-Identifier: Apache-2.0
"""Executables of other releases, to test that two releases handle each other's attachments.

The previous release comes out of this repository's own history, and runs on this Python. The next
one is a copy of this one, with another edition of the rules and one more rule.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PREVIOUS = "d3a1c3fa799c0586598fd35917aa45f813e51328"  # 0.1.0


def previous(folder: Path) -> list[str]:
    """The argument vector that starts the previous release, unpacked into `folder`.

    Raises RuntimeError where the history is missing: a test that needs it then fails, because a
    green run means that everything ran.
    """
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", PREVIOUS, "src"], capture_output=True, check=False
    )
    if archive.returncode:
        raise RuntimeError(
            f"the previous release, commit {PREVIOUS}, is not in this clone "
            f"({archive.stderr.decode().strip()}): run `git fetch --unshallow`"
        )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return _launcher(folder, "mycelium_door")


def following(folder: Path) -> list[str]:
    """The argument vector that starts a release with other rules than this one's."""
    shutil.copytree(ROOT / "src", folder / "src")
    wanted, rules = (folder / f"src/mycelium_cni/guard/{name}.py" for name in ("wanted", "rules"))
    _change(wanted, "RULES = 9", "RULES = 10")
    _change(wanted, "PODS_USES = 8 + 3", "PODS_USES = 9 + 3")
    rule = 'table.rule(PODS_CHAIN, "as it will be", nf.counter()),'
    chain = "table.flush_chain(PODS_CHAIN),"
    _change(rules, chain, f"{chain} {rule}")
    return _launcher(folder, "mycelium_entry")


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path} does not say {old!r} once"
    path.write_text(text.replace(old, new))


def _launcher(folder: Path, entry: str) -> list[str]:
    path = folder / "mycelium-cni"
    path.write_text(
        f"#!{sys.executable}\n"
        f"import sys\nsys.path.insert(0, {str(folder / 'src')!r})\n"
        f"from {entry} import main\nsys.exit(main())\n"
    )
    path.chmod(0o755)
    return [str(path)]
