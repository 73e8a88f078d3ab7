"""Is an archive what was written? Every byte is read, every reference followed, every problem named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from evometa.archives import events, index
from evometa.archives.part import PART, Part, inodes, list_parts
from evometa.archives.regular import read_file
from evometa.archives.schema import FORMAT, TABLES, column, digest, numbers
from evometa.archives.sealed import Found, scan, unseal
from evometa.archives.stored import standing
from evometa.errors import IntegrityError, NotFound


class Report(NamedTuple):
    """What `check` found; `problems` has one line for each, with the file's name in it."""

    ok: bool
    parts: int  # lineage parts
    rows: int  # lineage rows
    problems: list[str]


@dataclass(frozen=True)
class Lineage:
    """What of a lineage part concerns the other parts."""

    part: Part
    rows: int
    generation: np.ndarray  # [N]
    index: np.ndarray  # [N]
    child: np.ndarray  # [E] generation of the child of each parent reference
    parent: np.ndarray  # [E, 2] (generation, index)


def check(run_path: Path | str) -> Report:
    """Verify a run: hashes, page checksums, schemas, generations without gap or overlap, parents, events, checkpoints.

    Reads only, and may be called while the run is writing or is compacted. Raises `NotFound` where there is no such
    folder.
    """
    run = Path(run_path)
    if not run.is_dir():
        raise NotFound(f"no run at {run}. Run: evometa runs")
    while True:
        before = inodes(run)
        report = _check(run)
        if inodes(run) == before:
            return report


def _check(run: Path) -> Report:
    problems = [*run_json_problems(run), *_events(run)]
    checkpoints = scan(run)  # before the parts: a part that a checkpoint names was there when it was written
    problems += [found.problem for found in checkpoints if found.record is None]
    parts, rows = 0, 0
    for folder in TABLES:
        problems += _foreign(run / folder)
        listed = list_parts(run / folder)
        results = [read_part(part) for part in listed]
        problems += [result for result in results if isinstance(result, str)]
        if folder == "lineage":
            parts = len(listed)
            good = {result.part.path: result for result in results if isinstance(result, Lineage)}
            rows = sum(result.rows for result in good.values())
            problems += _lineage(run, listed, good, checkpoints)
    return Report(not problems, parts, rows, problems)


# --- one file -------------------------------------------------------------------------------------


def read_part(part: Part, *, with_index: bool = True) -> Lineage | str:
    """What the part holds, or what is wrong with it (or with its index), every value of it decoded."""
    folder = part.path.parent.name
    found: list[Lineage] = []
    try:
        file = part.open()
        if not file.schema_arrow.equals(TABLES[folder]):
            return f"{part.path}: expected the columns of format {FORMAT}, got others"
        for group in range(file.num_row_groups):
            found.append(_arrays(part, part.take(file, None, [group])))
        if with_index and (wrong := index.problem(part.path)):
            return wrong
    except IntegrityError as error:
        return str(error).split(". Run: ")[0]
    if not sum(lineage.rows for lineage in found):
        return f"{part.path}: expected rows, got none"
    return Lineage(
        part,
        sum(one.rows for one in found),
        *(np.concatenate([one.generation for one in found]), np.concatenate([one.index for one in found])),
        *(np.concatenate([one.child for one in found]), np.concatenate([one.parent for one in found])),
    )


def _arrays(part: Part, table: pa.Table) -> Lineage:
    empty = np.zeros(0, np.int32)
    if part.folder.name != "lineage":
        return Lineage(part, len(table), empty, empty, empty, np.zeros((0, 2), np.int32))
    generation, own = column(table, "generation"), column(table, "index")
    lists = table["parents"].combine_chunks()
    pairs = lists.flatten()
    child = np.repeat(generation, numbers(lists.value_lengths()))
    parent = np.stack([numbers(pairs.field(name)) for name in ("generation", "index")], 1)
    return Lineage(part, len(table), generation, own, child, parent)


def _foreign(folder: Path) -> Iterator[str]:
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if not PART.fullmatch(name) or not (folder / name).is_file():
            yield f"{folder / name}: a foreign file; only finished parts belong here. Move it away"


def run_json_problems(run: Path) -> list[str]:
    """What is wrong with the run's record."""
    return list(_run_json(run))


def _run_json(run: Path) -> Iterator[str]:
    path = run / "run.json"
    try:
        data = read_file(path)
        record = json.loads(data)
        if "seal" in record:
            record = unseal(data, path)
        found = record["schema_digest"]
    except IntegrityError as error:
        yield str(error)
        return
    except FileNotFoundError:
        yield f"{path}: this file is missing"
        return
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        yield f"{path}: cannot be read ({type(error).__name__}: {error})"
        return
    if found != digest():
        yield f"{path}: expected the schema {digest()[:16]} of format {FORMAT}, got {str(found)[:16]}"


def _events(run: Path) -> Iterator[str]:
    try:
        entries = events.read(run)
    except (IntegrityError, OSError) as error:
        yield str(error)
        return
    yield from _judged(run, entries)
    path = run / "run.json"
    for entry in entries:
        known = entry.get("run_json_sha256")
        if known and path.exists() and hashlib.sha256(read_file(path)).hexdigest() != known:
            yield f"{path}: its bytes are not those that the event {entry['seq']} ({entry['kind']}) knows"
            return


def _judged(run: Path, entries: list[events.Entry]) -> Iterator[str]:
    """The parts of judgements that events name: nothing else would miss them, for they follow no count."""
    named = {str(entry["judgements"]): entry for entry in entries if entry.get("judgements")}
    for name, entry in named.items():
        path = run / "judgements" / name
        if not PART.fullmatch(name):
            yield f"{run}: the event {entry['seq']} ({entry['kind']}) names {name!r}, which is no part"
        elif not path.is_file():
            yield f"{path}: this part is missing; the event {entry['seq']} ({entry['kind']}) names it"


# --- parts among each other -----------------------------------------------------------------------


def _lineage(run: Path, listed: list[Part], good: dict[Path, Lineage], checkpoints: list[Found]) -> Iterator[str]:
    whole = [found for found in checkpoints if found.record]
    entries = _readable_events(run)  # now that the parts are listed: where checkpoints' parts were merged into others
    names = [(found, str(found.record["meta"].get("last_part") or "")) for found in whole if found.record]
    named = {standing(run, name, entries) or name: found for found, name in names if name}
    known = {int(match[1]): name for name in named if (match := PART.fullmatch(str(name)))}
    following: int | None = begins(run)  # the generation that comes next; None behind a part that cannot be read
    population, gaps = 0, []
    for part in listed:
        if following is not None and part.first > following:
            gaps.append((following, part.first - 1))
        if part.path not in good:
            following = None
            continue
        rows = good[part.path]
        population = population or int(np.sum(rows.generation == rows.generation[0]))
        if following is not None and part.first < following:
            yield f"{part.path}: overlap: generation {part.first} is in the part before it, too"
        wrong = wrong_rows(rows, population)
        if wrong:
            yield f"{part.path}: {wrong}"
        following = int(rows.generation.max()) + 1
    reached = max((found.generation for found in whole), default=0)
    if following is not None and following < reached:
        gaps.append((following, reached - 1))
    for first, last in gaps:
        name = known.get(first, f"part-{first:09d}-*.parquet")
        yield f"{run / 'lineage' / name}: this part is missing (generations {first} to {last})"
    there = {part.path.name for part in listed}
    for first, name in known.items():
        if name not in there and not any(low <= first <= high for low, high in gaps):
            yield f"{run / 'lineage' / name}: {named[name].path.name} names this part, which is not there"


def _readable_events(run: Path) -> list[events.Entry]:
    try:
        return events.read(run)
    except (IntegrityError, OSError):
        return []  # named elsewhere


def begins(run: Path) -> int:
    """The first generation of a run: 0, or where a fork left its parent. A broken run.json is named elsewhere."""
    try:
        return int((json.loads(read_file(run / "run.json")).get("from") or {}).get("first", 0))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, IntegrityError):
        return 0


def wrong_rows(rows: Lineage, population: int) -> str:
    """What is wrong with the rows of a part of whole bytes, in a run of so many candidates per generation; or ''."""
    return _generations(rows, population) or _parents(rows, population)


def _generations(rows: Lineage, population: int) -> str:
    first, last = rows.part.first, int(rows.generation.max())
    # Counted first: a forged generation is no reason to fill the memory.
    whole = (last + 1 - first) * population == len(rows.generation)
    if not whole or not np.array_equal(rows.generation, np.repeat(np.arange(first, last + 1), population)):
        return f"expected {population} rows for each generation of {first} to {last}, in order, got {rows.rows} rows"
    if not np.array_equal(rows.index, np.tile(np.arange(population), last + 1 - first)):
        return f"expected the indexes 0 to {population - 1} in every generation, got others"
    return ""


def _parents(rows: Lineage, population: int) -> str:
    generation, index = rows.parent[:, 0], rows.parent[:, 1]
    wrong = (generation < 0) | (generation >= rows.child) | (index < 0) | (index >= population)
    if not wrong.any():
        return ""
    at = int(np.argmax(wrong))
    name = f"{generation[at]}:{index[at]}"
    return f"a candidate of generation {rows.child[at]} names the parent {name}, which does not come before it"
