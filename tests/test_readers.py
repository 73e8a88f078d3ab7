"""Runs of different tasks in one folder, read by anybody with one line: that maps and lists stay readable (design, section 6).

What single readers make of every column is in test_archives_rows.py; here are real runs, searched and judged.
"""

from __future__ import annotations

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

pytest_plugins = ["shared"]

GLOB = "runs/*/lineage/*.parquet"
ROWS = {"ridge": 96, "plain": 40, "static": 16}


@pytest.fixture(autouse=True)
def here(finished, monkeypatch):
    monkeypatch.chdir(finished)


def test_duckdb():
    rows = duckdb.sql(f"SELECT run, count(*), min(fitness), max(params.x) FROM '{GLOB}' GROUP BY run").fetchall()
    assert {row[0]: row[1] for row in rows} == ROWS
    assert {row[0]: row[3] is None for row in rows} == {"ridge": True, "plain": False, "static": False}


def test_polars():
    table = pl.read_parquet(GLOB)
    assert dict(table.group_by("run").len().iter_rows()) == ROWS


def test_pandas():
    table = pd.concat(map(pd.read_parquet, sorted(__import__("glob").glob(GLOB))))
    assert table.groupby("run").size().to_dict() == ROWS
    assert table["fitness"].notna().all()


def test_pyarrow():
    import glob

    table = ds.dataset(sorted(glob.glob(GLOB))).to_table(columns=["run", "params", "choices", "scores"])
    assert {name: table["run"].to_pylist().count(name) for name in ROWS} == ROWS


def test_judgements_and_timings_of_all_runs():
    judged = duckdb.sql("SELECT run, label, avg(loss) FROM 'runs/*/judgements/*.parquet' GROUP BY ALL").fetchall()
    assert {(run, label) for run, label, _ in judged} >= {
        (run, label) for run in ROWS for label in ("recommendation", "baseline")
    }
    seconds = duckdb.sql(
        "SELECT run, sum(candidates), sum(seconds) FROM 'runs/*/timings/*.parquet' GROUP BY run"
    ).fetchall()
    assert {run: count for run, count, _ in seconds} == ROWS and all(spent > 0 for *_, spent in seconds)
