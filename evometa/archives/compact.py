"""Many small parts become few large ones, at once for everybody who reads them.

A complete new folder is built beside the old one, made durable, and exchanged with it in one system call: whoever lists
the folder sees the old parts or the new ones, never both and never a mixture. A reader that had listed the old names
and opens one of them later finds no such file, which is an error and not a wrong answer, and asks again. The old parts
stay aside for a minute, so that a listing that had begun is not cut short.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evometa.archives import events, index
from evometa.archives.content import rows_digest
from evometa.archives.part import Part, list_parts
from evometa.archives.regular import open_file
from evometa.archives.schema import TABLES, column
from evometa.archives.sealed import scan
from evometa.archives.stored import standing
from evometa.archives.write import (
    ASIDE,
    GRACE,
    NO_LINKS,
    clear_aside,
    encode_groups,
    ensure_folder,
    exchange,
    publish,
    remove_folder,
    storage,
    sync_folder,
    write_new,
)
from evometa.errors import EvometaError, IntegrityError

ROWS = 1_000_000  # of a part that `compact` makes
BYTES = 256 << 20  # at most: rows of long genomes are large
GROUP = 8192  # rows of a row group, in whole generations: what has to be read for one of them
SMALL = 1 << 16  # a part of more rows is worth row groups and an index of its own


class Compacted(NamedTuple):
    """What `compact` did."""

    parts: int  # of the lineage, before
    files: int  # and after
    rows: int
    bytes_before: int
    bytes_after: int
    aside: int  # bytes of superseded parts, on disk until they are cleared away


class _Group(NamedTuple):
    parts: list[Part]
    merge: bool  # or keep its one part as it is


def compact(run: Path, *, rows: int = ROWS, dry_run: bool = False) -> Compacted:
    """Merge consecutive parts of the lineage and of the timings into files of up to `rows` rows (and 256 MB).

    The caller holds the run's lock. Rows stay what they are (every one is compared before the exchange); the bytes and
    names of parts change. Raises `IntegrityError` where a part is missing, damaged or from a newer version (nothing has
    changed then), `StorageError` where the disk refuses, `EvometaError` where the file system cannot exchange folders.
    """
    run = Path(run)
    with storage(run):
        plans = {name: _plan(run / name, rows) for name in ("lineage", "timings")}
        lineage = plans["lineage"]
        before = _bytes(run / "lineage")
        counts = len([part for group in lineage for part in group.parts]), len(lineage)
        total = sum(_rows(part) for group in lineage for part in group.parts)
        if dry_run or not any(group.merge for groups in plans.values() for group in groups):
            return Compacted(*counts, total, before, before, _aside(run))
        clear_aside(run, 0.0)
        for orphan in index.orphans(run):
            os.unlink(orphan)
        for name, groups in plans.items():
            if any(group.merge for group in groups):
                _replace(run, name, groups)
        after = _bytes(run / "lineage")
        events.append(run, "compacted", parts=counts[0], files=counts[1], rows=total, bytes=after)
        return Compacted(*counts, total, before, after, _aside(run))


def clear(run: Path, grace: float = GRACE) -> None:
    """Remove superseded parts that no reader can be listing any more. Raises `StorageError`."""
    with storage(run):
        clear_aside(Path(run), grace)


# --- what is merged -------------------------------------------------------------------------------


def _plan(folder: Path, rows: int) -> list[_Group]:
    groups: list[_Group] = []
    parts: list[Part] = []
    there = size = 0
    for part in list_parts(folder):
        part_rows, part_bytes = _rows(part), part.path.stat().st_size
        large = part.index is not None and (2 * part_rows >= rows or 2 * part_bytes >= BYTES)
        if parts and (large or there + part_rows > rows or size + part_bytes > BYTES):
            groups.append(_Group(parts, _worth(parts)))
            parts, there, size = [], 0, 0
        if large:
            groups.append(_Group([part], False))
            continue
        parts = [*parts, part]
        there, size = there + part_rows, size + part_bytes
    return [*groups, _Group(parts, _worth(parts))] if parts else groups


def _worth(parts: list[Part]) -> bool:
    return len(parts) > 1 or (parts[0].folder.name == "lineage" and parts[0].index is None and _rows(parts[0]) > SMALL)


def _rows(part: Part) -> int:
    """How many rows the part says to hold: for a plan; what is merged is verified."""
    try:
        if part.index:
            return part.index.rows
        with os.fdopen(open_file(part.path, os.O_RDONLY), "rb") as file:
            return pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError):
        return part.rows  # and that says what is wrong


def _bytes(folder: Path) -> int:
    return sum(part.path.stat().st_size for part in list_parts(folder))


def _aside(run: Path) -> int:
    return sum(file.stat().st_size for folder in run.glob(f"{ASIDE}*") for file in folder.iterdir())


# --- merging --------------------------------------------------------------------------------------


def _replace(run: Path, name: str, groups: Sequence[_Group]) -> None:
    """Build the new folder, record what is about to happen, exchange."""
    new, old = run / f"{ASIDE}{name}", run / name
    os.mkdir(new)
    try:
        merged = _build(new, groups, name)
        sync_folder(new)
        sync_folder(run)  # the new folder's own name: the exchange must not be durable without it
        # Before the exchange: when a checkpoint's last part is not there any more, this says where its rows are.
        events.append(run, "compacting", folder=name, instead=_instead(run, merged) if name == "lineage" else {})
        exchange(new, old)
    except (OSError, EvometaError):
        with suppress(OSError):
            remove_folder(new)
        raise
    sync_folder(run)


def _build(new: Path, groups: Sequence[_Group], name: str) -> dict[str, str]:
    """Fill the new folder; returns the old name -> the new name of what was merged."""
    merged: dict[str, str] = {}
    following: int | None = None
    for group in groups:
        if not group.merge:
            (part,) = group.parts
            _keep(part.path, new / part.name)
            following = part.last + 1 if name == "lineage" else None
            continue
        rows = _Rows(name, following)
        digests: list[str] = []
        chunks = _noted(_chunks(rows.of(group.parts), name), digests)
        data = encode_groups(TABLES[name], chunks)
        following = rows.following
        path = new / f"part-{group.parts[0].first:09d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        _compare(data, digests, path)
        write_new(path, data)
        if name == "lineage":
            at = index.path_of(path)
            ensure_folder(at.parent)
            publish(at, index.build(data, path.name), new.parent / ".staging", clobber=True)
        merged |= {part.name: path.name for part in group.parts}
    return merged


class _Rows:
    """The rows of parts, each verified to be whole and to follow the one before."""

    def __init__(self, name: str, following: int | None) -> None:
        self.name = name
        self.following = following  # the generation that comes next; None where any may
        self._last = -1  # the key of the last row

    def of(self, parts: Sequence[Part]) -> Iterator[pa.Table]:
        for part in parts:
            file = part.open()
            if unknown := set(file.schema_arrow.names) - set(TABLES[self.name].names):
                raise IntegrityError(
                    f"{part.path}: a newer evometa wrote the columns {', '.join(sorted(unknown))}, which would be lost."
                    " Update evometa"
                )
            for group in range(file.num_row_groups):
                table = part.take(file, None, [group])
                if self.name == "lineage":
                    self._follows(part, table)
                yield table

    def _follows(self, part: Part, table: pa.Table) -> None:
        generation, own = column(table, "generation"), column(table, "index")
        keys = np.append(self._last, (generation.astype(np.int64) << 32) + own)
        first = int(generation[0])
        goes_on = self.following in (None, first) or (self.following == first + 1 and first > part.first)
        if not goes_on or np.any(np.diff(keys) <= 0) or np.any(np.diff(generation) > 1):
            raise IntegrityError(
                f"{part.path}: its generations do not follow those before it (expected {self.following}, got {first})."
                f" Nothing was changed. Run: evometa archive check {part.folder.parent}"
            )
        self.following, self._last = int(generation[-1]) + 1, int(keys[-1])


def _chunks(tables: Iterator[pa.Table], name: str) -> Iterator[pa.Table]:
    """The same rows in tables of about `GROUP` rows, in whole generations."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held, rows = [*held, table], rows + len(table)
        if rows < GROUP:
            continue
        whole = pa.concat_tables(held)
        while len(whole) >= GROUP:
            cut = GROUP
            if name == "lineage":
                generation = column(whole, "generation")
                cut = int(np.searchsorted(generation, generation[GROUP - 1], side="right"))
            yield whole.slice(0, cut).combine_chunks()
            whole = whole.slice(cut)
        held, rows = ([whole] if len(whole) else []), len(whole)
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _noted(tables: Iterator[pa.Table], digests: list[str]) -> Iterator[pa.Table]:
    for table in tables:
        digests.append(rows_digest(table))
        yield table


def _compare(data: pa.Buffer, digests: list[str], path: Path) -> None:
    """Read back what is to be written: every row must be what it was."""
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    found = [rows_digest(file.read_row_group(group)) for group in range(file.num_row_groups)]
    if found != digests:
        raise IntegrityError(f"{path}: merged rows are not the rows that were read. Nothing was changed; report this")


def _keep(part: Path, new: Path) -> None:
    try:
        os.link(part, new)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        write_new(new, part.read_bytes())


def _instead(run: Path, merged: dict[str, str]) -> dict[str, str]:
    """Of the parts that checkpoints name (others nobody asks for): where their rows will be."""
    entries = events.read(run)
    named = [found.record["meta"].get("last_part") for found in scan(run) if found.record]
    standings = {standing(run, str(name), entries) for name in named if name}
    return {name: merged[name] for name in standings if name in merged}
