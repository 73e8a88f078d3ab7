"""The lineage in other people's formats, read back by what reads them."""

from __future__ import annotations

import csv
import io
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from archive_samples import make_run
from helpers import cli

from evometa.archives.compact import compact
from evometa.archives.export import export
from evometa.archives.read import Archive, to_dicts
from evometa.errors import UsageError


@pytest.fixture(scope="module", params=["small parts", "compacted"])
def run(request, tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs"), blocks=4, generations=2)
    if request.param == "compacted":
        compact(run)
    return run


def written(run, form):
    out = io.StringIO()
    assert export(run, form, out) == 64
    return out.getvalue()


def test_csv(run):
    table = pd.read_csv(io.StringIO(written(run, "csv")))
    rows = Archive(run).table().to_pylist()
    assert len(table) == 64 and table["generation"].tolist() == [row["generation"] for row in rows]
    np.testing.assert_array_equal(table["fitness"], [row["fitness"] for row in rows])
    for at in (0, 9, 63):
        assert table["params.lr"][at] == dict(rows[at]["params"])["lr"]
        assert table["choices.act"][at] == dict(rows[at]["choices"])["act"]
        assert np.float32(json.loads(table["genome"][at])).tobytes() == np.float32(rows[at]["genome"]).tobytes()
        assert json.loads(table["parents"][at]) == rows[at]["parents"]


def test_a_text_in_csv_is_no_formula(run, monkeypatch):
    """What somebody else's lineage says must not run in whatever opens the file."""
    monkeypatch.setattr(
        "evometa.archives.export.to_dicts", lambda table: [r | {"message": "=1+2"} for r in to_dicts(table)]
    )
    table = pd.read_csv(io.StringIO(written(run, "csv")))
    assert set(table["message"]) == {"'=1+2"}


def test_json_lines(run):
    rows = [json.loads(line) for line in written(run, "json").splitlines()]
    expected = Archive(run).table().to_pylist()
    assert [row["index"] for row in rows] == [row["index"] for row in expected]
    assert rows[1]["fitness"] is None and math.isinf(expected[1]["fitness"]), "JSON has no infinity"
    assert rows[9]["params"] == dict(expected[9]["params"]) and rows[9]["parents"] == expected[9]["parents"]


def test_alife(run):
    """The standard: ids are integers, ancestor lists are JSON but for those of no ancestor, parents come before."""
    rows = list(csv.DictReader(io.StringIO(written(run, "alife"))))
    expected = Archive(run).table().to_pylist()
    place = {(row["generation"], row["index"]): at for at, row in enumerate(expected)}
    for at, (row, original) in enumerate(zip(rows, expected, strict=True)):
        assert int(row["id"]) == at and int(row["origin_time"]) == original["generation"]
        parents = [place[parent["generation"], parent["index"]] for parent in original["parents"]]
        assert row["ancestor_list"] == ("[NONE]" if not parents else json.dumps(parents, separators=(",", ":")))
        assert all(parent < at for parent in parents) and row["operator"] == original["operator"]


def parse_newick(text):
    """Child -> parent by name, and the branch lengths; names are quoted."""
    parent, length, stack, last = {}, {}, [[]], []
    for token in re.findall(r"\(|\)|,|;|'[^']*':\d+", text):
        if token == "(":
            stack.append([])
        elif token == ")":
            last = stack.pop()
        elif token not in ",;":
            name, _, far = token.rpartition(":")
            parent |= dict.fromkeys(last, name)
            length[name] = int(far)
            stack[-1].append(name)
            last = []
    return parent | dict.fromkeys(last, None), length


def test_newick(run):
    text = written(run, "newick")
    assert text.count("(") == text.count(")") and text.endswith(";\n")
    parent, length = parse_newick(text)
    rows = Archive(run).table(["generation", "index", "parents"]).to_pylist()
    assert len(parent) == 64
    for row in rows:
        name = f"'{row['generation']}:{row['index']}'"
        first = row["parents"][0] if row["parents"] else None
        assert parent[name] == (first and f"'{first['generation']}:{first['index']}'")
        assert length[name] == row["generation"] - (first["generation"] if first else -1)


def test_a_deep_tree(tmp_path):
    """A line is deeper than Python's own stack."""
    run = make_run(tmp_path, blocks=1, generations=1500, population=2, cells=1, parents=1)
    out = io.StringIO()
    assert export(run, "newick", out) == 3000 and len(parse_newick(out.getvalue())[0]) == 3000


def test_delta(run, tmp_path):
    deltalake = pytest.importorskip("deltalake")
    assert export(run, "delta", tmp_path / "table") == 64
    table = deltalake.DeltaTable(tmp_path / "table").to_pyarrow_table(
        columns=["generation", "index", "fitness", "params"]
    )
    table = table.sort_by([("generation", "ascending"), ("index", "ascending")])  # a table's files have no order
    expected = Archive(run).table(["generation", "index", "fitness", "params"])
    for name in ("generation", "index", "fitness"):
        np.testing.assert_array_equal(table[name], expected[name])
    assert list(map(dict, table["params"].to_pylist())) == list(map(dict, expected["params"].to_pylist()))
    with pytest.raises(UsageError, match="exists"):
        export(run, "delta", tmp_path / "table")


def test_an_archive_without_rows(tmp_path):
    run = make_run(tmp_path, blocks=0)
    for form, text in (("json", ""), ("newick", ";\n")):
        out = io.StringIO()
        assert export(run, form, out) == 0 and out.getvalue() == text
    for form in ("csv", "alife"):
        out = io.StringIO()
        assert export(run, form, out) == 0 and len(out.getvalue().splitlines()) == 1


def test_the_command(run, tmp_path):
    to = tmp_path / "out.csv"
    said = cli("archive", "export", str(run), "--csv", "--to", str(to), "--json")
    assert said.code == 0 and said.data == {"form": "csv", "to": str(to), "rows": 64}
    assert to.read_text() == written(run, "csv") and [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert cli("archive", "export", str(run), "--csv", "--to", str(to)).code == 2, "nothing is written over"
    assert cli("archive", "export", str(run), "--newick").out == written(run, "newick")
    assert len(cli("archive", "export", str(run), "--json").out.splitlines()) == 64
    assert cli("archive", "export", str(run)).code == 2
    assert cli("archive", "export", str(run), "--csv", "--alife").code == 2
    assert cli("archive", "export", str(run), "--delta").code == 2
