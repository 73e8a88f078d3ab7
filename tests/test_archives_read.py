"""Reading an archive: rows, the best, ancestors, SQL, and whether two archives are equal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from archive_samples import OTHER_SPACE, make_block, make_run, make_table

from evometa.archives import query, rows, schema, write
from evometa.archives.read import Archive, list_parts
from evometa.errors import ConfigError, IntegrityError, NotFound, UsageError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs"), blocks=5, generations=3)
    cells = [{"run": "x", "opening": 0, "phase": "validation", "domain": f"d{i}", "loss": i / 2} for i in range(3)]
    write.commit(run / "judgements", rows.judgements_table(cells), 0)
    write.commit(run / "timings", rows.timings_table("x", 0, 3, 1.5, 24), 0)
    return run


@pytest.fixture(scope="module")
def blocks():
    return [make_block(3 * number, 3) for number in range(5)]


# --- the archive --------------------------------------------------------------------------------------


def test_the_table_is_sorted_and_whole(run):
    table = Archive(run).table()
    assert table.schema.equals(schema.LINEAGE) and len(table) == 15 * 8
    assert table["generation"].to_pylist() == [g for g in range(15) for _ in range(8)]
    assert table["index"].to_pylist() == list(range(8)) * 15
    assert Archive(run).generations() == 15


def test_some_columns(run):
    assert Archive(run).table(["fitness", "run"]).column_names == ["fitness", "run"]
    with pytest.raises(NotFound, match='Did you mean "fitness"'):
        Archive(run).table(["fitnes"])


def test_a_row(run, blocks):
    row = Archive(run).row(7, 3)
    assert (row["generation"], row["index"]) == (7, 3) and isinstance(row["params"], dict)
    assert np.float32(row["genome"]).tobytes() == blocks[2].genomes[1, 3].tobytes()
    for missing in ((7, 8), (15, 0), (-1, 0)):
        with pytest.raises(NotFound, match="archive ls"):
            Archive(run).row(*missing)


def test_the_best_come_first_and_failures_last(run, blocks):
    every = sorted(
        (float(block.scores.fitness[g, i, 0]), block.first + g, i)
        for block in blocks
        for g in range(3)
        for i in range(8)
    )
    for k in (0, 1, 10, 120, 500):
        top = [(row["fitness"], row["generation"], row["index"]) for row in Archive(run).top(k)]
        assert top == every[:k]


def test_ties_go_to_the_earlier(tmp_path):
    run = tmp_path / "x"
    for number in range(3):
        block = make_block(number)
        block.scores.fitness[:] = 0.5
        write.commit(run / "lineage", make_table(block), number)
    assert [(row["generation"], row["index"]) for row in Archive(run).top(9)] == [(0, i) for i in range(8)] + [(1, 0)]


def slow_ancestry(blocks, generation, index, depth):
    parents = {
        (block.first + g, i): [tuple(int(n) for n in pair) for pair in block.parents[g, i] if pair[0] >= 0]
        for block in blocks
        for g in range(3)
        for i in range(8)
    }
    nodes, edges, frontier = {(generation, index)}, [], [(generation, index)]
    while frontier and depth != 0:
        following = set()
        for child in frontier:
            edges += [(child, parent) for parent in parents[child]]
            following |= {parent for parent in parents[child] if parent not in nodes}
        nodes |= following
        frontier, depth = sorted(following), None if depth is None else depth - 1
    return nodes, sorted(edges)


@pytest.mark.parametrize("depth", [None, 0, 1, 2, 5])
@pytest.mark.parametrize("start", [(14, 5), (9, 0), (0, 3)])
def test_ancestry(run, blocks, start, depth):
    found = Archive(run).ancestry(*start, depth=depth)
    nodes, edges = slow_ancestry(blocks, *start, depth)
    assert {(node["generation"], node["index"]) for node in found["nodes"]} == nodes
    assert sorted((tuple(edge["child"]), tuple(edge["parent"])) for edge in found["edges"]) == edges
    first = found["nodes"][0]
    row = Archive(run).row(*start)
    assert (first["generation"], first["index"], first["fitness"], first["operator"]) == (
        *start,
        row["fitness"],
        row["operator"],
    )
    assert len(found["nodes"]) == len(nodes)


def test_ancestry_of_nobody(run):
    with pytest.raises(NotFound, match="99:0"):
        Archive(run).ancestry(99, 0)


def test_a_block(run):
    assert Archive(run).block(6)["generation"].to_pylist() == [6] * 8 + [7] * 8 + [8] * 8
    with pytest.raises(NotFound, match="generation 7"):
        Archive(run).block(7)


def test_scores_are_long(run, blocks):
    scores = Archive(run).scores()
    assert len(scores) == 120 * 6 and scores.column_names[:4] == ["generation", "index", "domain", "query"]
    losses = scores["loss"].combine_chunks()
    flat = np.concatenate([block.scores.loss.ravel() for block in blocks])
    evaluated = np.concatenate([block.scores.evaluated.ravel() for block in blocks])
    assert losses.is_valid().to_numpy(zero_copy_only=False).tolist() == evaluated.tolist()
    np.testing.assert_array_equal(losses.drop_null().to_numpy(), flat[evaluated])


def test_judgements_and_timings(run, tmp_path):
    assert Archive(run).judgements()["domain"].to_pylist() == ["d0", "d1", "d2"]
    assert Archive(run).timings()["seconds"].to_pylist() == [1.5]
    bare = make_run(tmp_path, blocks=0)
    assert len(Archive(bare).judgements()) == len(Archive(bare).table()) == Archive(bare).generations() == 0
    assert Archive(bare).top(3) == [] and Archive(bare).scores().num_rows == 0


def test_no_such_run(run):
    with pytest.raises(NotFound, match='Did you mean "x"'):
        Archive(run.parent / "xx")


def test_a_later_format_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"format": "2.0"}')
    with pytest.raises(ConfigError, match="2.0"):
        Archive(tmp_path)


def test_columns_of_other_minor_versions(tmp_path):
    table = make_table(make_block(0))
    later = table.append_column("novelty", pa.array(np.zeros(len(table))))
    write.commit(tmp_path / "lineage", later.drop_columns(["extras"]), 0)
    assert Archive(tmp_path).table().schema.names == schema.LINEAGE.names
    assert Archive(tmp_path).row(0, 0)["extras"] is None


def test_new_parts_are_seen_while_a_run_is_writing(tmp_path):
    run = make_run(tmp_path, blocks=1, generations=1)
    archive = Archive(run)
    assert (archive.generations(), len(archive.top(99))) == (1, 8)
    write.commit(run / "lineage", make_table(make_block(1)), 1)
    assert (archive.generations(), len(archive.top(99))) == (2, 16)
    assert len(archive.ancestry(1, 0, depth=1)["nodes"]) > 1


def test_overlapping_parts_never_double_a_row(tmp_path):
    run = make_run(tmp_path, blocks=2, generations=2)
    write.commit(run / "lineage", make_table(make_block(1, 3)), 1)
    archive = Archive(run)
    assert len(archive.table()) == 32 and len(archive.top(99)) == 32
    assert len(query.query(run, "SELECT DISTINCT generation, index FROM lineage")) == 32


def test_a_missing_part_is_named_while_reading(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "x")
    part = list_parts(copy / "lineage")[2]
    part.path.unlink()
    with pytest.raises(IntegrityError, match=part.path.name):
        part.read()


# --- SQL ----------------------------------------------------------------------------------------------


def test_a_select(run):
    best = Archive(run).top(2)
    found = query.query(run, "SELECT params.lr, fitness FROM lineage ORDER BY fitness LIMIT 2")
    assert found == [{"lr": row["params"]["lr"], "fitness": row["fitness"]} for row in best]


def test_views(run):
    assert query.query(run, "SELECT count(*) AS n FROM scores WHERE loss IS NULL")[0]["n"] == 15 * 2
    assert query.query(run, "SELECT sum(loss) AS n FROM judgements")[0]["n"] == 1.5
    assert query.query(run, "SELECT seconds FROM timings") == [{"seconds": 1.5}]
    joined = "SELECT count(*) AS n FROM lineage JOIN scores USING (generation, index) WHERE failure = 'ok'"
    assert query.query(run, joined)[0]["n"] == 15 * 7 * 6


def test_sums_and_decimals_are_numbers(run):
    """SQL adds integers up to a type that Python reads as Decimal, which JSON does not know."""
    (row,) = query.query(
        run,
        "SELECT sum(index) AS n, max(generation)::hugeint AS h, 1.25 AS x, 2.00 AS y, [1.5, NULL] AS l,"
        " {'a': 2.5} AS s, map {'k': sum(index)} AS m, [map {'k': 0.5}] AS deep, NULL::decimal(5, 0) AS none"
        " FROM lineage",
    )
    total = 15 * sum(range(8))
    expected = {"n": total, "h": 14, "x": 1.25, "y": 2.0, "l": [1.5, None], "s": {"a": 2.5}, "m": {"k": total}}
    assert row == expected | {"deep": [[("k", 0.5)]], "none": None}
    assert [type(row[name]) for name in ("n", "h", "x", "y")] == [int, int, float, float]
    assert json.loads(json.dumps(row))["n"] == total


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM lineage",
        "FROM lineage",
        "SELECT l FROM lineage l",
        "SELECT lineage FROM lineage",
        "SELECT COLUMNS('.*') FROM lineage",
        "SELECT a FROM lineage AS t(a)",
        "SELECT run, seed FROM query_table('lineage')",
        "WITH t AS (SELECT * FROM lineage) SELECT level FROM t",
        "SELECT Generation, INDEX FROM Lineage",
        "SELECT (SELECT max(fitness) FROM lineage) AS worst",
        "DESCRIBE lineage",
        "SELECT count(*) FROM lineage NATURAL JOIN lineage b",
        "SELECT s.loss FROM (SELECT unnest(scores) AS s FROM lineage)",
        "UNPIVOT (SELECT generation, index, level FROM lineage) ON level",
    ],
)
def test_reading_fewer_columns_changes_no_answer(run, sql, monkeypatch):
    found = str(query.query(run, sql))
    monkeypatch.setattr(query, "_columns", lambda tree: schema.LINEAGE.names)
    assert found == str(query.query(run, sql)) and len(found) > 2


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "SELECT 1; SELECT 2",
        "COPY lineage TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{folder}/out.parquet'",
        "ATTACH '{folder}/out.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA version",
        "CALL pragma_version()",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW lineage",
        "DELETE FROM lineage",
        "UPDATE lineage SET fitness = 0",
        "INSERT INTO lineage SELECT * FROM lineage",
        "EXPORT DATABASE '{folder}'",
        "EXPLAIN ANALYZE SELECT 1",
        "SELECT 1; COPY lineage TO '{folder}/out.csv'",
        "selct 1",
        "SELECT * FROM read_text('{folder}/secret.txt')",
        "SELECT * FROM read_csv('{folder}/secret.txt')",
        "SELECT * FROM read_blob('{folder}/*')",
        "SELECT * FROM read_parquet('{run}/lineage/*.parquet')",
        "SELECT * FROM '{run}/lineage/*.parquet'",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM parquet_metadata('{run}/lineage/*.parquet')",
        "SELECT * FROM sniff_csv('{folder}/secret.txt')",
        "SELECT * FROM query('COPY lineage TO ''{folder}/out.csv''')",
        "SELECT * FROM 'https://example.org/x.parquet'",
        "SELECT * FROM python_table",
        "SELECT nope FROM lineage",
        "SELECT getenv('HOME')",
    ],
)
def test_anything_else_is_refused(run, tmp_path, sql):
    python_table = pa.table({"a": [1]})
    (tmp_path / "secret.txt").write_text("secret")
    with pytest.raises(UsageError, match="query: ") as caught:
        query.query(run, sql.format(folder=tmp_path, run=run))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"] and len(python_table) == 1


# --- content ------------------------------------------------------------------------------------------


def test_the_content_digest_ignores_cuts_and_names(tmp_path):
    one = make_run(tmp_path / "a", blocks=6, generations=1)
    two = make_run(tmp_path / "b", blocks=2, generations=3)
    three = make_run(tmp_path / "c", "other", blocks=1, generations=6)
    assert query.content_digest(one) == query.content_digest(two) == query.content_digest(three)


def test_the_content_digest_sees_every_column(tmp_path):
    table = make_table(make_block(2))
    seen = set()
    for name in ["run", *schema.LINEAGE.names]:
        changed = table
        if name != "run":
            at = schema.LINEAGE.names.index(name)
            order = pa.array([*range(1, len(table)), 0])
            column = table[name].take(order)
            if column.null_count == len(table):
                column = pa.array(["text" if pa.types.is_string(column.type) else [1]] * len(table), column.type)
            elif len(set(map(str, column.to_pylist()))) == 1:
                # A row has a generation, or it is refused.
                column = (
                    pa.nulls(len(table), column.type)
                    if name != "generation"
                    else pa.array([7] * len(table), column.type)
                )
            changed = table.set_column(at, schema.LINEAGE.field(at), column)
        folder = tmp_path / f"{len(seen)}"
        write.commit(folder / "lineage", changed, 2)
        seen.add(query.content_digest(folder))
    assert len(seen) == len(schema.LINEAGE.names)


def test_the_content_digest_differs_for_other_spaces(tmp_path):
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b", space=OTHER_SPACE)
    assert query.content_digest(one) != query.content_digest(two)


ALL_BUT_SQL = """
import sys
from archive_samples import make_block, make_cells, make_table, rows, write
from evometa.archives import query  # DuckDB brings pandas, but only when it is asked something
from evometa.archives.check import check
from evometa.archives.read import Archive

archive = Archive(sys.argv[1])
archive.top(3), archive.ancestry(9, 2), archive.row(5, 5), archive.scores(), archive.judgements()
check(sys.argv[1]), query.content_digest(sys.argv[1])
table = make_table(make_block(3))
write.encode(table)
rows.block_from_table(table, make_cells(6), 8, 1)
print(sorted({"pandas", "jax", "polars"} & set(sys.modules)))
"""


def test_nothing_imports_pandas_or_jax(run):
    """Half a second each: `archive top` would be slower for the import than for a million rows."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    command = [sys.executable, "-c", ALL_BUT_SQL, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_benchmark_runs(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "archive.py"
    done = subprocess.run([sys.executable, script, "--quick", "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "archive.csv").read_text().splitlines()
    assert lines[0] == "measure,rows_there,value,unit" and len(lines) > 30
