"""Killed at every file call of a compaction and of a repair, refused by the disk at every one, and out of power.

Whatever happens to a compaction: every reader, ours or not, sees each row exactly once. Whatever happens to a repair:
nothing is gone. Either, done again, ends where it would have ended, and the run goes on to its bytes.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import crash_victims
import numpy as np
import pyarrow.dataset as ds
import pytest
from crash_disk import Disk
from crash_victims import ERRORS, count_calls, cut_power, kill_points, left_behind, serve
from crash_workload import advance, mend, merge

from evometa import checkpoint
from evometa.archives import events, write
from evometa.archives.check import check
from evometa.archives.query import content_digest
from evometa.archives.read import Archive, list_parts

BLOCKS = 5


def ignore(text: str) -> None:
    """Nobody is told."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run of five small parts."""
    run = tmp_path_factory.mktemp("template") / "run"
    advance(run, ignore, BLOCKS)
    return run


@pytest.fixture(scope="module")
def broken(template, tmp_path_factory):
    """The same, with a damaged part, a damaged checkpoint, a torn diary, and what a dead writer left."""
    run = shutil.copytree(template, tmp_path_factory.mktemp("broken") / "run")
    part = list_parts(run / "lineage")[1].path
    part.write_bytes(part.read_bytes()[:-9] + b"x" * 9)
    newest = max((run / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    with open(run / "events.jsonl", "a") as file:
        file.write('{"seq": 5, "ki')
    (run / ".staging" / "part-x").write_bytes(b"half")
    (run / "lineage" / "note.txt").write_bytes(b"mine")
    return run


@pytest.fixture(scope="module")
def reference(template, tmp_path_factory):
    """Rows and names of a compaction that nothing stopped, and of the run that went on behind it."""
    run = shutil.copytree(template, tmp_path_factory.mktemp("merged") / "run")
    merge(run, ignore)
    rows, names = content_digest(run), parts(run)
    assert rows == content_digest(template) and len(names) == 3 and check(run).problems == []
    advance(run, ignore, BLOCKS + 1)
    return rows, names, content_digest(run)


def parts(run: Path) -> list[str]:
    return [part.name for part in list_parts(run / "lineage")]


def assert_merged(run: Path, reference) -> None:
    """Every row once, for everybody; done again, it is done; and the run goes on."""
    rows, names, after = reference
    found = ds.dataset(sorted(map(str, (run / "lineage").glob("*.parquet")))).to_table(columns=["generation", "index"])
    keys = sorted(zip(found["generation"].to_pylist(), found["index"].to_pylist(), strict=True))
    assert keys == [(g, i) for g in range(BLOCKS) for i in range(8)]
    assert content_digest(run) == rows and check(run).problems == []
    merge(run, ignore)
    assert parts(run) == names and check(run).problems == [] and not list(run.glob(f"{write.ASIDE}*"))
    write.sweep(run)
    advance(run, ignore, BLOCKS + 1)
    assert content_digest(run) == after and check(run).problems == []
    assert checkpoint.load(run, {"mean": np.zeros(8)}, spec_digest="s")[0] == BLOCKS + 1


def inventory(run: Path) -> set[str]:
    """What files hold: the diary, which grows, and indexes, which are derived, are left out."""
    return {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.rglob("*")
        if path.is_file() and not path.name.startswith("events.jsonl") and path.parent.name != "index"
    }


def assert_mended(run: Path, broken: Path, template: Path) -> None:
    """Nothing is gone; whole parts are where they were; the run comes back whole."""
    assert inventory(broken) <= inventory(run), "something is gone"
    kept = {name for name in parts(broken) if (run / "lineage" / name).exists()}
    assert set(parts(template)) - kept <= {parts(template)[1]}
    mend(run, ignore)
    assert inventory(broken) <= inventory(run) and len(parts(run)) == BLOCKS - 1
    kinds = [entry["kind"] for entry in events.read(run)]
    assert "quarantined" in kinds
    advance(run, ignore, BLOCKS)
    assert {name: (run / "lineage" / name).read_bytes() for name in parts(run)} == {
        name: (template / "lineage" / name).read_bytes() for name in parts(template)
    }
    assert check(run).problems == [] and len(Archive(run).table(["generation"])) == 8 * BLOCKS


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    yield from serve(tmp_path_factory.mktemp("victims"))


CASES = ("merge", "mend")


@pytest.fixture(scope="module", params=CASES)
def case(request, template, broken, reference):
    """The verb, what it starts from, and what must hold of what it left."""
    if request.param == "merge":
        return "merge", template, lambda run: assert_merged(run, reference)
    return "mend", broken, lambda run: assert_mended(run, broken, template)


@pytest.fixture(scope="module")
def calls(case, victims):
    return count_calls(victims, verb=case[0], template=case[1])


def stop_everywhere(victims, points, case, inject, expected):
    """Stop at every one of these calls; look at every different thing that is left. Returns how many there were."""
    verb, template, assert_survived = case
    seen = set()
    for turn, (name, number) in enumerate(points):
        if (what := inject(turn, name)) is None:
            continue
        options = ("-e", f"trace={name}", "-e", f"inject={name}:{what}:when={number}")
        run, code, acks, _ = victims.run(*options, verb=verb, template=template)
        try:
            assert expected(code, name, acks[-1] if acks else ""), (code, acks)
            if (mark := left_behind(run, acks)) not in seen:
                seen.add(mark)
                assert_survived(run)
        except Exception as error:
            raise AssertionError(f"{what} at {name} number {number}: {error!r}") from error
        shutil.rmtree(run, ignore_errors=True)
    return len(points), len(seen)


def test_a_kill_before_every_change(victims, case):
    """Which are all the states that a kill at any file call can leave, see `kill_points`."""
    places = kill_points(victims, verb=case[0], template=case[1])
    points, seen = stop_everywhere(victims, places, case, lambda turn, name: "signal=KILL", lambda code, *_: code == -9)
    assert points > 20 and seen > 8
    assert (("renameat2", 1) in places) == (case[0] == "merge")


def test_an_error_at_every_file_call(victims, calls, case):
    def inject(turn, name):
        return None if name == "flock" else f"error={ERRORS[turn % len(ERRORS)]}"

    def expected(code, name, said):
        # A part that cannot be read is not merged. An acknowledgement that could not be written is the workload's own.
        return code == 0 or (code == 74 and "evometa" in said) or (code == 1 and ("evometa" in said or name == "write"))

    places = [(name, number) for name in calls for number in range(1, calls[name] + 1)]
    points, seen = stop_everywhere(victims, places, case, inject, expected)
    assert points > 60 and seen > 5


@pytest.mark.parametrize("verb", CASES)
def test_power_lost_after_every_operation(tmp_path, template, broken, reference, verb):
    """What was not fsynced is lost, kept, cut or garbled, name by name: every such disk must do."""
    start = template if verb == "merge" else broken
    shutil.copytree(start, tmp_path / "live" / "run")
    disk = Disk(tmp_path / "live")
    before = len(disk.operations)
    with disk.recording():
        {"merge": merge, "mend": mend}[verb](disk.root / "run", disk.acknowledge)

    def survives(run, acks):
        if verb == "mend":
            assert_mended(run, broken, template)
            return
        if acks:
            assert parts(run) == reference[1], "a compaction that was acknowledged was lost"
        assert_merged(run, reference)

    disks = cut_power(disk, tmp_path / "after", survives, before)
    assert len(disk.operations) - before > 30 and disks > 30


def test_the_drills_stop_what_they_say(victims, template):
    """strace sees the exchange: a kill there leaves the old parts or the new ones."""
    run, code, _, trace = victims.run(verb="merge", template=template)
    assert code == 0 and "RENAME_EXCHANGE" in trace and "renameat2" in crash_victims.CHANGES
    assert len(parts(run)) == 3
