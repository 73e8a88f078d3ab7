"""Finished cells of an unfinished generation, one line each, so that a resume computes only the missing ones.

A line is written as soon as its cell is finished, which survives the end of the process; it is forced to
disk at most every 50 ms, which is all that a power cut can cost. A torn last line is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from evometa.errors import StorageError

_SYNC_SECONDS = 0.05
Unit = tuple[int, str, int]  # candidate index, domain, replicate


class CellJournal:
    """A folder of finished cells (`runs/<run>/cells`): a file per generation, removed when its block is committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[int, dict[Unit, dict[str, Any]]] = {}
        self._file: BinaryIO | None = None
        self._generation = -1
        self._synced = 0.0

    def get(self, generation: int, unit: Unit) -> dict[str, Any] | None:
        """The outcome of a unit that was finished before, or None."""
        if generation not in self._done:
            self._done = {generation: self._read(generation)}
        return self._done[generation].get(unit)

    def put(self, generation: int, unit: Unit, outcome: dict[str, Any]) -> None:
        """Record a finished unit."""
        try:
            file = self._open(generation)
            body = json.dumps([list(unit), outcome], allow_nan=False, sort_keys=True)
            file.write(f"{_checksum(body)} {body}\n".encode())
            file.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
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
        if self._file is not None:
            self._file.close()
        self._file, self._generation = None, -1

    def _path(self, generation: int) -> Path:
        return self.folder / f"gen-{generation:09d}.jsonl"

    def _open(self, generation: int) -> BinaryIO:
        if self._file is not None and self._generation == generation:
            return self._file
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(generation)
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        file = path.open("ab")
        self._file, self._generation = file, generation
        if torn:
            file.write(b"\n")
        return file

    def _read(self, generation: int) -> dict[Unit, dict[str, Any]]:
        path, done = self._path(generation), {}
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                checksum, _, body = line.partition(" ")
                if checksum == _checksum(body):
                    (index, domain, replicate), outcome = json.loads(body)
                    done[index, domain, replicate] = outcome
        return done


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]
