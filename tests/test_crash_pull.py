"""Killed at every file call of `archive pull`, refused by the disk at every one, and out of power.

Whatever happens: the new folder is not there, or is the whole run; the same command, typed again, ends well and leaves
nothing of the attempt before.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from crash_disk import Disk
from crash_victims import ERRORS, count_calls, cut_power, kill_points, left_behind, serve
from crash_workload import bucket, fetch, tree

from evometa.archives import ledger, write
from evometa.archives.check import check


def ignore(text: str) -> None:
    """Nobody is told."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run and its ledger in a store."""
    folder = tmp_path_factory.mktemp("template") / "run"
    bucket(folder)
    return folder


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    yield from serve(tmp_path_factory.mktemp("victims"))


def whole(folder: Path) -> dict[str, bytes]:
    """Every file of the run in the store, by name."""
    return {**tree(folder / "objects/runs/x"), "events.jsonl": (folder / "objects/runs/x/events.jsonl").read_bytes()}


def found(home: Path) -> dict[str, bytes]:
    """Every file of the run that was pulled."""
    return {str(path.relative_to(home / "x")): path.read_bytes() for path in (home / "x").rglob("*") if path.is_file()}


def assert_pulled(folder: Path, home: Path, template: Path) -> bool:
    """Nothing or all of it; pulled again, all of it and nothing else. Returns whether it was there at once."""
    at_once = (home / "x").exists()
    if at_once:
        assert found(home) == whole(template), "a half run has the name"
        assert (home / ledger.FILE).exists(), "the run came before its ledger"
    else:
        if home.is_dir():
            assert {path.name for path in home.iterdir()} <= {"x.partial", ledger.FILE}
        if home.parent != folder:  # where the power left it
            shutil.rmtree(folder / "home", ignore_errors=True)
            if home.is_dir():
                shutil.copytree(home, folder / "home")
        fetch(folder, ignore)
        home = folder / "home"
    assert found(home) == whole(template) and check(home / "x").problems == []
    names = {path.name for path in home.iterdir()}
    # The power may keep both names of one folder.
    assert names - ({"x.partial"} if at_once and home.parent != folder else set()) == {ledger.FILE, "x"}
    assert (home / ledger.FILE).read_bytes() == (template / "objects/runs" / ledger.FILE).read_bytes()
    return at_once


def test_a_kill_before_every_change(victims, template):
    """Of the copy in the cache, of the new folder, and of the ledger beside it."""
    places, seen = kill_points(victims, verb="fetch", template=template), set()
    assert len(places) > 40 and {"mkdir", "write", "rename"} <= {name for name, _ in places}
    for name, number in places:
        options = ("-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}")
        folder, code, acks, _ = victims.run(*options, verb="fetch", template=template)
        try:
            assert code == -9, f"expected a kill, got {code}"
            if (mark := left_behind(folder, acks)) not in seen:
                seen.add(mark)
                # The last write is the workload's word that it is done.
                assert assert_pulled(folder, folder / "home", template) == ((name, number) == places[-1])
        except Exception as error:
            raise AssertionError(f"killed at {name} number {number}: {error!r}") from error
        shutil.rmtree(folder, ignore_errors=True)
    assert len(seen) > 30


def test_an_error_at_every_change_and_every_fsync(victims, template):
    calls = count_calls(victims, verb="fetch", template=template)
    places = kill_points(victims, verb="fetch", template=template)
    last = max(number for name, number in places if name == "write")  # the workload's own word
    places = [place for place in places if place != ("write", last)]
    places += [("fsync", number + 1) for number in range(calls["fsync"])]
    stopped, seen = 0, set()
    for turn, (name, number) in enumerate(places):
        error = ERRORS[turn % len(ERRORS)]
        options = ("-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={number}")
        folder, code, acks, _ = victims.run(*options, verb="fetch", template=template)
        said = acks[-1] if acks else ""
        stopped += code == 74
        try:
            assert (code, said[:6]) in ((0, "pulled"), (74, "Storag")), (code, acks)
            words = "evometa archive pull s3://bucket/runs/x" if "the disk refused" in said else "XDG_CACHE_HOME"
            assert code == 0 or (words in said and "Success" not in said), said
            if (mark := left_behind(folder, acks)) not in seen:
                seen.add(mark)
                assert assert_pulled(folder, folder / "home", template) == (code == 0), "refused, and there"
        except Exception as problem:
            raise AssertionError(f"{error} at {name} number {number}: {problem!r}") from problem
        shutil.rmtree(folder, ignore_errors=True)
    assert stopped > len(places) // 2 and len(seen) > 10


def test_power_lost_after_every_operation(tmp_path, template):
    """What was not fsynced of the new folder is lost, kept, cut or garbled, name by name: every such disk must do."""
    folder = shutil.copytree(template, tmp_path / "live")
    disk = Disk(folder / "home")
    with disk.recording():
        fetch(folder, disk.acknowledge)

    def survives(run, acks):
        there = assert_pulled(folder, run.parent, template)
        assert there or not acks, "what was acknowledged is gone"

    disks = cut_power(disk, tmp_path / "after", survives)
    assert len(disk.operations) > 30 and disks > 30


def test_the_model_finds_a_missing_fsync(tmp_path, template, monkeypatch):
    """The drill is worth something: without fsync of the files it fails."""
    folder = shutil.copytree(template, tmp_path / "live")
    monkeypatch.setattr(write.os, "fsync", lambda descriptor: None)
    disk = Disk(folder / "home")
    with disk.recording(silent=("fsync",)):
        fetch(folder, disk.acknowledge)
    with pytest.raises(AssertionError, match="power lost after"):
        cut_power(disk, tmp_path / "after", lambda run, acks: assert_pulled(folder, run.parent, template))
