"""Reading an archive, whole or a few columns of it, also while the run is writing.

Every byte is checked before it is believed: a part's sha256 is in its name, and pages carry checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evometa.archives.genealogy import COLUMNS, Genealogy
from evometa.archives.schema import FORMAT, JUDGEMENTS, LINEAGE, TABLES, TIMINGS, column, empty
from evometa.errors import ConfigError, IntegrityError, NotFound, did_you_mean

PART = re.compile(r"part-(\d{9,})-([0-9a-f]{16})\.parquet")


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
        return self.open().metadata.num_rows

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The part's table, or some of its columns. Raises `IntegrityError` where a bit is not as written."""
        return self.take(self.open(), columns)

    def open(self) -> pq.ParquetFile:
        """The part as a Parquet file in memory, every byte verified."""
        try:
            data = self.path.read_bytes()
            # Page checksums leave headers and footer uncovered, and a flipped bit there can read as other numbers.
            # The hash covers every byte, and costs less than the reading does.
            found = hashlib.sha256(data).hexdigest()[:16]
            if found != self.digest:
                raise self._broken(f"expected bytes with sha256 {self.digest}..., got {found}...; it was changed")
            return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        except FileNotFoundError:
            raise self._broken("this part is missing") from None
        except (pa.ArrowException, OSError) as error:
            raise self._broken(f"this part cannot be read: {_first_line(error)}") from None

    def take(self, file: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of a file that `open` gave, or some of its columns."""
        schema = TABLES.get(self.folder.name, LINEAGE)
        wanted = schema.names if columns is None else list(columns)
        have = set(file.schema_arrow.names)
        # Threads pay for large parts only: with small ones, most of the time goes into opening them.
        threads = file.metadata.num_rows > 1 << 17
        try:
            table = file.read([name for name in wanted if name in have], use_threads=threads)
        except (pa.ArrowException, OSError) as error:
            raise self._broken(f"this part cannot be read: {_first_line(error)}") from None
        # A part of a later minor version has more columns, one of an earlier has fewer: those read as null.
        arrays = [table[name] if name in have else pa.nulls(len(table), schema.field(name).type) for name in wanted]
        return table if table.column_names == wanted else pa.table(arrays, names=wanted)

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


class Archive:
    """What a run left: `Archive("runs/x").top(10)`.

    Raises `NotFound` where there is no such run; every reading method raises `IntegrityError` where a
    part is not what was written. Rows are dicts, with maps as dicts.
    """

    def __init__(self, run_path: Path | str) -> None:
        self.path = Path(run_path)
        if not (self.path / "run.json").exists() and not (self.path / "lineage").is_dir():
            known = sorted(p.parent.name for p in self.path.parent.glob("*/run.json"))
            hint = did_you_mean(self.path.name, known) or " Run: evometa runs"
            raise NotFound(f"no run at {self.path}.{hint}")
        _check_format(self.path / "run.json")
        self._tables: dict[tuple[str, ...], tuple[list[str], pa.Table]] = {}  # columns -> parts, and what they hold
        self._genealogy: tuple[pa.Table, Genealogy] | None = None

    def parts(self) -> list[Part]:
        """The lineage's parts, in order of generation."""
        return list_parts(self.path / "lineage")

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The lineage, or some of its columns, sorted by (generation, index)."""
        wanted = LINEAGE.names if columns is None else list(columns)
        _check_names(wanted)
        # The generation is always read: it is what shows an overlap.
        needed = wanted if "generation" in wanted else [*wanted, "generation"]
        tables = list(self._no_overlap(part.read(needed) for part in self.parts()))
        schema = pa.schema([LINEAGE.field(name) for name in needed])
        return (pa.concat_tables(tables) if tables else empty(schema)).select(wanted)

    def generations(self) -> int:
        """How many generations are stored: the number of the next one."""
        parts = self.parts()
        return int(parts[-1].read(["generation"])["generation"][-1].as_py()) + 1 if parts else 0

    def row(self, generation: int, index: int) -> dict[str, Any]:
        """One candidate. Raises `NotFound`."""
        return self._rows(self.parts(), [(generation, index)])[0]

    def top(self, k: int = 10) -> list[dict[str, Any]]:
        """The k rows of lowest fitness, failures last; ties go to the earlier candidate."""
        small = self._cached(("generation", "index", "fitness"))
        generation, index, fitness = (column(small, name) for name in small.column_names)
        fitness = np.where(np.isnan(fitness), np.inf, fitness)
        k = min(k, len(fitness))
        if k < 1:
            return []
        near = np.flatnonzero(fitness <= np.partition(fitness, k - 1)[k - 1])
        best = near[np.lexsort((index[near], generation[near], fitness[near]))][:k]
        return self._rows(self.parts(), [(int(generation[i]), int(index[i])) for i in best])

    def ancestry(self, generation: int, index: int, depth: int | None = None) -> dict[str, list[Any]]:
        """A candidate and its ancestors: `{"nodes": [...], "edges": [...]}`.

        A node is `{generation, index, fitness, operator}`, the candidate itself first; an edge is
        `{"child": [generation, index], "parent": [generation, index]}`. `depth` limits how many steps
        back to go. Raises `NotFound`.
        """
        table = self._cached(COLUMNS)
        if self._genealogy is None or self._genealogy[0] is not table:
            self._genealogy = table, Genealogy(table)
        genealogy = self._genealogy[1]
        row = genealogy.row(generation, index)
        if row is None:
            raise NotFound(f"{self.path} has no candidate {generation}:{index}. Run: evometa archive ls {self.path}")
        return genealogy.ancestry(row, depth)

    def block(self, first: int) -> pa.Table:
        """The table of the part that starts at generation `first`. Raises `NotFound`."""
        for part in self.parts():
            if part.first == first:
                return part.read()
        raise NotFound(f"{self.path} has no part starting at generation {first}. Try: evometa archive ls {self.path}")

    def scores(self) -> pa.Table:
        """One row per candidate and cell: generation, index, domain, query, role, replicate, loss."""
        return unnest_scores(self.table(["generation", "index", "scores"]))

    def judgements(self) -> pa.Table:
        """What was judged after the search (see `JUDGEMENTS`), in order of opening."""
        return self._whole("judgements", JUDGEMENTS)

    def timings(self) -> pa.Table:
        """Seconds, hosts and attempts, one row per block (see `TIMINGS`)."""
        return self._whole("timings", TIMINGS)

    # --- reading many parts ----------------------------------------------------------------------

    def _whole(self, folder: str, schema: pa.Schema) -> pa.Table:
        tables = [part.read() for part in list_parts(self.path / folder)]
        return pa.concat_tables(tables) if tables else empty(schema)

    def _rows(self, parts: list[Part], names: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """Whole rows of candidates, each part read once."""
        firsts = [part.first for part in parts]
        tables: dict[int, pa.Table] = {}
        found = []
        for generation, index in names:
            at = bisect_right(firsts, generation) - 1
            if at not in tables:
                tables[at] = parts[at].read() if at >= 0 else empty(LINEAGE)
            table = tables[at]
            hit = (column(table, "generation") == generation) & (column(table, "index") == index)
            if not hit.any():
                name = f"{generation}:{index}"
                raise NotFound(f"{self.path} has no candidate {name}. Run: evometa archive ls {self.path}")
            found += to_dicts(table.slice(int(np.argmax(hit)), 1))
        return found

    def _no_overlap(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        # Parts do not overlap; where a damaged archive's do, rows must not double: the first part counts.
        following = 0
        for table in tables:
            generation = column(table, "generation")
            if len(generation) and generation[0] < following:
                table = table.slice(int(np.searchsorted(generation, following)))
            if len(table):
                following = int(generation[-1]) + 1
                yield table

    def _cached(self, columns: tuple[str, ...]) -> pa.Table:
        """Some columns of all parts; parts never change, so only new ones are read when asked again."""
        parts = self.parts()
        names = [part.name for part in parts]
        known, table = self._tables.get(columns, ([], empty(pa.schema([LINEAGE.field(name) for name in columns]))))
        if names != known:
            if names[: len(known)] != known:  # `repair` or another hand took parts away
                known, table = [], table.slice(0, 0)
            new = (part.read(columns) for part in parts[len(known) :])
            table = pa.concat_tables([table.slice(0, 0), *self._no_overlap(chain([table], new))]).combine_chunks()
            self._tables[columns] = names, table
        return table


def unnest_scores(table: pa.Table) -> pa.Table:
    """One row per candidate and cell, of a table with generation, index and scores."""
    table = table.combine_chunks()
    lists = table["scores"].combine_chunks()
    rows = pc.call_function("list_parent_indices", [lists])
    flat = lists.flatten()
    columns = {name: table[name].take(rows) for name in table.column_names if name != "scores"}
    return pa.table(columns | {field.name: flat.field(field.name) for field in flat.type})


def to_dicts(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as plain Python, maps as dicts, decimals (what SQL's sums of integers are) as numbers."""
    maps = [field.name for field in table.schema if pa.types.is_map(field.type)]
    decimals = [field.name for field in table.schema if "decimal" in str(field.type)]  # at any depth
    rows = table.to_pylist()
    for row in rows:
        row.update({name: dict(row[name]) for name in maps if row[name] is not None})
        row.update({name: _numbers(row[name]) for name in decimals})
    return rows


def _numbers(value: Any) -> Any:
    """The value with every decimal in it as an int (where its type has no fraction) or a float."""
    if isinstance(value, Decimal):
        return int(value) if value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, dict):
        return {_numbers(key): _numbers(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_numbers(child) for child in value)
    return value


def _check_format(path: Path) -> None:
    try:
        version = str(json.loads(path.read_bytes()).get("format", FORMAT))
    except (OSError, ValueError, AttributeError):
        return  # a missing or damaged run.json is for `check` to report; the rows can be read without it
    if version.split(".")[0] != FORMAT.split(".")[0]:
        raise ConfigError(f"{path}: expected format {FORMAT.split('.')[0]}.x, got {version}. Update evometa to read it")


def _check_names(columns: Sequence[str]) -> None:
    for name in columns:
        if name not in LINEAGE.names:
            hint = did_you_mean(name, LINEAGE.names)
            raise NotFound(f"the lineage has no column {name!r}.{hint} It has {', '.join(LINEAGE.names)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
