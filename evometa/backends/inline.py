"""Plain-Python and command tasks in a simple loop; every finished cell is durable at once.

A unit of work is one training (candidate x domain x replicate) with its judgements on every query. What
goes wrong in one is recorded as that candidate's failure, never as a number, and its remaining trainings
are skipped: they could not save it. Behind a hurdle everybody's trainings on its domains come first, and then those
of who passes (see evaluate/staged.py); which ones those are follows from the finished cells alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from evometa.backends.dispatch import Outcome, Unit, Work, work
from evometa.backends.pool import Diary, Pool
from evometa.backends.unit import run_unit
from evometa.contract import Task
from evometa.evaluate.compiled import layout
from evometa.evaluate.data import Loaded, digest
from evometa.evaluate.settle import Raw
from evometa.evaluate.staged import Hurdle, judge_behind
from evometa.keys import as_int, cell_keys, fit_and_judge_keys
from evometa.types import Failure

Keys = tuple[int, dict[str, int]]  # of one training: its own, and one for each query that judges it


class _Stage(NamedTuple):
    """What is to be computed: the trainings of some candidates on some domains."""

    generation: int
    keys: Mapping[tuple[str, int], Keys]  # (domain, replicate) -> the training's
    genomes: np.ndarray  # [P, D], of all candidates
    loaded: Sequence[Loaded]
    rows: Sequence[int]  # whose


class HostCells:
    """The cells of some domains of a Python or command task; `pool`: computed by its workers instead of here.

    `output_mb` bounds what a command may write to its standard output and error; `hurdle`: who fails it is not
    judged on the rest.
    """

    def __init__(
        self,
        task: Task,
        loaded: Sequence[Loaded],
        replicates: int,
        journal: Diary | None = None,
        pool: Pool | None = None,
        output_mb: float | None = None,
        hurdle: Hurdle | None = None,
    ) -> None:
        self.task, self.loaded, self.replicates, self.journal = task, tuple(loaded), replicates, journal
        self.pool, self.output_mb = pool, output_mb
        self.names = tuple(domain.name for domain in loaded)
        self.cells = layout(task, loaded, replicates)
        self.metrics = tuple(sorted({"support_loss", "inner_steps", *task.metrics}))
        self.hurdle = None if hurdle is None else hurdle.check(self.names)
        self._words: dict[str, str] = {}

    def host(self, generation: int, key: Any, genomes: np.ndarray) -> tuple[Raw, dict[int, str]]:
        """Raw cells of genomes `[P, D]`, and what the failed ones said."""
        grid = cell_keys(key, self.names, self.replicates)
        keys = {
            (name, r): _integer_keys(grid[d, r], self.task.query_names)
            for d, name in enumerate(self.names)
            for r in range(self.replicates)
        }
        messages: dict[int, str] = {}

        def stage(loaded: Sequence[Loaded], rows: Sequence[int]) -> Raw:
            return self._raw(_Stage(generation, keys, genomes, loaded, rows), messages)

        everybody = range(len(genomes))
        if self.hurdle is None:
            return stage(self.loaded, everybody), messages
        first, rest = self.loaded[: self.hurdle.domains], self.loaded[self.hurdle.domains :]
        raw = judge_behind(
            self.hurdle, stage(first, everybody), lambda passes: stage(rest, np.flatnonzero(passes).tolist()),
            layout(self.task, first, self.replicates), self.task.objectives[0],
        )  # fmt: skip
        return jax.tree.map(np.asarray, raw), messages

    def _raw(self, stage: _Stage, messages: dict[int, str]) -> Raw:
        """Raw cells `[P, C]` of a stage's domains; candidates that are not among its rows have none."""
        cells = layout(self.task, stage.loaded, self.replicates)
        columns = {cell[:2] + (cell.replicate,): i for i, cell in enumerate(cells)}
        shape = (len(stage.genomes), len(cells))
        loss = np.full(shape, np.nan, np.float32)
        metrics = {name: np.full(shape, np.nan, np.float32) for name in self.metrics}
        failure = np.zeros(len(stage.genomes), np.int8)
        outcomes = self._here if self.pool is None else self._pooled
        for (index, domain, r), outcome in outcomes(stage):
            for query, values in outcome["metrics"].items():
                column = columns[domain, query, r]
                loss[index, column] = values["loss"]
                for name in self.metrics:
                    metrics[name][index, column] = values.get(name, math.nan)
            if outcome["failure"] != Failure.OK:
                failure[index], messages[index] = outcome["failure"], outcome["message"]
        evaluated = ~np.isnan(loss)
        # NaN in a metric means that the judge did not return it; a NaN that it returned failed above.
        return Raw(loss, metrics, evaluated, failure)

    def _here(self, stage: _Stage) -> Iterator[tuple[Unit, Outcome]]:
        """One unit after the other; what follows a candidate's failure is not computed."""
        for index in stage.rows:
            candidate, failed = self.task.space.decode_host(stage.genomes[index]), False
            for domain in stage.loaded:
                for r in range(self.replicates):
                    if not failed:
                        unit = (index, domain.name, r)
                        outcome = self._unit(stage.generation, unit, candidate, stage.keys[domain.name, r], domain)
                        failed = outcome["failure"] != Failure.OK
                        yield unit, outcome

    def _unit(self, generation: int, unit: Unit, candidate: Any, keys: Keys, domain: Loaded) -> Outcome:
        if self.journal is not None and (done := self.journal.get(generation, unit)) is not None:
            return done
        outcome = run_unit(self.task, candidate, *keys, domain, self.output_mb)
        if self.journal is not None:
            self.journal.put(generation, unit, outcome)
        return outcome

    def _pooled(self, stage: _Stage) -> Iterator[tuple[Unit, Outcome]]:
        """The same from the pool's workers."""
        assert self.pool is not None
        for domain in stage.loaded:
            if domain.name not in self._words:
                self._words[domain.name] = digest([domain], Path(self.task.folder))
        job = _HostJob(self.pool, stage, self.replicates, self._words)
        return iter(self.pool.gather(job, stage.generation, self.journal).items())


def _integer_keys(key: Any, queries: tuple[str, ...]) -> tuple[int, dict[str, int]]:
    fit_key, judge_keys = fit_and_judge_keys(key, queries)
    return as_int(fit_key), {query: as_int(value) for query, value in judge_keys.items()}


class _HostJob:
    """The units of one generation of a Python or command task, as works."""

    most: int | None = None

    def __init__(self, pool: Pool, stage: _Stage, replicates: int, words: Mapping[str, str]) -> None:
        self.pool, self._generation, self._keys, self._words = pool, stage.generation, stage.keys, words
        self.units: Sequence[Unit] = [
            (index, domain.name, r) for index in stage.rows for domain in stage.loaded for r in range(replicates)
        ]
        self._genomes = np.asarray(stage.genomes, np.float32)

    def group(self, unit: Unit) -> None:
        """Any units may travel together."""

    def pack(self, units: Sequence[Unit], fresh: bool) -> Work:
        """Each unit with its keys, and the genomes as the body `[units, D]` float32."""
        head = {
            "units": [[domain, r, *self._keys[domain, r]] for _, domain, r in units],
            "data": {domain: self._words[domain] for _, domain, _ in units},
        }
        body = self._genomes[[index for index, _, _ in units]].tobytes()
        return work(f"{self.pool.scope}/{self._generation}", units, head, body, self.pool.limits, fresh)

    def failed(self, unit: Unit, failure: Failure, message: str) -> Outcome:
        """As `run_unit` says it."""
        return {"failure": int(failure), "message": f"domain {unit[1]}: {message}", "metrics": {}}
