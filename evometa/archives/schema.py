"""What a run leaves on disk, column by column: the lineage, the timings, the judgements.

Types are plain Arrow types that Parquet knows, so one glob over the runs of different tasks reads in
DuckDB, Polars, pandas and pyarrow. Within a major format version a column's type never changes; later
versions only add nullable columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

FORMAT = "1.0"

# "element" is the name Parquet itself gives to what a list holds, so a schema survives the round trip.
PARENT = pa.struct([("generation", pa.int32()), ("index", pa.int32())])
SCORE = pa.struct(
    [
        ("domain", pa.string()),
        ("query", pa.string()),
        ("role", pa.string()),  # train, validation or test
        ("replicate", pa.int32()),
        ("loss", pa.float32()),  # null: not evaluated; NaN: evaluated, and not a number
    ]
)
NUMBERS = pa.map_(pa.string(), pa.float64())
WORDS = pa.map_(pa.string(), pa.string())


def _list(of: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", of))


def _schema(columns: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(columns, metadata={"evometa.format": FORMAT})


# One row per candidate that the search scored. No clocks and no hosts: equal runs have equal bytes.
LINEAGE = _schema(
    [
        ("run", pa.string()),
        ("generation", pa.int32()),
        ("index", pa.int32()),
        ("parents", _list(PARENT)),
        ("operator", pa.string()),
        ("genome", _list(pa.float32())),
        ("program", _list(pa.int32())),
        ("text", pa.string()),  # the canonical formula of a program
        ("params", NUMBERS),  # decoded numbers by name
        ("choices", WORDS),  # decoded choices by name
        ("fitness", pa.float64()),  # the first objective; +inf where the candidate failed
        ("objectives", _list(pa.float64())),
        ("descriptor", _list(pa.float32())),
        ("support_loss", pa.float64()),  # mean over cells; a diagnostic, never an objective
        ("failure", pa.string()),  # a `Failure`, lower case; "ok" where there is none
        ("message", pa.string()),
        ("phase", pa.string()),  # "search"
        ("level", pa.int32()),  # 0: the outermost search
        ("scores", _list(SCORE)),
        ("metrics", NUMBERS),  # mean over evaluated cells; null where there is none
        ("seed", _list(pa.uint32())),  # high and low word of the run's seed; a generation's keys follow by fold_in
        ("inner_steps", pa.int64()),  # sum over evaluated cells
        ("extras", pa.string()),  # JSON: room for what this version does not know
    ]
)

# One row per re-judged candidate and cell: champions on validation, and what was unsealed on test.
JUDGEMENTS = _schema(
    [
        ("run", pa.string()),
        ("opening", pa.int32()),  # 0: validation; n: the n-th time the test domains were opened
        ("phase", pa.string()),  # validation or test
        ("label", pa.string()),  # recommendation, observed, baseline, champion ...
        ("generation", pa.int32()),
        ("index", pa.int32()),  # null: nobody's genome (a mean, a baseline)
        ("genome", _list(pa.float32())),
        ("params", NUMBERS),
        ("choices", WORDS),
        ("domain", pa.string()),
        ("query", pa.string()),
        ("role", pa.string()),
        ("replicate", pa.int32()),
        ("loss", pa.float32()),
        ("failure", pa.string()),
        ("message", pa.string()),
        ("metrics", NUMBERS),
        ("seed", _list(pa.uint32())),
        ("extras", pa.string()),
    ]
)

# One row per block of generations: what must not be in the lineage because it differs between equal runs.
TIMINGS = _schema(
    [
        ("run", pa.string()),
        ("first_generation", pa.int32()),
        ("generations", pa.int32()),
        ("seconds", pa.float64()),
        ("host", pa.string()),
        ("attempts", pa.int32()),
        ("candidates", pa.int64()),
        ("extras", pa.string()),
    ]
)

# Folder of a run -> what its parts hold.
TABLES = {"lineage": LINEAGE, "timings": TIMINGS, "judgements": JUDGEMENTS}


def digest() -> str:
    """Sha256 of the three schemas: what run.json carries, so that a reader can tell what it reads."""
    lines = [f"format {FORMAT}"]
    for name, schema in TABLES.items():
        lines += [f"{name}.{field.name}: {_text(field.type)}" for field in schema]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def empty(schema: pa.Schema) -> pa.Table:
    """A table of no rows. (Not `schema.empty_table()`, which imports pandas.)"""
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def column(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers or bools as a NumPy array `[N]`; see `numbers`."""
    return numbers(table[name].combine_chunks())


def numbers(array: pa.Array) -> np.ndarray:
    """An Arrow array of numbers or bools as a NumPy array `[N]`, nulls as zero.

    Not `to_numpy`, which imports pandas: half a second, where a resume or `archive top` takes less.
    """
    if pa.types.is_boolean(array.type):
        return numbers(array.cast(pa.uint8())).view(bool)
    kind = np.dtype({"float": "float32", "double": "float64"}.get(str(array.type), str(array.type)))
    data = array.buffers()[1]
    if not len(array) or data is None:
        return np.zeros(len(array), kind)
    values = np.frombuffer(data, kind, len(array), array.offset * kind.itemsize)
    return np.where(numbers(array.is_valid()), values, kind.type(0)) if array.null_count else values


def arrow(values: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """A NumPy array `[N]` of numbers as an Arrow array, null where `missing` `[N]`; the inverse of `numbers`."""
    values = np.ascontiguousarray(values)
    valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, pa.py_buffer(values)])


def texts(values: Sequence[str | None]) -> pa.Array:
    """Strings as an Arrow array. (`pa.array` would import pandas.)"""
    data = [(value or "").encode(errors="replace") for value in values]  # an error message may hold anything
    offsets = np.cumsum([0, *map(len, data)], dtype=np.int32)
    valid = np.packbits(np.array([value is not None for value in values], bool), bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(offsets), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def _text(of: pa.DataType) -> str:
    # Spelled here and not by str(type), whose words may change with the version of pyarrow.
    if pa.types.is_map(of):
        return f"map<{_text(of.key_type)},{_text(of.item_type)}>"
    if pa.types.is_list(of):
        return f"list<{_text(of.value_type)}>"
    if pa.types.is_struct(of):
        return f"struct<{','.join(f'{field.name}:{_text(field.type)}' for field in of)}>"
    return str(of)
