"""A run: the loop with a disk. Part first, checkpoint second, so that it can be killed anywhere."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np

from evometa import checkpoint, folder
from evometa.archives import events
from evometa.archives.cells import CellJournal
from evometa.archives.content import rows_digest
from evometa.archives.read import Archive
from evometa.archives.rows import block_from_table, lineage_table, timings_table
from evometa.archives.stored import Stored, blocks, standing
from evometa.archives.write import commit, sweep
from evometa.errors import EvometaError, IntegrityError, ResumeMismatch
from evometa.session import Session, identity_digest
from evometa.types import Block, Failure, State

# A checkpoint costs eight fsyncs and only spares a resume what came after it: stored generations are told again,
# compiled blocks computed again, for as long at the most.
_CHECKPOINT_SECONDS = 5.0


_IDLE = "nobody passed the hurdle; the search stands still until somebody does"


class Watch(Protocol):
    """Somebody who looks on; see reports/live.py. Nothing that it does can change a number."""

    def begin(self, session: Session, path: Path, generation: int, until: int) -> None:
        """A run goes on from `generation` to `until`."""
        ...

    def block(self, block: Block, state: State, seconds: float) -> None:
        """A block is on disk; `state` is the strategy's, after it."""
        ...

    def note(self, text: str) -> None:
        """A sentence for whoever looks on."""
        ...

    def end(self) -> None:
        """The search is over, or was stopped."""
        ...


class Unwatched:
    """Nobody looks on."""

    def begin(self, session: Session, path: Path, generation: int, until: int) -> None:
        """Nothing."""

    def block(self, block: Block, state: State, seconds: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


# SLURM sends SIGUSR1, where it is asked to (`--signal=B:USR1@60`), before a job's time is over (docs/own-script.md).
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(EvometaError):
    """A signal asked the run to stop; everything that was finished is on disk (exit code 130, 143 or 138)."""

    def __init__(self, number: int, path: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}. Go on with: evometa resume {path}")
        self.exit_code = 128 + number


class _Dropped(BaseException):
    """A signal in the middle of a cell. A BaseException, so that a task's own `except Exception` does not swallow it
    and hand back the number of a training that never finished."""


class _Stop:
    """SIGINT, SIGTERM and SIGUSR1 while a run is under way.

    A compiled block is finished and committed first. A host loop is left at once: a Python or command task's
    finished cells are durable, and no other generation is worth waiting for. A second signal drops
    everything, which is no more than a kill -9: at once in a host loop and in a commit, and where a compiled block
    computes, when it ends, for Python hears no signal before.
    """

    def __init__(self, path: Path, watch: Watch) -> None:
        self.number = 0
        self.may_interrupt = False
        self._path, self._watch = path, watch

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number or self.may_interrupt:
            self.number = number
            raise _Dropped
        self.number = number
        self._watch.note("stopping after this block; once more to drop it")

    def check(self) -> None:
        if self.number:
            raise Interrupted(self.number, self._path)


@contextmanager
def stoppable(path: Path, watch: Watch) -> Iterator[_Stop]:
    """Handle `STOPS` as `_Stop` says; outside the main thread signals are left alone."""
    stop = _Stop(path, watch)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield stop
    except _Dropped:
        raise Interrupted(stop.number, path) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(session: Session, out: Path, *, forked: dict[str, Any] | None = None) -> Path:
    """Make the folder of a new run and write its record."""
    spec = session.spec
    default = f"{session.task.name}-{session.strategy.name}-s{spec.seed}"
    # Where a task file named by a relative path is found again; no part of what makes the run this run.
    here = str(Path.cwd())
    # What reports group domains by; they import no task.
    tags = {domain.name: {k: str(v) for k, v in domain.tags.items()} for domain in session.task.domains if domain.tags}
    record = {**session.identity, "generations": spec.generations, "from": forked, "folder": here, "tags": tags}
    return folder.create(out, spec.name, default, record)


def advance(
    path: Path, session: Session, until: int, watch: Watch, start_state: Callable[[], State] | None = None
) -> State:
    """Carry a run to `until` generations; every block is durable before the next begins.

    `start_state` makes what a fork starts from; asked once, then kept as the fork's first checkpoint. The caller
    holds the run's lock. Raises `ResumeMismatch` where what is stored and what is computed differ, `Interrupted`
    on a signal.
    """
    return _Advance(path, session, watch).run(until, start_state)


class _Advance:
    def __init__(self, path: Path, session: Session, watch: Watch) -> None:
        self.path, self.session, self.watch = path, session, watch
        self.digest = identity_digest(session.identity)
        self.base = int((folder.read_record(path).get("from") or {}).get("first", 0))
        self.timings: list[Any] = []
        self.saved_at = time.monotonic()
        self.last_part: str | None = None
        self.noted: set[str] | None = None  # what the diary holds of the strategy's notes
        self.idle = False  # has there been a generation of which nobody passed the hurdle?
        self.journal = CellJournal(path / "cells")
        session.keep_in(self.journal)
        self.pool = session.pool()
        if self.pool is not None:
            self.pool.note = self._said

    def run(self, until: int, start_state: Callable[[], State] | None) -> State:
        sweep(self.path)
        generation, state = self._restore(start_state)
        stored = Stored(self.path / "lineage")
        self.watch.begin(self.session, self.path, generation, until)
        with stoppable(self.path, self.watch) as stop:
            try:
                while generation < until:
                    began = time.monotonic()
                    length = self.session.plan.block
                    count = min(length - generation % length, until - generation)
                    if (part := stored.part(generation)) is not None:
                        state, block = self._stored(state, stored.rows(part, generation, count), part.name)
                        self.last_part = part.name
                    else:
                        count = stored.gap(generation, count)  # a part that was lost comes back, and nothing twice
                        stop.may_interrupt = not self.session.compiled
                        state, block = self.session.loop.advance(state, generation, count)
                        stop.may_interrupt = False
                        self._commit(block, time.monotonic() - began)
                    generation += block.generations
                    if time.monotonic() - self.saved_at > _CHECKPOINT_SECONDS or generation >= until:
                        self._save(generation, state)
                    self._note(block, state)
                    self.watch.block(block, state, time.monotonic() - began)
                    if block.first == self.base:
                        self._some_succeeded(block)
                    if stop.number:
                        self._save(generation, state)
                        stop.check()
            finally:
                self.journal.close()
                self.watch.end()
        return state

    def _restore(self, start_state: Callable[[], State] | None) -> tuple[int, State]:
        like = self.session.initial_state()
        found = checkpoint.load(self.path, like, spec_digest=self.digest)
        if found is None and start_state is not None:
            # On disk before the first block: from then on the fork needs its parent no more.
            state = start_state()
            self._save(self.base, state)
            return self.base, state
        if found is None:
            return self.base, like
        generation, state, meta = found
        self.last_part = meta.get("last_part")
        if self.last_part and standing(self.path, self.last_part) is None:
            part = self.path / "lineage" / self.last_part
            raise IntegrityError(
                f"{part}: this part is missing, and a checkpoint counts on it. Put it back; what else is wrong says:"
                f" evometa archive check {self.path}"
            )
        return generation, state

    def _table(self, block: Block) -> Any:
        session = self.session
        return lineage_table(
            self.path.name, block, session.cells, session.task.space, session.strategy.operators, session.spec.seed
        )

    def _commit(self, block: Block, seconds: float) -> None:
        part = commit(self.path / "lineage", self._table(block), block.first)
        self.last_part = part.name
        self.journal.clear()
        candidates = block.generations * self.session.strategy.population
        hosts = self.pool.hosts() if self.pool is not None else {}
        extras = json.dumps({"hosts": hosts}) if hosts else None
        table = timings_table(self.path.name, block.first, block.generations, seconds, candidates, extras=extras)
        self.timings.append(table)

    def _save(self, generation: int, state: State) -> None:
        if self.timings:
            import pyarrow as pa

            table = pa.concat_tables(self.timings)
            commit(self.path / "timings", table, int(table["first_generation"][0].as_py()))
            self.timings = []
        checkpoint.save(self.path, generation, state, {"spec_digest": self.digest, "last_part": self.last_part})
        self.saved_at = time.monotonic()

    def _stored(self, state: State, table: Any, part: str) -> tuple[State, Block]:
        """Pass over stored generations that lie beyond the checkpoint; `table` has their rows, `part` is its name.

        A compiled block is computed again and must give the same rows, bit for bit: it takes a moment, and nothing
        else gives the same state for certain. On the host, the stored scores are told, and nothing is evaluated.
        """
        session, space = self.session, self.session.task.space
        first, last = (int(table["generation"][at].as_py()) for at in (0, -1))
        if session.compiled:
            state, block = session.loop.advance(state, first, last + 1 - first)
            if rows_digest(self._table(block)) != rows_digest(table):
                raise ResumeMismatch(_DIFFERS.format(part=part))
            return state, block
        block = block_from_table(table, session.cells, space.dimension, len(session.task.objectives))
        try:
            return session.retelling().retell(state, block), block
        except ValueError:
            raise ResumeMismatch(_DIFFERS.format(part=part)) from None

    def _note(self, block: Block, state: State) -> None:
        """What the strategy has to say goes into the diary, once, and to whoever looks on; so does an idle hurdle."""
        notes = self.session.strategy.notes
        said = notes(state) if notes else []
        failure = np.asarray(block.scores.failure)
        idle = (failure == Failure.SKIPPED).any(axis=1) & ~(failure == Failure.OK).any(axis=1)
        if idle.any() and not self.idle:
            self.idle = True
            said = [*said, f"generation {block.first + int(idle.argmax())}: {_IDLE}"]
        for text in said:
            if self.noted is None:
                self.noted = {entry["text"] for entry in events.diary(self.path) if entry["kind"] == "note"}
            if text not in self.noted and not (text.endswith(_IDLE) and any(t.endswith(_IDLE) for t in self.noted)):
                self._said(text)
                self.noted.add(text)

    def _said(self, text: str) -> None:
        """A sentence for the diary and for whoever looks on: the workers' engine has some of its own."""
        record_event(self.path, "note", text=text)
        self.watch.note(text)

    def _some_succeeded(self, block: Block) -> None:
        failure = np.asarray(block.scores.failure)
        if np.isin(failure, (Failure.OK, Failure.SKIPPED)).any():
            return
        first = next(iter(block.messages.values()), f"{Failure(int(failure[0, 0])).name.lower()} loss")
        reference = self.session.spec.task
        # A task in the spec's table or in memory has no name that could be typed.
        named = isinstance(reference, str) and not reference.startswith("evometa_in_memory:")
        cure = f"Try: evometa check task {reference}" if named else "See what it needs: check its fit and judge"
        if "ModuleNotFoundError" in first:
            cure = "Install the package with pip and start a new run: this one keeps its failures"
        raise EvometaError(
            f"every candidate of the first {block.generations} generation(s) failed, the first with: {first}. {cure}"
        )


_DIFFERS = (
    "{part} is not what this machine computes for the same generations: another kind of processor, or a task that"
    " is not a function of its key. Resume where the run began, or start a fork with:"
    " evometa run ... --from RUN@GENERATION"
)


def state_at(path: Path, session: Session, generation: int, start_state: State | None = None) -> State:
    """The strategy's state before `generation`, told again from the stored rows; nothing is evaluated."""
    state = session.initial_state() if start_state is None else start_state
    loop, space = session.retelling(), session.task.space
    for part, table in blocks(Archive(path).parts(), generation):
        block = block_from_table(table, session.cells, space.dimension, len(session.task.objectives))
        try:
            state = loop.retell(state, block)
        except ValueError:
            raise ResumeMismatch(_DIFFERS.format(part=part.path.name)) from None
    return state


def record_event(path: Path, kind: str, **fields: Any) -> None:
    """Add to the run's diary."""
    events.append(path, kind, **fields)
