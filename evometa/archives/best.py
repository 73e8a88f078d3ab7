"""The candidates of lowest fitness; of large parts, by looking only where one of them can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from evometa.archives.part import Part
from evometa.archives.schema import column

Best = list[tuple[float, int, int]]  # fitness (inf where there is none), generation, index; best first


def best_of_table(table: pa.Table, k: int) -> Best:
    """The k best of a table with generation, index and fitness, failures last, ties to the earlier candidate."""
    generation, index, fitness = (column(table, name) for name in ("generation", "index", "fitness"))
    fitness = np.where(np.isnan(fitness), np.inf, fitness)
    k = min(k, len(fitness))
    if k < 1:
        return []
    near = np.flatnonzero(fitness <= np.partition(fitness, k - 1)[k - 1])
    best = near[np.lexsort((index[near], generation[near], fitness[near]))][:k]
    return list(zip(fitness[best].tolist(), generation[best].tolist(), index[best].tolist(), strict=True))


def best_of_indexed(parts: Sequence[Part], k: int) -> Best:
    """The k best of parts that have an index.

    The k lowest of the row groups' lowest values are k rows, so no better row is in a group whose lowest is above them.
    """
    found = [(part.index.bounds("fitness")[:, 0], part) for part in parts if part.index]
    lowest = np.concatenate([low for low, _ in found])
    # A group of unknown bounds (-inf) is always read, and proves nothing about the others.
    known = np.sort(lowest[lowest > -np.inf])
    limit = known[k - 1] if len(known) >= k else np.inf
    best: Best = []
    for low, part in found:
        groups = [int(group) for group in np.flatnonzero(low <= limit)]
        best = sorted([*best, *best_of_table(part.read_groups(groups, ["generation", "index", "fitness"]), k)])[:k]
    return best
