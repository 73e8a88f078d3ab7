"""JAX tasks on a pool of workers: a work is one chunk of the plan, computed by the same program as in one process.

A candidate's bits depend on the size of its chunk, not on its neighbours nor on its place: so a chunk may be filled
up, and split again when it takes a worker with it. Behind a hurdle the pool is asked twice: for everybody's cells of
the hurdle, then for the other cells of who passes.
"""

from __future__ import annotations

import base64
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from evometa.backends.dispatch import Outcome, Unit, Work, work
from evometa.backends.pool import Diary, Pool
from evometa.evaluate.compiled import CompiledCells
from evometa.evaluate.settle import Raw
from evometa.evaluate.staged import StagedCells
from evometa.types import Failure


class ChunkedCells:
    """The cells of a JAX task's domains, computed by a pool; finished candidates are kept in the journal."""

    def __init__(self, cells: CompiledCells | StagedCells, pool: Pool, journal: Diary | None = None) -> None:
        self.cells, self.pool, self.journal = cells, pool, journal
        self.stages = (cells.first, cells.rest) if isinstance(cells, StagedCells) else (cells,)

    def host(self, generation: int, key: Any, genomes: np.ndarray) -> tuple[Raw, dict[int, str]]:
        """Raw cells of genomes `[P, D]`, and what the failed ones said."""
        messages: dict[int, str] = {}

        def stage(number: int, rows: Iterable[int]) -> Raw:
            job = _ChunkJob(self, number, generation, key, np.asarray(genomes, np.float32), rows)
            return self._gathered(job, generation, len(genomes), messages)

        raw = stage(0, range(len(genomes)))
        if isinstance(self.cells, StagedCells):
            raw = self.cells.behind(raw, lambda passes: stage(1, np.flatnonzero(passes).tolist()))
        return jax.tree.map(np.asarray, raw), messages

    def _gathered(self, job: _ChunkJob, generation: int, count: int, messages: dict[int, str]) -> Raw:
        """The cells of one stage; who is no unit of the job has none."""
        cells = job.cells
        names, shape = cells.metrics, (count, len(cells.cells))
        present = np.array([c.query.split("@")[0] in cells.task.domain(c.domain).queries for c in cells.cells])
        values = np.full((1 + len(names), *shape), np.nan, np.float32)
        failure, evaluated = np.zeros(count, np.int8), np.zeros(shape, bool)
        for (index, _, _), outcome in self.pool.gather(job, generation, self.journal).items():
            failure[index] = outcome["failure"]
            if outcome["row"] is None:
                messages[index] = outcome["message"]
            else:
                row = np.frombuffer(base64.b64decode(outcome["row"]), np.float32)
                values[:, index], evaluated[index] = row.reshape(1 + len(names), -1), present
        return Raw(values[0], {name: values[1 + i] for i, name in enumerate(names)}, evaluated, failure)


def outcomes(raw: Raw, names: Sequence[str], count: int) -> list[Outcome]:
    """What a worker says of the first `count` candidates of a chunk: their numbers `[1 + metrics, C]`, exactly."""
    rows = np.stack([raw.loss, *[raw.metrics[name] for name in names]], axis=1)[:count]
    return [
        {"failure": int(failure), "message": "", "row": base64.b64encode(row.tobytes()).decode()}
        for failure, row in zip(raw.failure, rows, strict=False)
    ]


class _ChunkJob:
    """One stage's cells of some candidates (`rows`); the stage is the last number of its units."""

    def __init__(
        self, owner: ChunkedCells, stage: int, generation: int, key: Any, genomes: np.ndarray, rows: Iterable[int]
    ) -> None:
        self.cells, self._stage, self._pool = owner.stages[stage], stage, owner.pool
        self._generation, self._genomes = generation, genomes
        self._key = np.asarray(jax.random.key_data(key)).ravel().tolist()
        self.most: int | None = self.cells.plan.chunk
        self.units: Sequence[Unit] = [(index, "", stage) for index in rows]
        self._space = self.cells.task.space

    def group(self, unit: Unit) -> Hashable:
        """Candidates of one program: equal in their static columns."""
        if not self._space.static:
            return ()
        return tuple(sorted(self._space.static_values(self._genomes[unit[0]]).items()))

    def pack(self, units: Sequence[Unit], fresh: bool) -> Work:
        """The chunk, filled up with its last candidate, as `[chunk, D]` float32."""
        rows = [index for index, _, _ in units]
        filled = rows + rows[-1:] * (self.cells.plan.chunk - len(rows))
        pool = self._pool
        head, body = {"key": self._key, "stage": self._stage}, self._genomes[filled].tobytes()
        return work(f"{pool.scope}/{self._generation}", units, head, body, pool.limits, fresh)

    def failed(self, unit: Unit, failure: Failure, message: str) -> Outcome:
        """No numbers."""
        return {"failure": int(failure), "message": message, "row": None}
