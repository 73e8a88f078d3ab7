"""Reading an archive, whole or a few columns of it, also while the run is writing.

Every byte is checked before it is believed: a part's sha256 is in its name, and pages carry checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evometa.archives.schema import FORMAT, JUDGEMENTS, LINEAGE, TABLES, TIMINGS
from evometa.errors import ConfigError, IntegrityError, NotFound, did_you_mean

PART = re.compile(r"part-(\d{9,})-([0-9a-f]{16})\.parquet")
THREADS = 2 * (os.cpu_count() or 1)


class Part:
    """One immutable file of an archive; `first` is its first generation (an opening, for judgements)."""

    def __init__(self, path: Path) -> None:
        match = PART.fullmatch(path.name)
        if match is None:
            raise IntegrityError(f"{path}: expected part-<generation>-<sha256>.parquet, got another name; not ours")
        self.path = path
        self.first = int(match[1])
        self.digest = match[2]  # the first 16 hex digits of the file's sha256

    def __repr__(self) -> str:
        return f"Part({self.path.name})"

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
        schema = TABLES.get(self.path.parent.name, LINEAGE)
        wanted = schema.names if columns is None else list(columns)
        have = set(file.schema_arrow.names)
        try:
            table = file.read([name for name in wanted if name in have], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise self._broken(f"this part cannot be read: {_first_line(error)}") from None
        # A part of a later minor version has more columns, one of an earlier has fewer: those read as null.
        arrays = [table[name] if name in have else pa.nulls(len(table), schema.field(name).type) for name in wanted]
        return table if table.column_names == wanted else pa.table(arrays, names=wanted)

    def _broken(self, what: str) -> IntegrityError:
        return IntegrityError(f"{self.path}: {what}. Run: evometa archive check {self.path.parent.parent}")


def list_parts(folder: Path) -> list[Part]:
    """The parts of a folder in order of generation; other files are left to `check`."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted((Part(folder / name) for name in names if PART.fullmatch(name)), key=lambda p: (p.first, p.path.name))


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
        self._tables: dict[tuple[str, tuple[str, ...]], pa.Table] = {}

    def parts(self) -> list[Part]:
        """The lineage's parts, in order of generation."""
        return list_parts(self.path / "lineage")

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The lineage, or some of its columns, sorted by (generation, index)."""
        wanted = LINEAGE.names if columns is None else list(columns)
        _check_names(wanted)
        # The generation is always read: it is what shows an overlap.
        needed = wanted if "generation" in wanted else [*wanted, "generation"]
        tables = list(self._no_overlap(self._read(self.parts(), needed)))
        schema = pa.schema([LINEAGE.field(name) for name in needed])
        return (pa.concat_tables(tables) if tables else schema.empty_table()).select(wanted)

    def generations(self) -> int:
        """How many generations are stored: the number of the next one."""
        parts = self.parts()
        return int(parts[-1].read(["generation"])["generation"][-1].as_py()) + 1 if parts else 0

    def row(self, generation: int, index: int) -> dict[str, Any]:
        """One candidate. Raises `NotFound`."""
        for part in reversed([part for part in self.parts() if part.first <= generation]):
            table = part.read()
            hit = table.filter((pc.field("generation") == generation) & (pc.field("index") == index))
            if len(hit):
                return to_dicts(hit)[0]
            break
        raise NotFound(f"{self.path} has no candidate {generation}:{index}. Run: evometa archive ls {self.path}")

    def top(self, k: int = 10) -> list[dict[str, Any]]:
        """The k rows of lowest fitness, failures last; ties go to the earlier candidate."""
        small = self._cached(("generation", "index", "fitness"))
        generation, index, fitness = (small[name].to_numpy() for name in small.column_names)
        fitness = np.where(np.isnan(fitness), np.inf, fitness)
        k = min(k, len(fitness))
        if k < 1:
            return []
        near = np.flatnonzero(fitness <= np.partition(fitness, k - 1)[k - 1])
        best = near[np.lexsort((index[near], generation[near], fitness[near]))][:k]
        return [self.row(int(generation[i]), int(index[i])) for i in best]

    def ancestry(self, generation: int, index: int, depth: int | None = None) -> dict[str, list[Any]]:
        """A candidate and its ancestors: `{"nodes": [...], "edges": [...]}`.

        A node is `{generation, index, fitness, operator}`, the candidate itself first; an edge is
        `{"child": [generation, index], "parent": [generation, index]}`. `depth` limits how many steps
        back to go. Raises `NotFound`.
        """
        table = self._cached(("generation", "index", "parents", "fitness", "operator"))
        own = _keys(table["generation"].to_numpy(), table["index"].to_numpy())
        lists = table["parents"].combine_chunks()
        offsets = lists.offsets.to_numpy()
        pairs = lists.flatten()
        towards = _keys(pairs.field("generation").to_numpy(), pairs.field("index").to_numpy())
        start = int(np.searchsorted(own, (generation << 32) + index))
        if start == len(own) or own[start] != (generation << 32) + index:
            raise NotFound(f"{self.path} has no candidate {generation}:{index}. Run: evometa archive ls {self.path}")
        order, edges = _walk(own, offsets - offsets[0], towards, start, depth)
        fitness, operator = table["fitness"].to_numpy()[order], table["operator"].take(pa.array(order)).to_pylist()
        nodes = [
            {"generation": int(key >> 32), "index": int(key & 0xFFFFFFFF), "fitness": float(f), "operator": o}
            for key, f, o in zip(own[order], fitness, operator, strict=True)
        ]
        return {"nodes": nodes, "edges": [{"child": _pair(child), "parent": _pair(parent)} for child, parent in edges]}

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
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def _read(self, parts: list[Part], columns: Sequence[str]) -> Iterator[pa.Table]:
        if len(parts) < 2:
            yield from (part.read(columns) for part in parts)
            return
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(lambda part: part.read(columns), parts)

    def _no_overlap(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        # Parts do not overlap; where a damaged archive's do, rows must not double: the first part counts.
        following = 0
        for table in tables:
            generation = table["generation"].to_numpy()
            if len(generation) and generation[0] < following:
                table = table.filter(pa.array(generation >= following))
            if len(table):
                following = int(generation[-1]) + 1
                yield table

    def _cached(self, columns: tuple[str, ...]) -> pa.Table:
        """Some columns of all parts; parts never change, so only new ones are read when asked again."""
        parts = self.parts()
        new = [part for part in parts if (part.path.name, columns) not in self._tables]
        for part, table in zip(new, self._read(new, columns), strict=True):
            self._tables[part.path.name, columns] = table
        tables = list(self._no_overlap(iter([self._tables[part.path.name, columns] for part in parts])))
        table = pa.concat_tables(tables) if tables else pa.schema([LINEAGE.field(n) for n in columns]).empty_table()
        return table.combine_chunks()


def unnest_scores(table: pa.Table) -> pa.Table:
    """One row per candidate and cell, of a table with generation, index and scores."""
    table = table.combine_chunks()
    lists = table["scores"].combine_chunks()
    rows = pc.call_function("list_parent_indices", [lists])
    flat = lists.flatten()
    columns = {name: table[name].take(rows) for name in table.column_names if name != "scores"}
    return pa.table(columns | {field.name: flat.field(field.name) for field in flat.type})


def to_dicts(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as plain Python, maps as dicts."""
    maps = [field.name for field in table.schema if pa.types.is_map(field.type)]
    rows = table.to_pylist()
    for row in rows:
        row.update({name: dict(row[name]) for name in maps if row[name] is not None})
    return rows


def _keys(generation: np.ndarray, index: np.ndarray) -> np.ndarray:
    return (generation.astype(np.int64) << 32) + index


def _pair(key: np.int64) -> list[int]:
    return [int(key >> 32), int(key & 0xFFFFFFFF)]


def _walk(
    own: np.ndarray, offsets: np.ndarray, towards: np.ndarray, start: int, depth: int | None
) -> tuple[np.ndarray, list[tuple[np.int64, np.int64]]]:
    """Breadth first from `start`: rows in order of discovery, and (child, parent) keys."""
    seen = np.zeros(len(own), bool)
    seen[start] = True
    frontier = np.array([start])
    order, edges = [frontier], []
    while len(frontier) and (depth is None or len(order) <= depth):
        counts = offsets[frontier + 1] - offsets[frontier]
        total = int(counts.sum())
        if not total:
            break
        flat = np.arange(total) + np.repeat(offsets[frontier] - np.cumsum(counts) + counts, counts)
        parents = towards[flat]
        edges.append(np.stack([np.repeat(own[frontier], counts), parents], 1))
        rows = np.unique(np.searchsorted(own, parents))
        rows = rows[rows < len(own)]
        frontier = rows[~seen[rows]]
        seen[frontier] = True
        order.append(frontier)
    return np.concatenate(order), [(a, b) for a, b in np.concatenate(edges)] if edges else []


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
