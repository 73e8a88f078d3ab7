"""Staged evaluation: everybody is judged on a few domains, and on the rest only who passes that hurdle.

The hurdle is the first `domains` of the train split. Who passes: the best `keep` of the generation by their loss on
it, reduced as the task's first objective says (all candidates of a generation meet the same luck, so that is a
fair race), and, where `below` is given, only with a loss below it. The others keep the losses of the hurdle's cells;
all other cells are not evaluated, and they are `SKIPPED`: no strategy takes them for judged, none of them is viable.
Whoever fails on the hurdle failed.

A fitness is still one over all cells: it never mixes candidates that were judged on different domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.contract import Task
from evometa.errors import ConfigError
from evometa.evaluate.compiled import CompiledCells, Data
from evometa.evaluate.data import Loaded
from evometa.evaluate.plan import Plan
from evometa.evaluate.settle import Raw, reduce
from evometa.keys import cell_keys
from evometa.types import Failure


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


class StagedCells:
    """The cells of a JAX task behind a hurdle; in the place of `CompiledCells`, whose names it has."""

    def __init__(self, task: Task, loaded: Sequence[Loaded], plan: Plan, replicates: int, hurdle: Hurdle) -> None:
        self.task, self.replicates = task, replicates
        self.hurdle = hurdle.check([domain.name for domain in loaded])
        if task.space.static:
            names = ", ".join(column.name for column in task.space.static)
            raise ConfigError(f"hurdle: not with static columns ({names}), whose groups are compiled one by one")
        self.first = CompiledCells(task, loaded[: hurdle.domains], plan, replicates)
        self.rest = CompiledCells(task, loaded[hurdle.domains :], plan, replicates)
        self.names = (*self.first.names, *self.rest.names)
        self.cells = (*self.first.cells, *self.rest.cells)  # C runs over domains first: see compiled.layout
        self.metrics = tuple(sorted({*self.first.metrics, *self.rest.metrics}))
        self.data: tuple[Data, Data] = (self.first.data, self.rest.data)
        self._jitted = jax.jit(self.evaluate)

    @property
    def plan(self) -> Plan:
        """How both stages are cut into chunks."""
        return self.first.plan

    def evaluate(self, key: Any, genomes: Any, data: tuple[Data, Data]) -> Raw:
        """Raw cells of genomes `[P, D]`, those of the rest not evaluated where the hurdle was not passed; traceable."""
        keys = cell_keys(key, self.names, self.replicates)
        count = len(self.first.names)
        one = self.first.evaluate_keys(keys[:count], genomes, data[0])
        failed = (one.failure != jnp.int8(Failure.OK)) | (one.evaluated & ~jnp.isfinite(one.loss)).any(axis=1)
        passes = self.hurdle.passing(reduce(one.loss, self.first.cells, self.task.objectives[0]), failed)
        two = self.rest.evaluate_keys(keys[count:], genomes, data[1], wanted=passes)
        stopped = jnp.where(failed, jnp.int8(Failure.OK), jnp.int8(Failure.SKIPPED))  # what failed, settle sees
        failure = jnp.where(one.failure != jnp.int8(Failure.OK), one.failure, jnp.where(passes, two.failure, stopped))
        joined = {
            name: jnp.concatenate(
                [
                    part.metrics[name] if name in part.metrics else jnp.full(part.loss.shape, jnp.nan, jnp.float32)
                    for part in (one, two)
                ],
                axis=1,
            )
            for name in self.metrics
        }
        return Raw(
            jnp.concatenate([one.loss, two.loss], axis=1), joined,
            jnp.concatenate([one.evaluated, two.evaluated], axis=1), failure.astype(jnp.int8),
        )  # fmt: skip

    def host(self, key: Any, genomes: np.ndarray) -> Raw:
        """Raw cells as NumPy, outside any compiled loop."""
        return jax.tree.map(np.asarray, self._jitted(key, jnp.asarray(genomes), self.data))

    def cost(self) -> Any:
        """What one candidate that passes costs: all its cells together."""
        one, two = self.first.cost(), self.rest.cost()
        return type(one)(one.flops + two.flops, max(one.live_bytes, two.live_bytes))

    def replan(self, plan: Plan) -> StagedCells:
        """The same cells under another plan."""
        self.first.replan(plan)
        self.rest.replan(plan)
        return self
