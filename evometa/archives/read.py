"""Reading an archive, whole or a few columns of it, also while the run is writing or being compacted.

Every byte is checked before it is believed: a part's sha256 is in its name, and pages carry checksums.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evometa.archives.best import best_of_indexed, best_of_table
from evometa.archives.genealogy import Genealogy, Line, Source
from evometa.archives.index import listed
from evometa.archives.part import PART, Part, Vanished, inodes, list_parts
from evometa.archives.pedigree import COLUMNS, Gathering, Pedigree, key_of
from evometa.archives.regular import read_file
from evometa.archives.schema import FORMAT, JUDGEMENTS, LINEAGE, TIMINGS, column, empty
from evometa.errors import ConfigError, IntegrityError, NotFound, did_you_mean

__all__ = ["PART", "Archive", "Part", "list_parts", "to_dicts", "unnest_scores"]
Found = TypeVar("Found")
SMALL = ("generation", "index", "fitness")


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
        self._best_line: tuple[list[str], Line] = [], Line()  # parts, and the best of their generations
        self._genealogy = Genealogy()
        self._gathered: dict[str, tuple[list[str], Gathering]] = {}  # the first of some parts -> all, and their rows
        self._large: dict[str, Part] = {}  # parts whose footers are kept

    def parts(self) -> list[Part]:
        """The lineage's parts, in order of generation."""
        parts = [self._large.get(part.name, part) for part in list_parts(self.path / "lineage")]
        self._large = {part.name: part for part in parts if part.name in self._large}
        return parts

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The lineage, or some of its columns, sorted by (generation, index)."""
        wanted = LINEAGE.names if columns is None else list(columns)
        _check_names(wanted)
        # The generation is always read: it is what shows an overlap.
        needed = wanted if "generation" in wanted else [*wanted, "generation"]
        tables = self.steady(lambda: list(self._no_overlap(part.read(needed) for part in self.parts())))
        schema = pa.schema([LINEAGE.field(name) for name in needed])
        return (pa.concat_tables(tables) if tables else empty(schema)).select(wanted)

    def generations(self) -> int:
        """How many generations are stored: the number of the next one."""
        return self.steady(lambda: next((part.last + 1 for part in reversed(self.parts())), 0))

    def row(self, generation: int, index: int) -> dict[str, Any]:
        """One candidate. Raises `NotFound`."""
        return self.steady(lambda: self._rows([(generation, index)])[0])

    def top(self, k: int = 10) -> list[dict[str, Any]]:
        """The k rows of lowest fitness, failures last; ties go to the earlier candidate."""
        return self.steady(lambda: self._rows(self._best(k)))

    def ancestry(
        self, generation: int, index: int, depth: int | None = None, by_generation: bool = False
    ) -> dict[str, list[Any]]:
        """A candidate and its ancestors: `{"nodes": [...], "edges": [...]}`.

        A node is `{generation, index, fitness, operator}`, the candidate itself first; an edge is
        `{"child": [generation, index], "parent": [generation, index]}`. `depth` limits how many steps
        back to go. `by_generation`: one node for every generation before, its best candidate, as all of a
        distribution's candidates come from all before them (`operator` is then left out). Raises `NotFound`.
        """
        if by_generation:
            row = self.row(generation, index)
            line = self.steady(self._line)
            return line.ancestry(generation, index, row["fitness"], depth)
        found = self.steady(lambda: self._genealogy.over(self._sources()).ancestry(generation, index, depth))
        if found is None:
            raise self._nobody(generation, index)
        return found

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
        return self.steady(lambda: self._whole("timings", TIMINGS))

    # --- reading many parts ----------------------------------------------------------------------

    def _whole(self, folder: str, schema: pa.Schema) -> pa.Table:
        tables = [part.read() for part in list_parts(self.path / folder)]
        return pa.concat_tables(tables) if tables else empty(schema)

    def _rows(self, names: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Whole rows of candidates, each part (of a large one: each generation) read once."""
        parts = self.parts()
        firsts = [part.first for part in parts]
        tables: dict[tuple[int, int], pa.Table] = {}
        found = []
        for generation, index in names:
            at = bisect_right(firsts, generation) - 1
            large = at >= 0 and self._keep(parts[at])
            key = at, generation if large else -1
            if key not in tables:
                span = (generation, generation) if large else None
                tables[key] = parts[at].read(generations=span) if at >= 0 else empty(LINEAGE)
            table = tables[key]
            hit = (column(table, "generation") == generation) & (column(table, "index") == index)
            if not hit.any():
                raise self._nobody(generation, index)
            found += to_dicts(table.slice(int(np.argmax(hit)), 1))
        return found

    def _best(self, k: int) -> list[tuple[int, int]]:
        """The names of the k best. Of large parts, only the row groups are read that can hold one of them."""
        if k < 1:
            return []
        large = [part for part in self.parts() if self._keep(part)]
        if not large:
            return [name for _, *name in best_of_table(self._cached(SMALL), k)]  # pyright: ignore
        small = self._cached(SMALL, {part.name for part in large})
        # Where parts of a damaged archive overlap, a candidate must not come twice.
        every = dict.fromkeys(sorted([*best_of_table(small, k), *best_of_indexed(large, k)]))
        return list(dict.fromkeys((generation, index) for _, generation, index in every))[:k]

    def _keep(self, part: Part) -> bool:
        """Whether a part can be read in pieces; its footer is then kept."""
        if part.index is None:
            return False
        self._large[part.name] = part
        return True

    def _line(self) -> Line:
        """The best of every generation; of what is known already, only new parts are added."""
        parts = self.parts()
        names = [part.name for part in parts]
        known, line = self._best_line
        if names[: len(known)] != known:
            known, line = [], Line()
        self._best_line = [], Line()  # what is interrupted is not half known
        large = listed(self.path)
        for part in parts[len(known) :]:
            if part.name in large and part.kin is not None:
                self._large[part.name] = part
            line.add(part.line())
        self._best_line = names, line
        return line

    def _sources(self) -> list[Source]:
        """What a genealogy reads: large parts by themselves, small ones that follow each other together."""
        found: list[Source] = []
        loose: list[Part] = []
        large = listed(self.path)  # once: there may be ten thousand small ones
        for part in self.parts():
            if part.name not in large or part.kin is None:
                loose.append(part)
                continue
            self._large[part.name] = part
            found += [self._together(loose)] if loose else []
            found.append(_alone(part))
            loose = []
        return [*found, self._together(loose)] if loose else found

    def _together(self, parts: list[Part]) -> Source:
        names = [part.name for part in parts]

        def whole() -> Pedigree:
            known, gathering = self._gathered.pop(names[0], ([], Gathering()))
            if names[: len(known)] != known:
                known, gathering = [], Gathering()
            for part in parts[len(known) :]:
                for table in part.batches(COLUMNS):
                    gathering.add(table)
            self._gathered[names[0]] = names, gathering  # only now: what was interrupted is not half known
            return gathering.pedigree()

        nobody = Gathering().pedigree()
        return Source(parts[0].first, f"{names[0]} to {names[-1]}", lambda: None, whole, lambda *_: nobody)

    def _nobody(self, generation: int, index: int) -> NotFound:
        return NotFound(f"{self.path} has no candidate {generation}:{index}. Run: evometa archive ls {self.path}")

    def steady(self, work: Callable[[], Found]) -> Found:
        """Do `work`; again from the start where `compact` put other parts in the place of those it was reading."""
        while True:
            before = inodes(self.path)
            try:
                return work()
            except Vanished:
                if inodes(self.path) == before:
                    raise

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

    def _cached(self, columns: tuple[str, ...], without: set[str] | None = None) -> pa.Table:
        """Some columns of all parts (but those named in `without`); only new parts are read when asked again."""
        parts = [part for part in self.parts() if part.name not in (without or ())]
        names = [part.name for part in parts]
        known, table = self._tables.get(columns, ([], empty(pa.schema([LINEAGE.field(name) for name in columns]))))
        if names != known:
            if names[: len(known)] != known:  # `compact`, `repair` or another hand took parts away
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


def _alone(part: Part) -> Source:
    def one(generation: int, index: int) -> Pedigree:
        table = part.read(COLUMNS, (generation, generation))
        gathering = Gathering()
        gathering.add(table.slice(int(np.searchsorted(column(table, "index"), index)), 1))
        found = gathering.pedigree()
        return found if found.row(key_of(generation, index)) == 0 else Gathering().pedigree()

    return Source(part.first, part.name, lambda: kin.bred() if (kin := part.kin) else None, part.pedigree, one)


def _check_format(path: Path) -> None:
    try:
        version = str(json.loads(read_file(path)).get("format", FORMAT))
    except (OSError, ValueError, AttributeError, RecursionError, IntegrityError):
        return  # a missing or damaged run.json is for `check` to report; the rows can be read without it
    if version.split(".")[0] != FORMAT.split(".")[0]:
        raise ConfigError(f"{path}: expected format {FORMAT.split('.')[0]}.x, got {version}. Update evometa to read it")


def _check_names(columns: Sequence[str]) -> None:
    for name in columns:
        if name not in LINEAGE.names:
            hint = did_you_mean(name, LINEAGE.names)
            raise NotFound(f"the lineage has no column {name!r}.{hint} It has {', '.join(LINEAGE.names)}")
