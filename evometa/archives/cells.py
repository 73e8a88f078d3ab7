"""Finished cells of an unfinished generation, one line each, so that a resume computes only the missing ones.

A line is written and forced to disk as soon as its cell is finished, so neither the end of the process nor
a power cut costs a cell that was recorded. A torn last line is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from evometa.archives.write import ensure_folder, sync_folder
from evometa.errors import StorageError

Unit = tuple[int, str, int]  # candidate index, domain, replicate


class CellJournal:
    """A folder of finished cells (`runs/<run>/cells`): a file per generation, removed when its block is committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[int, dict[Unit, dict[str, Any]]] = {}
        self._file: int | None = None  # a descriptor: no buffer that a failed write leaves behind
        self._generation = -1

    def get(self, generation: int, unit: Unit) -> dict[str, Any] | None:
        """The outcome of a unit that was finished before, or None."""
        if generation not in self._done:
            self._done = {generation: self._read(generation)}
        return self._done[generation].get(unit)

    def put(self, generation: int, unit: Unit, outcome: dict[str, Any]) -> None:
        """Record a finished unit: once this returns, it survives a power cut. Raises `StorageError`."""
        self.put_all(generation, {unit: outcome})

    def put_all(self, generation: int, outcomes: Mapping[Unit, dict[str, Any]]) -> None:
        """Record finished units, all with one wait for the disk."""
        bodies = [json.dumps([list(unit), one], allow_nan=False, sort_keys=True) for unit, one in outcomes.items()]
        try:
            file = self._open(generation)
            _write(file, "".join(f"{_checksum(body)} {body}\n" for body in bodies).encode())
            os.fsync(file)
        except OSError as error:
            with suppress(OSError):
                self.close()  # whoever tries again opens anew, which ends a line that was cut short
            raise StorageError(
                f"cannot record a finished cell in {self.folder}: {error.strerror}."
                f" Free some space, then: evometa resume {self.folder.parent}"
            ) from error

    def clear(self) -> None:
        """Forget everything: the block that held these cells is committed."""
        self.close()
        self._done = {}
        if self.folder.is_dir():
            for path in self.folder.glob("gen-*.jsonl"):
                path.unlink()

    def close(self) -> None:
        """Close the open file; what it holds stays."""
        file, self._file, self._generation = self._file, None, -1
        if file is not None:
            os.close(file)

    def _path(self, generation: int) -> Path:
        return self.folder / f"gen-{generation:09d}.jsonl"

    def _open(self, generation: int) -> int:
        if self._file is not None and self._generation == generation:
            return self._file
        self.close()
        ensure_folder(self.folder)
        path = self._path(generation)
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._generation = generation
        if torn:
            _write(self._file, b"\n")
        sync_folder(self.folder)  # also for a file that was there: its maker may have died before this
        return self._file

    def _read(self, generation: int) -> dict[Unit, dict[str, Any]]:
        path, done = self._path(generation), {}
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                checksum, _, body = line.partition(" ")
                if checksum == _checksum(body):
                    (index, domain, replicate), outcome = json.loads(body)
                    done[index, domain, replicate] = outcome
        return done


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]
