"""A model of what a disk holds after the power went: what was fsynced, and any part of what was not.

`Disk.recording()` notes the file calls of the code under test while they really happen; `materialize`
then builds the folder as it might be found after a power cut at any moment. A file's bytes are sure up to
its last fsync, a name is sure once its folder was fsynced. All else may be lost, kept, cut or garbled.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CALLS = ("open", "close", "write", "pwrite", "fsync", "ftruncate", "link", "rename", "unlink", "mkdir")


class PowerCut(BaseException):
    """Raised in the code under test from the moment at which it is dead."""


class Disk:
    """The file calls below `root`, in order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.operations: list[tuple[Any, ...]] = []
        self.fuse: int | None = None  # how many more operations until the process dies
        self._inodes: dict[str, int] = {}  # names as the running process sees them
        self._handles: dict[int, list[Any]] = {}  # descriptor -> [inode or folder, offset]
        self._count = 0
        for path in sorted(root.rglob("*")):  # what is there already is sure
            self._name(path, -self._new() if path.is_dir() else self._new())
            if path.is_file():
                self.operations += [("data", self._inodes[str(path)], 0, path.read_bytes())]
                self.operations += [("fsync", self._inodes[str(path)])]
            self.operations.append(("fsync", str(path.parent)))

    def acknowledge(self, text: str) -> None:
        """Note that the code under test promised something."""
        self.operations.append(("ack", text))

    def acks(self, moment: int) -> list[str]:
        """What had been promised by then."""
        return [operation[1] for operation in self.operations[:moment] if operation[0] == "ack"]

    @contextmanager
    def recording(self, silent: tuple[str, ...] = ()) -> Iterator[None]:
        """Note the calls of `os` (but those in `silent`) until the end of the block."""
        real = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            if name not in silent:
                setattr(os, name, self._wrapped(name, real[name]))
        try:
            yield
        finally:
            for name in CALLS:
                setattr(os, name, real[name])

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
            fresh = name == "open" and str(arguments[0]) not in self._inodes
            result = real(*arguments, **keywords)
            getattr(self, f"_{name}")(result, fresh, *arguments)
            return result

        return call

    def _ours(self, name: str, first: Any) -> bool:
        return first in self._handles if isinstance(first, int) else str(first).startswith(str(self.root))

    # --- what each call means -------------------------------------------------------------------

    def _name(self, path: Any, inode: int | None) -> None:
        path = str(path)
        self.operations.append(("name", os.path.dirname(path), path, inode))
        if inode is None:
            self._inodes.pop(path, None)
        else:
            self._inodes[path] = inode

    def _new(self) -> int:
        self._count += 1
        return self._count

    def _mkdir(self, result: Any, fresh: bool, path: Any, *rest: Any) -> None:
        self._name(path, -self._new())  # negative: a folder

    def _link(self, result: Any, fresh: bool, source: Any, target: Any) -> None:
        self._name(target, self._inodes[str(source)])

    def _rename(self, result: Any, fresh: bool, source: Any, target: Any) -> None:
        inode = self._inodes[str(source)]
        self._name(target, inode)
        self._name(source, None)

    def _unlink(self, result: Any, fresh: bool, path: Any) -> None:
        self._name(path, None)

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
        if flags & os.O_DIRECTORY:
            self._handles[result] = [str(path), 0]
            return
        if fresh:
            self._name(path, self._new())
        self._handles[result] = [self._inodes[str(path)], 0]

    # --- after the power cut ----------------------------------------------------------------------

    def materialize(self, folder: Path, moment: int, kind: str, draw: random.Random) -> None:
        """Build in `folder` what may be left when the power goes after `moment` operations.

        `kind`: of what was not fsynced, "nothing" is left; "names only" (files empty), "names and zeros",
        "names and halves"; "everything"; or "some" of it, as `draw` wills.
        """
        names: dict[str, int] = {}
        data: dict[int, bytearray] = {}
        loose_names: list[tuple[str, str, int | None]] = []
        loose_data: dict[int, list[tuple[int, bytes | None]]] = {}
        for operation in self.operations[:moment]:
            if operation[0] == "name":
                loose_names.append(operation[1:])
            elif operation[0] == "data":
                loose_data.setdefault(operation[1], []).append(operation[2:])
            elif operation[0] == "fsync" and isinstance(operation[1], str):
                for entry in [entry for entry in loose_names if entry[0] == operation[1]]:
                    _enter(names, *entry[1:])
                loose_names = [entry for entry in loose_names if entry[0] != operation[1]]
            elif operation[0] == "fsync":
                for change in loose_data.pop(operation[1], []):
                    _change(data.setdefault(operation[1], bytearray()), *change)
        for entry in loose_names:
            if kind != "nothing" and (not kind.startswith("some") or draw.random() < 0.5):
                _enter(names, *entry[1:])
        for inode, changes in loose_data.items():
            for change in changes:
                kept = _kept(change, kind, draw)
                if kept is not None:
                    _change(data.setdefault(inode, bytearray()), *kept)
        self._build(folder, names, data)

    def _build(self, folder: Path, names: dict[str, int], data: dict[int, bytearray]) -> None:
        folder.mkdir(parents=True)
        for path in sorted(names):
            target = folder / os.path.relpath(path, self.root)
            if not target.parent.is_dir():
                continue  # in a folder whose own name was lost
            if names[path] < 0:
                target.mkdir()
            else:
                target.write_bytes(bytes(data.get(names[path], b"")))


def _enter(names: dict[str, int], path: str, inode: int | None) -> None:
    if inode is None:
        names.pop(path, None)
    else:
        names[path] = inode


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
