"""Who came from whom: a walk back through the parents of a lineage."""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from evometa.archives.pedigree import COLUMNS, Pedigree, key_of, pairs_of
from evometa.archives.schema import column

__all__ = ["COLUMNS", "Genealogy", "Line", "Source", "best_of_generations"]
_LOOKS = 16  # candidates of a source that are looked up one by one before all of it is read


class Source(NamedTuple):
    """Some consecutive generations of a lineage."""

    first: int  # its first generation
    name: str  # changes with its rows
    bred: Callable[[], Pedigree | None]  # those whom most ancestors are among; None: nobody knows
    whole: Callable[[], Pedigree]  # everybody
    one: Callable[[int, int], Pedigree]  # generation, index -> that candidate, or nobody


class _Known(NamedTuple):
    low: int  # the number of its first candidate
    high: int
    pedigree: Pedigree
    whole: bool  # of a source, is everybody in it?


class _Again(Exception):
    """A source was read as a whole: its candidates have other numbers now."""


class Genealogy:
    """The parents of candidates as flat arrays; a source's are read when a walk reaches it, and kept.

    A parent that is not among the rows (a damaged archive, or a fork's first candidates) is left out. Inside, a
    candidate is a number: its row in what was read with it, and how many were read before that.
    """

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._firsts: list[int] = []
        self._read: list[_Known] = []  # in the order of their numbers
        self._known: dict[str, _Known] = {}  # by the source's name
        self._numbers: dict[int, int | None] = {}  # of who was looked up alone, by key; None: nobody has that
        self._looks: Counter[str] = Counter()  # by the source's name

    def over(self, sources: Sequence[Source]) -> Genealogy:
        """This, over the sources of a lineage as they are now, in order; of others nothing is kept."""
        names = [source.name for source in sources]
        if [source.name for source in self._sources] != names:
            self._known = {name: known for name, known in self._known.items() if name in names}
            self._read = sorted(self._known.values(), key=lambda known: known.low)
            self._numbers, self._looks = {}, Counter()
        self._sources, self._firsts = list(sources), [source.first for source in sources]
        return self

    def ancestry(self, generation: int, index: int, depth: int | None = None) -> dict[str, list[Any]] | None:
        """Nodes and edges of `Archive.ancestry`, at most `depth` steps back. None where there is no such candidate."""
        while True:
            try:
                start = self._find(key_of(generation, index))
                if start is None:
                    return None
                order, children, links = self._walk(start, depth)
                break
            except _Again:
                self._numbers = {}
        with _no_collection():
            return {"nodes": self._nodes(np.array(order)), "edges": self._edges(children, links)}

    def _walk(self, start: int, depth: int | None) -> tuple[list[int], list[int], list[int]]:
        # Views that give Python numbers: most steps meet few candidates, too few for array arithmetic to pay.
        seen, order, children, links, frontier = {start}, [start], [], [], [start]
        low = high = 0
        offsets = parents = outside = memoryview(b"")
        while frontier and depth != 0:
            following = []
            for child in frontier:
                if not low <= child < high:
                    low, high, pedigree, _ = self._read[self._places([child])[0]]
                    views = (array.data for array in (pedigree.offsets, pedigree.parents, pedigree.outside))
                    offsets, parents, outside = views
                for at in range(offsets[child - low], offsets[child - low + 1]):
                    parent = parents[at]
                    if parent >= 0:
                        parent += low
                    elif (parent := self._find(outside[-1 - parent])) is None:
                        continue
                    children.append(child)
                    links.append(parent)
                    if parent not in seen:
                        seen.add(parent)
                        following.append(parent)
            order += following
            frontier = following
            depth = None if depth is None else depth - 1
        return order, children, links

    # --- candidates by key -----------------------------------------------------------------------

    def _find(self, key: int) -> int | None:
        """The number of a candidate; None where there is none."""
        at = bisect_right(self._firsts, key >> 32) - 1
        if at < 0:
            return None
        source = self._sources[at]
        known = self._known.get(source.name) or self._of(source, source.bred())
        row = known.pedigree.row(key)
        if row is not None:
            return known.low + row
        if known.whole:
            return None
        if key not in self._numbers:
            self._looks[source.name] += 1
            if self._looks[source.name] > _LOOKS:
                self._of(source, None)
                raise _Again
            one = self._numbered(source.one(key >> 32, key & 0xFFFFFFFF), False)
            self._numbers[key] = one.low if one.high > one.low else None
        return self._numbers[key]

    def _of(self, source: Source, bred: Pedigree | None) -> _Known:
        found = self._numbered(source.whole() if bred is None else bred, bred is None)
        self._known[source.name] = found
        return found

    def _numbered(self, pedigree: Pedigree, whole: bool) -> _Known:
        low = self._read[-1].high if self._read else 0
        found = _Known(low, low + len(pedigree.keys), pedigree, whole)
        self._read += [found] if len(pedigree.keys) else []
        return found

    # --- the answer ------------------------------------------------------------------------------

    def _nodes(self, order: np.ndarray) -> list[dict[str, Any]]:
        fitness, operator = np.zeros(len(order)), np.zeros(len(order), object)
        for pedigree, where, rows in self._rows(order):
            fitness[where] = pedigree.fitness[rows]
            operator[where] = np.array(pedigree.operators, object)[pedigree.operator[rows]]
        generation, index = pairs_of(self._keys(order))
        return [
            {"generation": g, "index": i, "fitness": f, "operator": name}
            for g, i, f, name in zip(generation, index, fitness.tolist(), operator.tolist(), strict=True)
        ]

    def _edges(self, children: list[int], parents: list[int]) -> list[dict[str, list[int]]]:
        columns = [part for ids in (children, parents) for part in pairs_of(self._keys(np.array(ids, int)))]
        return [{"child": [g, i], "parent": [h, j]} for g, i, h, j in zip(*columns, strict=True)]

    def _keys(self, found: np.ndarray) -> np.ndarray:
        keys = np.zeros(len(found), np.int64)
        for pedigree, where, rows in self._rows(found):
            keys[where] = pedigree.keys[rows]
        return keys

    def _rows(self, found: np.ndarray) -> Iterator[tuple[Pedigree, np.ndarray, np.ndarray]]:
        """What numbers stand for: a pedigree, where its candidates' numbers are among these, and their rows in it."""
        places = self._places(found)
        for place in np.unique(places):
            where = np.flatnonzero(places == place)
            yield self._read[place].pedigree, where, found[where] - self._read[place].low

    def _places(self, found: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.searchsorted([known.low for known in self._read], found, side="right") - 1


class Line:
    """The best candidate of every generation: it stands for the ancestry in a distribution, where all come from all."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []

    def add(self, best: np.ndarray) -> None:
        """Add what `best_of_generations` gave of rows behind those that are there."""
        self._pieces.append(best)

    def ancestry(self, generation: int, index: int, fitness: float, depth: int | None) -> dict[str, list[Any]]:
        """Nodes and edges of `Archive.ancestry(by_generation=True)`."""
        if len(self._pieces) > 1:
            every = np.concatenate(self._pieces)
            if np.any(np.diff(every["generation"]) <= 0):  # in two pieces
                every = every[np.lexsort((every["index"], every["fitness"], every["generation"]))]
                every = every[np.diff(every["generation"], prepend=-1) > 0]
            self._pieces = [every]
        oldest = 0 if depth is None else generation - depth
        known = self._pieces[0]
        start, end = np.searchsorted(known["generation"], [oldest, generation])
        before = known[start:end][::-1]
        g, i, f = (before[name].tolist() for name in ("generation", "index", "fitness"))
        g, i, f = [generation, *g], [index, *i], [fitness, *f]
        with _no_collection():
            nodes = [{"generation": a, "index": b, "fitness": c} for a, b, c in zip(g, i, f, strict=True)]
            edges = [
                {"child": [a, b], "parent": [c, d]} for a, b, c, d in zip(g[:-1], i[:-1], g[1:], i[1:], strict=True)
            ]
        return {"nodes": nodes, "edges": edges}


BEST = np.dtype([("fitness", "<f8"), ("generation", "<i4"), ("index", "<i4")])


def best_of_generations(table: pa.Table) -> np.ndarray:
    """The best candidate of every generation of sorted rows: `[G]` of dtype `BEST`, ties to the earlier."""
    generation, index, fitness = (column(table, name) for name in ("generation", "index", "fitness"))
    starts = np.flatnonzero(np.diff(generation, prepend=generation[0] - 1)) if len(generation) else np.zeros(0, int)
    best = np.zeros(len(starts), BEST)
    if len(starts):
        fitness = np.where(np.isnan(fitness), np.inf, fitness)
        lowest = np.minimum.reduceat(fitness, starts)
        counts: Any = np.diff(np.append(starts, len(generation)))
        hits = np.flatnonzero(fitness == np.repeat(lowest, counts))
        first = hits[np.searchsorted(hits, starts)]  # of each generation
        best["generation"], best["index"], best["fitness"] = generation[starts], index[first], lowest
    return best


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
