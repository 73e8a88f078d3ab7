"""Any order of commits, checkpoints, deaths, power cuts, resumes and reads: nothing acknowledged is ever lost."""

from __future__ import annotations

import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from archive_samples import make_block, make_table
from crash_disk import Disk, PowerCut
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from evometa import checkpoint
from evometa.archives import events, rows, write
from evometa.archives.check import check
from evometa.archives.read import Archive, list_parts
from evometa.archives.sealed import scan

GENERATIONS = 12
KINDS = ["nothing", "names only", "names and zeros", "names and halves", "everything", "some"]


@cache
def block_table(generation: int):
    return make_table(make_block(generation, population=4, cells=2))


@cache
def part_bytes(generation: int) -> bytes:
    return bytes(write.encode(block_table(generation)))


def state_after(generation: int) -> dict[str, np.ndarray]:
    return {"mean": np.full(3, generation / 7.0), "count": np.array(generation)}


class Run(RuleBasedStateMachine):
    """The model: how many generations were acknowledged, and which checkpoint."""

    @initialize()
    def begin(self) -> None:
        self.folders = Path(tempfile.mkdtemp())
        self.disk = Disk(self.folders / "0")
        self.run = self.disk.root / "run"
        self.committed = self.saved = self.noted = self.judged = 0
        self.memory: int | None = 0  # the generation that the living process has reached; None: it is dead

    def teardown(self) -> None:
        if hasattr(self, "folders"):
            shutil.rmtree(self.folders)

    # --- a living process -------------------------------------------------------------------------

    died = 0  # times since the last note that was acknowledged

    def _commit(self) -> None:
        assert self.memory is not None
        path = write.commit(self.run / "lineage", block_table(self.memory), self.memory)
        assert path.read_bytes() == part_bytes(self.memory)
        self.memory += 1
        self.committed = max(self.committed, self.memory)

    def _save(self) -> None:
        assert self.memory is not None
        last = list_parts(self.run / "lineage")[self.memory - 1].path.name if self.memory else None
        checkpoint.save(self.run, self.memory, state_after(self.memory), {"spec_digest": "s", "last_part": last})
        self.saved = self.memory

    def _note(self) -> None:
        number = len(self._notes())
        events.append(self.run, "note", number=number)
        self.noted, self.died = number + 1, 0

    def _notes(self) -> list[int]:
        return [entry["number"] for entry in events.read(self.run) if entry["kind"] == "note"]

    def _judge(self) -> None:
        opening = len(list_parts(self.run / "judgements"))
        row = {"run": "x", "opening": opening, "loss": opening / 4}
        write.commit(self.run / "judgements", rows.judgements_table([row]), opening)
        self.judged = opening + 1

    @precondition(lambda self: self.memory is not None and self.memory < GENERATIONS)
    @rule()
    def commit(self) -> None:
        with self.disk.recording():
            self._commit()

    @precondition(lambda self: self.memory is not None and self.memory > 0)
    @rule()
    def save(self) -> None:
        with self.disk.recording():
            self._save()

    @precondition(lambda self: self.memory is not None)
    @rule(judge=st.booleans())
    def note(self, judge: bool) -> None:
        with self.disk.recording():
            self._judge() if judge else self._note()

    @precondition(lambda self: self.memory is not None and self.memory < GENERATIONS)
    @rule(fuse=st.integers(0, 45))
    def die(self, fuse: int) -> None:
        self.disk.fuse = fuse
        try:
            with self.disk.recording():
                self._commit()
                self._note()
                self._save()
                self._judge()
        except PowerCut:
            pass
        self.disk.fuse = None
        self.memory = None
        self.died += 1  # each death may leave a note that was written and not acknowledged

    # --- a dead one ---------------------------------------------------------------------------------

    @precondition(lambda self: self.memory is None)
    @rule(kind=st.sampled_from(KINDS), seed=st.integers(0, 1000))
    def power_cut(self, kind: str, seed: int) -> None:
        folder = self.folders / str(len(list(self.folders.iterdir())))
        self.disk.materialize(folder, len(self.disk.operations), kind, random.Random(seed))
        self.disk = Disk(folder)
        self.run = folder / "run"

    @precondition(lambda self: self.memory is None)
    @rule()
    def resume(self) -> None:
        with self.disk.recording():
            if self.run.exists():
                write.sweep(self.run)
                # What the dead process had named, but not acknowledged, now counts.
                self.committed = len(list_parts(self.run / "lineage"))
                self.judged = len(list_parts(self.run / "judgements"))
            found = checkpoint.load(self.run, state_after(0), spec_digest="s")
        self.memory = found[0] if found else 0
        assert self.memory >= self.saved
        if found:
            assert found[2]["skipped"] == []
            assert all(np.array_equal(found[1][name], state_after(self.memory)[name]) for name in found[1])
        self.saved = self.memory

    # --- anybody, at any time -----------------------------------------------------------------------

    @invariant()
    def what_was_acknowledged_is_there(self) -> None:
        if not hasattr(self, "run"):
            return
        parts = list_parts(self.run / "lineage")
        assert self.committed <= len(parts) <= self.committed + 1
        for generation, part in enumerate(parts):
            assert part.first == generation and part.path.read_bytes() == part_bytes(generation)
        judged = list_parts(self.run / "judgements")
        assert self.judged <= len(judged) <= self.judged + 1
        assert [part.read()["loss"].to_pylist() for part in judged] == [[i / 4] for i in range(len(judged))]
        notes = self._notes()
        assert notes == list(range(len(notes))) and self.noted <= len(notes) <= self.noted + max(1, self.died)
        assert all(found.record for found in scan(self.run))

    @precondition(lambda self: self.committed > 0)
    @rule()
    def read(self) -> None:
        if not (self.run / "run.json").exists():
            write.write_once(self.run / "run.json", b"{}")
        archive = Archive(self.run)
        stored = len(archive.parts())
        assert archive.generations() == stored and len(archive.table()) == 4 * stored
        best = archive.top(1)[0]
        assert archive.row(best["generation"], best["index"])["fitness"] == best["fitness"]
        assert [line for line in check(self.run).problems if "run.json" not in line] == []
        (self.run / "run.json").unlink()


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
