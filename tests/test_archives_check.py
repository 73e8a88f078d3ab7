"""Damage of every kind is found, and named in one clear line."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_samples import make_block, make_run, make_table

from evometa import checkpoint
from evometa.archives import events, query, rows, write
from evometa.archives.check import check
from evometa.archives.read import Archive, list_parts
from evometa.archives.sealed import scan
from evometa.errors import IntegrityError, NotFound


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("template"), blocks=4, generations=2)
    cells = [{"run": "x", "opening": 0, "phase": "validation", "domain": f"d{i}", "loss": i / 2} for i in range(3)]
    write.commit(run / "judgements", rows.judgements_table(cells), 0)
    write.commit(run / "timings", rows.timings_table("x", 0, 2, 1.5, 16), 0)
    digest = hashlib.sha256((run / "run.json").read_bytes()).hexdigest()
    events.append(run, "started", run_json_sha256=digest)
    events.append(run, "resumed", generation=4)
    last = list_parts(run / "lineage")
    for generation in (6, 8):
        meta = {"spec_digest": "s", "last_part": last[generation // 2 - 1].path.name}
        checkpoint.save(run, generation, {"mean": np.arange(5.0)}, meta)
    return run


@pytest.fixture
def run(template, tmp_path):
    return shutil.copytree(template, tmp_path / "x")


def lineage(run):
    return [part.path for part in list_parts(run / "lineage")]


def test_a_sound_run(run):
    report = check(run)
    assert report == (True, 4, 64, [])
    write.sweep(run)  # what a crash left in .staging is no damage
    (run / ".staging" / "part").write_bytes(b"half")
    assert check(run).ok


def test_an_empty_and_a_missing_run(tmp_path):
    assert check(make_run(tmp_path, blocks=0)) == (True, 0, 0, [])
    with pytest.raises(NotFound, match="no run"):
        check(tmp_path / "nowhere")


def one_problem(run, *words):
    """The only line that `check` gives, with all of `words` in it."""
    report = check(run)
    assert not report.ok and len(report.problems) == 1, report.problems
    line = report.problems[0]
    assert "\n" not in line and all(word in line for word in words), line
    return line


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_missing_part(run, number):
    path = lineage(run)[number]
    path.unlink()
    one_problem(run, "missing", f"part-{2 * number:09d}-", f"generations {2 * number} to {2 * number + 1}")


def test_the_missing_last_part_is_named_by_the_checkpoint(run):
    path = lineage(run)[-1]
    path.unlink()
    one_problem(run, "missing", path.name)


def test_all_parts_missing(run):
    for path in lineage(run):
        path.unlink()
    one_problem(run, "missing", "generations 0 to 7")


@pytest.mark.parametrize("number", [0, 2, 3])
@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_part(run, number, kept):
    path = lineage(run)[number]
    path.write_bytes(path.read_bytes()[:kept])
    one_problem(run, path.name, "expected bytes with sha256")


@pytest.mark.parametrize("folder", ["lineage", "judgements", "timings"])
def test_a_flipped_bit(run, folder):
    path = list_parts(run / folder)[0].path
    flip(path, 8 * (path.stat().st_size // 2))
    one_problem(run, path.name, "it was changed")


@pytest.mark.parametrize("folder", ["lineage", "judgements", "timings"])
@pytest.mark.parametrize("name", ["notes.txt", ".hidden.parquet", "part-000000000-xyz.parquet", "copy.parquet"])
def test_a_foreign_file(run, folder, name):
    shutil.copy(lineage(run)[0], run / folder / name)
    one_problem(run, f"{folder}/{name}", "foreign")


def test_a_foreign_folder(run):
    (run / "lineage" / "part-000000000-0123456789abcdef.parquet").mkdir()
    report = check(run)
    assert not report.ok and any("foreign" in line for line in report.problems)


def test_overlapping_parts(run):
    write.commit(run / "lineage", make_table(make_block(3, 2)), 3)
    report = check(run)
    assert not report.ok and any("overlap" in line and "part-000000003" in line for line in report.problems)


def recommit(run, number, change):
    """Write a part anew with other rows, under its right new name."""
    path = lineage(run)[number]
    table = change(pq.read_table(path))
    path.unlink()
    return write.commit(run / "lineage", table, 2 * number).name


def set_column(table, name, values):
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.slice(0, 15), "expected 8 rows"),
        (lambda t: pa.concat_tables([t, t.slice(3, 1)]), "expected 8 rows"),
        (lambda t: t.take(pa.array(range(15, -1, -1))), "in order"),
        (lambda t: set_column(t, "index", [0, 0, *range(2, 8)] * 2), "indexes"),
        (lambda t: set_column(t, "parents", [[{"generation": 9, "index": 0}]] * 16), "names the parent 9:0"),
        (lambda t: set_column(t, "parents", [[{"generation": 2, "index": 0}]] * 16), "names the parent 2:0"),
        (lambda t: set_column(t, "parents", [[{"generation": 0, "index": 8}]] * 16), "names the parent 0:8"),
        (lambda t: t.drop_columns(["message"]), "columns"),
        (lambda t: t.set_column(10, "fitness", t["fitness"].cast(pa.float32())), "columns"),
    ],
)
def test_rows_that_cannot_be(run, change, words):
    recommit(run, 1, change)
    line = one_problem(run, "part-000000002", words)
    assert line.count(".parquet") == 1


def test_another_part_in_the_last_ones_place(run):
    recommit(run, 3, lambda t: set_column(t, "message", ["edited"] * 16))
    one_problem(run, "which is not there", "part-000000006")


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "missing"), (b"{", "cannot be read"), (b"[]", "cannot be read"), (b'{"schema_digest": "00"}', "schema")],
)
def test_run_json(run, text, words):
    (run / "run.json").unlink()
    (run / "events.jsonl").unlink()
    if text is not None:
        (run / "run.json").write_bytes(text)
    one_problem(run, "run.json", words)


def test_an_edited_run_json_is_known_by_the_events(run):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "seed": 5}))
    one_problem(run, "run.json", "started")


@pytest.mark.parametrize("kind", ["champion", "opened"])
def test_judgements_that_an_event_names_are_missed(run, kind):
    (part,) = list_parts(run / "judgements")
    events.append(run, kind, judgements=part.path.name)
    assert check(run).ok
    part.path.unlink()
    one_problem(run, f"judgements/{part.path.name}", "missing", kind)
    (run / "judgements").rmdir()
    one_problem(run, f"judgements/{part.path.name}", "missing", kind)


def test_a_broken_event_chain(run):
    text = (run / "events.jsonl").read_text().replace('"generation":4', '"generation":5')
    (run / "events.jsonl").write_text(text)
    one_problem(run, "events.jsonl", "line 2")


@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_broken_checkpoints(run, ending):
    path = scan(run)[-1].path.with_suffix(ending)
    flip(path, 8 * 40)
    one_problem(run, path.name)
    path.unlink()
    report = check(run)
    assert report.ok if ending == ".json" else path.name in report.problems[0]


def test_several_problems_are_all_named(run):
    first, _, third, _ = lineage(run)
    first.write_bytes(b"")
    third.unlink()
    (run / "lineage" / "x.tmp").write_bytes(b"")
    text = "\n".join(check(run).problems)
    assert len(check(run).problems) == 3
    assert first.name in text and "part-000000004-" in text and "x.tmp" in text


# --- every bit ----------------------------------------------------------------------------------------


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_no_flipped_bit_is_ever_read_as_a_value(tmp_path):
    """The whole footer, the ends, and bits from all over the pages: found, named, never believed."""
    run = make_run(tmp_path, blocks=1, population=4, cells=2)
    (part,) = list_parts(run / "lineage")
    path = part.path
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    bits = [*range(32), *range(8 * footer, 8 * len(data)), *random.Random(3).sample(range(32, 8 * footer), 600)]
    with open(path, "r+b", buffering=0) as file:
        for bit in bits:
            for byte in (data[bit // 8] ^ 1 << bit % 8, data[bit // 8]):
                os.pwrite(file.fileno(), bytes([byte]), bit // 8)
                if byte != data[bit // 8]:
                    with pytest.raises(IntegrityError, match=path.name):
                        part.open()
    for bit in random.Random(4).sample(bits, 40):
        path.write_bytes(data)
        flip(path, bit)
        assert check(run).problems[0].startswith(str(path))
        for read in (Archive(run).table, Archive(run).top, Archive(run).generations, lambda: query.content_digest(run)):
            with pytest.raises(IntegrityError, match=path.name):
                read()
        with pytest.raises(IntegrityError, match=path.name):
            query.query(run, "SELECT avg(fitness) FROM lineage")
    path.write_bytes(data)
    assert check(run).ok


def test_page_checksums_find_flipped_values_without_the_name(tmp_path):
    """A second line of defence: other readers that verify page checksums find what is in the pages."""
    run = make_run(tmp_path, blocks=1)
    path = lineage(run)[0]
    data = path.read_bytes()
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    wrong = 0
    whole = str(pq.read_table(path).to_pylist())
    for bit in random.Random(5).sample(range(8 * start, 8 * (start + chunk.total_compressed_size)), 200):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            table = pq.read_table(pa.BufferReader(bytes(damaged)), page_checksum_verification=True)
            wrong += str(table.to_pylist()) != whole
        except (pa.ArrowException, OSError):
            pass
    assert wrong == 0
