"""Who came from whom: a walk back through the parents of a lineage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from evometa.archives.schema import arrow, column, numbers

COLUMNS = ("generation", "index", "parents", "fitness", "operator")


class Genealogy:
    """The parents of every candidate as flat arrays; built once for a table, then walked in milliseconds.

    `table`: lineage rows sorted by (generation, index), with `COLUMNS`. A parent that is not among the
    rows (a damaged archive) is left out.
    """

    def __init__(self, table: pa.Table) -> None:
        self._keys = _keys(column(table, "generation"), column(table, "index"))
        lists = table["parents"].combine_chunks()
        pairs = lists.flatten()
        towards = _keys(numbers(pairs.field("generation")), numbers(pairs.field("index")))
        rows = np.searchsorted(self._keys, towards)
        found = rows < len(self._keys)
        found[found] = self._keys[rows[found]] == towards[found]
        ends = np.concatenate([[0], np.cumsum(found)])
        offsets = numbers(lists.offsets)
        self._offsets = ends[offsets - offsets[0]]  # of each row's parents in self._parents
        self._parents = rows[found]
        self._fitness = column(table, "fitness")
        self._operator = table["operator"].combine_chunks()

    def row(self, generation: int, index: int) -> int | None:
        """The row of a candidate."""
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
        columns = generation, index, self._fitness[rows].tolist(), self._operator.take(arrow(rows)).to_pylist()
        return [
            {"generation": g, "index": i, "fitness": fitness, "operator": operator}
            for g, i, fitness, operator in zip(*columns, strict=True)
        ]

    def _edges(self, children: list[int], parents: list[int]) -> list[dict[str, list[int]]]:
        columns = (*_pairs(self._keys[np.array(children, int)]), *_pairs(self._keys[np.array(parents, int)]))
        return [{"child": [g, i], "parent": [h, j]} for g, i, h, j in zip(*columns, strict=True)]


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
