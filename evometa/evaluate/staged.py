"""Staged evaluation: everybody is judged on a few domains, and on the rest only who passes that hurdle.

The hurdle is the first `domains` of the train split. Who passes: the best `keep` of the generation by their loss on
it, reduced as the task's first objective says (all candidates of a generation meet the same luck, so that is a
fair race), and, where `below` is given, only with a loss below it. The others keep the losses of the hurdle's cells;
all other cells are not evaluated, and they are `SKIPPED`: no strategy takes them for judged, none of them is viable.
Whoever fails on the hurdle failed.

A fitness is still one over all cells: it never mixes candidates that were judged on different domains.

The decision is one small program (`decide`), whoever computes the cells: compiled blocks, this process or a pool's
workers. So it is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.contract import Objective, Task
from evometa.errors import ConfigError
from evometa.evaluate.compiled import CompiledCells, Data
from evometa.evaluate.data import Loaded
from evometa.evaluate.plan import Plan
from evometa.evaluate.settle import Raw, reduce
from evometa.keys import cell_keys
from evometa.types import Cell, Failure


class Hurdle(NamedTuple):
    """`domains`: how many, from the first on; `keep`: the share that passes; `below`: the loss it must be below."""

    domains: int
    keep: float = 0.5
    below: float | None = None

    def check(self, train: Sequence[str]) -> Hurdle:
        """Itself. Raises `ConfigError` where it leaves nothing to save, or out of range."""
        if not 1 <= self.domains < len(train):
            raise ConfigError(
                f"hurdle: expected 1 to {len(train) - 1} of the {len(train)} train domains, got {self.domains}."
                " The rest is what a failed hurdle saves"
            )
        if not 0.0 < self.keep <= 1.0 or (self.below is not None and not np.isfinite(self.below)):
            raise ConfigError(f"hurdle: expected 0 < keep <= 1 and a finite below, got {self.keep} and {self.below}")
        if self.keep == 1.0 and self.below is None:
            raise ConfigError("hurdle: keep = 1 lets everybody pass. Try keep = 0.5, or give below")
        return self

    def passing(self, loss: Any, failed: Any) -> Any:
        """`[P]` bool: who passes with these losses on the hurdle `[P]`; nobody that failed. Traceable."""
        there = jnp.isfinite(loss) & ~failed
        count = max(1, round(self.keep * loss.shape[0]))
        order = jnp.argsort(jnp.where(there, loss, jnp.inf), stable=True)
        rank = jnp.zeros(loss.shape[0], jnp.int32).at[order].set(jnp.arange(loss.shape[0], dtype=jnp.int32))
        passes = there & (rank < count)
        return passes if self.below is None else passes & (loss < self.below)


@partial(jax.jit, static_argnames=("hurdle", "cells", "objective"))
def decide(one: Raw, hurdle: Hurdle, cells: tuple[Cell, ...], objective: Objective) -> tuple[Any, Any]:
    """Who passes and who failed `[P]`, by the raw cells of the hurdle `[P, C]`; traceable.

    Fenced off from what is compiled around it, which could round a loss in another way, and turn a rank with it.
    """
    loss, evaluated, failure = jax.lax.optimization_barrier((one.loss, one.evaluated, one.failure))
    failed = (failure != jnp.int8(Failure.OK)) | (evaluated & ~jnp.isfinite(loss)).any(axis=1)
    return jax.lax.optimization_barrier((hurdle.passing(reduce(loss, cells, objective), failed), failed))


def judge_behind(
    hurdle: Hurdle, one: Raw, rest: Callable[[Any], Raw], cells: Sequence[Cell], objective: Objective
) -> Raw:
    """Raw cells of both stages `[P, C]`, the hurdle's first; traceable.

    `one`: those of the hurdle, whose cells are `cells`; `rest(passes)`: those of the others, where only the rows
    that pass (`[P]` bool) have any meaning.
    """
    passes, failed = decide(one._replace(metrics={}), hurdle=hurdle, cells=tuple(cells), objective=objective)
    two = rest(passes)
    stopped = jnp.where(failed, jnp.int8(Failure.OK), jnp.int8(Failure.SKIPPED))  # what failed, settle sees
    failure = jnp.where(one.failure != jnp.int8(Failure.OK), one.failure, jnp.where(passes, two.failure, stopped))
    here = passes[:, None]
    absent = [jnp.full(part.loss.shape, jnp.nan, jnp.float32) for part in (one, two)]
    metrics = {
        name: jnp.concatenate(
            [one.metrics.get(name, absent[0]), jnp.where(here, two.metrics.get(name, absent[1]), jnp.nan)], axis=1
        )
        for name in sorted({*one.metrics, *two.metrics})
    }
    return Raw(
        jnp.concatenate([one.loss, jnp.where(here, two.loss, jnp.nan)], axis=1),
        metrics,
        jnp.concatenate([one.evaluated, two.evaluated & here], axis=1),
        failure.astype(jnp.int8),
    )


class StagedCells:
    """The cells of a JAX task behind a hurdle; in the place of `CompiledCells`, whose names it has."""

    def __init__(self, task: Task, loaded: Sequence[Loaded], plan: Plan, replicates: int, hurdle: Hurdle) -> None:
        self.task, self.replicates = task, replicates
        self.hurdle = hurdle.check([domain.name for domain in loaded])
        self.first = CompiledCells(task, loaded[: hurdle.domains], plan, replicates)
        self.rest = CompiledCells(task, loaded[hurdle.domains :], plan, replicates)
        self.names = (*self.first.names, *self.rest.names)
        self.cells = (*self.first.cells, *self.rest.cells)  # C runs over domains first: see compiled.layout
        self.metrics = tuple(sorted({*self.first.metrics, *self.rest.metrics}))
        self.data: tuple[Data, Data] = (self.first.data, self.rest.data)

    @property
    def plan(self) -> Plan:
        """How both stages are cut into chunks."""
        return self.first.plan

    def evaluate(self, key: Any, genomes: Any, data: tuple[Data, Data]) -> Raw:
        """Raw cells of genomes `[P, D]`, those of the rest not evaluated where the hurdle was not passed; traceable."""
        keys, count = cell_keys(key, self.names, self.replicates), len(self.first.names)
        one = self.first.evaluate_keys(keys[:count], genomes, data[0])
        return self.behind(one, lambda passes: self.rest.evaluate_keys(keys[count:], genomes, data[1], wanted=passes))

    def behind(self, one: Raw, rest: Callable[[Any], Raw]) -> Raw:
        """Both stages' raw cells, whoever computes them: see `judge_behind`."""
        return judge_behind(self.hurdle, one, rest, self.first.cells, self.task.objectives[0])

    def host(self, key: Any, genomes: np.ndarray) -> Raw:
        """Raw cells as NumPy, outside any compiled loop; candidates are grouped by their static columns."""
        keys, count = cell_keys(key, self.names, self.replicates), len(self.first.names)
        one = self.first.host_keys(keys[:count], genomes)
        return jax.tree.map(
            np.asarray,
            self.behind(one, lambda passes: self.rest.host_keys(keys[count:], genomes, np.asarray(passes))),
        )

    def cost(self) -> Any:
        """What one candidate that passes costs: all its cells together."""
        one, two = self.first.cost(), self.rest.cost()
        return type(one)(one.flops + two.flops, max(one.live_bytes, two.live_bytes))

    def replan(self, plan: Plan) -> StagedCells:
        """The same cells under another plan."""
        self.first.replan(plan)
        self.rest.replan(plan)
        return self
