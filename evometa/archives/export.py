"""A lineage in other people's formats: CSV, JSON lines, Delta Lake, the ALife standard's phylogeny, Newick.

Rows are streamed part by part, so a large archive needs no large memory; a phylogeny keeps 16 bytes per candidate.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa

from evometa.archives.part import list_parts
from evometa.archives.read import Archive, to_dicts
from evometa.archives.schema import LINEAGE, column
from evometa.errors import EvometaError, UsageError
from evometa.printable import spreadsheet

MAPS = ("params", "choices", "metrics")


def export(run: Path, form: str, out: TextIO | Path) -> int:
    """Write the lineage of a run as `form` (a key of `FORMS`, or "delta"); returns how many candidates.

    `out` is an open text file; for "delta", the folder of the table. Raises `NotFound`, `IntegrityError`.
    """
    if form == "delta":
        return _delta(run, Path(str(out)))
    if isinstance(out, Path):
        raise UsageError(f"export: expected an open file for {form}, got the path {out}")
    return FORMS[form](run, out)


def _batches(run: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    Archive(run)  # says so where there is none
    following = -1
    for part in list_parts(run / "lineage"):
        for table in part.batches(columns):
            generation = column(table, "generation")
            start = int(np.searchsorted(generation, following)) if following > int(generation[0]) + 1 else 0
            if start < len(table):
                yield table.slice(start)
            following = int(generation[-1])


def _csv(run: Path, out: TextIO) -> int:
    """One line per candidate; maps become columns `params.lr`, lists become JSON, and no text is a formula."""
    names: dict[str, None] = {}
    for table in _batches(run, ["generation", *MAPS]):
        for name in MAPS:
            keys = table[name].combine_chunks().keys
            names |= {f"{name}.{key}": None for key in keys.unique().to_pylist()}
    plain = [name for name in LINEAGE.names if name not in MAPS]
    header = [*plain, *sorted(names)]
    writer = csv.DictWriter(out, header, lineterminator="\n")
    writer.writeheader()
    count = 0
    for table in _batches(run):
        for row in to_dicts(table):
            maps = {f"{name}.{key}": value for name in MAPS for key, value in (row.pop(name) or {}).items()}
            lists = {name: json.dumps(_finite(value)) for name, value in row.items() if isinstance(value, list)}
            cells = {**row, **lists, **maps}
            writer.writerow(
                {name: spreadsheet(value) if isinstance(value, str) else value for name, value in cells.items()}
            )
        count += len(table)
    return count


def _jsonl(run: Path, out: TextIO) -> int:
    """One JSON object per line and candidate; infinities and NaNs, which JSON does not have, are null."""
    count = 0
    for table in _batches(run):
        for row in to_dicts(table):
            out.write(json.dumps(_finite(row), allow_nan=False) + "\n")
        count += len(table)
    return count


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- Delta Lake -----------------------------------------------------------------------------------


def _delta(run: Path, out: Path) -> int:
    """A Delta table in the folder `out`, one commit. Delta knows no unsigned numbers: seed words are int64 there."""
    try:
        from deltalake import write_deltalake
    except ImportError:
        raise EvometaError("Delta tables need the package deltalake. Type: pip install 'evometa[delta]'") from None
    if out.exists():
        raise UsageError(f"export: {out} exists. Give another folder with --to")
    fields = [pa.field(f.name, pa.list_(pa.int64()) if f.name == "seed" else f.type) for f in LINEAGE]
    schema = pa.schema(fields)
    count = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal count
        for table in _batches(run):
            count += len(table)
            yield from table.cast(schema).to_batches()

    write_deltalake(str(out), pa.RecordBatchReader.from_batches(schema, batches()), name=run.name)
    return count


# --- phylogenies ----------------------------------------------------------------------------------


class _Rows:
    """Where a candidate is: its row number, for every (generation, index)."""

    def __init__(self, run: Path) -> None:
        keys = [_keys(table["generation"], table["index"]) for table in _batches(run, ["generation", "index"])]
        self.keys = np.concatenate(keys) if keys else np.zeros(0, np.int64)

    def of(self, wanted: np.ndarray) -> np.ndarray:
        """Row numbers; -1 for what is not there (a fork's ancestors are in its parent)."""
        if not len(self.keys):
            return np.full(len(wanted), -1)
        rows = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[rows] == wanted, rows, -1)


def _keys(generation: pa.ChunkedArray, index: pa.ChunkedArray) -> np.ndarray:
    table = pa.table({"g": generation, "i": index})
    return (column(table, "g").astype(np.int64) << 32) + column(table, "i")


def _parents(table: pa.Table, rows: _Rows) -> list[list[int]]:
    """The row numbers of every candidate's parents."""
    lists = table["parents"].combine_chunks()
    pairs = lists.flatten()
    found = rows.of(_keys(pa.chunked_array([pairs.field("generation")]), pa.chunked_array([pairs.field("index")])))
    ends = np.cumsum(np.array(lists.value_lengths().to_pylist(), int))
    return [[int(row) for row in some if row >= 0] for some in np.split(found, ends[:-1])] if len(ends) else []


def _alife(run: Path, out: TextIO) -> int:
    """The ALife data standard's phylogeny: `id`, `ancestor_list`, `origin_time` (the generation), and our columns."""
    rows, number = _Rows(run), 0
    writer = csv.writer(out, lineterminator="\n")
    ours = ["generation", "index", "operator", "fitness", "failure"]
    writer.writerow(["id", "ancestor_list", "origin_time", "taxon_label", *ours])
    for table in _batches(run, ["parents", *ours]):
        values = zip(*(table[name].to_pylist() for name in ours), strict=True)
        for parents, own in zip(_parents(table, rows), values, strict=True):
            ancestors = "[" + ",".join(map(str, parents)) + "]" if parents else "[NONE]"
            row = [spreadsheet(value) if isinstance(value, str) else value for value in own]
            writer.writerow([number, ancestors, own[0], f"{own[0]}:{own[1]}", *row])
            number += 1
    return number


def _newick(run: Path, out: TextIO) -> int:
    """One tree of all candidates by their first parents, a branch as long as the generations between.

    The first candidates hang on a root of their own without a name. Newick knows one parent: others are left out.
    """
    rows, first = _Rows(run), []
    for table in _batches(run, ["generation", "parents"]):
        first += [parents[0] if parents else -1 for parents in _parents(table, rows)]
    generation = (rows.keys >> 32).tolist()
    index = (rows.keys & 0xFFFFFFFF).tolist()
    children: dict[int, list[int]] = {}
    for row, parent in enumerate(first):
        children.setdefault(parent, []).append(row)
    origin = (generation[0] if generation else 0) - 1
    # Walked with a stack of our own: a line of ten thousand generations is deeper than Python's.
    stack: list[tuple[int, bool, bool]] = [(-1, True, False)]
    while stack:
        row, foremost, closing = stack.pop()
        if not closing:
            out.write("" if foremost else ",")
            if row in children:
                out.write("(")
                stack.append((row, foremost, True))
                stack += [(child, at == 0, False) for at, child in reversed(list(enumerate(children[row])))]
                continue
        elif row in children:
            out.write(")")
        if row >= 0:
            before = generation[first[row]] if first[row] >= 0 else origin
            out.write(f"'{generation[row]}:{index[row]}':{generation[row] - before}")
    out.write(";\n")
    return len(first)


FORMS: dict[str, Callable[[Path, TextIO], int]] = {"csv": _csv, "json": _jsonl, "alife": _alife, "newick": _newick}
