"""Between the loop's arrays and the archive's rows, both ways.

A row is all that `tell` needs: genome, losses, fitness, descriptor and failure come back bit for bit.
Tables are built from whole arrays (offsets and flat values), never row by row.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from evometa.archives.schema import (
    JUDGEMENTS,
    LINEAGE,
    NUMBERS,
    PARENT,
    SCORE,
    TIMINGS,
    WORDS,
    arrow,
    column,
    numbers,
    texts,
)
from evometa.errors import IntegrityError
from evometa.programs.code import split
from evometa.space import Space
from evometa.types import Block, Cell, Failure, Scores

LARGE = 100_000  # genomes of more numbers are stored for elites only
ELITES = 8
REPLAY = {"genome": "replay"}
FAILURES = tuple(failure.name.lower() for failure in Failure)


def seed_words(seed: int) -> tuple[int, int]:
    """High and low uint32 word of a run's seed."""
    return (seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF


def lineage_table(
    run: str,
    block: Block,
    cells: Sequence[Cell],
    space: Space,
    operators: tuple[str, str, str],
    seed: int,
) -> pa.Table:
    """Rows of a block, sorted by (generation, index): a table of schema `LINEAGE`.

    `operators` name what made a child by how many parents it has (none, one, more). Parent slots of -1
    are dropped, so a row names only the parents that exist. Genomes of more than `LARGE` numbers are stored
    for the `ELITES` best of each generation; the others come back by replay, and `extras` says so. Rates at which
    children were made, where the strategy tells them, are in `extras` too: `{"rates": {"step": 0.1}}`.
    """
    generations, population = block.genomes.shape[:2]
    n, cell_count = generations * population, len(cells)
    genomes = np.ascontiguousarray(block.genomes, np.float32).reshape(n, -1)
    parents = np.asarray(block.parents, np.int32).reshape(n, -1, 2)
    scores = block.scores
    loss = np.asarray(scores.loss, np.float32).reshape(n, cell_count)
    evaluated = np.asarray(scores.evaluated, bool).reshape(n, cell_count)
    fitness = np.asarray(scores.fitness, np.float64).reshape(n, -1)
    descriptor = np.asarray(scores.descriptor, np.float32).reshape(n, scores.descriptor.shape[-1])
    kept = _elites(fitness[:, 0].reshape(generations, population)) if genomes.shape[1] > LARGE else None
    params, choices = _decoded(space, genomes)
    metrics = {name: _mean(values, evaluated) for name, values in sorted(scores.metrics.items())}
    counts, known_parents = _parents(parents)
    columns = {
        "run": _same(run, n),
        "generation": np.repeat(np.arange(block.first, block.first + generations, dtype=np.int32), population),
        "index": np.tile(np.arange(population, dtype=np.int32), generations),
        "parents": known_parents,
        "operator": texts(operators).take(arrow(np.minimum(counts, 2))),
        "genome": _lists(genomes, "genome") if kept is None else _some_lists(genomes, kept),
        **_programs(space, genomes),
        "extras": _extras(n, kept, block.rates or {}),
        "params": params,
        "choices": choices,
        "fitness": fitness[:, 0],
        "objectives": _lists(fitness, "objectives"),
        "descriptor": _lists(descriptor, "descriptor"),
        "support_loss": _nulls(metrics["support_loss"]) if "support_loss" in metrics else None,
        "failure": texts(FAILURES).take(arrow(np.asarray(scores.failure, np.int8).reshape(n))),
        "message": _messages(block, population, n),
        "phase": _same("search", n),
        "level": np.zeros(n, np.int32),
        "scores": _scores(loss, evaluated, cells),
        "metrics": _map(list(metrics), np.stack(list(metrics.values()), 1) if metrics else np.zeros((n, 0)), NUMBERS),
        "seed": _lists(np.tile(np.array(seed_words(seed), np.uint32), (n, 1)), "seed"),
        "inner_steps": _steps(scores.metrics.get("inner_steps"), evaluated),
    }
    return _table(columns, LINEAGE, n)


def block_from_table(
    table: pa.Table, cells: Sequence[Cell], space_dimension: int, objectives: int, parent_slots: int = 0
) -> Block:
    """The block that rows of consecutive generations came from; the inverse of `lineage_table`.

    Genomes, losses, fitness, descriptors and failures are equal bit for bit. Metrics are stored as means
    only and `tell` does not need them: they come back empty. Parents come back in their order, in
    `parent_slots` slots (or as many as the widest row has), empty slots last.

    Raises `IntegrityError` where the rows do not have these cells, dimension or objectives.
    """
    table = table.combine_chunks()
    generation, index = column(table, "generation"), column(table, "index")
    n = len(generation)
    if n == 0:
        raise IntegrityError("lineage: expected rows of at least one generation, got none")
    first, count = int(generation[0]), int(generation[-1]) - int(generation[0]) + 1
    population = n // count
    whole = population * count == n
    if not whole or not np.array_equal(index, np.tile(np.arange(population), count)) or np.any(np.diff(generation) < 0):
        raise IntegrityError(
            f"lineage: expected all candidates of generations {first} to {first + count - 1} in order, got {n} rows."
            " Run: evometa archive check RUN"
        )
    shape = (count, population)
    loss, evaluated = _losses(table, cells, n)
    names = table["failure"].combine_chunks().dictionary_encode()
    codes: Any = np.array([FAILURES.index(name) for name in names.dictionary.to_pylist()], np.int8)
    described = _rectangle(table, "descriptor", None)
    scores = Scores(
        loss=loss.reshape(*shape, -1),
        evaluated=evaluated.reshape(*shape, -1),
        fitness=_rectangle(table, "objectives", objectives).astype(np.float32).reshape(*shape, objectives),
        descriptor=described.reshape(*shape, described.shape[1]),
        failure=codes[numbers(names.indices)].reshape(shape),
        metrics={},
    )
    said = numbers(table["message"].combine_chunks().is_valid()).nonzero()[0]
    messages = {(int(generation[i]), int(index[i])): table["message"][int(i)].as_py() for i in said}
    genomes = _genomes(table, n, space_dimension).reshape(*shape, space_dimension)
    return Block(first, genomes, _parent_slots(table, n, parent_slots).reshape(*shape, -1, 2), scores, messages)


def judgements_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows of schema `JUDGEMENTS`, one mapping per re-judged candidate and cell; what is left out is null."""
    rows = list(rows)
    unknown = {name for row in rows for name in row} - set(JUDGEMENTS.names)
    if unknown:
        raise IntegrityError(f"archive: expected the columns {JUDGEMENTS.names}, got unknown {sorted(unknown)}")
    arrays = []
    for field in JUDGEMENTS:
        values = [row.get(field.name) for row in rows]
        if pa.types.is_map(field.type):
            values = [list(value.items()) if isinstance(value, Mapping) else value for value in values]
        arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=JUDGEMENTS)


def timings_table(
    run: str,
    first_generation: int,
    generations: int,
    seconds: float,
    candidates: int,
    attempts: int = 1,
    extras: str | None = None,
) -> pa.Table:
    """One row of schema `TIMINGS` for a block; the host is this one, `extras` JSON: of `hosts` that computed for it."""
    columns = {
        "run": _same(run, 1),
        "first_generation": np.array([first_generation], np.int32),
        "generations": np.array([generations], np.int32),
        "seconds": np.array([seconds], np.float64),
        "host": _same(platform.node(), 1),
        "attempts": np.array([attempts], np.int32),
        "candidates": np.array([candidates], np.int64),
        "extras": texts([extras]),
    }
    return _table(columns, TIMINGS, 1)


# --- arrays to columns ----------------------------------------------------------------------------


def _table(columns: Mapping[str, Any], schema: pa.Schema, n: int) -> pa.Table:
    arrays = []
    for field in schema:
        value = columns.get(field.name)
        if value is None:
            arrays.append(pa.nulls(n, field.type))
        else:
            arrays.append(value if isinstance(value, pa.Array) else arrow(value))
    return pa.Table.from_arrays(arrays, schema=schema)


def _same(text: str, n: int) -> pa.Array:
    return texts([text]).take(arrow(np.zeros(n, np.int32)))


def _programs(space: Space, genomes: np.ndarray) -> dict[str, pa.Array]:
    """The columns `program` (tokens) and `text` (formula) of genomes `[N, D]`; none where no program is searched."""
    parts = [(one, part) for one, part in zip(space.columns, space.slices, strict=True) if one.vocabulary is not None]
    if not parts:
        return {}
    from evometa.programs.formula import text_of

    tokens, formulas = [], []
    for one, part in parts:
        assert one.vocabulary is not None
        codes = [split(one.vocabulary, row) for row in genomes[:, part]]
        tokens.append(np.stack([code.tokens.ravel() for code in codes]))
        label = f"{one.name}: " if len(parts) > 1 else ""
        formulas.append([label + text_of(one.vocabulary, code) for code in codes])
    lines = ["\n".join(row) for row in zip(*formulas, strict=True)]
    return {"program": _lists(np.concatenate(tokens, axis=1), "program"), "text": pa.array(lines, pa.string())}


def _offsets(n: int, width: int) -> pa.Array:
    return arrow(np.arange(n + 1, dtype=np.int32) * np.int32(width))


def _lists(rows: np.ndarray, name: str) -> pa.Array:
    of = LINEAGE.field(name).type
    return pa.ListArray.from_arrays(_offsets(*rows.shape), arrow(rows.ravel()), type=of)


def _elites(fitness: np.ndarray) -> np.ndarray:
    """`[N]` bool: the best rows of each generation, from fitness `[G, P]`."""
    best = np.argsort(fitness, axis=1, kind="stable")[:, :ELITES]
    kept = np.zeros(fitness.shape, bool)
    np.put_along_axis(kept, best, True, axis=1)
    return kept.ravel()


def _some_lists(genomes: np.ndarray, kept: np.ndarray) -> pa.Array:
    """Genomes `[N, D]` where `kept`, empty lists elsewhere."""
    offsets = np.concatenate([[0], np.cumsum(kept * genomes.shape[1])]).astype(np.int32)
    of = LINEAGE.field("genome").type
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(genomes[kept].ravel(), of.value_type), type=of)


def _extras(n: int, kept: np.ndarray | None, rates: Mapping[str, Any]) -> pa.Array | None:
    """JSON by row: whether its genome is not stored, and at what rates it was made (six digits); null for neither."""
    if kept is None and not rates:
        return None
    values = {name: np.asarray(column, np.float32).reshape(n) for name, column in sorted(rates.items())}
    lines: list[str | None] = []
    for row in range(n):
        made = {name: float(f"{column[row]:.6g}") for name, column in values.items() if np.isfinite(column[row])}
        said = {**(REPLAY if kept is not None and not kept[row] else {}), **({"rates": made} if made else {})}
        lines.append(json.dumps(said) if said else None)
    return texts(lines)


def _nulls(values: np.ndarray) -> pa.Array:
    return arrow(values, np.isnan(values))


def _map(names: Sequence[str], values: np.ndarray, of: pa.DataType) -> pa.Array:
    n = len(values)
    keys = texts(names).take(arrow(np.tile(np.arange(len(names), dtype=np.int32), n)))
    return pa.MapArray.from_arrays(_offsets(n, len(names)), keys, _nulls(values.ravel()), type=of)


def _decoded(space: Space, genomes: np.ndarray) -> tuple[pa.Array, pa.Array]:
    with np.errstate(all="ignore"):  # a genome that is no number decodes to none; its fitness says why
        reals, choices = space.values(genomes)
    n = len(genomes)
    values = np.stack(list(reals.values()), 1) if reals else np.zeros((n, 0))
    columns = {column.name: column for column in space.columns}
    words: list[str] = []
    codes = np.zeros((n, len(choices)), np.int64)
    for i, (name, index) in enumerate(choices.items()):
        codes[:, i] = index + len(words)
        words += [str(choice) for choice in columns[name].choices]
    keys = texts(list(choices)).take(arrow(np.tile(np.arange(len(choices)), n)))
    values_of = texts(words).take(arrow(codes.ravel()))
    made = pa.MapArray.from_arrays(_offsets(n, len(choices)), keys, values_of, type=WORDS)
    return _map(list(reals), values, NUMBERS), made


def _parents(parents: np.ndarray) -> tuple[np.ndarray, pa.Array]:
    known = parents[:, :, 0] >= 0
    counts = known.sum(1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    pairs = parents[known]
    made = pa.StructArray.from_arrays([arrow(pairs[:, 0]), arrow(pairs[:, 1])], fields=list(PARENT))
    return counts, pa.ListArray.from_arrays(arrow(offsets), made, type=LINEAGE.field("parents").type)


def _scores(loss: np.ndarray, evaluated: np.ndarray, cells: Sequence[Cell]) -> pa.Array:
    n, width = loss.shape
    tile = arrow(np.tile(np.arange(width, dtype=np.int32), n))
    arrays = [_of_cells(cells, f.name).take(tile) for f in list(SCORE)[:4]]
    arrays.append(arrow(loss.ravel(), ~evaluated.ravel()))
    made = pa.StructArray.from_arrays(arrays, fields=list(SCORE))
    return pa.ListArray.from_arrays(_offsets(n, width), made, type=LINEAGE.field("scores").type)


def _of_cells(cells: Sequence[Cell], name: str) -> pa.Array:
    values = [getattr(cell, name) for cell in cells]
    return arrow(np.array(values, np.int32)) if name == "replicate" else texts(values)


def _mean(values: Any, evaluated: np.ndarray) -> np.ndarray:
    wide = np.where(evaluated, np.asarray(values, np.float64).reshape(evaluated.shape), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return wide.sum(1) / evaluated.sum(1)  # 0 / 0, no cell evaluated, is NaN and becomes null


def _steps(values: Any, evaluated: np.ndarray) -> pa.Array | None:
    if values is None:
        return None
    total = np.where(evaluated, np.asarray(values, np.float64).reshape(evaluated.shape), 0.0).sum(1)
    bad = ~np.isfinite(total)
    return arrow(np.where(bad, 0, np.rint(total)).astype(np.int64), bad)


def _messages(block: Block, population: int, n: int) -> pa.Array:
    if not block.messages:
        return pa.nulls(n, pa.string())
    said: list[str | None] = [None] * n
    for (generation, index), text in block.messages.items():
        said[(generation - block.first) * population + index] = text
    return texts(said)


# --- columns to arrays ----------------------------------------------------------------------------


def _genomes(table: pa.Table, n: int, dimension: int) -> np.ndarray:
    """`[N, D]`; rows of NaN where a large genome was not stored."""
    said = table["extras"].to_pylist()
    absent = np.array([text is not None and json.loads(text).get("genome") == "replay" for text in said])
    if not absent.any():
        return _rectangle(table, "genome", dimension)
    genomes = np.full((n, dimension), np.nan, np.float32)
    genomes[~absent] = _rectangle(table.filter(pa.array(~absent)), "genome", dimension)
    return genomes


def _rectangle(table: pa.Table, name: str, width: int | None) -> Any:
    lists = table[name].combine_chunks()
    lengths = np.diff(numbers(lists.offsets))
    width = (int(lengths[0]) if len(lengths) else 0) if width is None else width
    if np.any(lengths != width) or lists.null_count:
        raise IntegrityError(
            f"lineage: expected {width} numbers in every {name}, got {sorted(set(lengths.tolist()))[:4]}."
            " Was the run made with another space, strategy or task?"
        )
    return numbers(lists.flatten()).reshape(len(lists), width)


def _losses(table: pa.Table, cells: Sequence[Cell], n: int) -> tuple[Any, Any]:
    lists = table["scores"].combine_chunks()
    flat = lists.flatten()
    wrong = np.any(np.diff(numbers(lists.offsets)) != len(cells))
    tile = arrow(np.tile(np.arange(len(cells), dtype=np.int32), n))
    for f in list(SCORE)[:4]:
        if wrong:
            break
        wrong = not flat.field(f.name).equals(_of_cells(cells, f.name).take(tile))
    if wrong:
        raise IntegrityError(
            f"lineage: expected the {len(cells)} cells of this task in every row, got others."
            " Was the run made with other domains, queries or replicates?"
        )
    loss = flat.field("loss")
    evaluated = numbers(loss.is_valid())
    values = np.where(evaluated, numbers(loss), np.float32(np.nan))
    return values.reshape(n, len(cells)), evaluated.reshape(n, len(cells))


def _parent_slots(table: pa.Table, n: int, slots: int) -> np.ndarray:
    lists = table["parents"].combine_chunks()
    offsets = numbers(lists.offsets)
    counts = np.diff(offsets)
    slots = max(slots, int(counts.max(initial=0)))
    flat = lists.flatten()
    parents = np.full((n, slots, 2), -1, np.int32)
    row = np.repeat(np.arange(n), counts)
    slot = np.arange(len(flat)) - np.repeat(offsets[:-1] - offsets[0], counts)
    parents[row, slot, 0] = numbers(flat.field("generation"))
    parents[row, slot, 1] = numbers(flat.field("index"))
    return parents
