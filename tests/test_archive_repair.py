"""What is broken goes into quarantine, nothing is deleted, and the run comes back to the rows it had."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from archive_samples import make_block, make_run, make_table
from helpers import cli

from evometa import checkpoint, folder, upkeep
from evometa.archives import events, query, rows, write
from evometa.archives.check import check
from evometa.archives.part import list_parts
from evometa.archives.read import Archive
from evometa.errors import EvometaError

pytest_plugins = ["shared"]


@pytest.fixture
def run(tmp_path):
    """Six parts of two generations, three checkpoints, timings, and a judgement that an event names."""
    run = make_run(tmp_path, blocks=6, generations=2)
    cell = {"domain": "d", "query": "away", "role": "validation", "replicate": 0, "loss": 0.5, "failure": "ok"}
    judged = [{"run": "x", "opening": 0, "phase": "validation", "label": "observed", "seed": [0, 3], **cell}]
    part = write.commit(run / "judgements", rows.judgements_table(judged), 0)
    write.commit(run / "timings", rows.timings_table("x", 0, 2, 1.5, 16), 0)
    events.append(run, "resumed", generation=0)
    events.append(run, "judged", judgements=part.name)
    for generation in (6, 8, 12):
        meta = {"spec_digest": "s", "last_part": list_parts(run / "lineage")[generation // 2 - 1].name}
        checkpoint.save(run, generation, {"mean": np.arange(5.0)}, meta)
    return run


def contents(run):
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in ("events.jsonl", "run.lock"))
    return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


def damage(path):
    path.write_bytes(path.read_bytes()[:-6] + b"xxxxxx")
    return path


def moved(found):
    return {move["path"]: move["reason"] for move in found["moves"]}


def test_nothing_to_repair(run):
    before = contents(run)
    found = upkeep.repair(run)
    assert (found["moves"], found["lost"], found["gaps"], found["checkpoint"]) == ([], [], [], 12)
    assert contents(run) == before and not (run / "quarantine").exists() and check(run).ok
    assert "checkpoint of generation 12" in found["advice"] and "none is missing" in found["advice"]


def test_a_broken_part_and_the_checkpoints_behind_it(run):
    part = damage(list_parts(run / "lineage")[3].path)
    before = contents(run)
    plan = upkeep.repair(run, dry_run=True)
    assert contents(run) == before and plan["quarantine"] is None
    found = upkeep.repair(run)
    assert moved(found) == moved(plan) and contents(run) == before, "nothing is deleted"
    assert "sha256" in moved(found)[f"lineage/{part.name}"]
    assert sorted(name[:25] for name in moved(found) if "ckpt" in name) == 2 * ["checkpoints/ckpt-00000000"] + 2 * [
        "checkpoints/ckpt-00000001"
    ]
    assert found["gaps"] == [[6, 7]] and found["checkpoint"] == 6 and found["stored"] == 10
    assert (
        any("generations 6 to 7" in line for line in found["lost"]) and "computes generations 6 to 7" in found["advice"]
    )
    event = events.read(run)[-1]
    assert event["kind"] == "quarantined" and event["gaps"] == [[6, 7]]
    assert (run / event["folder"] / "lineage" / part.name).exists()
    assert {file["path"] for file in event["files"]} == set(moved(found))
    write.commit(run / "lineage", make_table(make_block(6, 2)), 6)  # what a resume does
    assert check(run).ok and part.name in [part.name for part in list_parts(run / "lineage")]
    assert upkeep.repair(run)["lost"] == []


def test_a_part_that_is_gone(run):
    list_parts(run / "lineage")[0].path.unlink()
    found = upkeep.repair(run)
    assert found["gaps"] == [[0, 1]] and found["checkpoint"] is None and "the beginning" in found["advice"]
    assert not any("lineage/" in move["path"] for move in found["moves"])


def test_the_last_part_that_a_checkpoint_names(run):
    list_parts(run / "lineage")[-1].path.unlink()
    found = upkeep.repair(run)
    assert found["gaps"] == [[10, 11]] and found["checkpoint"] == 8


def test_strays_and_checkpoints_that_do_not_load(run):
    newest = max((run / "checkpoints").glob("*.json"))
    damage(newest)
    (run / "checkpoints" / ("ckpt-000000020-" + "0" * 16 + ".safetensors")).write_bytes(b"arrays")
    (run / ".staging").mkdir(exist_ok=True)
    (run / ".staging" / "part-1").write_bytes(b"half")
    (run / ".compact-lineage").mkdir()
    (run / ".compact-lineage" / "part").write_bytes(b"new")
    (run / "lineage" / "notes.txt").write_bytes(b"mine")
    before = contents(run)
    found = upkeep.repair(run)
    assert found["lost"] == [] and found["checkpoint"] == 8 and contents(run) == before
    assert {name.split("/")[0] for name in moved(found)} == {"checkpoints", ".staging", ".compact-lineage", "lineage"}
    assert check(run).ok and upkeep.repair(run)["moves"] == []
    assert checkpoint.load(run, {"mean": np.zeros(5)}, spec_digest="s")[0] == 8


def test_an_overlap(run):
    write.commit(run / "lineage", make_table(make_block(3, 2)), 3)
    found = upkeep.repair(run)
    assert [name[:22] for name in moved(found)] == ["lineage/part-000000003"] and found["lost"] == []
    assert check(run).ok and found["gaps"] == []


@pytest.mark.parametrize("table", ["timings", "judgements"])
def test_broken_parts_of_other_tables(run, table):
    part = damage(list_parts(run / table)[0].path)
    found = upkeep.repair(run)
    assert list(moved(found)) == [f"{table}/{part.name}"] and len(found["lost"]) == 1 and found["gaps"] == []
    assert check(run).ok == (table == "timings"), "an event counts on the judgements"


def test_a_torn_diary(run):
    whole = events.read(run)
    with open(run / "events.jsonl", "ab") as file:
        file.write(b'{"seq": 2, "ki')
    found = upkeep.repair(run)
    assert found["lost"] == [] and "14 bytes" in moved(found)["events.jsonl"]
    kinds = [entry["kind"] for entry in events.read(run)]
    assert kinds == [entry["kind"] for entry in whole] + ["repaired", "quarantined"]
    assert (run / "quarantine/000/events.jsonl.torn").read_bytes() == b'{"seq": 2, "ki'


def test_a_diary_whose_chain_is_broken(run):
    events.append(run, "resumed", generation=9)
    path = run / "events.jsonl"
    path.write_text(path.read_text().replace('"judged"', '"jadged"'))
    data = path.read_bytes()
    assert not check(run).ok
    found = upkeep.repair(run)
    assert "line 2" in found["lost"][0] and "1 lines before it are good" in found["lost"][0]
    assert (run / "quarantine/000/events.jsonl").read_bytes() == data
    assert [entry["kind"] for entry in events.read(run)] == ["resumed", "quarantined"] and check(run).ok


@pytest.mark.parametrize("text", [None, "{"])
def test_a_record_that_cannot_be_read(run, text):
    (run / "run.json").unlink()
    if text:
        (run / "run.json").write_text(text)
    found = upkeep.repair(run)
    assert not found["resumable"] and "cannot be resumed" in found["advice"] and "run.json" in found["lost"][0]
    assert len(Archive(run).table(["fitness"])) == 96


def test_a_compacted_run_that_lost_a_large_part(run):
    digest = query.content_digest(run)
    upkeep.compact(run, rows=48, grace=0.0)
    parts = list_parts(run / "lineage")
    assert len(parts) == 2 and check(run).ok
    shutil.copy(parts[1].path, run.parent / "kept")
    damage(parts[1].path)
    found = upkeep.repair(run)
    assert found["gaps"] == [[6, 11]] and found["checkpoint"] == 6
    for first in range(6, 12, 2):
        write.commit(run / "lineage", make_table(make_block(first, 2)), first)
    assert check(run).ok and query.content_digest(run) == digest


def test_one_writer(run):
    with folder.locked(run), pytest.raises(EvometaError, match="another process"):
        upkeep.repair(run)


@pytest.mark.parametrize("name", ["plain", "ridge"])
def test_a_repaired_run_computes_what_was_lost_again(copies, name):
    path = copies / "runs" / name
    files = {part.name: part.path.read_bytes() for part in list_parts(path / "lineage")}
    damage(list_parts(path / "lineage")[1].path)
    said = cli("archive", "repair", name, "--json")
    assert said.code == 5 and said.data["gaps"] and said.data["checkpoint"] is None
    said = cli("resume", name)
    assert said.code == 0, said.err
    assert {part.name: part.path.read_bytes() for part in list_parts(path / "lineage")} == files
    assert check(path).ok and cli("archive", "repair", name).code == 0


def test_a_gap_of_an_extended_run_is_filled_and_nothing_twice(copies):
    """Blocks of four generations, cut at six by the first run's end: a lost part is shorter than a block."""
    path = copies / "runs/short"
    arguments = ("run", "ridge.py", "--population", 8, "--seed", 3, "--set", "plan.block=4", "--name", "short")
    assert cli(*arguments, "--generations", 6).code == 0
    assert cli("resume", "short", "--generations", 12).code == 0
    digest = query.content_digest(path)
    damage(list_parts(path / "lineage")[1].path)
    assert cli("archive", "repair", "short").code == 5
    assert cli("resume", "short").code == 0
    assert query.content_digest(path) == digest and check(path).problems == []


def test_what_the_command_says(run):
    damage(list_parts(run / "lineage")[2].path)
    said = cli("archive", "repair", str(run), "--dry-run")
    assert said.code == 5 and "would be moved: lineage/part-000000004" in said.out and "evometa resume" in said.out
    assert json.loads(json.dumps(cli("archive", "repair", str(run), "--json").data))["quarantine"].endswith("000")
    assert cli("archive", "repair", str(run.parent / "nowhere")).code == 3
