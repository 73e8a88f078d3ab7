"""Blocks become rows and come back, and the rows read everywhere."""

from __future__ import annotations

import glob
import hashlib

import numpy as np
import pyarrow as pa
import pytest
from archive_samples import OPERATORS, OTHER_SPACE, SEED, SPACE, make_block, make_cells, make_run, make_table
from hypothesis import given, settings
from hypothesis import strategies as st

from evometa.archives import rows, schema
from evometa.archives.read import to_dicts
from evometa.errors import IntegrityError
from evometa.space import Space, real, weights
from evometa.types import Failure

ARRAYS = ("loss", "evaluated", "fitness", "descriptor", "failure")


def same_bits(left, right) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def test_schema_digest_is_pinned():
    # Within a major version types are frozen. A new nullable column changes this number, and the minor version.
    assert schema.FORMAT == "1.0"
    assert schema.digest().startswith("e426226347a30fff")


@settings(max_examples=40, deadline=None)
@given(
    first=st.integers(0, 10**6),
    generations=st.integers(1, 4),
    population=st.integers(2, 12),
    cells=st.integers(1, 7),
    slots=st.integers(1, 5),
    objectives=st.integers(1, 3),
)
def test_a_block_comes_back_bit_for_bit(first, generations, population, cells, slots, objectives):
    block = make_block(first, generations, population, cells, slots, objectives=objectives)
    table = make_table(block)
    assert table.schema.equals(schema.LINEAGE, check_metadata=True)
    table.validate(full=True)
    back = rows.block_from_table(table, make_cells(cells), SPACE.dimension, objectives, slots)
    assert back.first == first and back.messages == block.messages
    assert same_bits(back.genomes, block.genomes) and same_bits(back.parents, block.parents)
    assert all(same_bits(getattr(back.scores, name), getattr(block.scores, name)) for name in ARRAYS)


def test_odd_numbers_survive():
    block = make_block(3)
    block.scores.loss[0, 2] = [np.inf, -np.inf, -0.0, 1e-45, 3.4e38, np.nan]
    block.genomes[0, 0] = np.float32([np.nan, np.inf, -0.0, 1e-45, 0.1, 0.2, 0.3, 0.4])
    back = rows.block_from_table(make_table(block), make_cells(6), SPACE.dimension, 1)
    assert same_bits(back.scores.loss, block.scores.loss) and same_bits(back.genomes, block.genomes)


def test_what_a_row_says():
    table = make_table(make_block(5))
    row = to_dicts(table)[2]
    numbers, choices = SPACE.values(make_block(5).genomes[0])
    assert (row["run"], row["generation"], row["index"], row["phase"], row["level"]) == ("x", 5, 2, "search", 0)
    assert row["params"] == {name: float(values[2]) for name, values in numbers.items()}
    assert row["choices"] == {"act": ("relu", "tanh", "gelu")[choices["act"][2]]}
    assert row["seed"] == list(rows.seed_words(SEED)) == [7, 5]
    assert row["inner_steps"] == 300 and row["metrics"]["inner_steps"] == 50
    assert row["support_loss"] == pytest.approx(row["metrics"]["support_loss"])
    assert row["operator"] == "crossover" and len(row["parents"]) == 2
    assert [to_dicts(table)[i]["operator"] for i in (0, 3)] == ["mutation", "mutation"]
    assert to_dicts(make_table(make_block(0)))[0]["operator"] == OPERATORS[0]
    assert to_dicts(table)[1]["failure"] == "nonfinite" and to_dicts(table)[1]["fitness"] == np.inf
    assert to_dicts(table)[1]["message"] == "loss is NaN"
    assert row["failure"] == "ok" and row["message"] is None


def test_a_cell_left_out_is_null_and_one_that_failed_is_nan():
    losses = [score["loss"] for score in to_dicts(make_table(make_block(5)))[0]["scores"]]
    assert losses[-1] is None and losses[0] is not None
    assert np.isnan(to_dicts(make_table(make_block(5)))[1]["scores"][0]["loss"])


def test_means_skip_what_was_not_evaluated():
    block = make_block(5)
    mean = np.nanmean(block.scores.metrics["accuracy"][0, 0].astype(np.float64))
    assert to_dicts(make_table(block))[0]["metrics"]["accuracy"] == pytest.approx(mean, rel=1e-12)
    block.scores.evaluated[:] = False
    row = to_dicts(make_table(block))[0]
    assert row["metrics"]["accuracy"] is None and row["support_loss"] is None and row["inner_steps"] == 0


def test_equal_blocks_cut_differently_give_equal_rows():
    whole = make_table(make_block(4, 3))
    pieces = pa.concat_tables([make_table(make_block(4 + g)) for g in range(3)]).combine_chunks()
    assert (
        hashlib.sha256(str(whole.to_pylist()).encode()).digest()
        == hashlib.sha256(str(pieces.to_pylist()).encode()).digest()
    )


@pytest.mark.parametrize("text", ["", "two\nlines", "é 日本 \U0001f9ec", "\udcff broken", "a\0b"])
def test_a_message_may_hold_anything(text):
    block = make_block(1)._replace(messages={(1, 0): text})
    back = rows.block_from_table(make_table(block), make_cells(6), SPACE.dimension, 1)
    assert back.messages == {(1, 0): text.encode(errors="replace").decode()}


def test_every_failure_has_a_name():
    block = make_block(2, population=len(Failure))
    block.scores.failure[0] = list(Failure)
    table = make_table(block)
    assert table["failure"].to_pylist() == [failure.name.lower() for failure in Failure]
    assert same_bits(
        rows.block_from_table(table, make_cells(6), SPACE.dimension, 1).scores.failure, block.scores.failure
    )


@pytest.mark.parametrize("space", [Space({"x": real(0, 1)}), Space({"w": weights((2, 3))})], ids=["numbers", "weights"])
def test_spaces_without_choices_or_without_numbers(space):
    block = make_block(1, dimension=space.dimension)
    back = rows.block_from_table(make_table(block, space=space), make_cells(6), space.dimension, 1)
    assert same_bits(back.genomes, block.genomes)


@pytest.mark.parametrize(
    ("cells", "dimension", "objectives", "words"),
    [(5, 8, 1, "cells"), (6, 7, 1, "genome"), (6, 8, 2, "objectives")],
)
def test_rows_of_another_task_are_refused(cells, dimension, objectives, words):
    with pytest.raises(IntegrityError, match=words):
        rows.block_from_table(make_table(make_block(1)), make_cells(cells), dimension, objectives)


def test_incomplete_generations_are_refused():
    for table in (make_table(make_block(1, 2)).slice(0, 9), make_table(make_block(1)).slice(0, 0)):
        with pytest.raises(IntegrityError, match="expected"):
            rows.block_from_table(table, make_cells(6), SPACE.dimension, 1)


def test_judgements_and_timings():
    table = rows.judgements_table([{"run": "x", "opening": 0, "params": {"lr": 0.1}, "loss": 0.5, "seed": [0, 1]}])
    assert table.schema.equals(schema.JUDGEMENTS) and to_dicts(table)[0]["params"] == {"lr": 0.1}
    assert to_dicts(table)[0]["index"] is None
    assert rows.timings_table("x", 0, 2, 1.5, 16)["seconds"].to_pylist() == [1.5]
    with pytest.raises(IntegrityError, match="lss"):
        rows.judgements_table([{"lss": 1}])


# --- one glob over the runs of different tasks ------------------------------------------------------


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("readers")
    make_run(root / "runs", "one")
    make_run(root / "runs", "two", space=OTHER_SPACE, cells=9)
    return root


EXPECTED_ROWS = 2 * 4 * 2 * 8


def best(two_runs):
    pairs = []
    for name, space in (("one", SPACE), ("two", OTHER_SPACE)):
        for part in sorted((two_runs / "runs" / name / "lineage").iterdir()):
            block = make_block(int(part.name[5:14]), 2, cells=6 if name == "one" else 9, dimension=space.dimension)
            numbers = space.values(block.genomes.reshape(16, -1))[0]["lr"]
            pairs += zip(numbers.tolist(), block.scores.fitness.ravel().tolist(), strict=True)
    return sorted(pairs, key=lambda pair: pair[1])[:3]


def test_duckdb_reads_the_glob(two_runs, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(two_runs)
    found = duckdb.sql("SELECT params.lr, fitness FROM 'runs/*/lineage/*.parquet' ORDER BY fitness LIMIT 3").fetchall()
    assert found == best(two_runs)
    assert duckdb.sql("SELECT count(*) FROM 'runs/*/lineage/*.parquet'").fetchall() == [(EXPECTED_ROWS,)]


def test_polars_reads_the_glob(two_runs, monkeypatch):
    pl = pytest.importorskip("polars")
    monkeypatch.chdir(two_runs)
    frame = pl.read_parquet("runs/*/lineage/*.parquet")
    found = frame.select(pl.col("params").map.get("lr"), "fitness").sort("fitness").head(3)
    assert found.rows() == best(two_runs) and frame.height == EXPECTED_ROWS


def test_pandas_reads_the_glob(two_runs, monkeypatch):
    pd = pytest.importorskip("pandas")
    monkeypatch.chdir(two_runs)
    frame = pd.read_parquet(glob.glob("runs/*/lineage/*.parquet"))
    found = frame.assign(lr=frame.params.map(dict).str["lr"]).nsmallest(3, "fitness")[["lr", "fitness"]]
    assert list(found.itertuples(index=False, name=None)) == best(two_runs) and len(frame) == EXPECTED_ROWS


def test_pyarrow_reads_the_glob(two_runs, monkeypatch):
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    monkeypatch.chdir(two_runs)
    data = ds.dataset(glob.glob("runs/*/lineage/*.parquet"))
    columns = {"lr": pc.map_lookup(ds.field("params"), "lr", "first"), "fitness": ds.field("fitness")}
    found = data.to_table(columns).sort_by("fitness").slice(0, 3).to_pydict()
    assert list(zip(found["lr"], found["fitness"], strict=True)) == best(two_runs)
    assert data.count_rows() == EXPECTED_ROWS
