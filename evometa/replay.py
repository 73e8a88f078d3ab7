"""Compute a stored candidate's scores again, from its row and run.json alone, and compare the bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from evometa import api, driver
from evometa.archives.read import Archive
from evometa.archives.rows import block_from_table
from evometa.backends.inline import HostCells
from evometa.evaluate.settle import settle
from evometa.keys import Stream, stream_key
from evometa.types import Failure


def replay(path: Path, generation: int, index: int) -> dict[str, Any]:
    """`{"equal", "fitness", "replayed", "differing"}`: whether every loss and the fitness agree to the bit.

    `differing` lists the cells that do not, with both losses. Raises `NotFound` for a candidate that is not
    there and `ResumeMismatch` where task, data or libraries are not those of the run.
    """
    archive = Archive(path)
    archive.row(generation, index)
    session = api.reopen(path)
    part = next(part for part in reversed(archive.parts()) if part.first <= generation)
    table = part.read()
    block = block_from_table(table, session.cells, session.task.space.dimension, len(session.task.objectives))
    stored = jax.tree.map(lambda x: x[generation - block.first, index], block.scores._replace(metrics={}))
    genome = block.genomes[generation - block.first, index]
    if np.isnan(genome).all():
        # Too large to be stored for everybody: asked for again, from the state before its generation.
        state = driver.state_at(path, session, generation, api.start_state(path, session))
        ask = stream_key(session.spec.seed, generation, Stream.ASK)
        strategy = session.strategy
        genomes, _, _ = (jax.jit(strategy.ask) if strategy.traceable else strategy.ask)(ask, state)
        genome = np.asarray(genomes)[index]
    key = stream_key(session.spec.seed, generation, Stream.EVALUATE)
    # A whole population of the same genome: the same shapes, so the same program as in the run.
    genomes = np.repeat(genome[None], session.strategy.population, axis=0)
    if not isinstance(session.backend, HostCells):
        raw = session.backend.host(key, genomes)
    else:
        backend = HostCells(session.task, session.train, session.task.replicates)
        raw, _ = backend.host(generation, key, genomes[:1])
    scores = jax.tree.map(np.asarray, jax.jit(lambda r: settle(r, session.cells, session.task.objectives))(raw))
    loss, fitness = scores.loss[0], scores.fitness[0]
    # Behind a hurdle a copy of itself has other company: it may pass. What was not computed then has nothing to equal.
    staged = session.spec.hurdle is not None
    differing = [
        {**cell._asdict(), "stored": float(stored.loss[c]), "replayed": float(loss[c])}
        for c, cell in enumerate(session.cells)
        if stored.loss[c].tobytes() != loss[c].tobytes()
        and not (np.isnan(stored.loss[c]) and np.isnan(loss[c]))
        and (stored.evaluated[c] or not staged)
    ]
    stopped = staged and stored.failure == Failure.SKIPPED
    equal = not differing and (stopped or stored.fitness.tobytes() == fitness.tobytes())
    return {"equal": equal, "fitness": float(stored.fitness[0]), "replayed": float(fitness[0]), "differing": differing}
