"""The genealogy of a run to look at: a tree in the terminal, and a picture of thousands of candidates.

In the picture x is the generation and every candidate with children has a row of its own for as long as it has them: a
life line, from which each child leaves in the generation in which it was made. Rows are given out from the largest
family to the smallest, each the free one nearest to the mother's, so that lines cross little; the childless stay beside
their mother's line. Only first parents make the tree; of the champion's line, other parents are drawn too. A row that
asked a candidate again, unchanged, is no new candidate and not drawn.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evometa.archives import events
from evometa.archives.read import Archive
from evometa.archives.schema import column, numbers
from evometa.archives.sealed import scan
from evometa.errors import EvometaError

MOST = 6000  # candidates in a picture; the childless are left out first
_COMPARED = 50_000_000  # genome numbers that are compared to find what was asked again
_NOBODY = -1


class Family(NamedTuple):
    """Distinct candidates of a run, in the order of (generation, index); leading axis N. A parent is a row."""

    generation: np.ndarray  # [N] int64
    index: np.ndarray  # [N] int64
    fitness: np.ndarray  # [N] float64, NaN or inf where failed
    mother: np.ndarray  # [N] int64: first parent, -1 for none
    others: list[tuple[int, int]]  # (row, other parent)
    member: np.ndarray  # [N] bool: in the repertoire of the last checkpoint
    repeats: dict[tuple[int, int], tuple[int, int]]  # what asked a candidate again, and whom

    def row(self, name: tuple[int, int]) -> int | None:
        """The row of a candidate, also where it asked another one again."""
        name = self.repeats.get(name, name)
        found = np.flatnonzero((self.generation == name[0]) & (self.index == name[1]))
        return int(found[0]) if len(found) else None

    def line(self, row: int) -> list[int]:
        """A row, its first parent, hers, and so on."""
        found = [row]
        while self.mother[found[-1]] >= 0:
            found.append(int(self.mother[found[-1]]))
        return found

    def only(self, keep: np.ndarray) -> Family:
        """The rows that `keep` `[N]` says, with parents among them."""
        place = np.append(np.cumsum(keep) - 1, _NOBODY)
        mother = place[np.where((self.mother >= 0) & np.append(keep, False)[self.mother], self.mother, len(keep))]
        others = [(int(place[a]), int(place[b])) for a, b in self.others if keep[a] and keep[b]]
        arrays = (self.generation[keep], self.index[keep], self.fitness[keep], mother[keep])
        return Family(*arrays, others, self.member[keep], self.repeats)


def family(path: Path) -> Family:
    """Read a run's candidates and who came from whom."""
    table = Archive(path).table(["generation", "index", "parents", "fitness"])
    generation, index = column(table, "generation").astype(np.int64), column(table, "index").astype(np.int64)
    keys = (generation << 32) + index
    lists = table["parents"].combine_chunks()
    counts = numbers(lists.value_lengths()).astype(np.int64)
    pairs = lists.flatten()
    towards = (numbers(pairs.field("generation")).astype(np.int64) << 32) + numbers(pairs.field("index"))
    rows = np.minimum(np.searchsorted(keys, towards), max(0, len(keys) - 1))
    rows = np.where(keys[rows] == towards, rows, _NOBODY) if len(keys) else rows
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    mother = np.full(len(keys), _NOBODY)
    mother[counts > 0] = rows[starts[counts > 0]]
    owner = np.repeat(np.arange(len(keys)), counts)
    second = np.flatnonzero((np.arange(len(rows)) != np.repeat(starts, counts)) & (rows >= 0))
    others = list(zip(owner[second].tolist(), rows[second].tolist(), strict=True))

    first = _first_asked(path, mother, counts)
    again = np.flatnonzero(first != np.arange(len(keys))).tolist()
    member = np.isin(keys, _members(path))
    made = Family(
        generation, index, column(table, "fitness").astype(float),
        np.where(mother >= 0, first[mother], _NOBODY), [(a, int(first[b])) for a, b in others],
        member, {(int(generation[a]), int(index[a])): (int(generation[first[a]]), int(index[first[a]])) for a in again},
    )  # fmt: skip
    return made.only(first == np.arange(len(keys)))


def _first_asked(path: Path, mother: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`[N]`: the row in which each candidate was first asked; its own, unless it repeats its only parent's genome."""
    first = np.arange(len(mother))
    lists = Archive(path).table(["genome"])["genome"].combine_chunks()
    sizes = numbers(lists.value_lengths().fill_null(0))
    if not len(sizes) or not sizes[0] or (sizes != sizes[0]).any() or len(sizes) * int(sizes[0]) > _COMPARED:
        return first  # large genomes are not all stored: nothing to compare
    genomes = numbers(lists.flatten()).reshape(len(sizes), -1)
    for row in np.flatnonzero((counts == 1) & (mother >= 0)):
        if np.array_equal(genomes[row], genomes[mother[row]]):
            first[row] = first[mother[row]]
    return first


def _members(path: Path) -> np.ndarray:
    """Keys of the candidates in the repertoire of the last checkpoint; none where the strategy holds none."""
    from safetensors.numpy import load

    for found in reversed(scan(path)):
        if found.record is not None:
            tensors = load(found.path.with_suffix(".safetensors").read_bytes())
            ids = next((value for name, value in tensors.items() if name.endswith("members.ids")), None)
            held = next((value for name, value in tensors.items() if name.endswith("members.held")), None)
            if ids is None or held is None:
                break
            ids = ids[held.astype(bool)].astype(np.int64)
            return (ids[:, 0] << 32) + ids[:, 1]
    return np.zeros(0, np.int64)


def champion_name(path: Path) -> tuple[int, int]:
    """`(generation, index)` of the champion that was chosen last, else of the best observed."""
    for event in reversed(events.diary(path)):
        if event["kind"] == "champion" and event.get("index") is not None:
            return event["generation"], event["index"]
    best = Archive(path).top(1)
    if not best:
        raise EvometaError(f"{path}: nobody here yet: this run has no generation. Type: evometa resume {path}")
    return best[0]["generation"], best[0]["index"]


def rows_of(people: Family, first: list[int]) -> np.ndarray:
    """`[N]` float: the height at which each candidate stands: whole numbers for those with children and for `first`,
    which are placed before all others, around 0; beside the mother's for the childless."""
    count = len(people.generation)
    if not count:
        return np.zeros(0)
    born = people.generation - people.generation.min()
    last, size = born.copy(), np.ones(count, int)
    for row in range(count - 1, -1, -1):  # children come after their mothers
        if people.mother[row] >= 0:
            last[people.mother[row]] = max(last[people.mother[row]], born[row])
            size[people.mother[row]] += size[row]
    mothers: dict[int, list[int]] = {}
    beside: dict[tuple[int, int], list[int]] = {}
    for row, mother in enumerate(people.mother.tolist()):
        if size[row] > 1 or mother < 0 or row in first:
            mothers.setdefault(mother, []).append(row)
        else:
            beside.setdefault((mother, int(born[row])), []).append(row)
    rows, place = _Rows(int(born.max()) + 2), np.zeros(count)

    def put(row: int) -> None:
        near = float(place[people.mother[row]]) if people.mother[row] >= 0 else 0.0
        place[row] = rows.take(near, int(born[row]), int(last[row]) + 1)

    for row in reversed(first):
        put(row)
    done, queue = set(first), [(-int(size[row]), row) for row in mothers.get(_NOBODY, [])]
    heapq.heapify(queue)
    while queue:
        _, row = heapq.heappop(queue)
        if row not in done:
            put(row)
        for child in mothers.get(row, []):
            heapq.heappush(queue, (-int(size[child]), child))
    for (mother, _), childless in beside.items():
        many = len(childless)
        offsets = np.array([0.3]) if many == 1 else np.linspace(-0.4, 0.4, many)
        place[childless] = place[mother] + offsets
    return place


class _Rows:
    """Rows of a picture, and the generations in which they are taken."""

    def __init__(self, generations: int) -> None:
        self._taken, self._middle = np.zeros((64, generations), bool), 32

    def take(self, near: float, start: int, end: int) -> int:
        """The nearest row that is free from generation `start` to `end`; taken from then on."""
        free = ~self._taken[:, start : end + 1].any(axis=1)
        while not free.any():
            more = len(self._taken) // 2
            self._taken = np.pad(self._taken, ((more, more), (0, 0)))
            self._middle += more
            free = ~self._taken[:, start : end + 1].any(axis=1)
        rows = np.flatnonzero(free) - self._middle
        found = int(rows[np.argmin(np.abs(rows - near) + 1e-3 * np.abs(rows))])
        self._taken[found + self._middle, start : end + 1] = True
        return found


def ancestors(people: Family, row: int) -> np.ndarray:
    """`[N]` bool: a row and all its ancestors."""
    others: dict[int, list[int]] = {}
    for child, parent in people.others:
        others.setdefault(child, []).append(parent)
    keep, todo = np.zeros(len(people.generation), bool), [row]
    while todo:
        at = todo.pop()
        if at >= 0 and not keep[at]:
            keep[at] = True
            todo += [int(people.mother[at]), *others.get(at, [])]
    return keep


def eminent(people: Family, name: tuple[int, int]) -> np.ndarray:
    """`[N]` bool: at most about `MOST`: those with most descendants, the champion's line and the repertoire."""
    size = np.ones(len(people.generation), int)
    for row in range(len(size) - 1, -1, -1):
        if people.mother[row] >= 0:
            size[people.mother[row]] += size[row]
    keep = np.zeros(len(size), bool)
    keep[np.argsort(-size, kind="stable")[:MOST]] = True  # a mother has more than her child: lines stay whole
    for row in [people.row(name) or 0, *np.flatnonzero(people.member).tolist()]:
        keep[people.line(row)] = True
    return keep


def tree_text(data: Mapping[str, Any], most: int = 60) -> str:
    """Ancestors (`Archive.ancestry`) as a tree for the terminal: a candidate, below it its parents, below them theirs.

    Whoever stands there already is named and not told again. At most `most` lines.
    """
    nodes = {(node["generation"], node["index"]): node for node in data["nodes"]}
    parents: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for edge in data["edges"]:
        parents.setdefault(tuple(edge["child"]), []).append(tuple(edge["parent"]))
    first = data["nodes"][0]
    lines: list[str] = []
    told: set[tuple[int, int]] = set()
    # (candidate, what stands before it, what stands before its parents)
    stack = [((first["generation"], first["index"]), "", "")]
    while stack:
        who, lead, below = stack.pop()
        node = nodes.get(who)
        words = f"{who[0]}:{who[1]}"
        if node is not None and who not in told:
            words += f"  {node['fitness']:.4g}  {node.get('operator', '')}".rstrip()
        elif who in told:
            words += "  (see above)"
        lines.append(lead + words)
        if who in told:
            continue
        told.add(who)
        own = [parent for parent in parents.get(who, []) if parent in nodes]
        for place, parent in enumerate(reversed(own)):
            end = place == 0
            # An only parent goes on in the same column: a long line of descent stays narrow.
            lead, more = ("", "") if len(own) == 1 else (("└─ ", "   ") if end else ("├─ ", "│  "))
            stack.append((parent, below + lead, below + more))
    left = f"\n... and {len(lines) - most} more lines (all with --json)" if len(lines) > most else ""
    return "\n".join(lines[:most]) + left
