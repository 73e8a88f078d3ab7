"""Killed at every file call of a commit and a checkpoint, refused by the disk at every one, and out of power.

Whatever happens: what was acknowledged is readable and right, nothing is torn or doubled, and the same
run, started again, ends with the same bytes as one that was never stopped.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from crash_disk import Disk
from crash_victims import ERRORS, count_calls, cut_power, kill_points, left_behind, serve
from crash_workload import BLOCKS, advance, tree

from evometa import checkpoint
from evometa.archives import events, write
from evometa.archives.check import check
from evometa.archives.read import Archive, list_parts
from evometa.archives.sealed import scan


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tree and the acknowledgements of a run that nothing stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    acks: list[str] = []
    advance(run, acks.append)
    assert len(acks) == 2 * BLOCKS and check(run).ok
    return tree(run), acks


def assert_survived(run: Path, acks: list[str], whole) -> None:
    """Everything acknowledged is there and right; the run goes on to the same bytes."""
    reference, order = whole
    assert acks == order[: len(acks)], "an acknowledgement came out of turn"
    parts = [part.path.name for part in list_parts(run / "lineage")]
    for ack in acks:
        kind, name = ack.split()
        if kind == "part":
            assert (run / "lineage" / name).read_bytes() == reference[f"lineage/{name}"], f"{name} was lost or torn"
        else:
            reached = max((found.generation for found in scan(run) if found.record), default=0)
            assert reached >= int(name.split("-")[1]), f"{name} was lost"
    assert len(parts) <= sum(ack.startswith("part") for ack in acks) + 1
    if (run / "run.json").exists():
        assert check(run).problems == []
    if parts:
        table = Archive(run).table(["generation", "index"])
        assert len(table) == 8 * len(parts) == len(table.group_by(["generation", "index"]).aggregate([]))
    write.sweep(run)
    advance(run, lambda text: None)
    assert tree(run) == reference
    assert check(run).problems == [] and checkpoint.load(run, {"mean": np.zeros(8)}, spec_digest="s")[0] == BLOCKS
    assert [event["kind"] for event in events.read(run)][-1] in ("started", "resumed")


# --- strace -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    yield from serve(tmp_path_factory.mktemp("victims"))


@pytest.fixture(scope="module")
def calls(victims):
    return count_calls(victims)


def test_a_kill_before_every_change(victims, whole):
    """Which are all the states that a kill at any file call can leave, see `kill_points`."""
    points, seen = kill_points(victims), set()
    assert len(points) > 40 and {"write", "link", "rename", "unlink"} <= {name for name, _ in points}
    for name, number in points:
        run, code, acks, _ = victims.run("-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}")
        assert code == -9, f"{name} {number}: expected a kill, got {code}"
        try:
            if (mark := left_behind(run, acks)) not in seen:
                seen.add(mark)
                assert_survived(run, acks, whole)
        except Exception as error:
            raise AssertionError(f"killed at {name} number {number}: {error}") from error
        shutil.rmtree(run, ignore_errors=True)


def test_an_error_at_every_file_call(victims, calls, whole):
    points = [(name, number) for name in calls if name != "flock" for number in range(1, calls[name] + 1)]
    stopped, seen = 0, set()
    for turn, (name, number) in enumerate(points):
        error = ERRORS[turn % len(ERRORS)]
        run, code, acks, _ = victims.run("-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={number}")
        told = acks.pop() if acks and acks[-1].startswith("StorageError") else ""
        stopped += bool(told)
        try:
            # An acknowledgement that could not be written is the workload's own error, not the archive's.
            assert (code, bool(told)) in ((0, False), (74, True)) or (name == "write" and code == 1), (code, acks, told)
            assert not told or (error in told and "evometa" in told)
            acks = [ack for ack in acks if not ack.startswith("OSError")]
            if (mark := left_behind(run, acks)) not in seen:
                seen.add(mark)
                assert_survived(run, acks, whole)
        except Exception as problem:
            raise AssertionError(f"{error} at {name} number {number}: {problem}") from problem
        shutil.rmtree(run, ignore_errors=True)
    assert stopped > len(points) // 3 and len(seen) > 20


def test_bytes_are_durable_before_they_have_a_name_and_names_before_they_are_acknowledged(victims):
    run, _, acks, trace = victims.run()
    lines = trace.splitlines()

    def line(*words: str, after: int = -1) -> int:
        found = [i for i, text in enumerate(lines) if i > after and all(word in text for word in words)]
        assert found, f"no line with {words} after line {after}"
        return found[0]

    for ack in acks:
        kind, name = ack.split()
        said = line("write(", f'"{ack}\\n"')
        if kind == "part":
            names, verb, folder = [f"{name}"], "link(", "lineage"
        else:
            names, verb, folder = [f"{name}.safetensors", f"{name}.json"], "rename(", "checkpoints"
        before = -1
        for file in names:
            synced = line("fsync(", f".staging/{file}", after=before)
            named = line(verb, f"/{folder}/{file}", after=synced)
            before = line("fsync(", f"{run}/{folder}>", after=named)
        assert before < said


# --- power --------------------------------------------------------------------------------------------


def test_power_lost_after_every_operation(tmp_path, whole):
    """What was not fsynced is lost, kept, cut or garbled, name by name: every such disk must do."""
    disk = Disk(tmp_path / "live")
    with disk.recording():
        advance(disk.root / "run", disk.acknowledge)
    assert disk.acks(len(disk.operations)) == whole[1]
    disks = cut_power(disk, tmp_path / "after", lambda run, acks: assert_survived(run, acks, whole))
    assert len(disk.operations) + 1 >= 80 and disks > 150


def test_the_model_finds_a_missing_fsync(tmp_path, whole, monkeypatch):
    """The drill is worth something: without fsync it fails."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    disk = Disk(tmp_path / "live")
    with disk.recording(silent=("fsync",)):
        advance(disk.root / "run", disk.acknowledge)
    disk.materialize(tmp_path / "after", len(disk.operations), "nothing", random.Random(0))
    with pytest.raises(AssertionError, match="lost|out of turn|No such file"):
        try:
            assert_survived(tmp_path / "after" / "run", disk.acks(len(disk.operations)), whole)
        except OSError as error:
            raise AssertionError(str(error)) from error
