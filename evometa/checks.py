"""The single checks of a task, and the report that they write; see `checking.py` for the front door."""

from __future__ import annotations

import textwrap
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np

from evometa.backends.inline import HostCells
from evometa.contract import Task
from evometa.evaluate.compiled import CompiledCells
from evometa.evaluate.data import Loaded
from evometa.evaluate.plan import Plan, derive
from evometa.evaluate.settle import Raw
from evometa.keys import Stream, stream_key
from evometa.seal import Broken, check_seal
from evometa.types import Failure

GENERATION = 32  # candidates that the cost is given for
FEW = 4  # random candidates where each costs a whole training


@dataclass(frozen=True)
class Line:
    """One check: `ok`, what was found, and what to do where it is not."""

    check: str
    ok: bool
    found: str
    cure: str = ""


@dataclass
class Report:
    """What was checked, in order."""

    subject: str
    lines: list[Line] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no check met a problem."""
        return all(line.ok for line in self.lines)

    def add(self, check: str, found: str, problem: str = "", cure: str = "") -> bool:
        """Add a line; it is a problem where `problem` says something. Returns whether it is fine."""
        self.lines.append(Line(check, not problem, problem or found, cure if problem else ""))
        return not problem

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"subject": self.subject, "ok": self.ok, "checks": [asdict(line) for line in self.lines]}

    def text(self) -> str:
        """For people: a line per check, the cure beneath a problem."""
        width = max((len(line.check) for line in self.lines), default=0)
        out = []
        for line in self.lines:
            head = f"  {'ok' if line.ok else 'PROBLEM':<7}  {line.check:<{width}}  "
            out.append(
                textwrap.fill(
                    line.found, 100, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False
                )
            )
            if line.cure:
                out.append(
                    textwrap.fill(
                        f"cure: {line.cure}", 100, initial_indent=" " * len(head), subsequent_indent=" " * len(head)
                    )
                )
        problems = sum(not line.ok for line in self.lines)
        return "\n".join(
            [*out, f"{self.subject}: " + ("ok" if self.ok else f"{problems} problem{'s' if problems > 1 else ''}")]
        )


class Checks(ABC):
    """The checks that all tasks share; subclasses know how to compute cells."""

    def __init__(self, task: Task, loaded: tuple[Loaded, ...], report: Report) -> None:
        self.task, self.report = task, report
        self.train = tuple(domain for domain in loaded if domain.role == "train")
        self.held = tuple(domain for domain in loaded if domain.role == "validation")
        self.baseline = task.space.encode(task.baseline)
        self.key, self.other_key = (stream_key(0, number, Stream.CHECK) for number in (0, 1))

    @abstractmethod
    def run(self) -> None:
        """Make every check, cheap ones first; stop where the baseline itself does not work."""

    def sample(self, count: int) -> np.ndarray:
        """The baseline and `count - 1` random genomes: `[count, D]`."""
        drawn = np.asarray(self.task.space.project(self.task.space.sample(self.other_key, count)))
        return np.concatenate([self.baseline[None], drawn[1:]])

    def say_baseline(self, raw: Raw, messages: Mapping[int, str], cells: Any, role: str) -> bool:
        """A line on row 0; False where it failed."""
        failed = failures(raw)[0]
        mean = float(np.nanmean(np.where(raw.evaluated[0], raw.loss[0], np.nan))) if not failed else 0.0
        where = _broken_cells(raw, cells)
        return self.report.add(
            f"baseline, {role}",
            f"trains and judges on {', '.join(dict.fromkeys(c.domain for c in cells))}: mean loss {mean:.4g}",
            f"{messages.get(0, f'not a finite number on {where}')} ({Failure(int(failed)).name.lower()})"
            if failed
            else "",
            "a run compares everything with the baseline: make it one that works",
        )

    def say_candidates(self, raw: Raw, messages: Mapping[int, str]) -> None:
        """A line on the random rows."""
        bad, count = failures(raw)[1:], len(raw.loss) - 1
        failed = int((bad != Failure.OK).sum())
        reasons: dict[str, int] = {}
        for index in np.flatnonzero(bad != Failure.OK):
            reason = messages.get(int(index) + 1, "loss or metric is not finite")
            reasons[reason] = reasons.get(reason, 0) + 1
        why = f" ({'; '.join(f'{n} x {reason}' for reason, n in list(reasons.items())[:3])})" if reasons else ""
        self.report.add(
            "random candidates",
            f"{count - failed} of {count} work{why}",
            f"all {count} failed{why}" if failed == count else "",
            "narrow the ranges of the space until most of it trains",
        )

    def say_determinism(self, same: bool, luck: bool) -> None:
        """A line on keys."""
        other = "other numbers" if luck else "the same numbers (no luck involved)"
        self.report.add(
            "determinism",
            f"the same key gives the same bits; another key gives {other}",
            "" if same else "the same key gave other numbers the second time, so runs could not be resumed or replayed",
            "draw everything random from key; leave out clocks, global generators, and state kept between calls",
        )

    def say_cost(self, seconds: float) -> None:
        """A line on time per candidate."""
        domains, replicates = len(self.train), self.task.replicates
        trainings = f"{domains} domain{'s' if domains > 1 else ''}" + (
            f" x {replicates} replicates" if replicates > 1 else ""
        )
        seconds *= replicates
        self.report.add(
            "cost",
            f"{duration(seconds)} per candidate ({trainings}); a generation of {GENERATION}:"
            f" {duration(seconds * GENERATION)}",
        )

    def say_seal(self) -> None:
        """The seal, or why there is none."""
        if self.task.black_box:
            self.report.add("seal", "one function: nothing held out by construction")
            return
        try:
            self.report.add("seal", check_seal(self.task, self.train))
        except Broken as broken:
            self.report.add("seal", "", broken.found, broken.cure)


class JaxChecks(Checks):
    """Checks of a task that is compiled."""

    def run(self) -> None:
        """As the base says."""
        task = self.task
        first = CompiledCells(task, self.train, Plan(platform=jax.default_backend()), 1)
        first.replan(self._plan(first))
        # Every value of a static column is a compilation of its own.
        genomes = self.sample(FEW if task.space.static else GENERATION)
        raw = first.host(self.key, genomes)
        began = time.perf_counter()
        other = first.host(self.other_key, genomes)
        seconds = (time.perf_counter() - began) / len(genomes)
        if not self.say_baseline(raw, {}, first.cells, "train"):
            return
        if self.held:
            held = CompiledCells(task, self.held, Plan(platform=jax.default_backend()), 1)
            self.say_baseline(held.host(self.key, self.baseline[None]), {}, held.cells, "validation")
        self.say_candidates(raw, {})
        # Traced and compiled anew, as another process would: random numbers drawn while tracing show.
        jax.clear_caches()
        second = CompiledCells(task, self.train, first.plan, 1)
        self.say_determinism(_same(raw, second.host(self.key, genomes)), not _same(raw, other))
        order = np.arange(len(genomes))[::-1]
        turned = second.host(self.key, genomes[order])
        alike = _same(raw, jax.tree.map(lambda x: x[order], turned))
        self.report.add(
            "independence",
            "candidates computed together do not influence each other",
            "" if alike else "a candidate's numbers changed with its neighbours' places in the batch",
            "fit must not look beyond its own candidate (no axis names, no state between calls)",
        )
        self.say_seal()
        self.say_cost(seconds)

    def _plan(self, cells: CompiledCells) -> Plan:
        flops, live = cells.cost()
        return derive(
            flops=flops, live_bytes=live, population=GENERATION, row_bytes=8.0 * self.task.space.dimension,
            devices=len(jax.devices()), platform=jax.default_backend(),
        )  # fmt: skip


class HostChecks(Checks):
    """Checks of a plain-Python or command task, where every training counts."""

    def run(self) -> None:
        """As the base says."""
        began = time.perf_counter()
        train = HostCells(self.task, self.train, 1)
        raw, messages = train.host(0, self.key, self.baseline[None])
        seconds = time.perf_counter() - began
        if not self.say_baseline(raw, messages, train.cells, "train"):
            return
        if self.held:
            held = HostCells(self.task, self.held, 1)
            held_raw, held_messages = held.host(0, self.key, self.baseline[None])
            self.say_baseline(held_raw, held_messages, held.cells, "validation")
        one = HostCells(self.task, self.train[:1], 1)
        rows, said = one.host(0, self.key, self.sample(FEW + 1))
        self.say_candidates(rows, said)
        again, _ = one.host(0, self.key, self.baseline[None])
        other, _ = one.host(0, self.other_key, self.baseline[None])
        first = jax.tree.map(lambda x: x[:1], rows)
        self.say_determinism(_same(first, again), not _same(first, other))
        self.say_seal()
        self.say_cost(seconds)


def failures(raw: Raw) -> np.ndarray:
    """`[P]` why each row failed: what the backend said, else a loss that is not finite."""
    broken = (np.asarray(raw.evaluated) & ~np.isfinite(raw.loss)).any(axis=1) | ~np.asarray(raw.evaluated).any(axis=1)
    return np.where((raw.failure == Failure.OK) & broken, np.int8(Failure.NONFINITE), raw.failure)


def _broken_cells(raw: Raw, cells: Any) -> str:
    named = [
        f"{cell.domain}/{cell.query}"
        for i, cell in enumerate(cells)
        if raw.evaluated[0, i] and not np.isfinite(raw.loss[0, i])
    ]
    return ", ".join(named[:4]) or "some metric"


def _same(one: Raw, two: Raw) -> bool:
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


def duration(seconds: float) -> str:
    """A time for people."""
    for limit, unit, scale in ((1e-3, "us", 1e6), (1.0, "ms", 1e3), (120.0, "s", 1.0), (7200.0, "min", 1 / 60)):
        if seconds < limit:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"
