"""What of a run is stored already, however its lineage is cut into parts: what a resume passes over."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from evometa.archives import events
from evometa.archives.part import PART, Part, list_parts


class Stored:
    """The generations of a lineage, looked up by number; the parts are listed once."""

    def __init__(self, folder: Path) -> None:
        self._parts = list_parts(folder)
        self._firsts = [part.first for part in self._parts]
        self._held: tuple[Part, pa.Table] | None = None

    def part(self, generation: int) -> Part | None:
        """The part that holds a generation. Raises `IntegrityError` where it cannot be read."""
        at = bisect_right(self._firsts, generation) - 1
        if at < 0:
            return None
        part = self._parts[at]
        return part if part.first == generation or part.last >= generation else None

    def rows(self, part: Part, generation: int, count: int) -> pa.Table:
        """The rows of up to `count` generations of a part, from `generation` on."""
        last = min(generation + count - 1, part.last)
        if part.index is not None:
            return part.read(generations=(generation, last))
        if self._held is None or self._held[0] is not part:
            self._held = part, part.read()
        start, end = _rows_of(self._held[1], generation, last)
        return self._held[1].slice(start, end - start)

    def gap(self, generation: int, count: int) -> int:
        """How many of `count` generations from `generation` on come before the next stored part."""
        at = bisect_right(self._firsts, generation)
        return min(count, self._firsts[at] - generation) if at < len(self._firsts) else count


def _rows_of(table: pa.Table, first: int, last: int) -> tuple[int, int]:
    import numpy as np

    from evometa.archives.schema import column

    start, end = np.searchsorted(column(table, "generation"), [first, last + 1])
    return int(start), int(end)


def blocks(parts: Sequence[Part], until: int) -> Iterator[tuple[Part, pa.Table]]:
    """The rows before generation `until`, in order, in tables of whole generations that fit into memory."""
    for part in parts:
        if part.first >= until:
            return
        for table in part.batches():
            start, end = _rows_of(table, 0, until - 1)
            if end > start:
                yield part, table.slice(start, end - start)


def standing(run: Path, name: str, entries: Sequence[events.Entry] | None = None) -> str | None:
    """The name under which the rows of a lineage part are there: its own, or that of the part it was merged into.

    None where they are lost. `entries` are the run's events, where they were read already.
    """
    if _is_there(run, name):
        return name
    instead: dict[str, str] = {}
    for entry in events.read(run) if entries is None else entries:
        if entry["kind"] == "compacting":
            instead |= entry["instead"]
    for _ in range(len(instead)):
        if name not in instead:
            return None
        name = instead[name]
        if _is_there(run, name):
            return name
    return None


def _is_there(run: Path, name: str) -> bool:
    # Only what could be a part's name is asked for: another may be too long for a file, or lead elsewhere.
    return PART.fullmatch(name) is not None and (run / "lineage" / name).exists()
