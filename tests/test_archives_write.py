"""Committing: once, whole, and with a cure in the message where the disk refuses."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random

import pyarrow.parquet as pq
import pytest
from archive_samples import make_block, make_table
from crash_disk import Disk

from evometa.archives import events, ledger, write
from evometa.archives.cells import CellJournal
from evometa.archives.read import list_parts
from evometa.errors import IntegrityError, StorageError


def commit(run, first=0):
    return write.commit(run / "lineage", make_table(make_block(first)), first)


def files(run):
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


# --- parts ------------------------------------------------------------------------------------------


def test_a_part_is_named_by_its_bytes_and_nothing_else_is_left(tmp_path):
    path = commit(tmp_path / "run")
    assert files(tmp_path / "run") == [f"lineage/{path.name}"]
    (part,) = list_parts(path.parent)
    assert path.name.startswith("part-000000000-") and part.path == path and part.rows == 8
    assert str(part.read().to_pylist()) == str(pq.read_table(path).to_pylist())


def test_parts_carry_checksums_statistics_and_zstd(tmp_path):
    column = pq.ParquetFile(commit(tmp_path / "run")).metadata.row_group(0).column(1)
    assert column.compression == "ZSTD" and column.statistics.has_min_max


def test_equal_rows_are_one_part_with_equal_bytes(tmp_path):
    assert commit(tmp_path / "run") == commit(tmp_path / "run")
    assert len(list_parts(tmp_path / "run" / "lineage")) == 1
    assert commit(tmp_path / "again").read_bytes() == commit(tmp_path / "run").read_bytes()


def test_a_damaged_part_is_not_written_over(tmp_path):
    path = commit(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="evometa archive check"):
        commit(tmp_path / "run")
    assert list((tmp_path / "run" / ".staging").iterdir()) == []


def test_what_a_crashed_writer_left_is_no_obstacle(tmp_path):
    path = commit(tmp_path / "run")
    path.unlink()
    stray = tmp_path / "run" / ".staging" / f"{path.name}.{os.getpid()}-0"
    stray.write_bytes(b"half a par")
    assert commit(tmp_path / "run") == path and stray.exists()
    assert write.sweep(tmp_path / "run") == [stray.name] and not stray.exists()
    assert write.sweep(tmp_path / "nowhere") == []


def test_a_file_system_without_links_is_served_by_rename(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    assert commit(tmp_path / "run") == commit(tmp_path / "run")
    assert files(tmp_path / "run") == [f"lineage/{commit(tmp_path / 'run').name}"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "link", "close"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENFILE])
def test_a_disk_that_refuses_gives_a_storage_error_and_no_part(tmp_path, monkeypatch, call, number):
    commit(tmp_path / "run")
    before = files(tmp_path / "run")
    real = getattr(os, call)

    def refuse(*arguments, **keywords):
        if call == "close":
            real(*arguments)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match=errno.errorcode[number]) as caught:
            commit(tmp_path / "run", 1)
    assert "evometa" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 74
    assert files(tmp_path / "run") == before
    commit(tmp_path / "run", 1)
    assert len(list_parts(tmp_path / "run" / "lineage")) == 2


def test_a_descriptor_is_not_used_again_after_its_fsync_failed(tmp_path, monkeypatch):
    opened, synced = [], []
    real_open, real_fsync = os.open, os.fsync

    def note_open(path, flags, *rest):
        opened.append(str(path))
        return real_open(path, flags, *rest)

    def fail_once(descriptor):
        synced.append(descriptor)
        if len(synced) == 3:  # the two new folders come first
            raise OSError(errno.EIO, "gone")
        return real_fsync(descriptor)

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", fail_once)
    (tmp_path / "run").mkdir()
    with pytest.raises(StorageError, match="EIO"):
        commit(tmp_path / "run")
    commit(tmp_path / "run")
    staged = [path for path in opened if ".staging/" in path]
    assert len(staged) == 2  # written anew, from the start


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:700]))
    commit(tmp_path / "run")
    assert len(list_parts(tmp_path / "run" / "lineage")[0].read()) == 8


def test_write_once(tmp_path):
    path = tmp_path / "runs" / "x" / "run.json"
    assert write.write_once(path, b"{}") == write.write_once(path, b"{}") == path
    with pytest.raises(IntegrityError, match="other bytes"):
        write.write_once(path, b"{1}")
    write.replace(path, b"{2}")
    assert path.read_bytes() == b"{2}" and files(tmp_path / "runs") == ["x/run.json"]


# --- events -----------------------------------------------------------------------------------------


def test_events_are_chained(tmp_path):
    events.append(tmp_path, "started", seed=3)
    assert events.append(tmp_path, "resumed", generation=7)["seq"] == 1
    first, second = events.read(tmp_path)
    assert (first["kind"], first["seed"], second["generation"]) == ("started", 3, 7)
    assert second["prev"] == first["hash"] and events.read(tmp_path / "nowhere") == []


def three_events(tmp_path):
    for number in range(3):
        events.append(tmp_path, "note", number=number)
    return tmp_path / "events.jsonl"


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_changed_line_is_named(tmp_path, line):
    path = three_events(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    lines[line] = lines[line].replace('"number":', '"number":1')
    path.write_text("".join(lines))
    with pytest.raises(IntegrityError, match=f"line {line + 1} "):
        events.read(tmp_path)
    with pytest.raises(IntegrityError, match=f"line {line + 1} "):
        events.append(tmp_path, "more")


def test_a_removed_line_is_named(tmp_path):
    path = three_events(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2])
    with pytest.raises(IntegrityError, match="line 2 "):
        events.read(tmp_path)


def test_every_torn_last_line_is_passed_over_and_repaired(tmp_path):
    data = three_events(tmp_path).read_bytes()
    start = data.rindex(b"\n", 0, len(data) - 1) + 1
    for cut in range(start, len(data)):
        for filler in (b"", b"\0" * (len(data) - cut), b"\0" * (len(data) - cut - 1) + b"\n"):
            folder = tmp_path / f"{cut}-{len(filler)}-{filler[-1:].hex()}"
            folder.mkdir()
            (folder / "events.jsonl").write_bytes(data[:cut] + filler)
            kept = len(events.read(folder))
            assert kept == (3 if cut == len(data) - 1 and filler in (b"", b"\n") else 2)
            events.append(folder, "after")
            kinds = [entry["kind"] for entry in events.read(folder)]
            whole = cut == start and not filler
            assert kinds == ["note"] * kept + ["repaired"] * (kept == 2 and not whole) + ["after"]


def test_a_flipped_bit_in_the_last_line_is_never_taken_for_a_crash(tmp_path):
    """Every bit of it, the newline's too: the line was acknowledged, so it is named, or still says the same."""
    path = tmp_path / "events.jsonl"
    events.append(tmp_path, "note", text="a")
    events.append(tmp_path, "note", text="a b @ \u00e9 JSON", number=1.5e300)
    data, told = path.read_bytes(), events.read(tmp_path)
    start = data.index(b"\n") + 1
    named = 0
    for bit in range(8 * (start - 1), 8 * len(data)):  # with the newline before it
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert events.read(tmp_path) == told, bit
        except IntegrityError as error:
            named += "line " in str(error)
            with pytest.raises(IntegrityError, match="line "):
                events.append(tmp_path, "more")
            assert path.read_bytes() == damaged
    assert named >= 8 * (len(data) - start) - 4  # an e of \u00e9 and of 1e300 may become E


@pytest.mark.parametrize("zeros", [slice(0, 20), slice(20, 40), slice(-20, -1), slice(-20, None), slice(None)])
def test_zeros_that_a_power_cut_left_are_torn_off(tmp_path, zeros):
    path = three_events(tmp_path)
    data = path.read_bytes()
    start = data.rindex(b"\n", 0, len(data) - 1) + 1
    line = bytearray(data[start:])
    line[zeros] = bytes(len(line[zeros]))
    path.write_bytes(data[:start] + line)
    assert len(events.read(tmp_path)) == 2
    events.append(tmp_path, "after")
    assert [entry["kind"] for entry in events.read(tmp_path)] == ["note", "note", "repaired", "after"]


def test_an_append_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = three_events(tmp_path)
    data = path.read_bytes()
    real = os.pwrite

    calls = []

    def fill_up(descriptor, text, offset):
        calls.append(offset)
        if len(calls) == 1:
            return real(descriptor, text[:50], offset)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", fill_up)
    with pytest.raises(StorageError, match="ENOSPC"):
        events.append(tmp_path, "more")
    assert path.read_bytes() == data and calls[1] == len(data) + 50


# --- finished cells ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nothing", "names only", "names and zeros", "names and halves", "some"])
def test_a_recorded_cell_survives_a_power_cut_at_any_moment(tmp_path, kind):
    disk = Disk(tmp_path / "disk")
    journal = CellJournal(disk.root / "run" / "cells" / "validation-000000000")
    with disk.recording():
        for generation, replicate in ((0, 0), (0, 1), (1, 0), (1, 1)):
            journal.put(generation, (3, "d", replicate), {"loss": replicate / 4})
            disk.acknowledge(f"{generation} {replicate}")
        journal.close()
    for moment in range(len(disk.operations) + 1):
        folder = tmp_path / str(moment)
        disk.materialize(folder, moment, kind, random.Random(moment))
        found = CellJournal(folder / "run" / "cells" / "validation-000000000")
        for generation, replicate in (map(int, text.split()) for text in disk.acks(moment)):
            assert found.get(generation, (3, "d", replicate)) == {"loss": replicate / 4}


def test_a_cell_that_could_not_be_recorded_can_be_tried_again(tmp_path, monkeypatch):
    journal, real = CellJournal(tmp_path / "cells"), os.write

    def fill_up(descriptor, data):
        if len(data) > 20:
            return real(descriptor, data[:20])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", fill_up)
    with pytest.raises(StorageError, match="evometa resume"):
        journal.put(0, (0, "d", 0), {"loss": 0.5})
    monkeypatch.undo()
    journal.put(0, (0, "d", 0), {"loss": 0.5})
    journal.close()
    assert CellJournal(tmp_path / "cells").get(0, (0, "d", 0)) == {"loss": 0.5}


# --- the ledger -------------------------------------------------------------------------------------


def test_the_ledger_counts_openings_of_the_same_data(tmp_path):
    assert ledger.count(tmp_path, "d1") == 0
    for run, digest in (("a", "d1"), ("b", "d1"), ("b", "d2")):
        ledger.append(tmp_path, {"run": run, "data_digest": digest})
    assert (ledger.count(tmp_path, "d1"), ledger.count(tmp_path, "d2"), ledger.count(tmp_path, "d3")) == (2, 1, 0)
    assert [entry["run"] for entry in ledger.read(tmp_path)] == ["a", "b", "b"]


def _open_often(root, name):
    for number in range(20):
        ledger.append(root, {"run": name, "number": number, "data_digest": "d"})


def test_processes_share_the_ledger(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_open_often, args=(tmp_path, name)) for name in ("a", "b", "c")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert ledger.count(tmp_path, "d") == 60
    for name in ("a", "b", "c"):
        assert [entry["number"] for entry in ledger.read(tmp_path) if entry["run"] == name] == list(range(20))
    assert json.loads((tmp_path / "openings.jsonl").read_text().splitlines()[-1])["seq"] == 59
