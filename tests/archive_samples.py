"""Blocks, cells and runs for the archive's tests and benchmark: made up, and a function of their numbers only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from evometa.archives import rows, schema, write
from evometa.space import Space, categorical, integer, log, real, weights
from evometa.types import Block, Cell, Failure, Scores

SPACE = Space(
    {
        "lr": log(1e-4, 1.0),
        "net": {"width": integer(8, 64)},
        "act": categorical(["relu", "tanh", "gelu"]),
        "momentum": real(0.0, 0.99),
        "w": weights((4,)),
    }
)
OTHER_SPACE = Space({"lr": log(1e-3, 1.0), "decay": real(0.0, 0.1)})
OPERATORS = ("initial", "mutation", "crossover")
SEED = (7 << 32) + 5


def make_cells(count: int) -> list[Cell]:
    """`count` train cells, three replicates for each domain."""
    return [Cell(f"world-{i // 3}", "away", "train", i % 3) for i in range(count)]


def make_block(
    first: int,
    generations: int = 1,
    population: int = 8,
    cells: int = 6,
    parents: int = 2,
    dimension: int = SPACE.dimension,
    objectives: int = 1,
) -> Block:
    """A block that holds every case: a failed candidate, NaN losses, cells left out, orphans, a message.

    Generation g is the same whatever block it comes in.
    """
    shape = (generations, population)
    draws = [np.random.default_rng([first + g, population]) for g in range(generations)]
    loss = np.stack([draw.random((population, cells), np.float32) for draw in draws])
    evaluated = np.ones((*shape, cells), bool)
    evaluated[:, ::5, -1] = False
    loss[~evaluated] = np.nan
    loss[:, 1, 0] = np.nan
    fitness = np.stack([draw.random((population, objectives), np.float32) for draw in draws])
    fitness[:, 1] = np.inf
    failure = np.zeros(shape, np.int8)
    failure[:, 1] = Failure.NONFINITE
    links = np.full((*shape, parents, 2), -1, np.int32)
    for g, draw in enumerate(draws):
        if first + g > 0:
            links[g, :, :, 0] = draw.integers(max(0, first + g - 3), first + g, (population, parents))
            links[g, :, :, 1] = draw.integers(0, population, (population, parents))
            links[g, ::3, 1:] = -1
    metrics = {"support_loss": loss * 0.5, "inner_steps": np.full((*shape, cells), 50, np.int32), "accuracy": 1 - loss}
    genomes = np.stack([draw.random((population, dimension), np.float32) for draw in draws])
    descriptor = np.stack([draw.random((population, 2), np.float32) for draw in draws])
    messages = {(first + g, 1): "loss is NaN" for g in range(generations)}
    return Block(first, genomes, links, Scores(loss, evaluated, fitness, descriptor, failure, metrics), messages)


def make_table(block: Block, run: str = "x", space: Space = SPACE):
    """The lineage rows of a block."""
    return rows.lineage_table(run, block, make_cells(block.scores.loss.shape[-1]), space, OPERATORS, SEED)


def make_run(
    root: Path, name: str = "x", blocks: int = 4, generations: int = 2, space: Space = SPACE, **options
) -> Path:
    """A run of `blocks` parts under `root`; returns its folder."""
    run = root / name
    write.write_once(run / "run.json", json.dumps({"format": "1.0", "schema_digest": schema.digest()}).encode())
    for number in range(blocks):
        block = make_block(number * generations, generations, dimension=space.dimension, **options)
        write.commit(run / "lineage", make_table(block, name, space), block.first)
    return run
