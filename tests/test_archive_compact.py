"""Merged parts: the same rows for everybody, read in pieces that are verified, and a run that goes on."""

from __future__ import annotations

import csv
import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_samples import make_block, make_run, make_table
from helpers import cli

from evometa import checkpoint, folder, upkeep
from evometa.archives import compact, events, index, query, rows, stored, write
from evometa.archives.check import check
from evometa.archives.part import Part, list_parts
from evometa.archives.read import Archive
from evometa.errors import EvometaError, IntegrityError

pytest_plugins = ["shared"]
BLOCKS, GENERATIONS = 24, 2


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("small"), blocks=BLOCKS, generations=GENERATIONS)
    for first in range(0, BLOCKS * GENERATIONS, GENERATIONS):
        write.commit(run / "timings", rows.timings_table("x", first, GENERATIONS, 0.5, 16), first)
    meta = {"spec_digest": "s", "last_part": list_parts(run / "lineage")[-1].name}
    checkpoint.save(run, BLOCKS * GENERATIONS, {"mean": rows.np.zeros(3)}, meta)
    return run


@pytest.fixture
def run(small, tmp_path):
    return shutil.copytree(small, tmp_path / "x")


@pytest.fixture(scope="module")
def merged(small, tmp_path_factory):
    """Parts of 100 rows, row groups of about 30."""
    run = shutil.copytree(small, tmp_path_factory.mktemp("merged") / "x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compact, "GROUP", 30)
        compact.compact(run, rows=100)
    return run


def names(run, table="lineage"):
    return [part.name for part in list_parts(run / table)]


def answers(run):
    """What an archive says when it is asked everything."""
    archive = Archive(run)
    last = BLOCKS * GENERATIONS - 1
    said = (
        query.content_digest(run),
        [archive.top(k) for k in (1, 7, 400)],
        [archive.ancestry(last, i, depth) for i in range(8) for depth in (None, 3)],
        [archive.ancestry(last, i, by_generation=True) for i in range(8)],
        [archive.row(g, 3) for g in (0, 17, last)],
        (archive.generations(), archive.timings().to_pylist(), str(archive.scores())),
        query.query(run, "SELECT generation, count(*), min(fitness) FROM lineage GROUP BY 1 ORDER BY 1"),
    )
    return [str(answer) for answer in said]  # a NaN is not equal to itself


def test_every_answer_stays_what_it_was(small, merged):
    assert answers(small) == answers(merged)
    assert len(names(small)) == BLOCKS and len(names(merged)) == 4 and len(names(merged, "timings")) == 1
    assert check(merged).problems == [] and check(merged).rows == BLOCKS * GENERATIONS * 8
    assert all(part.index and part.index.groups >= 3 for part in list_parts(merged / "lineage"))
    kinds = [entry["kind"] for entry in events.read(merged)]
    assert kinds == ["compacting", "compacting", "compacted"]


def test_a_line_by_generation(small):
    found = Archive(small).ancestry(5, 2, by_generation=True)
    best = query.query(small, "SELECT generation, min(fitness) AS f FROM lineage WHERE generation < 5 GROUP BY 1")
    assert [(n["generation"], n["fitness"]) for n in found["nodes"][1:]] == [
        (row["generation"], row["f"]) for row in sorted(best, key=lambda row: -row["generation"])
    ]
    assert (found["nodes"][0]["generation"], found["nodes"][0]["index"]) == (5, 2) and len(found["edges"]) == 5


def test_merging_again_and_growing(run):
    before = query.content_digest(run)
    assert compact.compact(run, rows=100).files == 4
    assert compact.compact(run, rows=100) == (4, 4, 384, *[compact._bytes(run / "lineage")] * 2, compact._aside(run))
    first = names(run)
    write.commit(run / "lineage", make_table(make_block(BLOCKS * GENERATIONS, 2)), BLOCKS * GENERATIONS)
    assert compact.compact(run, rows=1000).files == 1
    assert names(run) != first and check(run).problems == []
    assert query.content_digest(run) != before and len(Archive(run).table(["fitness"])) == 400
    meta = checkpoint.load(run, {"mean": rows.np.zeros(3)}, spec_digest="s")[2]
    assert stored.standing(run, meta["last_part"]) == names(run)[0], (
        "what a checkpoint names is found through two merges"
    )
    assert stored.standing(run, first[0]) is None, "a part that no checkpoint named"


def test_a_dry_run_changes_nothing(run):
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    assert compact.compact(run, rows=100, dry_run=True)[:2] == (BLOCKS, 4)
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before


def test_superseded_parts_stay_aside_for_a_while(run, monkeypatch):
    old = names(run)
    done = compact.compact(run)
    (aside,) = [path for path in run.glob(".compact-*") if "lineage" in path.name]
    assert sorted(p.name for p in aside.iterdir()) == old and done.aside > done.bytes_after
    write.sweep(run)
    assert aside.is_dir(), "not yet: somebody may be listing them"
    later = time.time() + write.GRACE
    monkeypatch.setattr(write.time, "time", lambda: later)
    write.sweep(run)
    assert not list(run.glob(".compact-*")) and check(run).problems == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_what_cannot_be_exchanged_stays(run, monkeypatch, number):
    def refuse(one, other):
        if number == errno.EIO:
            raise OSError(number, os.strerror(number))
        raise EvometaError("this file system cannot exchange two folders at once")

    old = names(run)
    monkeypatch.setattr(compact, "exchange", refuse)
    with pytest.raises(EvometaError, match="EIO|cannot exchange"):
        compact.compact(run)
    assert names(run) == old and check(run).problems == [] and not list(run.glob(".compact-*"))
    monkeypatch.undo()
    assert compact.compact(run).files == 1


def test_a_file_system_without_exchange_is_named(run, monkeypatch):
    monkeypatch.setattr(write.ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(EvometaError, match="renameat2.*local disk"):
        compact.compact(run)


def test_a_damaged_archive_is_not_merged(run):
    part = list_parts(run / "lineage")[3].path
    data = part.read_bytes()
    part.write_bytes(data[:-20] + b"x" * 20)
    old = names(run)
    with pytest.raises(IntegrityError, match=part.name):
        compact.compact(run)
    part.unlink()
    with pytest.raises(IntegrityError, match="do not follow.*archive check"):
        compact.compact(run)
    assert names(run) == [name for name in old if name != part.name] and not list(run.glob(".compact-*"))
    part.write_bytes(data)
    assert compact.compact(run).files == 1


def test_columns_of_a_newer_version_are_not_lost(run):
    last = BLOCKS * GENERATIONS
    table = make_table(make_block(last, 2))
    write.commit(run / "lineage", table.append_column("novelty", pa.array([0.5] * len(table))), last)
    with pytest.raises(IntegrityError, match="novelty.*Update evometa"):
        compact.compact(run)


# --- reading pieces -----------------------------------------------------------------------------------


def test_no_flipped_bit_of_a_large_part_is_read_as_a_value(merged, tmp_path):
    run = shutil.copytree(merged, tmp_path / "x")
    part = list_parts(run / "lineage")[1].path
    data, whole = part.read_bytes(), str(Archive(run).top(400))
    refused = 0
    for bit in random.Random(1).sample(range(32, 8 * len(data)), 120):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        part.write_bytes(damaged)
        try:
            assert str(Archive(run).top(400)) == whole
        except IntegrityError as error:
            refused += part.name in str(error)
        assert not check(run).ok
    assert refused == 120, "all of these rows are asked for, so every bit matters"


def test_a_piece_is_read_without_the_rest(merged, tmp_path):
    """Another column may be damaged: what was not asked for is not read."""
    run = shutil.copytree(merged, tmp_path / "x")
    part = list_parts(run / "lineage")[1]
    fitness = part.read(["fitness"])
    chunk = next(
        c for c in map(pq.read_metadata(part.path).row_group(0).column, range(30)) if "genome" in c.path_in_schema
    )
    data = bytearray(part.path.read_bytes())
    data[chunk.data_page_offset + 40] ^= 1
    part.path.write_bytes(data)
    assert Part(part.folder, part.name, part.first, part.digest).read(["fitness"]).equals(fitness)
    with pytest.raises(IntegrityError, match="row group 0"):
        Part(part.folder, part.name, part.first, part.digest).read(["genome"])


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "other"])
def test_without_a_good_index_parts_are_read_whole(merged, tmp_path, damage):
    run = shutil.copytree(merged, tmp_path / "x")
    paths = [index.path_of(part.path) for part in list_parts(run / "lineage")]
    data = paths[0].read_bytes()
    changed = {"flip": data[:50] + bytes([data[50] ^ 1]) + data[51:], "cut": data[:-9], "other": paths[1].read_bytes()}
    paths[0].unlink()
    if damage != "gone":
        paths[0].write_bytes(changed[damage])
    assert answers(run) == answers(merged)
    assert check(run).ok == (damage == "gone")
    upkeep.repair(run)
    assert check(run).ok and (damage == "gone" or paths[0].read_bytes() == data)


# --- others at the same time --------------------------------------------------------------------------


def test_readers_of_any_kind_see_every_row_once_or_an_error(small, tmp_path):
    """A glob by DuckDB, Polars and pandas' engine, again and again while the parts are merged."""
    run = shutil.copytree(small, tmp_path / "x")
    glob, total = f"{run}/lineage/*.parquet", BLOCKS * GENERATIONS * 8
    seen, done = {"whole": 0, "refused": 0}, threading.Event()

    def duck():
        return duckdb.sql(f"SELECT count(*), count(DISTINCT (generation, index)) FROM '{glob}'").fetchall()[0]

    def polars():
        table = pl.read_parquet(glob, columns=["generation", "index"])
        return len(table), len(table.unique())

    def ours():
        table = Archive(run).table(["generation", "index"])
        return len(table), len(table.group_by(["generation", "index"]).aggregate([]))

    def look(read, may_fail):
        while not done.is_set():
            try:
                assert read() == (total, total)
                seen["whole"] += 1
            except (OSError, duckdb.IOException, pl.exceptions.ComputeError) as error:
                assert may_fail and "No such file" in str(error) or "not found" in str(error).lower(), error
                seen["refused"] += 1

    failures = []

    def guarded(*arguments):
        try:
            look(*arguments)
        except BaseException as error:
            failures.append(error)

    readers = [(duck, True), (polars, True), (ours, False)]
    threads = [threading.Thread(target=guarded, args=reader) for reader in readers]
    for thread in threads:
        thread.start()
    for limit in (32, 100, 200, 1000):
        compact.compact(run, rows=limit)
        time.sleep(0.1)
    done.set()
    for thread in threads:
        thread.join(60)
    assert failures == [] and seen["whole"] > 3


def test_a_reader_that_listed_the_old_names_gets_an_error_not_fewer_rows(run):
    old = [part.path for part in list_parts(run / "lineage")]
    compact.compact(run)
    with pytest.raises(FileNotFoundError):
        [pq.read_table(path) for path in old]


def test_our_own_readers_start_again(run, monkeypatch):
    """Parts are listed, then merged by somebody else, then read."""
    archive, expected, real = Archive(run), answers(run), Part.open
    merges = []

    def late(part):
        if len(merges) < 2:
            merges.append(50 + 100 * len(merges))
            with monkeypatch.context() as patch:
                patch.setattr(Part, "open", real)
                compact.compact(run, rows=merges[-1])
        return real(part)

    monkeypatch.setattr(Part, "open", late)
    found = [archive.top(k) for k in (1, 7, 400)]
    monkeypatch.undo()
    assert str(found) == expected[1] and merges[:1] == [50]
    assert answers(run) == expected
    part = list_parts(run / "lineage")[0]
    part.path.unlink()
    with pytest.raises(IntegrityError, match="missing|no candidate"):
        part.read()


def test_one_writer(copies):
    path = copies / "runs/plain"
    with folder.locked(path), pytest.raises(EvometaError, match="another process"):
        upkeep.compact(path)
    said = cli("archive", "compact", "plain", "--grace", "0")
    assert said.code == 0 and "5 parts became 1" in said.out
    said = cli("archive", "compact", "plain", "--json")
    assert said.code == 0 and said.data["merged"] is False and said.data["parts"] == 1
    assert cli("archive", "compact", "plain", "--rows", "0").code == 2


# --- going on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "ridge"])
@pytest.mark.parametrize("checkpoints", ["there", "gone"])
def test_a_compacted_run_goes_on_to_the_same_rows(copies, name, checkpoints):
    path, longer = copies / "runs" / name, copies / "runs" / f"{name}-longer"
    more = {"plain": 8, "ridge": 18}[name]
    shutil.copytree(path, longer)
    assert cli("resume", f"{name}-longer", "--generations", more).code == 0
    assert upkeep.compact(path, grace=0.0)["merged"]
    if checkpoints == "gone":  # everything stored is told again, out of the middle of a large part
        shutil.rmtree(path / "checkpoints")
    said = cli("resume", name, "--generations", more)
    assert said.code == 0, said.err
    assert query.content_digest(path) == query.content_digest(longer) and check(path).problems == []
    upkeep.compact(path, grace=0.0)
    assert query.content_digest(path) == query.content_digest(longer) and check(path).problems == []


def test_what_is_stored(run):
    compact.compact(run, rows=100)
    found = stored.Stored(run / "lineage")
    part = found.part(13)
    assert (
        part.first <= 13 <= part.last
        and found.rows(part, 13, 3)["generation"].to_pylist() == sorted([13, 14, 15] * 8)[: 8 * min(3, part.last - 12)]
    )
    assert found.part(BLOCKS * GENERATIONS) is None
    gone = list_parts(run / "lineage")[1]
    following = gone.last + 1
    gone.path.unlink()
    found = stored.Stored(run / "lineage")
    assert found.part(gone.first) is None and found.gap(gone.first, 100) == following - gone.first
    assert found.gap(BLOCKS * GENERATIONS, 5) == 5


def test_the_benchmark_runs(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "big_archive.py"
    command = [sys.executable, script, "--rows", "20000", "--out", tmp_path, "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = {
        row["measure"]: float(row["value"])
        for row in csv.DictReader((tmp_path / "big_archive.csv").read_text().splitlines())
    }
    assert (table["parts before"], table["parts after"]) == (20, 1)
    assert table["line to the root: nodes"] == table["one node per generation: nodes"] == 80
