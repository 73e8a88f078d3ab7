"""JAX tasks on a pool of workers: a work is one chunk of the plan, computed by the same program as in one process.

A candidate's bits depend on the size of its chunk, not on its neighbours nor on its place: so a chunk may be filled
up, and split again when it takes a worker with it.
"""

from __future__ import annotations

import base64
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from evometa.backends.dispatch import Outcome, Unit, Work, work
from evometa.backends.pool import Diary, Pool
from evometa.evaluate.compiled import CompiledCells
from evometa.evaluate.settle import Raw
from evometa.types import Failure


class ChunkedCells:
    """The cells of a JAX task's domains, computed by a pool; finished candidates are kept in the journal."""

    def __init__(self, cells: CompiledCells, pool: Pool, journal: Diary | None = None) -> None:
        self.compiled, self.pool, self.journal = cells, pool, journal
        present = [c.query.split("@")[0] in cells.task.domain(c.domain).queries for c in cells.cells]
        self._present = np.array(present)

    def host(self, generation: int, key: Any, genomes: np.ndarray) -> tuple[Raw, dict[int, str]]:
        """Raw cells of genomes `[P, D]`, and what the failed ones said."""
        names, shape = self.compiled.metrics, (len(genomes), len(self.compiled.cells))
        values = np.full((1 + len(names), *shape), np.nan, np.float32)
        failure, evaluated = np.zeros(len(genomes), np.int8), np.zeros(shape, bool)
        messages: dict[int, str] = {}
        job = _ChunkJob(self, generation, key, np.asarray(genomes, np.float32))
        for (index, _, _), outcome in self.pool.gather(job, generation, self.journal).items():
            failure[index] = outcome["failure"]
            if outcome["row"] is None:
                messages[index] = outcome["message"]
            else:
                row = np.frombuffer(base64.b64decode(outcome["row"]), np.float32)
                values[:, index], evaluated[index] = row.reshape(1 + len(names), -1), self._present
        metrics = {name: values[1 + i] for i, name in enumerate(names)}
        return Raw(values[0], metrics, evaluated, failure), messages


def outcomes(raw: Raw, names: Sequence[str], count: int) -> list[Outcome]:
    """What a worker says of the first `count` candidates of a chunk: their numbers `[1 + metrics, C]`, exactly."""
    rows = np.stack([raw.loss, *[raw.metrics[name] for name in names]], axis=1)[:count]
    return [
        {"failure": int(failure), "message": "", "row": base64.b64encode(row.tobytes()).decode()}
        for failure, row in zip(raw.failure, rows, strict=False)
    ]


class _ChunkJob:
    def __init__(self, cells: ChunkedCells, generation: int, key: Any, genomes: np.ndarray) -> None:
        self._cells, self._generation, self._genomes = cells, generation, genomes
        self._key = np.asarray(jax.random.key_data(key)).ravel().tolist()
        self.most: int | None = cells.compiled.plan.chunk
        self.units: Sequence[Unit] = [(index, "", 0) for index in range(len(genomes))]
        self._space = cells.compiled.task.space

    def group(self, unit: Unit) -> Hashable:
        """Candidates of one program: equal in their static columns."""
        if not self._space.static:
            return ()
        return tuple(sorted(self._space.static_values(self._genomes[unit[0]]).items()))

    def pack(self, units: Sequence[Unit], fresh: bool) -> Work:
        """The chunk, filled up with its last candidate, as `[chunk, D]` float32."""
        rows = [index for index, _, _ in units]
        filled = rows + rows[-1:] * (self._cells.compiled.plan.chunk - len(rows))
        pool = self._cells.pool
        head, body = {"key": self._key}, self._genomes[filled].tobytes()
        return work(f"{pool.scope}/{self._generation}", units, head, body, pool.limits, fresh)

    def failed(self, unit: Unit, failure: Failure, message: str) -> Outcome:
        """No numbers."""
        return {"failure": int(failure), "message": message, "row": None}
