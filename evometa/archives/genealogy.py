"""Who came from whom: a walk back through the parents of a lineage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from evometa.archives.schema import column, numbers

COLUMNS = ("generation", "index", "parents", "fitness", "operator")


class _Arrays(NamedTuple):
    keys: np.ndarray  # [N] int64: generation and index
    fitness: np.ndarray  # [N]
    operator: np.ndarray  # [N] codes
    counts: np.ndarray  # [N] of parents
    parents: np.ndarray  # [E] int32 rows; or int64 keys, where rows can only be found when all are known


class Genealogy:
    """The parents of every candidate as flat arrays; built once, then walked in milliseconds.

    Takes about 30 bytes per candidate. A parent that is not among the rows (a damaged archive) is left out.
    """

    def __init__(self) -> None:
        self._names: list[str] = []  # of the operators
        self._tables: list[_Arrays] = []
        self._rows = 0
        self._population = 0  # candidates of every generation, as far as all have as many and none is missing
        self._keys = self._offsets = np.zeros(0, np.int64)
        self._fitness, self._operator, self._parents = np.zeros(0), np.zeros(0, np.int16), np.zeros(0, np.int32)

    def add(self, table: pa.Table) -> None:
        """Add rows: of `COLUMNS`, sorted by (generation, index), and behind those that are there."""
        keys = _keys(column(table, "generation"), column(table, "index"))
        last = self._tables[-1].keys[-1] if self._tables else self._keys[-1] if len(self._keys) else -1
        start = int(np.searchsorted(keys, last, side="right"))
        table, keys = table.slice(start), keys[start:]  # parts overlap in a damaged archive only: the first counts
        if not len(keys):
            return
        lists = table["parents"].combine_chunks()
        pairs = lists.flatten()
        generation, index = (numbers(pairs.field(name)) for name in ("generation", "index"))
        counts = numbers(lists.value_lengths())
        if self._is_dense(keys):
            # The place is a product, not a search; and no more is kept of a parent than its row.
            rows = (generation.astype(np.int64) - self._first) * self._population + index
            found = (rows >= 0) & (rows < self._rows + len(keys)) & (index >= 0) & (index < self._population)
            if not found.all():
                child = np.repeat(np.arange(len(keys)), counts)
                counts = np.bincount(child[found], minlength=len(keys))
            parents = rows[found].astype(np.int32)
        else:
            parents = _keys(generation, index)
        fitness = np.array(column(table, "fitness"))  # a copy: views would keep whole tables
        self._tables.append(_Arrays(keys, fitness, self._codes(table["operator"]), counts.astype(np.int32), parents))
        self._rows += len(keys)

    def _is_dense(self, keys: np.ndarray) -> bool:
        """Whether these rows are the next ones of an archive whose generations are whole and equally large."""
        if self._rows == 0:
            self._first = int(keys[0] >> 32)
            self._population = int(np.searchsorted(keys, (self._first + 1) << 32))
        if self._population:
            places = np.arange(self._rows, self._rows + len(keys))
            expected = ((self._first + places // self._population) << 32) + places % self._population
            if not np.array_equal(keys, expected) or self._rows + len(keys) >= 1 << 31:
                self._population = 0
        return self._population > 0

    def _codes(self, operators: pa.ChunkedArray) -> np.ndarray:
        coded = operators.combine_chunks().dictionary_encode()
        names = coded.dictionary.to_pylist()
        self._names += [name for name in names if name not in self._names]
        places = np.array([self._names.index(name) for name in names], np.int16)
        return places[numbers(coded.indices)] if len(places) else np.zeros(len(coded), np.int16)

    def _gather(self) -> None:
        """Put what was added into one array of each kind."""
        new, self._tables = self._tables, []
        if not new:
            return
        self._keys = np.concatenate([self._keys, *(table.keys for table in new)])
        parents, counts = [self._parents], [np.diff(self._offsets)]
        for table in new:
            if table.parents.dtype == np.int32:
                parents.append(table.parents)
                counts.append(table.counts)
                continue
            rows = np.minimum(np.searchsorted(self._keys, table.parents), len(self._keys) - 1)
            found = self._keys[rows] == table.parents
            child = np.repeat(np.arange(len(table.keys)), table.counts)
            parents.append(rows[found].astype(np.int32))
            counts.append(np.bincount(child[found], minlength=len(table.keys)))
        self._parents = np.concatenate(parents)
        total = np.concatenate(counts)
        self._offsets = np.zeros(len(total) + 1, np.int32 if len(self._parents) < 1 << 31 else np.int64)
        np.cumsum(total, out=self._offsets[1:])
        self._fitness = np.concatenate([self._fitness, *(table.fitness for table in new)])
        self._operator = np.concatenate([self._operator, *(table.operator for table in new)])

    def row(self, generation: int, index: int) -> int | None:
        """The row of a candidate."""
        self._gather()
        key = (generation << 32) + index
        row = int(np.searchsorted(self._keys, key))
        return row if row < len(self._keys) and self._keys[row] == key else None

    def ancestry(self, row: int, depth: int | None = None) -> dict[str, list[Any]]:
        """Nodes and edges of `Archive.ancestry`, from a row on, at most `depth` steps back."""
        # Views that give Python numbers: most steps meet few candidates, too few for array arithmetic to pay.
        offsets, parents = self._offsets.data, self._parents.data
        seen = bytearray(len(self._keys))
        seen[row] = 1
        order, children, links, frontier = [row], [], [], [row]
        while frontier and depth != 0:
            following = []
            for child in frontier:
                for at in range(offsets[child], offsets[child + 1]):
                    parent = parents[at]
                    children.append(child)
                    links.append(parent)
                    if not seen[parent]:
                        seen[parent] = 1
                        following.append(parent)
            order += following
            frontier = following
            depth = None if depth is None else depth - 1
        with _no_collection():
            return {"nodes": self._nodes(np.array(order)), "edges": self._edges(children, links)}

    def _nodes(self, rows: np.ndarray) -> list[dict[str, Any]]:
        generation, index = _pairs(self._keys[rows])
        names, codes = self._names, self._operator[rows].tolist()
        return [
            {"generation": g, "index": i, "fitness": fitness, "operator": names[code]}
            for g, i, fitness, code in zip(generation, index, self._fitness[rows].tolist(), codes, strict=True)
        ]

    def _edges(self, children: list[int], parents: list[int]) -> list[dict[str, list[int]]]:
        keys = self._keys
        columns = (*_pairs(keys[np.array(children, int)]), *_pairs(keys[np.array(parents, int)]))
        return [{"child": [g, i], "parent": [h, j]} for g, i, h, j in zip(*columns, strict=True)]


class Line:
    """The best candidate of every generation: it stands for the ancestry in a distribution, where all come from all."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[float, int]] = {}  # generation -> fitness, index

    def add(self, table: pa.Table) -> None:
        """Add rows with generation, index and fitness, sorted."""
        generation, index, fitness = (column(table, name) for name in ("generation", "index", "fitness"))
        if not len(generation):
            return
        fitness = np.where(np.isnan(fitness), np.inf, fitness)
        starts = np.flatnonzero(np.diff(generation, prepend=generation[0] - 1))
        lowest = np.minimum.reduceat(fitness, starts)
        counts: Any = np.diff(np.append(starts, len(generation)))
        hits = np.flatnonzero(fitness == np.repeat(lowest, counts))
        first = hits[np.searchsorted(hits, starts)]  # of each generation
        for g, f, i in zip(generation[starts].tolist(), lowest.tolist(), index[first].tolist(), strict=True):
            self._found[g] = min(self._found.get(g, (f, i)), (f, i))

    def ancestry(self, generation: int, index: int, fitness: float, depth: int | None) -> dict[str, list[Any]]:
        """Nodes and edges of `Archive.ancestry(by_generation=True)`."""
        oldest = 0 if depth is None else generation - depth
        before = [(g, *self._found[g]) for g in range(generation - 1, oldest - 1, -1) if g in self._found]
        with _no_collection():
            nodes = [{"generation": g, "index": i, "fitness": f} for g, f, i in [(generation, fitness, index), *before]]
            names = [(node["generation"], node["index"]) for node in nodes]
            edges = [{"child": list(a), "parent": list(b)} for a, b in zip(names, names[1:], strict=False)]
        return {"nodes": nodes, "edges": edges}


@contextmanager
def _no_collection() -> Iterator[None]:
    # A hundred thousand new dicts set the collector searching for cycles again and again: four fifths of the time.
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _keys(generation: np.ndarray, index: np.ndarray) -> np.ndarray:
    return (generation.astype(np.int64) << 32) + index


def _pairs(keys: np.ndarray) -> tuple[list[int], list[int]]:
    return (keys >> 32).tolist(), (keys & 0xFFFFFFFF).tolist()
