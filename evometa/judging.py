"""Judge finished candidates again, with fresh keys: for choosing a champion, for unsealing, for replay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evometa.archives.cells import CellJournal
from evometa.archives.rows import FAILURES, seed_words
from evometa.backends.inline import HostCells
from evometa.backends.pool import Pool
from evometa.contract import Task
from evometa.evaluate.compiled import CompiledCells, layout
from evometa.evaluate.data import Loaded
from evometa.evaluate.plan import Plan
from evometa.evaluate.settle import settle
from evometa.keys import Stream, cell_keys, stream_key
from evometa.types import Cell, Failure


class Judged(NamedTuple):
    """K candidates on fresh cells; C runs over domains, then queries, then replicates."""

    cells: tuple[Cell, ...]
    loss: np.ndarray  # [K, C] float32, NaN where not evaluated
    metrics: dict[str, np.ndarray]  # each [K, C]
    failure: np.ndarray  # [K] int8
    messages: dict[int, str]

    def losses(self, query: str) -> np.ndarray:
        """`[K, domains, replicates]` of one query, NaN where a cell failed or never ran.

        A failed cell spoils its own domain only. A failure that no cell of this query shows (a metric, another
        query, a sum too large) has no place here, so it spoils all: a failed candidate never looks whole.
        """
        domains = list(dict.fromkeys(cell.domain for cell in self.cells))
        columns = [[i for i, c in enumerate(self.cells) if c.domain == d and c.query == query] for d in domains]
        loss = self.loss[:, np.array(columns)]
        finite = np.isfinite(loss)
        hidden = (self.failure != Failure.OK) & finite.all(axis=(1, 2))
        return np.where(finite & ~hidden[:, None, None], loss, np.nan)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains judged on, in order."""
        return tuple(dict.fromkeys(cell.domain for cell in self.cells))


class Judge:
    """Judges genomes on loaded domains. JAX tasks compile once, however many candidates and replicates follow.

    `pool`: workers that train and judge for a Python or command task; JAX tasks are judged in this process.
    """

    def __init__(
        self,
        task: Task,
        loaded: Sequence[Loaded],
        plan: Plan,
        pool: Pool | None = None,
        output_mb: float | None = None,
    ) -> None:
        self.task, self.loaded = task, tuple(loaded)
        self._pool, self._output_mb = pool, output_mb
        self._plan = Plan(1, plan.devices, 1, plan.platform)
        self._compiled = CompiledCells(task, loaded, self._plan, 1) if task.runs == "jax" else None

    def judge(
        self,
        genomes: np.ndarray,
        replicates: int,
        seed: int,
        stream: Stream,
        number: int,
        journal: CellJournal | None = None,
    ) -> Judged:
        """Judge genomes `[K, D]` with `replicates` seeds each, the same for all (paired).

        The keys are those of (seed, number, stream): the number of generations for validation, of the
        opening for unsealing.
        """
        key = stream_key(seed, number, stream)
        if self._compiled is None:
            cells = HostCells(self.task, self.loaded, replicates, journal, self._pool, self._output_mb)
            try:
                raw, messages = cells.host(number, key, genomes)
            finally:
                if journal is not None:
                    journal.close()
            scores = settle(raw, cells.cells, self.task.objectives)
            return Judged(cells.cells, raw.loss, raw.metrics, np.asarray(scores.failure), messages)
        parts = [self._replicate(self._compiled, genomes, key, replicates, r) for r in range(replicates)]
        # [K, domains * queries] per replicate -> [K, domains, queries, replicates]
        loss = np.stack([loss for loss, _, _ in parts], axis=2).reshape(len(genomes), -1)
        names = parts[0][1]
        metrics = {n: np.stack([m[n] for _, m, _ in parts], axis=2).reshape(len(genomes), -1) for n in names}
        failure = np.stack([f for _, _, f in parts]).max(axis=0)
        return Judged(layout(self.task, self.loaded, replicates), loss, metrics, failure, {})

    def _replicate(
        self, cells: CompiledCells, genomes: np.ndarray, key: Any, replicates: int, replicate: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        keys = cell_keys(key, cells.names, replicates)[:, replicate : replicate + 1]
        slab = self._plan.devices
        loss, metrics, failure = [], [], []
        for start in range(0, len(genomes), slab):
            part = genomes[start : start + slab]
            filled = np.concatenate([part, np.repeat(part[-1:], slab - len(part), axis=0)])
            raw = cells.host_keys(keys, filled)
            scores = settle(raw, cells.cells, self.task.objectives)
            loss.append(raw.loss[: len(part)])
            metrics.append({name: value[: len(part)] for name, value in raw.metrics.items()})
            failure.append(np.asarray(scores.failure)[: len(part)])
        joined = {name: np.concatenate([m[name] for m in metrics]) for name in metrics[0]}
        return np.concatenate(loss), joined, np.concatenate(failure)


class Subject(NamedTuple):
    """One genome that is judged: what it is, and where it came from."""

    label: str  # recommendation, observed, baseline, champion
    genome: np.ndarray  # [D] float32
    generation: int | None  # None for the baseline
    index: int | None  # None where it is nobody's genome (a mean, the baseline)


def judgement_rows(
    task: Task, run: str, subjects: Sequence[Subject], judged: Judged, phase: str, opening: int, seed: int
) -> list[dict[str, Any]]:
    """Rows for the archive's `judgements`: one per subject and cell."""
    rows = []
    for k, subject in enumerate(subjects):
        numbers, choices = task.space.values(subject.genome[None])
        columns = {column.name: column for column in task.space.columns}
        base = {
            "run": run,
            "opening": opening,
            "phase": phase,
            "label": subject.label,
            "generation": subject.generation,
            "index": subject.index,
            "genome": subject.genome.tolist(),
            "params": {name: float(value[0]) for name, value in numbers.items()},
            "choices": {name: str(columns[name].choices[int(value[0])]) for name, value in choices.items()},
            "failure": FAILURES[int(judged.failure[k])],
            "message": judged.messages.get(k),
            "seed": list(seed_words(seed)),
        }
        for c, cell in enumerate(judged.cells):
            metrics = {name: float(value[k, c]) for name, value in judged.metrics.items() if np.isfinite(value[k, c])}
            rows.append({**base, **cell._asdict(), "loss": float(judged.loss[k, c]), "metrics": metrics})
    return rows


def journal_for(run_path: Path, phase: str, number: int) -> CellJournal:
    """Finished cells of a judgement under way, apart from those of the search."""
    return CellJournal(run_path / "cells" / f"{phase}-{number:09d}")
