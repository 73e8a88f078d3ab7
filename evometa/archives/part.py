"""One immutable file of an archive: found by its name, believed only after its bytes were verified.

A part's sha256 is in its name. A part that `compact` made is large, and has an index beside it (see index.py) by which
a few columns, or a few generations, are read and verified without the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evometa.archives.genealogy import BEST, best_of_generations
from evometa.archives.index import Index, load, load_kin
from evometa.archives.kin import Kin
from evometa.archives.pedigree import COLUMNS, Gathering, Pedigree
from evometa.archives.regular import nameless, read_file, too_large, wrong_types
from evometa.archives.schema import LINEAGE, TABLES, column, empty
from evometa.errors import IntegrityError

PART = re.compile(r"part-(\d{9,})-([0-9a-f]{16})\.parquet")
BATCH = 1 << 16  # rows that are decoded at a time where a part is walked through


class Vanished(IntegrityError):
    """A part was listed and is not there: lost, or merged into another by `compact` in between."""


class Part:
    """One immutable file of an archive, `part-<first generation>-<start of its sha256>.parquet`."""

    def __init__(self, folder: Path, name: str, first: int, digest: str) -> None:
        self.folder = folder
        self.name = name
        self.first = first  # its first generation (its opening, for judgements)
        self.digest = digest  # the first 16 hex digits of the file's sha256

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder / self.name

    def __repr__(self) -> str:
        return f"Part({self.name})"

    @cached_property
    def rows(self) -> int:
        """How many rows the part holds."""
        return self.index.rows if self.index else self.open().metadata.num_rows

    @cached_property
    def last(self) -> int:
        """The last generation of a lineage part."""
        if self.index and np.isfinite(bounds := self.index.bounds("generation")).all():
            return int(bounds[-1, 1])
        return int(self.read(["generation"])["generation"][-1].as_py())

    @cached_property
    def index(self) -> Index | None:
        """What allows to read a piece of the part; None where the whole of it has to be read."""
        try:
            return load(self.path)
        except FileNotFoundError:
            raise self._vanished() from None
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._broken(f"this part cannot be read: {_first_line(error)}") from None

    @cached_property
    def kin(self) -> Kin | None:
        """What the part's index says of ancestors; None where nothing is said."""
        return load_kin(self.path)

    def read(self, columns: Sequence[str] | None = None, generations: tuple[int, int] | None = None) -> pa.Table:
        """The part's table, or some of its columns, or the rows of the generations `[first, last]`.

        Raises `IntegrityError` where a bit of what was read is not as written.
        """
        if self.index is None:
            return _within(self.take(self.open(), columns), generations)
        groups = range(self.index.groups)
        if generations is not None:
            bounds = self.index.bounds("generation")
            groups = np.flatnonzero((bounds[:, 0] <= generations[1]) & (bounds[:, 1] >= generations[0]))
        return _within(self.read_groups([int(group) for group in groups], columns), generations)

    def read_groups(self, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of some row groups, by the index."""
        assert self.index is not None
        if not groups:
            return empty(pa.schema([self._schema.field(name) for name in columns or self._schema.names]))
        try:
            file = self.index.open(self.path, groups, columns)
        except FileNotFoundError:
            raise self._vanished() from None
        except IntegrityError as error:
            raise self._broken(str(error)) from None
        except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
            raise self._broken(f"this part cannot be read: {_first_line(error)}") from None
        return self.take(file, columns, groups)

    def line(self) -> np.ndarray:
        """The best candidate of every generation, `[G]` of dtype `BEST`."""
        if self.kin is not None and (line := self.kin.line()) is not None:
            return line
        tables = self.batches(("generation", "index", "fitness"))
        return np.concatenate([np.zeros(0, BEST), *map(best_of_generations, tables)])

    def pedigree(self) -> Pedigree:
        """Everybody in the part, and their parents."""
        gathering = Gathering()
        for table in self.batches(COLUMNS):
            gathering.add(table)
        return gathering.pedigree()

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The part's rows in order, in tables of about `BATCH` rows (one, where the part has one row group)."""
        file = self.open() if self.index is None else None
        if file is not None:
            sizes = [group_rows(file, group) for group in range(file.num_row_groups)]
        else:
            sizes = self.index.sizes if self.index else []
        at = 0
        while at < len(sizes):
            end, rows = at, 0
            while end < len(sizes) and (end == at or rows + sizes[end] <= BATCH):
                rows, end = rows + sizes[end], end + 1
            groups = range(at, end)
            yield self.read_groups(groups, columns) if file is None else self.take(file, columns, groups)
            at = end

    def open(self) -> pq.ParquetFile:
        """The part as a Parquet file in memory, every byte verified."""
        try:
            data = read_file(self.path)
            # Page checksums leave headers and footer uncovered, and a flipped bit there can read as other numbers.
            # The hash covers every byte, and costs less than the reading does.
            found = hashlib.sha256(data).hexdigest()[:16]
            if found != self.digest:
                raise self._broken(f"expected bytes with sha256 {self.digest}..., got {found}...; it was changed")
            return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        except FileNotFoundError:
            raise self._vanished() from None
        except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
            raise self._broken(f"this part cannot be read: {_first_line(error)}") from None

    def take(
        self, file: pq.ParquetFile, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None
    ) -> pa.Table:
        """The table of a file that `open` gave, or some of its columns or row groups."""
        schema = self._schema
        wanted = schema.names if columns is None else list(columns)
        groups = range(file.num_row_groups) if groups is None else groups
        try:
            if wrong := wrong_types(file, schema) or too_large(file, wanted, groups):
                raise self._broken(wrong)
            have = set(file.schema_arrow.names)
            # Threads pay for large parts only: with small ones, most of the time goes into opening them.
            threads = sum(group_rows(file, group) for group in groups) > 1 << 17
            table = file.read_row_groups(groups, [name for name in wanted if name in have], use_threads=threads)
            # A part of a later minor version has more columns, one of an earlier has fewer: those read as null.
            arrays = [table[name] if name in have else pa.nulls(len(table), schema.field(name).type) for name in wanted]
        except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
            raise self._broken(f"this part cannot be read: {_first_line(error)}") from None
        if wrong := nameless(dict(zip(wanted, arrays, strict=True)), self.folder.name):
            raise self._broken(wrong)
        return table if table.column_names == wanted else pa.table(arrays, names=wanted)

    @property
    def _schema(self) -> pa.Schema:
        return TABLES.get(self.folder.name, LINEAGE)

    def _vanished(self) -> Vanished:
        return Vanished(str(self._broken("this part is missing")))

    def _broken(self, what: str) -> IntegrityError:
        return IntegrityError(f"{self.path}: {what}. Run: evometa archive check {self.folder.parent}")


def list_parts(folder: Path) -> list[Part]:
    """The parts of a folder in order of generation; other files are left to `check`."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    matches = [match for match in map(PART.fullmatch, names) if match]
    return sorted((Part(folder, m[0], int(m[1]), m[2]) for m in matches), key=lambda part: (part.first, part.name))


def inodes(run: Path) -> list[int]:
    """Which folders hold a run's parts now: `compact` puts others in place."""
    return [(run / name).stat().st_ino if (run / name).is_dir() else 0 for name in ("lineage", "timings")]


def group_rows(file: pq.ParquetFile, group: int) -> int:
    """How many rows a row group holds."""
    return file.metadata.row_group(group).num_rows


def _within(table: pa.Table, generations: tuple[int, int] | None) -> pa.Table:
    if generations is None:
        return table
    found = column(table, "generation")  # sorted
    start, end = np.searchsorted(found, [generations[0], generations[1] + 1])
    return table.slice(int(start), int(end - start))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
