"""What an index says of ancestors: the best of every generation of a part, and those of the part that have children.

Both as plain arrays, each verified by a digest before it is believed, and read only when somebody asks.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evometa.archives.genealogy import BEST, best_of_generations
from evometa.archives.pedigree import COLUMNS, Gathering, Pedigree, of_arrays
from evometa.archives.regular import fill, open_file
from evometa.errors import IntegrityError

_BATCH = 8  # row groups that are decoded at a time


class Kin:
    """`said` is what the index's text has under `kin`, `start` where in the file the arrays begin."""

    def __init__(self, said: dict[str, Any], path: Path, start: int) -> None:
        self._said, self._path, self._start = said, path, start
        self._sections, self._operators = said["sections"], said["operators"]

    def line(self) -> np.ndarray | None:
        """The best candidate of every generation, `[G]` of dtype `BEST`; None where that was damaged."""
        line = (self._section("line") or {}).get("line")
        return line if line is not None and line.dtype == BEST else None

    def bred(self) -> Pedigree | None:
        """Those of the part that have children in it, and its last generation; None where that was damaged."""
        try:
            found = self._section("bred")
            return of_arrays(found, self._operators) if found else None
        except (TypeError, ValueError, IndexError):
            return None

    def _section(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a section by name."""
        try:
            section = self._sections[name]
            start, size = self._start + int(section["start"]), int(section["size"])
            descriptor = open_file(self._path, os.O_RDONLY)
            try:
                # Nothing is allocated for what a header merely claims.
                if size < 0 or not self._start <= start <= os.fstat(descriptor).st_size - size:
                    return None
                data = np.empty(size, np.uint8)
                fill(descriptor, data.data, start)
            finally:
                os.close(descriptor)
            if hashlib.sha256(data.data).hexdigest() != section["sha256"]:
                return None
            found, at = {}, 0
            for word, kind, count in section["arrays"]:
                found[word] = np.frombuffer(data, _dtype(kind), count, at)
                at += _padded(found[word].nbytes)
            return found
        except (OSError, IntegrityError, KeyError, TypeError, ValueError, OverflowError, MemoryError):
            return None


def pack(data: pa.Buffer) -> tuple[dict[str, Any], bytes]:
    """What an index says of the ancestors in a part with these bytes: for its text, and the arrays."""
    line, bred = _found(data)
    few = len(bred.operators) < 1 << 8
    arrays = {**bred.arrays(), "operator": bred.operator.astype(np.uint8 if few else np.int16)}
    sections, tail = {}, bytearray()
    for name, found in (("line", {"line": line}), ("bred", arrays)):
        own = b"".join(array.tobytes().ljust(_padded(array.nbytes), b"\0") for array in found.values())
        kinds = [
            [word, "best" if array.dtype == BEST else array.dtype.name, len(array)] for word, array in found.items()
        ]
        digest = hashlib.sha256(own).hexdigest()
        sections[name] = {"start": len(tail), "size": len(own), "sha256": digest, "arrays": kinds}
        tail += own
    return {"sections": sections, "operators": list(bred.operators)}, bytes(tail)


def _found(data: pa.Buffer) -> tuple[np.ndarray, Pedigree]:
    """The best of every generation of a part, and those that have children."""
    file = pq.ParquetFile(pa.BufferReader(data))
    gathering, line = Gathering(), [np.zeros(0, BEST)]
    for first in range(0, file.num_row_groups, _BATCH):
        groups = list(range(first, min(first + _BATCH, file.num_row_groups)))
        table = file.read_row_groups(groups, list(COLUMNS), use_threads=False)
        gathering.add(table)
        line.append(best_of_generations(table))
    return np.concatenate(line), gathering.pedigree().bred()


def _dtype(kind: str) -> np.dtype:
    """Of an array; numbers are in the byte order of all machines that Arrow and JAX are made for, little-endian."""
    if kind == "best":
        return BEST
    if kind not in ("int64", "int32", "int16", "uint8", "float64"):
        raise ValueError(kind)
    return np.dtype(kind)


def _padded(size: int) -> int:
    return -(-size // 8) * 8
