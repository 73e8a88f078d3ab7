"""A model of what a disk holds after the power went: what was fsynced, and any part of what was not.

`Disk.recording()` notes the file calls of the code under test while they really happen; `materialize`
then builds the folder as it might be found after a power cut at any moment. A file's bytes are sure up to
its last fsync, a name is sure once its folder was fsynced. All else may be lost, kept, cut or garbled, but for an
exchange of two names in one folder: that happened, or it did not.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evometa.archives import compact

CALLS = ("open", "close", "write", "pwrite", "fsync", "ftruncate", "link", "rename", "unlink", "mkdir", "rmdir")
ROOT = -1  # inodes of folders are negative


class PowerCut(BaseException):
    """Raised in the code under test from the moment at which it is dead."""


class Disk:
    """The file calls below `root`, in order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.operations: list[tuple[Any, ...]] = []
        self.fuse: int | None = None  # how many more operations until the process dies
        self._folders: dict[int, dict[str, int]] = {ROOT: {}}  # folder -> name -> inode, as the running process sees it
        self._handles: dict[int, list[Any]] = {}  # descriptor -> [inode, offset]
        self._count = 1
        for path in sorted(root.rglob("*")):  # what is there already is sure
            folder, name = self._place(path)
            self._name(folder, name, self._new(folder=path.is_dir()))
            if path.is_file():
                self.operations.append(("data", self._inode(path), 0, path.read_bytes()))
                self.operations.append(("fsync", self._inode(path)))
            self.operations.append(("fsync", folder))

    def acknowledge(self, text: str) -> None:
        """Note that the code under test promised something."""
        self.operations.append(("ack", text))

    def acks(self, moment: int) -> list[str]:
        """What had been promised by then."""
        return [operation[1] for operation in self.operations[:moment] if operation[0] == "ack"]

    @contextmanager
    def recording(self, silent: tuple[str, ...] = ()) -> Iterator[None]:
        """Note the calls of `os` (but those in `silent`) until the end of the block."""
        places = [(os, name) for name in CALLS] + [(compact, "exchange")]
        real = [getattr(*place) for place in places]
        for (module, name), call in zip(places, real, strict=True):
            if name not in silent:
                setattr(module, name, self._wrapped(name, call))
        try:
            yield
        finally:
            for (module, name), call in zip(places, real, strict=True):
                setattr(module, name, call)

    def _wrapped(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if not self._ours(name, arguments[0]):
                return real(*arguments, **keywords)
            if self.fuse is not None:
                if self.fuse <= 0:
                    if name == "close":
                        real(*arguments)  # the kernel closes a dead process's files
                    raise PowerCut
                self.fuse -= 1
            fresh = name == "open" and self._inode(arguments[0]) is None
            result = real(*arguments, **keywords)
            getattr(self, f"_{name}")(result, fresh, *arguments)
            return result

        return call

    def _ours(self, name: str, first: Any) -> bool:
        return first in self._handles if isinstance(first, int) else str(first).startswith(str(self.root))

    # --- what each call means -------------------------------------------------------------------

    def _place(self, path: Any) -> tuple[int, str]:
        """The folder that holds a name, and the name."""
        *above, name = os.path.relpath(path, self.root).split(os.sep)
        folder = ROOT
        for step in above:
            folder = self._folders[folder][step]
        return folder, name

    def _inode(self, path: Any) -> int | None:
        if str(path) == str(self.root):
            return ROOT
        try:
            folder, name = self._place(path)
        except KeyError:  # somebody asks for what is not there, nor the folder that it would be in
            return None
        return self._folders[folder].get(name)

    def _name(self, folder: int, name: str, inode: int | None) -> None:
        self.operations.append(("name", folder, name, inode))
        _enter(self._folders[folder], name, inode)

    def _new(self, *, folder: bool = False) -> int:
        self._count += 1
        if folder:
            self._folders[-self._count] = {}
        return -self._count if folder else self._count

    def _mkdir(self, result: Any, fresh: bool, path: Any, *rest: Any) -> None:
        self._name(*self._place(path), self._new(folder=True))

    def _link(self, result: Any, fresh: bool, source: Any, target: Any) -> None:
        self._name(*self._place(target), self._inode(source))

    def _rename(self, result: Any, fresh: bool, source: Any, target: Any) -> None:
        self._name(*self._place(target), self._inode(source))
        self._name(*self._place(source), None)

    def _unlink(self, result: Any, fresh: bool, path: Any) -> None:
        self._name(*self._place(path), None)

    _rmdir = _unlink

    def _exchange(self, result: Any, fresh: bool, one: Any, other: Any) -> None:
        (folder, name), (same, second) = self._place(one), self._place(other)
        assert folder == same
        self.operations.append(("exchange", folder, name, second))
        _swap(self._folders[folder], name, second)

    def _close(self, result: Any, fresh: bool, descriptor: int) -> None:
        del self._handles[descriptor]

    def _fsync(self, result: Any, fresh: bool, descriptor: int) -> None:
        self.operations.append(("fsync", self._handles[descriptor][0]))

    def _ftruncate(self, result: Any, fresh: bool, descriptor: int, size: int) -> None:
        self.operations.append(("data", self._handles[descriptor][0], size, None))

    def _pwrite(self, result: int, fresh: bool, descriptor: int, data: Any, offset: int) -> None:
        self.operations.append(("data", self._handles[descriptor][0], offset, bytes(data)[:result]))

    def _write(self, result: int, fresh: bool, descriptor: int, data: Any) -> None:
        handle = self._handles[descriptor]
        self.operations.append(("data", handle[0], handle[1], bytes(data)[:result]))
        handle[1] += result

    def _open(self, result: int, fresh: bool, path: Any, flags: int, *rest: Any) -> None:
        if fresh:
            self._name(*self._place(path), self._new())
        self._handles[result] = [self._inode(path), 0]

    # --- after the power cut ----------------------------------------------------------------------

    def materialize(self, folder: Path, moment: int, kind: str, draw: random.Random) -> None:
        """Build in `folder` what may be left when the power goes after `moment` operations.

        `kind`: of what was not fsynced, "nothing" is left; "names only" (files empty), "names and zeros",
        "names and halves"; "everything"; or "some" of it, as `draw` wills.
        """
        folders: dict[int, dict[str, int]] = {}
        data: dict[int, bytearray] = {}
        loose_names: list[tuple[Any, ...]] = []
        loose_data: dict[int, list[tuple[int, bytes | None]]] = {}
        for operation in self.operations[:moment]:
            if operation[0] in ("name", "exchange"):
                loose_names.append(operation)
            elif operation[0] == "data":
                loose_data.setdefault(operation[1], []).append(operation[2:])
            elif operation[0] == "fsync" and operation[1] < 0:
                for entry in [entry for entry in loose_names if entry[1] == operation[1]]:
                    _apply(folders, entry)
                loose_names = [entry for entry in loose_names if entry[1] != operation[1]]
            elif operation[0] == "fsync":
                for change in loose_data.pop(operation[1], []):
                    _change(data.setdefault(operation[1], bytearray()), *change)
        for entry in loose_names:
            if kind != "nothing" and (not kind.startswith("some") or draw.random() < 0.5):
                _apply(folders, entry)
        for inode, changes in loose_data.items():
            for change in changes:
                kept = _kept(change, kind, draw)
                if kept is not None:
                    _change(data.setdefault(inode, bytearray()), *kept)
        folder.mkdir(parents=True)
        _build(folder, ROOT, folders, data)


def _build(target: Path, folder: int, folders: dict[int, dict[str, int]], data: dict[int, bytearray]) -> None:
    """What can be reached; a folder whose own name was lost took its files with it."""
    for name, inode in folders.get(folder, {}).items():
        if inode < 0:
            (target / name).mkdir()
            _build(target / name, inode, folders, data)
        else:
            (target / name).write_bytes(bytes(data.get(inode, b"")))


def _apply(folders: dict[int, dict[str, int]], operation: tuple[Any, ...]) -> None:
    names = folders.setdefault(operation[1], {})
    if operation[0] == "exchange":
        _swap(names, *operation[2:])
    else:
        _enter(names, *operation[2:])


def _enter(names: dict[str, int], name: str, inode: int | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


def _swap(names: dict[str, int], one: str, other: str) -> None:
    first, second = names.get(one), names.get(other)
    _enter(names, one, second)
    _enter(names, other, first)


def _change(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        content[:] = content[:offset].ljust(offset, b"\0")
    else:
        content[:] = content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


def _kept(change: tuple[int, bytes | None], kind: str, draw: random.Random) -> tuple[int, bytes | None] | None:
    offset, data = change
    if kind in ("nothing", "names only"):
        return None
    if kind == "everything" or data is None:
        return change
    if kind == "names and zeros":
        return offset, b"\0" * len(data)
    if kind == "names and halves":
        return offset, data[: len(data) // 2]
    cut = draw.randrange(len(data) + 1)
    return draw.choice([None, change, (offset, data[:cut]), (offset, data[:cut] + b"\0" * (len(data) - cut))])
