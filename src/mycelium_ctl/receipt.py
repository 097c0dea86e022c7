# SPDX-License-Identifier: Apache-2.0
"""The files that `install` put on this node, recorded so that `uninstall` removes exactly these."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from mycelium_ctl import files
from mycelium_ctl.errors import ToolError, refused

PLACE: Final = "var/lib/mycelium-cni/installed.json"
_DISPLACED: Final = ".displaced-by-mycelium-cni"  # no suffix that a runtime reads


class Receipt:
    """Our files by path, each with a hash of what was written, and the directories that were made
    for them. In place of the hash: the target of a link; "" for what may change.

    Paths are as the node has them, wherever its root is mounted here.
    """

    def __init__(self, root: Path) -> None:
        self.root: Final = root
        self.path: Final = root / PLACE
        try:
            said = json.loads(files.read(self.path))
            listed, made = said["files"].items(), list(said.get("folders", []))
        except FileNotFoundError:
            listed, made = (), []
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ToolError(f"{self.path} cannot be read: {error}") from error
        self._files: Final = {str(place): str(digest) for place, digest in listed}
        self._folders: Final = [str(place) for place in made]

    @property
    def paths(self) -> list[Path]:
        """Where our files are."""
        return [self.root / place.lstrip("/") for place in self._files]

    def place(self, path: Path) -> str:
        """A path as the node has it. Raises ToolError if it is not below the root."""
        try:
            return f"/{path.absolute().relative_to(self.root.absolute())}"
        except ValueError as error:
            raise ToolError(f"{path} is not below {self.root}") from error

    def write(
        self,
        path: Path,
        octets: bytes,
        mode: int = 0o644,
        fault: Callable[[Path], str] = lambda _: "",
    ) -> None:
        """Write a file atomically; what was there and is not ours is kept beside it. `fault` says
        what is wrong with the new file before it gets its name. Raises ToolError.

        The receipt is written first: a killed call leaves no file that it does not name.
        """
        beside = path.with_name(f".{path.name}.new")
        try:
            self._make(path.parent)
            with open(beside, "wb", opener=_private) as file:
                file.write(octets)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            if wrong := fault(beside):
                beside.unlink()
                raise ToolError(f"cannot write {path}: the new one {wrong}")
            self._note(path, hashlib.sha256(octets).hexdigest())
            beside.replace(path)
        except OSError as error:
            raise ToolError(f"cannot write {path}: {refused(error)}") from error

    def link(self, path: Path, target: str) -> None:
        """Make a symbolic link atomically; what was there and is not ours is kept beside it. Raises
        ToolError."""
        beside = path.with_name(f".{path.name}.new")
        try:
            self._make(path.parent)
            beside.unlink(missing_ok=True)
            beside.symlink_to(target)
            self._note(path, target)
            beside.replace(path)
        except OSError as error:
            raise ToolError(f"cannot link {path}: {refused(error)}") from error

    def adopt(self, path: Path) -> None:
        """Note a file that another part of the program keeps, and changes. Raises ToolError."""
        if self.place(path) not in self._files:
            self._files[self.place(path)] = ""
            try:
                self._save()
            except OSError as error:
                raise ToolError(f"cannot write {self.path}: {refused(error)}") from error

    def _make(self, folder: Path) -> None:
        if not folder.exists():
            self._note_missing(folder)
            self._save()
            folder.mkdir(parents=True)

    def _note_missing(self, folder: Path) -> None:
        missing = [self.place(each) for each in (folder, *folder.parents) if not each.exists()]
        self._folders.extend(place for place in missing if place not in self._folders)

    def _note(self, path: Path, digest: str) -> None:
        if self.place(path) not in self._files and os.path.lexists(path):  # a dangling link, too
            path.rename(displaced(path))
        self._files[self.place(path)] = digest
        self._save()

    def _save(self) -> None:
        self._note_missing(self.path.parent)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told = {"files": self._files, "folders": self._folders}
        files.write(self.path, json.dumps(told, indent=2) + "\n")

    def take_back(self, path: Path) -> None:
        """Remove a file, and put back what it had displaced. An edited one is kept as *.saved, and
        another program's, in the place of a link of ours, is left alone. Raises ToolError."""
        try:
            if self.edited(path):
                path.rename(path.with_name(f"{path.name}.saved"))
            if not self.taken_over(path):
                path.unlink(missing_ok=True)
                if os.path.lexists(displaced(path)):
                    displaced(path).rename(path)
        except OSError as error:
            raise ToolError(f"cannot remove {path}: {refused(error)}") from error
        self._files.pop(self.place(path), None)
        if self._files:
            self._save()
            return
        with suppress(OSError):
            self.path.unlink()
        # The last is ours even if a kubelet has made it, before it started the agent.
        for place in sorted({*self._folders, self.place(self.path.parent)}, key=len, reverse=True):
            with suppress(OSError):  # others have files there
                (self.root / place.lstrip("/")).rmdir()

    def edited(self, path: Path) -> bool:
        """Whether somebody has changed a file of ours."""
        digest = self._files.get(self.place(path))
        if not digest or digest.startswith("/"):
            return False
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest() != digest
        except OSError:
            return False

    def taken_over(self, path: Path) -> bool:
        """Whether something else is in the place of a link of ours, as where another network's
        installer has brought the plugin itself."""
        target = self._files.get(self.place(path), "")
        if not target.startswith("/") or not os.path.lexists(path):
            return False
        return not path.is_symlink() or str(path.readlink()) != target


def displaced(path: Path) -> Path:
    """Where a file that one of ours displaced is kept."""
    return path.with_name(f".{path.name}{_DISPLACED}")


def _private(path: str, flags: int) -> int:
    """Open a new file; one that a killed call has left is removed, never followed."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - beside os.open
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o600)
