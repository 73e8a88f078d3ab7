"""Who came from whom, as flat arrays: of some parts of a lineage, whole, or only what an ancestry can meet.

Few candidates of a search ever have children. An ancestry meets those alone, besides the one that it is asked for, so
`compact` keeps them (and the last generation, which the next part's candidates come from) beside the part it makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from evometa.archives.schema import column, numbers

COLUMNS = ("generation", "index", "parents", "fitness", "operator")


class Pedigree(NamedTuple):
    """Candidates and their parents. About 30 bytes per candidate."""

    keys: np.ndarray  # [N] int64, ascending: generation << 32 | index
    fitness: np.ndarray  # [N] float64
    operator: np.ndarray  # [N] int16: which of `operators`
    offsets: np.ndarray  # [N + 1] int32 (int64 from 2^31 parents on): where a candidate's parents are
    parents: np.ndarray  # [E] int32: a row, or below zero -1 - n: the n-th of `outside`
    outside: np.ndarray  # [K] int64: keys of parents that are not among these candidates
    operators: tuple[str | None, ...]

    def row(self, key: int) -> int | None:
        """The row of a candidate."""
        row = int(np.searchsorted(self.keys, key))
        return row if row < len(self.keys) and self.keys[row] == key else None

    def bred(self) -> Pedigree:
        """Only those that are somebody's parent here, and the last generation."""
        keep = np.zeros(len(self.keys), bool)
        keep[self.parents[self.parents >= 0]] = True
        if len(self.keys):
            keep |= self.keys >> 32 == self.keys[-1] >> 32
        edges = np.repeat(keep, np.diff(self.offsets))
        parents = self.parents[edges]
        inside = parents >= 0
        places = np.cumsum(keep) - 1
        parents[inside] = places[parents[inside]]
        outside, numbered = np.unique(self.outside[-1 - parents[~inside]], return_inverse=True)
        parents[~inside] = -1 - numbered
        counts = np.diff(self.offsets)[keep]
        return Pedigree(
            self.keys[keep], self.fitness[keep], self.operator[keep], _offsets(counts), parents, outside, self.operators
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name; with `operators` they make it again, see `of_arrays`."""
        return {name: array for name, array in self._asdict().items() if name != "operators"}


def of_arrays(arrays: Mapping[str, np.ndarray], operators: Iterable[str | None]) -> Pedigree:
    """The pedigree of what `Pedigree.arrays` gave. Raises `ValueError` where they cannot belong together."""
    found = Pedigree(**arrays, operators=tuple(operators))
    numbers_of_rows = (found.keys, found.operator, found.offsets, found.parents, found.outside)
    if any(array.dtype.kind not in "iu" for array in numbers_of_rows) or found.fitness.dtype.kind != "f":
        raise ValueError("kinds of arrays")
    rows, edges = len(found.keys), len(found.parents)
    whole = len(found.fitness) == len(found.operator) == rows and len(found.offsets) == rows + 1
    if not whole or found.offsets[0] != 0 or found.offsets[-1] != edges or np.any(np.diff(found.offsets) < 0):
        raise ValueError("lengths of arrays")
    within = not edges or -len(found.outside) <= found.parents.min() <= found.parents.max() < rows
    named = not rows or 0 <= found.operator.min() <= found.operator.max() < len(found.operators)
    named = named and all(isinstance(name, str | None) for name in found.operators)
    if not within or not named or np.any(np.diff(found.keys) <= 0):
        raise ValueError("numbers of rows")
    return found


class _Piece(NamedTuple):
    keys: np.ndarray
    fitness: np.ndarray
    operator: np.ndarray
    counts: np.ndarray  # [N] of parents
    parents: np.ndarray  # as of a pedigree; or int64 keys, where rows can only be found when all are known
    outside: np.ndarray


class Gathering:
    """Makes a pedigree of tables of `COLUMNS`, sorted by (generation, index), each behind the one before."""

    def __init__(self) -> None:
        self._names: list[str | None] = []  # of the operators
        self._pieces: list[_Piece] = []
        self._rows = 0
        self._last = -1  # key
        self._population = 0  # candidates of every generation, as far as all have as many and none is missing

    def add(self, table: pa.Table) -> None:
        """Add rows. Where parts overlap, as they do in a damaged archive only, the first counts."""
        keys = _keys(column(table, "generation"), column(table, "index"))
        start = int(np.searchsorted(keys, self._last, side="right"))
        table, keys = table.slice(start), keys[start:]
        if not len(keys):
            return
        lists = table["parents"].combine_chunks()
        pairs = lists.flatten()
        generation, index = (numbers(pairs.field(name)) for name in ("generation", "index"))
        parents, outside = _keys(generation, index), np.zeros(0, np.int64)
        if self._is_dense(keys):
            # The place is a product, not a search; and no more is kept of a parent than its row.
            rows = (generation.astype(np.int64) - self._first) * self._population + index
            found = (rows >= 0) & (rows < self._rows + len(keys)) & (index >= 0) & (index < self._population)
            parents, outside = _numbered(rows, found, parents)
        fitness = np.array(column(table, "fitness"))  # a copy: views would keep whole tables
        counts = numbers(lists.value_lengths()).astype(np.int32)
        self._pieces.append(_Piece(keys, fitness, self._codes(table["operator"]), counts, parents, outside))
        self._rows, self._last = self._rows + len(keys), int(keys[-1])

    def pedigree(self) -> Pedigree:
        """Of all that was added until now."""
        keys = _joined([piece.keys for piece in self._pieces], np.int64)
        parents, outside, known = [], [], 0
        for piece in self._pieces:
            own, others = piece.parents, piece.outside
            if own.dtype == np.int64:
                rows = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
                own, others = _numbered(rows, keys[rows] == own, own)
            parents.append(np.where(own < 0, own - np.int32(known), own) if known else own)
            outside.append(others)
            known += len(others)
        whole = _Piece(
            keys,
            _joined([piece.fitness for piece in self._pieces], np.float64),
            _joined([piece.operator for piece in self._pieces], np.int16),
            _joined([piece.counts for piece in self._pieces], np.int32),
            _joined(parents, np.int32),
            _joined(outside, np.int64),
        )
        self._pieces = [whole] if len(keys) else []
        return Pedigree(*whole[:3], _offsets(whole.counts), *whole[4:], tuple(self._names))

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
        coded = operators.combine_chunks().dictionary_encode(null_encoding="encode")  # a forged archive may have none
        names = coded.dictionary.to_pylist()
        self._names += [name for name in names if name not in self._names]
        places = np.array([self._names.index(name) for name in names], np.int16)
        return places[numbers(coded.indices)] if len(places) else np.zeros(len(coded), np.int16)


def key_of(generation: int, index: int) -> int:
    """A candidate's place in the order of (generation, index)."""
    return (generation << 32) + index


def pairs_of(keys: np.ndarray) -> tuple[list[int], list[int]]:
    """Generations and indices of keys."""
    return (keys >> 32).tolist(), (keys & 0xFFFFFFFF).tolist()


def _keys(generation: np.ndarray, index: np.ndarray) -> np.ndarray:
    return (generation.astype(np.int64) << 32) + index


def _numbered(rows: np.ndarray, found: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows where they were found, else places among the keys that were not, which come second."""
    parents = rows.astype(np.int32)
    if found.all():
        return parents, np.zeros(0, np.int64)
    outside, places = np.unique(keys[~found], return_inverse=True)
    parents[~found] = -1 - places
    return parents, outside


def _offsets(counts: np.ndarray) -> np.ndarray:
    total = int(counts.sum(dtype=np.int64))
    offsets = np.zeros(len(counts) + 1, np.int32 if total < 1 << 31 else np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _joined(arrays: list[Any], kind: type) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.zeros(0, kind)
